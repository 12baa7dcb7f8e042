"""Advantage kernels on hand-computed numbers, against loops, and by their identities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references import gae_loop

from stepreward.kernels import (
    bi_level_generalized_advantage_estimation,
    dr_grpo,
    generalized_advantage_estimation,
    grpo,
    linear_recurrence,
    reinforce_plus_plus,
    reinforce_plus_plus_baseline,
    return_to_go,
    rloo,
)

ONE_GROUP = jnp.zeros(4, jnp.int32)
ALL = jnp.ones(4, bool)
CLOSE = dict(atol=1e-4, rtol=0)


def test_outcomes_literal():
    outcome = jnp.array([1.0, 0.0, 0.0, 1.0])
    np.testing.assert_allclose(grpo(outcome, ONE_GROUP, ALL), [0.8660, -0.8660, -0.8660, 0.8660], **CLOSE)
    np.testing.assert_allclose(grpo(outcome, ONE_GROUP, ALL, ddof=0), [1, -1, -1, 1], **CLOSE)
    np.testing.assert_allclose(dr_grpo(outcome, ONE_GROUP, ALL), [0.5, -0.5, -0.5, 0.5], **CLOSE)
    np.testing.assert_allclose(rloo(outcome, ONE_GROUP, ALL), [0.6667, -0.6667, -0.6667, 0.6667], **CLOSE)
    outcome, tokens = jnp.array([1.0, 0.0, 0.0, 0.0]), jnp.full(4, 2.0)
    np.testing.assert_allclose(grpo(outcome, ONE_GROUP, ALL, ddof=0), [1.7321, -0.5774, -0.5774, -0.5774], **CLOSE)
    whitened = [1.6202, -0.5401, -0.5401, -0.5401]
    np.testing.assert_allclose(reinforce_plus_plus(outcome, tokens, ALL), whitened, **CLOSE)
    np.testing.assert_allclose(reinforce_plus_plus_baseline(outcome, ONE_GROUP, tokens, ALL), whitened, **CLOSE)


def test_singletons():
    outcome, group = jnp.array([3.0, 1.0, 2.0, 5.0]), jnp.array([0, 1, 1, 2])
    for function in (grpo, dr_grpo, rloo):
        np.testing.assert_array_equal(np.asarray(function(outcome, group, ALL))[[0, 3]], [0, 0])
        np.testing.assert_array_equal(np.asarray(function(outcome, group, ALL, singleton="raw"))[[0, 3]], [3, 5])


def test_group_kernels_against_loops():
    rng = np.random.default_rng(0)
    outcome, group, mask = rng.normal(size=20), rng.integers(0, 5, 20), rng.random(20) < 0.8
    given = np.where(mask, outcome, np.nan).astype(np.float32)
    results = {f.__name__: np.asarray(f(given, group, mask)) for f in (grpo, dr_grpo, rloo)}
    for i in range(20):
        members = [j for j in range(20) if mask[j] and group[j] == group[i]]
        others = [j for j in members if j != i]
        if not mask[i] or not others:
            assert all(result[i] == 0 for result in results.values())
            continue
        centred = outcome[i] - outcome[members].mean()
        np.testing.assert_allclose(results["dr_grpo"][i], centred, atol=1e-5)
        np.testing.assert_allclose(results["grpo"][i], centred / (outcome[members].std(ddof=1) + 1e-6), atol=1e-4)
        np.testing.assert_allclose(results["rloo"][i], outcome[i] - outcome[others].mean(), atol=1e-5)
        n = len(members)
        np.testing.assert_allclose(results["rloo"][i], n / (n - 1) * results["dr_grpo"][i], atol=1e-5)


def test_reinforce_plus_plus_equals_whitening_of_the_token_array():
    rng = np.random.default_rng(1)
    outcome, tokens, mask = rng.normal(size=6), rng.integers(0, 6, 6), np.arange(6) != 2
    result = np.asarray(reinforce_plus_plus(np.where(mask, outcome, np.nan).astype(np.float32), tokens.astype(float), mask))
    spread = np.repeat(outcome[mask], tokens[mask])
    expected = np.where(mask & (tokens > 0), (outcome - spread.mean()) / spread.std(ddof=1), 0)
    np.testing.assert_allclose(result, expected, atol=1e-5)


REWARD = jnp.array([[0.0, 0.0, 0.0, 0.0, 1.0]])
VALUE = jnp.array([[0.5, 0.6, 9.0, 0.7, 0.8]])
MASK = jnp.array([[1, 1, 0, 1, 1]], bool)


@pytest.mark.parametrize("discount, trace, expected", [(1, 1, [0.5, 0.4, 0, 0.3, 0.2]), (0.9, 0.5, [0.0758, 0.0795, 0, 0.11, 0.2])])
def test_gae_skips_observations(discount, trace, expected):
    advantage, returns = generalized_advantage_estimation(REWARD, VALUE, MASK, discount, trace)
    np.testing.assert_allclose(advantage[0], expected, **CLOSE)
    np.testing.assert_allclose(returns, jnp.where(MASK, advantage + VALUE, 0), atol=1e-6)


@pytest.mark.parametrize("discount, trace, expected", [(1, 1, [0.5, 0.4, 0.2]), (0.9, 0.5, [0.1345, 0.21, 0.2])])
def test_gae_over_steps(discount, trace, expected):
    reward, value, mask = jnp.array([[0.0, 0.0, 1.0]]), jnp.array([[0.5, 0.6, 0.8]]), jnp.ones((1, 3), bool)
    np.testing.assert_allclose(generalized_advantage_estimation(reward, value, mask, discount, trace)[0][0], expected, **CLOSE)


def test_bi_level_gae():
    reward, value = jnp.array([[0.0, 0.2, 0.0, 1.0]]), jnp.array([[0.4, 0.5, 0.6, 0.7]])
    mask, ends = jnp.ones((1, 4), bool), jnp.array([[0, 1, 0, 1]], bool)
    advantage, returns = bi_level_generalized_advantage_estimation(reward, value, mask, ends)
    np.testing.assert_allclose(advantage[0], [0.75, 0.65, 0.40, 0.30], **CLOSE)
    np.testing.assert_allclose(returns[0], [1.15, 1.15, 1.0, 1.0], **CLOSE)


def test_bi_level_gae_keeps_a_step_of_reward_zero():
    """The ends of steps are given, so a first step with reward 0 keeps its own return and is not merged with the second."""
    reward, value = jnp.array([[0.0, 0.0, 0.0, 1.0]]), jnp.array([[0.4, 0.5, 0.6, 0.7]])
    mask, ends = jnp.ones((1, 4), bool), jnp.array([[0, 1, 0, 1]], bool)
    _, returns = bi_level_generalized_advantage_estimation(reward, value, mask, ends, step_discount=0.95)
    np.testing.assert_allclose(returns[0], [0.95, 0.95, 1.0, 1.0], **CLOSE)


@pytest.fixture
def ragged():
    rng = np.random.default_rng(3)
    shape = (5, 11)
    reward, value, mask = rng.normal(size=shape), rng.normal(size=shape), rng.random(shape) < 0.6
    hide = lambda x: jnp.asarray(np.where(mask, x, np.nan), jnp.float32)
    return reward, value, mask, hide(reward), hide(value)


@pytest.mark.parametrize("discount, trace", [(1.0, 1.0), (0.97, 0.9), (0.9, 0.0), (0.0, 1.0)])
def test_gae_against_a_loop(ragged, discount, trace):
    reward, value, mask, hidden_reward, hidden_value = ragged
    advantage, returns = generalized_advantage_estimation(hidden_reward, hidden_value, mask, discount, trace)
    for b in range(len(mask)):
        expected = gae_loop(reward[b], value[b], mask[b], discount, trace)
        np.testing.assert_allclose(advantage[b], expected[0], atol=1e-5)
        np.testing.assert_allclose(returns[b], expected[1], atol=1e-5)


def test_gae_with_unit_discount_and_trace_is_return_minus_value(ragged):
    _, value, mask, hidden_reward, hidden_value = ragged
    advantage, _ = generalized_advantage_estimation(hidden_reward, hidden_value, mask, 1.0, 1.0)
    np.testing.assert_allclose(advantage, np.where(mask, return_to_go(hidden_reward, mask) - value, 0), atol=1e-5)


def test_a_discount_of_zero_ends_an_episode(ragged):
    reward, value, _, _, _ = ragged
    mask, cut = np.ones_like(reward, bool), 5
    discount = np.full(reward.shape, 0.9)
    discount[:, cut - 1] = 0.0
    joined, _ = generalized_advantage_estimation(reward, value, mask, discount, 0.8)
    left, _ = generalized_advantage_estimation(reward[:, :cut], value[:, :cut], mask[:, :cut], 0.9, 0.8)
    right, _ = generalized_advantage_estimation(reward[:, cut:], value[:, cut:], mask[:, cut:], 0.9, 0.8)
    np.testing.assert_allclose(joined, jnp.concatenate([left, right], axis=1), atol=1e-5)


def test_gae_has_finite_gradients_under_the_mask(ragged):
    _, _, mask, hidden_reward, hidden_value = ragged
    total = lambda reward, value: (generalized_advantage_estimation(reward, value, mask, 0.9, 0.9)[0] ** 2).sum()
    for gradient in jax.grad(total, argnums=(0, 1))(hidden_reward, hidden_value):
        assert np.isfinite(gradient).all() and not np.asarray(gradient)[~mask].any() and np.asarray(gradient)[mask].any()


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9])
def test_linear_recurrence_against_a_loop(length):
    rng = np.random.default_rng(length)
    b, c = rng.normal(size=(2, 3, length))
    expected, following = np.zeros((3, length)), np.zeros(3)
    for t in reversed(range(length)):
        following = expected[:, t] = b[:, t] + c[:, t] * following
    np.testing.assert_allclose(linear_recurrence(jnp.asarray(b, jnp.float32), jnp.asarray(c, jnp.float32)), expected, atol=1e-5)
