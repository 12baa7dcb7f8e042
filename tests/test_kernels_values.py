"""The critic's loss, the group's return-to-go as a baseline and the KL coefficient: by hand, by loops, by identities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stepreward.kernels import (
    adaptive_kl_coefficient,
    clipped_value_loss,
    explained_variance,
    leave_one_out_return_to_go,
    return_to_go,
    rloo,
)

CLOSE = dict(atol=1e-6, rtol=0)
SHAPE = (6, 9)
rng = np.random.default_rng(0)
MASK = rng.random(SHAPE) < 0.6
VALUE, OLD, RETURNS = rng.normal(size=SHAPE), rng.normal(size=SHAPE), rng.normal(size=SHAPE)


def hide(x, mask=MASK):
    """Converts to float32 with NaN at masked entries, which must not be read."""
    return jnp.asarray(np.where(mask, x, np.nan), jnp.float32)


ARRAYS = (hide(VALUE), hide(OLD), hide(RETURNS), jnp.asarray(MASK))


def test_value_loss_literal():
    # V within the clip; V moved .5 towards G, clipped to .2; V moved .5 away from G, where the unclipped error is larger.
    value, old = jnp.array([[0.1, 0.5, 0.5, 9.0]]), jnp.array([[0.0, 0.0, 0.0, 9.0]])
    returns, mask = jnp.array([[1.0, 1.0, -1.0, 0.0]]), jnp.array([[1, 1, 1, 0]], bool)
    loss, metrics = clipped_value_loss(value, old, returns, mask)
    np.testing.assert_allclose(loss, 0.5 * (0.81 + 0.64 + 2.25) / 3, **CLOSE)
    np.testing.assert_allclose(metrics["value_clip_fraction"], 1 / 3, **CLOSE)
    np.testing.assert_allclose(metrics["value_error"], (0.81 + 0.25 + 2.25) / 3, **CLOSE)


@pytest.mark.parametrize("clip", [0.2, 1.0, None])
def test_value_loss_against_a_loop(clip):
    losses, errors, clipped = [], [], 0
    for r, l in zip(*np.nonzero(MASK)):
        v, old, target = VALUE[r, l], OLD[r, l], RETURNS[r, l]
        errors.append((v - target) ** 2)
        near = v if clip is None else min(max(v, old - clip), old + clip)
        losses.append(max(errors[-1], (near - target) ** 2) / 2)
        clipped += (near - target) ** 2 > errors[-1]
    loss, metrics = clipped_value_loss(*ARRAYS, clip=clip)
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-5)
    np.testing.assert_allclose(metrics["value_error"], np.mean(errors), rtol=1e-5)
    np.testing.assert_allclose(metrics["value_clip_fraction"], clipped / MASK.sum(), rtol=1e-6)


def test_without_a_clip_the_value_loss_is_half_the_mean_squared_error():
    loss, metrics = clipped_value_loss(*ARRAYS, clip=None)
    np.testing.assert_allclose(loss, 0.5 * ((VALUE - RETURNS)[MASK] ** 2).mean(), rtol=1e-6)
    assert metrics["value_clip_fraction"] == 0


def test_gradient_of_the_value_loss():
    """Only unmasked values whose unclipped error is the larger one have a gradient; the targets never have."""
    loss = lambda value, returns: clipped_value_loss(value, ARRAYS[1], returns, ARRAYS[3])[0]
    gradient, to_returns = map(np.asarray, jax.grad(loss, argnums=(0, 1))(ARRAYS[0], ARRAYS[2]))
    near = np.clip(VALUE, OLD - 0.2, OLD + 0.2)
    own = (VALUE - RETURNS) ** 2 >= (near - RETURNS) ** 2
    expected = np.where(MASK & own, (VALUE - RETURNS) / MASK.sum(), 0.0)
    np.testing.assert_allclose(gradient, expected, atol=1e-6)
    assert not gradient[~MASK].any() and not to_returns.any()
    assert gradient[MASK & own].all() and (MASK & ~own).any()


def test_jit_equals_eager():
    run = lambda *arrays: (clipped_value_loss(*arrays), explained_variance(arrays[0], arrays[2], arrays[3]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), jax.jit(run)(*ARRAYS), run(*ARRAYS))


def test_micro_batches_add_up_to_the_mini_batch():
    step = jax.value_and_grad(
        lambda value, part, denominator: clipped_value_loss(value[part], *(x[part] for x in ARRAYS[1:]), denominator=denominator),
        has_aux=True,
    )
    whole, gradient = step(ARRAYS[0], jnp.arange(6), None)
    parts = [step(ARRAYS[0], jnp.array(part), MASK.sum()) for part in ([4, 0], [3, 1], [5, 2])]
    np.testing.assert_allclose(sum(p[1] for p in parts), gradient, atol=1e-6)
    total = jax.tree.map(lambda *x: sum(x), *(p[0] for p in parts))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), total, whole)


@pytest.mark.parametrize("shape", [SHAPE, (0, 9), (6, 0)])
def test_an_empty_batch_has_loss_zero(shape):
    nothing, mask = jnp.full(shape, jnp.nan), jnp.zeros(shape, bool)
    (loss, metrics), gradient = jax.value_and_grad(clipped_value_loss, has_aux=True)(nothing, nothing, nothing, mask)
    assert loss == 0 and not np.asarray(gradient).any() and all(value == 0 for value in metrics.values())
    assert explained_variance(nothing, nothing, mask) == 0


@pytest.mark.parametrize(
    "value, expected",
    [([1.0, 2.0, 3.0], 1.0), ([6.0, 7.0, 8.0], 1.0), ([0.0, 0.0, 0.0], 0.0), ([3.0, 2.0, 1.0], -3.0), ([1.0, 2.0, 2.0], 2 / 3)],
)
def test_explained_variance_literal(value, expected):
    # The returns 1, 2, 3 have variance 2/3; the fourth entry is masked.
    returns, mask = jnp.array([1.0, 2.0, 3.0, jnp.nan]), jnp.array([1, 1, 1, 0], bool)
    np.testing.assert_allclose(explained_variance(jnp.array([*value, jnp.nan]), returns, mask), expected, **CLOSE)


@pytest.mark.parametrize("constant", [0.1, 0.3, 10.3, -0.7])
def test_equal_returns_have_no_variance_to_explain(constant):
    # These constants are not binary fractions, so the mean of seven of them is rounded; that must not count as variance.
    value = jnp.arange(7.0)
    assert explained_variance(value, jnp.full(7, constant), jnp.ones(7, bool)) == 0


def test_explained_variance_against_numpy():
    error = (RETURNS - VALUE)[MASK]
    np.testing.assert_allclose(explained_variance(ARRAYS[0], ARRAYS[2], ARRAYS[3]), 1 - error.var() / RETURNS[MASK].var(), rtol=1e-5)


STEPS = np.array([3, 1, 5, 2, 4, 0, 2, 3])
STEP_MASK = np.arange(5) < STEPS[:, None]
GROUP = np.array([0, 0, 0, 4, 4, 4, 6, 0])
COUNTED = STEPS > 0
COUNTED[7] = False  # failed
STEP_MASK &= COUNTED[:, None]
TO_GO = rng.normal(size=STEP_MASK.shape)


def test_leave_one_out_return_to_go_literal():
    # Episode 1 ends after its first step; from then on it enters the baseline of the others with 0.
    returns = jnp.array([[1.0, 2.0], [4.0, 9.0], [3.0, 6.0], [5.0, 5.0]])
    mask = jnp.array([[1, 1], [1, 0], [1, 1], [1, 1]], bool)
    advantage = leave_one_out_return_to_go(returns, jnp.array([0, 0, 0, 1]), mask, jnp.ones(4, bool))
    np.testing.assert_allclose(advantage, [[1 - 3.5, 2 - 3.0], [4 - 2.0, 0.0], [3 - 2.5, 6 - 1.0], [0, 0]], **CLOSE)


def test_leave_one_out_return_to_go_against_a_loop():
    advantage = leave_one_out_return_to_go(hide(TO_GO, STEP_MASK), GROUP, STEP_MASK, COUNTED)
    expected = np.zeros(STEP_MASK.shape)
    for i, t in zip(*np.nonzero(STEP_MASK)):
        others = [j for j in range(len(STEPS)) if j != i and GROUP[j] == GROUP[i] and COUNTED[j]]
        if others:
            expected[i, t] = TO_GO[i, t] - np.mean([TO_GO[j, t] if STEP_MASK[j, t] else 0.0 for j in others])
    assert expected.any()
    np.testing.assert_allclose(advantage, expected, atol=1e-5)


def test_leave_one_out_return_to_go_compiles_and_has_finite_gradients():
    function = lambda x: leave_one_out_return_to_go(x, GROUP, STEP_MASK, COUNTED)
    hidden = hide(TO_GO, STEP_MASK)
    np.testing.assert_allclose(jax.jit(function)(hidden), function(hidden), atol=1e-6)
    gradient = np.asarray(jax.grad(lambda x: (function(x) ** 2).sum())(hidden))
    assert np.isfinite(gradient).all() and not gradient[~STEP_MASK].any() and gradient.any()


def test_leave_one_out_return_to_go_of_nothing_is_zero():
    mask = np.zeros_like(STEP_MASK)
    result = leave_one_out_return_to_go(jnp.full(mask.shape, jnp.nan), GROUP, mask, np.zeros_like(COUNTED))
    assert result.shape == mask.shape and not np.asarray(result).any()


@pytest.mark.parametrize("discount", [1.0, 0.9])
def test_leave_one_out_return_to_go_of_one_step_is_rloo(discount):
    outcome = jnp.asarray(rng.normal(size=8), jnp.float32)
    mask = np.arange(5) < COUNTED[:, None]
    reward = hide(np.broadcast_to(np.asarray(outcome)[:, None], mask.shape), mask)
    advantage = leave_one_out_return_to_go(return_to_go(reward, mask, discount), GROUP, mask, COUNTED)
    np.testing.assert_allclose(advantage[:, 0], rloo(outcome, GROUP, COUNTED), atol=1e-6)
    assert not np.asarray(advantage)[:, 1:].any()


@pytest.mark.parametrize(
    "kl, factor",
    [(12.0, 0.2), (1e9, 0.2), (0.0, -0.2), (-5.0, -0.2), (6.0, 0.0), (6.6, 0.1), (5.4, -0.1)],
)
def test_adaptive_kl_coefficient(kl, factor):
    coefficient = adaptive_kl_coefficient(0.3, kl, target=6.0, horizon=10000, episodes=32)
    assert coefficient == pytest.approx(0.3 * (1 + factor * 32 / 10000), rel=1e-12)


def test_adaptive_kl_coefficient_changes_by_a_fifth_over_the_horizon():
    assert adaptive_kl_coefficient(2.0, 1e9, target=6.0, horizon=10, episodes=10) == pytest.approx(2.4)
    assert adaptive_kl_coefficient(2.0, 0.0, target=6.0, horizon=10, episodes=10) == pytest.approx(1.6)
    assert adaptive_kl_coefficient(0.0, 50.0, target=6.0, horizon=10, episodes=10) == 0


def test_wrong_arguments_are_errors():
    for bad in (dict(target=0.0, horizon=10), dict(target=-1.0, horizon=10), dict(target=6.0, horizon=0)):
        with pytest.raises(ValueError, match="target and horizon must be positive"):
            adaptive_kl_coefficient(0.3, 1.0, episodes=1, **bad)
    x, mask, group = jnp.zeros((2, 3)), jnp.ones((2, 3), bool), jnp.zeros(2, jnp.int32)
    for call in (
        lambda: clipped_value_loss(x, x, x[:, :2], mask),
        lambda: clipped_value_loss(x[0], x[0], x[0], mask[0]),
        lambda: explained_variance(x, x[:1], mask),
        lambda: leave_one_out_return_to_go(x[0], group, mask, mask[:, 0]),
        lambda: leave_one_out_return_to_go(x, x, mask, mask[:, 0]),
    ):
        with pytest.raises(AssertionError):
            call()
