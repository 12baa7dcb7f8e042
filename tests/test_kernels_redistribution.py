"""Redistribution kernels on hand-computed numbers, against loops, and by their identities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stepreward.kernels import (
    bag_sum_loss,
    contribution_sum_loss,
    potential_differences,
    return_prediction_loss,
    spread_residual,
    steps_to_go,
)

CLOSE = dict(atol=1e-6, rtol=0)
STEPS = np.array([3, 5, 0, 1, 4, 2])  # number of steps in each episode; the third has none
MASK = np.arange(5) < STEPS[:, None]
COUNTED = [e for e, steps in enumerate(STEPS) if steps]
rng = np.random.default_rng(0)
X, REWARD, OUTCOME = rng.normal(size=MASK.shape), rng.normal(size=MASK.shape), rng.normal(size=len(MASK))


def hide(x, mask=MASK):
    """Converts to float32 with NaN at masked entries, which must not be read."""
    return jnp.asarray(np.where(mask, x, np.nan), jnp.float32)


HIDDEN = {"x": hide(X), "reward": hide(REWARD), "outcome": hide(OUTCOME, STEPS > 0)}

LOSSES = {
    "sum": lambda x, reward, outcome, mask: contribution_sum_loss(x, outcome, mask),
    "bags-0": lambda x, reward, outcome, mask: bag_sum_loss(x, reward, mask, bag_size=0),
    "bags-1": lambda x, reward, outcome, mask: bag_sum_loss(x, reward, mask, bag_size=1),
    "bags-2": lambda x, reward, outcome, mask: bag_sum_loss(x, reward, mask, bag_size=2),
    "bags-3": lambda x, reward, outcome, mask: bag_sum_loss(x, reward, mask, bag_size=3),
    "prediction": lambda x, reward, outcome, mask: return_prediction_loss(x, outcome, mask),
    "prediction-last": lambda x, reward, outcome, mask: return_prediction_loss(x, outcome, mask, every_step=0.0),
}
REWARDS = {
    "differences": lambda x, outcome, mask: potential_differences(x, mask),
    "none": lambda x, outcome, mask: spread_residual(x, outcome, mask, "none"),
    "last": lambda x, outcome, mask: spread_residual(x, outcome, mask, "last"),
    "uniform": lambda x, outcome, mask: spread_residual(x, outcome, mask),
    "to_go": lambda x, outcome, mask: steps_to_go(mask),
}


def bag_loop(size):
    errors = []
    for e, steps in enumerate(STEPS):
        for start in range(0, steps, size):
            bag = slice(start, min(start + size, steps))
            errors.append((X[e, bag].sum() - REWARD[e, bag].sum()) ** 2)
    return np.mean(errors)


def prediction_loop(every_step):
    each = []
    for e in COUNTED:
        errors = [(X[e, t] - OUTCOME[e]) ** 2 for t in range(STEPS[e])]
        each.append(errors[-1] + every_step * sum(errors) / len(errors))
    return np.mean(each)


def rewards_loop(name):
    result = np.zeros(MASK.shape)
    for e, steps in enumerate(STEPS):
        missing = OUTCOME[e] - sum(X[e, t] for t in range(steps))
        for t in range(steps):
            result[e, t] = {
                "differences": X[e, t] - (X[e, t - 1] if t else 0.0),
                "none": X[e, t],
                "last": X[e, t] + (missing if t == steps - 1 else 0.0),
                "uniform": X[e, t] + missing / steps,
                "to_go": steps - t - 1,
            }[name]
    return result


def test_contribution_sum_literal():
    contribution, outcome, mask = jnp.array([[0.2, 0.3, 0.3]]), jnp.array([1.0]), jnp.ones((1, 3), bool)
    loss, gradient = jax.value_and_grad(contribution_sum_loss)(contribution, outcome, mask)
    np.testing.assert_allclose(loss, 0.04, **CLOSE)
    np.testing.assert_allclose(gradient, [[-0.4, -0.4, -0.4]], **CLOSE)


def test_bag_sum_literal():
    one_bag = bag_sum_loss(jnp.array([[0.3, 0.5]]), jnp.array([[0.0, 1.0]]), jnp.ones((1, 2), bool), bag_size=2)
    np.testing.assert_allclose(one_bag, 0.04, **CLOSE)
    # One bag has steps 0 and 1, the other only step 2, whose reward is 0: the sums are .8 (target 1) and .2 (target 0).
    contribution, reward = jnp.array([[0.3, 0.5, 0.2, 9.0]]), jnp.array([[0.0, 1.0, 0.0, 9.0]])
    loss = bag_sum_loss(contribution, reward, jnp.array([[1, 1, 1, 0]], bool), bag_size=2)
    np.testing.assert_allclose(loss, (0.04 + 0.04) / 2, **CLOSE)


def test_return_prediction_literal():
    prediction, outcome, mask = jnp.array([[0.2, 0.7, 0.6]]), jnp.array([1.0]), jnp.ones((1, 3), bool)
    every = (0.64 + 0.09 + 0.16) / 3
    for weight in (0.0, 0.5, 2.0):
        loss = return_prediction_loss(prediction, outcome, mask, every_step=weight)
        np.testing.assert_allclose(loss, 0.16 + weight * every, **CLOSE)


@pytest.mark.parametrize(
    "residual, expected", [("none", [0.2, 0.5, -0.1]), ("last", [0.2, 0.5, 0.3]), ("uniform", [1 / 3, 19 / 30, 1 / 30])]
)
def test_return_decomposition_literal(residual, expected):
    mask = jnp.ones((1, 3), bool)
    differences = potential_differences(jnp.array([[0.2, 0.7, 0.6]]), mask)
    np.testing.assert_allclose(spread_residual(differences, jnp.array([1.0]), mask, residual), [expected], **CLOSE)


def test_progress_differences_literal():
    # The progress is 0 before the first step, then .5, .25 and 1.
    differences = potential_differences(jnp.array([[0.5, 0.25, 1.0]]), jnp.ones((1, 3), bool))
    np.testing.assert_allclose(differences, [[0.5, -0.25, 0.75]], **CLOSE)


def test_steps_to_go_literal():
    to_go = steps_to_go(jnp.array([[1, 1, 1], [1, 0, 0], [0, 0, 0]], bool))
    np.testing.assert_array_equal(to_go, [[2, 1, 0], [0, 0, 0], [0, 0, 0]])
    np.testing.assert_allclose(to_go[0] * jnp.array([0.2, 0.3, 0.3]), [0.4, 0.3, 0.0], **CLOSE)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_against_a_loop(name):
    expected = {
        "sum": lambda: np.mean([(X[e, : STEPS[e]].sum() - OUTCOME[e]) ** 2 for e in COUNTED]),
        "bags-0": lambda: bag_loop(5),
        "bags-1": lambda: bag_loop(1),
        "bags-2": lambda: bag_loop(2),
        "bags-3": lambda: bag_loop(3),
        "prediction": lambda: prediction_loop(0.5),
        "prediction-last": lambda: prediction_loop(0.0),
    }[name]()
    np.testing.assert_allclose(LOSSES[name](**HIDDEN, mask=MASK), expected, rtol=1e-5)


@pytest.mark.parametrize("name", REWARDS)
def test_rewards_against_a_loop(name):
    rewards = REWARDS[name](HIDDEN["x"], HIDDEN["outcome"], MASK)
    assert rewards.dtype == jnp.float32
    np.testing.assert_allclose(rewards, rewards_loop(name), atol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_of_losses(name):
    """Jit and eager agree, masked entries have zero gradient, and the others equal finite differences."""
    loss = lambda x, mask: LOSSES[name](x, HIDDEN["reward"], HIDDEN["outcome"], mask)
    gradient = jax.grad(loss)(HIDDEN["x"], MASK)
    value, compiled = jax.jit(jax.value_and_grad(loss))(HIDDEN["x"], MASK)
    np.testing.assert_allclose(value, loss(HIDDEN["x"], MASK), rtol=1e-6)
    np.testing.assert_allclose(compiled, gradient, atol=1e-6)
    gradient = np.asarray(gradient)
    assert np.isfinite(gradient).all() and not gradient[~MASK].any() and gradient.any()
    direction, size = np.where(MASK, rng.normal(size=MASK.shape), 0.0), 1e-2
    up, down = (loss(HIDDEN["x"] + sign * size * direction, MASK) for sign in (1, -1))
    np.testing.assert_allclose((up - down) / (2 * size), (gradient * direction).sum(), atol=2e-3)


@pytest.mark.parametrize("name", REWARDS)
def test_rewards_compile_and_have_finite_gradients(name):
    if name != "to_go":
        weighted = lambda x: (REWARDS[name](x, HIDDEN["outcome"], MASK) ** 2).sum()
        gradient = np.asarray(jax.grad(weighted)(HIDDEN["x"]))
        assert np.isfinite(gradient).all() and not gradient[~MASK].any() and gradient.any()
    eager = REWARDS[name](HIDDEN["x"], HIDDEN["outcome"], MASK)
    np.testing.assert_allclose(jax.jit(REWARDS[name])(HIDDEN["x"], HIDDEN["outcome"], MASK), eager, atol=1e-6)


@pytest.mark.parametrize("shape", [(6, 5), (0, 5), (6, 0)])
def test_an_empty_batch_has_loss_zero(shape):
    nothing, of_episode, mask = jnp.full(shape, jnp.nan), jnp.full(shape[0], jnp.nan), jnp.zeros(shape, bool)
    for name, loss in LOSSES.items():
        value, gradient = jax.value_and_grad(loss)(nothing, nothing, of_episode, mask)
        assert value == 0 and not np.asarray(gradient).any(), name
    for name, rewards in REWARDS.items():
        result = rewards(nothing, of_episode, mask)
        assert result.shape == shape and not np.asarray(result).any(), name


@pytest.mark.parametrize("bag_size", [0, 5, 6, 100])
def test_one_bag_an_episode_is_the_sum_of_contributions(bag_size):
    last = MASK & (np.arange(5) == STEPS[:, None] - 1)
    outcome_at_last = hide(np.where(last, OUTCOME[:, None], 0.0))
    bags = jax.value_and_grad(bag_sum_loss)(HIDDEN["x"], outcome_at_last, MASK, bag_size=bag_size)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
        bags,
        jax.value_and_grad(contribution_sum_loss)(HIDDEN["x"], HIDDEN["outcome"], MASK),
    )


def test_bags_of_one_step_are_the_squared_error_of_each_step():
    loss = bag_sum_loss(HIDDEN["x"], HIDDEN["reward"], MASK, bag_size=1)
    np.testing.assert_allclose(loss, ((X - REWARD)[MASK] ** 2).mean(), rtol=1e-6)


def test_contributions_of_an_episode_share_one_gradient():
    gradient = np.asarray(jax.grad(contribution_sum_loss)(HIDDEN["x"], HIDDEN["outcome"], MASK))
    for e in COUNTED:
        error = X[e, : STEPS[e]].sum() - OUTCOME[e]
        np.testing.assert_allclose(gradient[e, : STEPS[e]], 2 * error / len(COUNTED), rtol=1e-5)


def test_differences_telescope_to_the_last_potential():
    expected = [X[e, steps - 1] if steps else 0.0 for e, steps in enumerate(STEPS)]
    np.testing.assert_allclose(potential_differences(HIDDEN["x"], MASK).sum(axis=1), expected, atol=1e-6)


@pytest.mark.parametrize("how", ["last", "uniform"])
def test_with_the_residual_rewards_sum_to_the_outcome(how):
    sums = spread_residual(HIDDEN["x"], HIDDEN["outcome"], MASK, how).sum(axis=1)
    np.testing.assert_allclose(sums, np.where(STEPS > 0, OUTCOME, 0.0), atol=1e-6)


def test_wrong_arguments_are_errors():
    x, outcome, mask = jnp.zeros((2, 3)), jnp.zeros(2), jnp.ones((2, 3), bool)
    with pytest.raises(ValueError, match="bag_size must be at least 0, not -1"):
        bag_sum_loss(x, x, mask, bag_size=-1)
    with pytest.raises(ValueError, match="'none', 'last', 'uniform'.*not 'first'"):
        spread_residual(x, outcome, mask, "first")
    for call in (
        lambda: bag_sum_loss(x, x[:, :2], mask, bag_size=1),
        lambda: bag_sum_loss(x[0], x[0], mask[0], bag_size=1),
        lambda: potential_differences(x, mask[:1]),
        lambda: spread_residual(x[:1], outcome, mask),
        lambda: return_prediction_loss(x[0], outcome, mask),
        lambda: steps_to_go(mask[0]),
    ):
        with pytest.raises(AssertionError):
            call()
