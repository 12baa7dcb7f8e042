"""Levels, masked statistics and group statistics, compared with plain loops and under masks that hide NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stepreward.kernels import (
    group_normalise,
    group_statistics,
    group_sum,
    masked_mean,
    masked_std,
    masked_var,
    masked_whiten,
    steps_to_tokens,
    token_stream,
    tokens_to_steps,
)

E, S, R, L = 4, 3, 6, 9


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def step_id(rng):
    return rng.integers(-1, E * S - 1, (R, L)).astype(np.int32)  # the last step has no token


def test_tokens_to_steps_is_a_segment_sum(rng, step_id):
    x = rng.normal(size=(R, L)).astype(np.float32)
    expected = np.zeros(E * S)
    for r in range(R):
        for l in range(L):
            if step_id[r, l] >= 0:
                expected[step_id[r, l]] += x[r, l]
    hidden = np.where(step_id < 0, np.nan, x)
    for array in (x, hidden):
        np.testing.assert_allclose(tokens_to_steps(array, step_id, E, S), expected.reshape(E, S), atol=1e-5)
    counts = tokens_to_steps(jnp.ones((R, L), bool), step_id, E, S)
    np.testing.assert_array_equal(counts.ravel(), np.bincount(step_id[step_id >= 0], minlength=E * S))


def test_steps_to_tokens_is_a_gather(rng, step_id):
    x = rng.normal(size=(E, S)).astype(np.float32)
    expected = np.where(step_id < 0, 0, x.ravel()[step_id])
    np.testing.assert_array_equal(steps_to_tokens(x, step_id), expected)
    assert steps_to_tokens(jnp.asarray(x > 0), step_id).dtype == jnp.bool_


def test_levels_are_adjoint(rng, step_id):
    """<tokens_to_steps(x), y> = <x, steps_to_tokens(y)>: the gradient of each is the other."""
    x, y = rng.normal(size=(R, L)).astype(np.float32), rng.normal(size=(E, S)).astype(np.float32)
    gradient = jax.grad(lambda x: (tokens_to_steps(x, step_id, E, S) * y).sum())(x)
    np.testing.assert_allclose(gradient, steps_to_tokens(y, step_id), atol=1e-6)
    gradient = jax.grad(lambda y: (steps_to_tokens(y, step_id) * x).sum())(y)
    np.testing.assert_allclose(gradient, tokens_to_steps(x, step_id, E, S), atol=1e-5)


def test_levels_reject_wrong_shapes(step_id):
    with pytest.raises(AssertionError):
        tokens_to_steps(jnp.zeros((R, L + 1)), step_id, E, S)
    with pytest.raises(AssertionError):
        steps_to_tokens(jnp.zeros(E * S), step_id)


def test_masked_statistics_equal_those_of_the_subset(rng):
    x, mask = rng.normal(2, 3, size=(R, L)).astype(np.float32), rng.random((R, L)) < 0.5
    x = np.where(mask, x, np.nan)
    subset = x[mask]
    np.testing.assert_allclose(masked_mean(x, mask), subset.mean(), rtol=1e-5)
    np.testing.assert_allclose(masked_mean(x, mask, axis=1), [row[m].mean() for row, m in zip(x, mask)], rtol=1e-5)
    for ddof in (0, 1):
        np.testing.assert_allclose(masked_var(x, mask, ddof=ddof), subset.var(ddof=ddof), rtol=1e-5)
        np.testing.assert_allclose(masked_std(x, mask, ddof=ddof), subset.std(ddof=ddof), rtol=1e-5)
        white = np.asarray(masked_whiten(x, mask, ddof=ddof))
        np.testing.assert_allclose(white[mask], (subset - subset.mean()) / subset.std(ddof=ddof), atol=1e-5)
        assert not white[~mask].any()


@pytest.mark.parametrize("count", [0, 1, 2])
def test_masked_statistics_and_gradients_are_finite_on_few_equal_values(count):
    mask = np.arange(4) < count
    x = np.where(mask, 3.0, np.nan).astype(np.float32)
    for function in (masked_mean, lambda x, m: masked_std(x, m, ddof=1), lambda x, m: masked_whiten(x, m).sum()):
        value, gradient = jax.value_and_grad(function)(x, mask)
        assert np.isfinite(value) and np.isfinite(gradient).all() and not np.asarray(gradient)[~mask].any()
    assert masked_mean(x, mask) == (3.0 if count else 0.0)
    assert masked_std(x, mask, ddof=1) == 0 and not np.asarray(masked_whiten(x, mask)).any()


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("weighted", [False, True])
def test_group_statistics_against_a_loop(rng, ddof, weighted):
    x, group = rng.normal(5, 2, (E, S)), rng.integers(0, 3, (E, S))
    mask = rng.random((E, S)) < 0.8
    weight = rng.integers(0, 3, (E, S)).astype(np.float32) if weighted else None
    given = np.where(mask, x, np.nan).astype(np.float32)
    mean, std, n = group_statistics(given, group, mask, num_groups=E, ddof=ddof, weight=weight)
    for g in range(3):
        inside = mask & (group == g)
        values = np.repeat(x[inside], weight[inside].astype(int)) if weighted else x[inside]
        np.testing.assert_allclose(np.asarray(n)[inside], len(values))
        if len(values) > ddof:
            np.testing.assert_allclose(np.asarray(mean)[inside], values.mean(), rtol=1e-5)
            np.testing.assert_allclose(np.asarray(std)[inside], values.std(ddof=ddof), atol=1e-5)


def test_group_sum_drops_masked_units():
    total = group_sum(jnp.array([1.0, 2.0, jnp.nan, 4.0]), jnp.array([2, 2, 2, 0]), jnp.array([1, 1, 0, 1], bool), 4)
    np.testing.assert_array_equal(total, [4, 0, 3, 0])


def test_group_normalise_literal():
    x, group = jnp.array([1.0, 0.0, 0.0, 5.0]), jnp.array([1, 1, 1, 0])
    mask = jnp.ones(4, bool)
    run = lambda **options: np.asarray(group_normalise(x, group, mask, num_groups=4, **options))
    np.testing.assert_allclose(run(scale="none"), [2 / 3, -1 / 3, -1 / 3, 0], atol=1e-6)
    np.testing.assert_allclose(run(scale="leave_one_out"), [1, -0.5, -0.5, 0], atol=1e-6)
    np.testing.assert_allclose(run(scale="std", ddof=1), [1.1547, -0.5774, -0.5774, 0], atol=1e-4)
    np.testing.assert_allclose(run(scale="std", ddof=0), [1.4142, -0.7071, -0.7071, 0], atol=1e-4)
    np.testing.assert_allclose(run(scale="none", singleton="raw"), [2 / 3, -1 / 3, -1 / 3, 5], atol=1e-6)
    # A unit with weight 0 is compared with the weighted ones; if these are all equal, there is no scale.
    weight = jnp.array([0.0, 1.0, 1.0, 1.0])
    np.testing.assert_allclose(run(scale="leave_one_out", weight=weight), [2, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(run(scale="std", weight=weight), [0, 0, 0, 0], atol=1e-6)
    with pytest.raises(ValueError, match="scale must be"):
        run(scale="max")
    with pytest.raises(ValueError, match="singleton must be"):
        run(scale="none", singleton="one")


def test_group_normalise_has_finite_gradients():
    x = jnp.array([1.0, 1.0, jnp.nan, 2.0, 3.0])
    group, mask = jnp.array([0, 0, 0, 1, 2]), jnp.array([1, 1, 0, 1, 1], bool)
    for scale in ("none", "std", "leave_one_out"):
        function = lambda x: (group_normalise(x, group, mask, num_groups=5, scale=scale) ** 2).sum()
        assert np.isfinite(jax.grad(function)(x)).all()


def test_token_stream_orders_tokens_in_time(rng):
    # Rows are single steps in a random order; the steps have 2, 1, 3 tokens in episode 0 and 1, 2 in episode 2.
    rows = {(0, 0): 2, (0, 1): 1, (0, 2): 3, (2, 0): 1, (2, 1): 2}
    step_id, place = np.full((R, L), -1, np.int32), np.zeros((R, L))
    keys = list(rows)
    rng.shuffle(keys)
    for r, (e, s) in enumerate(keys):
        step_id[r, 2 : 2 + rows[e, s]] = e * S + s
        place[r, 2 : 2 + rows[e, s]] = 100 * e + 10 * s + np.arange(rows[e, s])
    stream = token_stream(jnp.asarray(step_id), jnp.asarray(step_id >= 0), S)
    taken, mask = np.asarray(stream.take(jnp.asarray(place))), np.asarray(stream.mask)
    np.testing.assert_array_equal(taken[mask], [0, 1, 10, 20, 21, 22, 200, 210, 211])
    np.testing.assert_array_equal(taken[np.asarray(stream.step_end)], [1, 10, 22, 200, 211])
    np.testing.assert_array_equal(taken[np.asarray(stream.episode_end)], [22, 211])
    np.testing.assert_array_equal(stream.put(jnp.asarray(taken), (R, L)), place)
