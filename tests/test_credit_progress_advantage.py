"""Progress advantage: aggregations of tokens and of steps, failure steps, the identity with the soft advantage, and the method."""

import jax
import numpy as np
import pytest
from references import assert_steps, counted_groups, literal, pack, random_episodes

from stepreward.credit import make
from stepreward.credit.progress_advantage import STEP_AGGREGATIONS, TOKEN_AGGREGATIONS, episode_score, failure_step, step_progress

CLOSE = dict(atol=1e-5, rtol=0)
STEPS = [[0.25, -0.4, 0.1]]


@pytest.mark.parametrize("packing", ["episode", "step"])
@pytest.mark.parametrize("tokens, expected", [("mean", 0.25), ("sum", 0.5), ("min", 0.2), ("max", 0.3), ("last", 0.1)])
def test_tokens_are_aggregated_for_each_policy_and_then_subtracted(packing, tokens, expected):
    """The log-ratios of the two tokens are 0.4 and 0.1: their least is not the difference of the least log-probabilities."""
    trained, start = [[-0.1, -0.3, -5.0], [-1.0]], [[-0.5, -0.4, -5.0], [-1.0]]
    batch = literal([[2, 1], [1]], [0, 0], packing=packing, log_prob_trained=trained, log_prob_start=start)
    signals = batch.signals["log_prob_trained"], batch.signals["log_prob_start"]
    found = np.asarray(step_progress(*signals, batch, tokens=tokens))
    np.testing.assert_allclose(found[0, :2], [expected, 0], **CLOSE)
    assert np.count_nonzero(found) == 1
    np.testing.assert_allclose(step_progress(*signals, batch, tokens=tokens, beta=2.0)[0, 0], 2 * expected, **CLOSE)


def test_at_the_optimum_it_is_the_soft_advantage():
    """A bandit with rewards 1 and 0, a uniform start and β = 0.5: π ∝ exp(r / β), V = β·log mean exp(r / β)."""
    policy = np.exp(np.array([1, 0]) / 0.5) / np.exp(np.array([1, 0]) / 0.5).sum()
    value = 0.5 * np.log(np.exp(np.array([1, 0]) / 0.5).mean())
    batch = literal([[1], [1]], [1, 0], log_prob_trained=np.log(policy)[:, None], log_prob_start=np.log([[0.5], [0.5]]))
    found = step_progress(batch.signals["log_prob_trained"], batch.signals["log_prob_start"], batch, tokens="sum", beta=0.5)
    np.testing.assert_allclose(found[:2, 0], [0.2831, -0.7169], atol=1e-4)
    np.testing.assert_allclose(found[:2, 0], np.array([1, 0]) - value, **CLOSE)


def test_a_step_without_a_token_has_no_advantage():
    batch = literal([[1, 1]], [1], log_prob_trained=[[-1.0, -2.0]], log_prob_start=[[-3.0, -1.0]])
    cut = batch.replace(action_mask=batch.step_id == 0, step_id=np.where(batch.step_id == 0, 0, -1))
    for tokens in TOKEN_AGGREGATIONS:
        found = step_progress(batch.signals["log_prob_trained"], batch.signals["log_prob_start"], cut, tokens=tokens)
        np.testing.assert_allclose(found[0, :2], [2, 0], **CLOSE)


@pytest.mark.parametrize(
    "how, expected", [("mean", -0.0167), ("sum", -0.05), ("last", 0.1), ("min", -0.4), ("max", 0.25), ("bottom10", -0.4)]
)
def test_scores_of_episodes(how, expected):
    found = episode_score(STEPS, [[True] * 3], how)
    np.testing.assert_allclose(found, [expected], atol=1e-4)
    assert how in STEP_AGGREGATIONS


def test_the_lowest_tenth_is_rounded_up():
    values = np.arange(24.0)[None]
    mask = np.ones((1, 24), bool)
    np.testing.assert_allclose(episode_score(values, mask, "bottom10"), [1.0])  # of 0, 1, 2
    mask[:, 20:] = False
    np.testing.assert_allclose(episode_score(values, mask, "bottom10"), [0.5])


def test_where_an_episode_fails():
    mask = [[True] * 3, [True] * 3, [False] * 3]
    advantage = [STEPS[0], [-0.3, 0.4, -0.35], [9.0, 9.0, 9.0]]
    assert failure_step(advantage, mask).tolist() == [1, 0, -1]
    assert failure_step(advantage, mask, "least").tolist() == [1, 2, -1]
    assert np.isnan(episode_score(advantage, mask)[2])


def test_unknown_ways_are_refused():
    batch = literal([[1]], [1])
    with pytest.raises(ValueError, match="tokens must be one of 'mean', 'sum', 'last', 'min', 'max', not 'median'"):
        step_progress(batch.log_prob_old, batch.log_prob_old, batch, tokens="median")
    with pytest.raises(ValueError, match="how must be one of 'mean', .*'bottom10', not 'median'"):
        episode_score(STEPS, [[True] * 3], "median")
    with pytest.raises(ValueError, match="'running_sum' or 'least', not 'first'"):
        failure_step(STEPS, [[True] * 3], "first")
    with pytest.raises(ValueError, match=r"share one shape \[E, S\], not \(1, 3\), \(1, 2\)"):
        episode_score(STEPS, [[True] * 2])


@pytest.mark.parametrize("packing", ["episode", "step"])
@pytest.mark.parametrize("tokens", TOKEN_AGGREGATIONS)
def test_advantages_are_those_of_the_definition(packing, tokens):
    episodes = random_episodes(np.random.default_rng(1), groups=(4, 3, 4, 1), failed=(5,), uniform=(2,))
    found = jax.jit(make("progress_advantage", tokens=tokens, weight=0.5, beta=2.0).credit)(pack(episodes, packing))
    aggregate = {"mean": np.mean, "sum": np.sum, "min": np.min, "max": np.max, "last": lambda x: x[-1]}[tokens]
    expected = {}
    for group in counted_groups(episodes).values():
        for e in group:
            others = [episodes[o].outcome for o in group if o != e]
            outcome = episodes[e].outcome - np.mean(others) if others else 0.0
            for t, step in enumerate(episodes[e].steps):
                expected[e, t] = outcome + 0.5 * 2.0 * (aggregate(step.log_prob_trained) - aggregate(step.log_prob_start))
    assert_steps(found.step_advantage, expected)


def test_equal_policies_leave_the_outcome_method():
    batch = pack(random_episodes(np.random.default_rng(3)))
    equal = batch.with_signals(log_prob_start=batch.signals["log_prob_trained"])
    found = make("progress_advantage").credit(equal)
    np.testing.assert_array_equal(found.advantage, make("rloo").credit(batch).advantage)
    assert not np.asarray(found.step_reward).any()
    assert not np.asarray(make("progress_advantage", episode_advantage="none").credit(equal).advantage).any()


def test_groups_are_needed_for_the_outcome_alone():
    assert not make("progress_advantage").needs_group and make("progress_advantage", weight=0.0).needs_group
