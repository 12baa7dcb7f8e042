"""IGPO: golden values of the paper's form, the unbiased default, plain loops as references, and answers that nobody knows."""

import jax
import numpy as np
import pytest
from references import assert_steps, counted_groups, leave_one_out_loop, literal, pack, random_episodes, returns_loop

from stepreward.credit import make

CLOSE = dict(atol=1e-4, rtol=0)
# Gains 0.2, 0.4 and 0.1, −0.3; the last step of each rollout gets the outcome.
SCORES, OUTCOMES = [[-2.0, -1.8, -1.4], [-2.0, -1.9, -2.2]], [1, 0]
PAPER = {
    ("joint", 1.0): [[2.2345, 2.3173, 1.9035], [-2.2345, -1.9035, -0.5793]],
    ("joint", 0.9): [[1.8315, 2.1269, 1.9035], [-1.992, -1.8456, -0.5793]],
    ("separate", 1.0): [[2.5689, 2.1767, 1], [-2.5689, -2.5689, -1]],
    ("separate", 0.9): [[2.2613, 2.0767, 1], [-2.222, -2.4689, -1]],
}


def igpo(scores, outcomes, packing="episode", **options):
    return make("igpo", **options).credit(literal([[1] * len(s) for s in scores], outcomes, packing=packing, answer_log_prob=scores))


@pytest.mark.parametrize("packing", ["episode", "step"])
@pytest.mark.parametrize("normalise, discount", PAPER)
def test_two_rollouts_as_in_the_paper(packing, normalise, discount):
    found = igpo(SCORES, OUTCOMES, packing, variant="paper", normalise=normalise, discount=discount)
    np.testing.assert_allclose(found.step_advantage[:2, :3], PAPER[normalise, discount], **CLOSE)
    np.testing.assert_allclose(found.step_reward[:2, :3], [[0.2, 0.4, 1], [0.1, -0.3, 0]], **CLOSE)


def test_a_turn_without_gain_is_a_turn_of_its_own():
    """The release finds the ends of turns by non-zero rewards, so that this turn would be merged into the next."""
    found = igpo([[-2.0, -1.8, -1.4], [-2.0, -1.9, -1.9]], OUTCOMES, variant="paper", discount=0.9)
    gains = np.array([[0.2, 0.4], [0.1, 0.0]])
    z = (gains - gains.mean()) / (np.sqrt(gains.var() + 1e-8) + 1e-6)
    second = z[:, 1] + 0.9 * np.array([1, -1])
    np.testing.assert_allclose(found.step_advantage[:2, 1], second, **CLOSE)
    np.testing.assert_allclose(found.step_advantage[:2, 0], z[:, 0] + 0.9 * second, **CLOSE)


@pytest.mark.parametrize("gain, expected", [("log_prob_diff", [0.5, -0.1]), ("prob_diff", [0.0878, -0.0212])])
def test_gains(gain, expected):
    found = igpo([[-2, -1.5, -1.6], [-1, -1, -1]], [3, 0], gain=gain).step_reward
    np.testing.assert_allclose(found[0, :3], [*expected, 3], **CLOSE)
    np.testing.assert_allclose(found[1, :3], [0, 0, 0], **CLOSE)


def test_the_default_prefers_the_better_rollout_and_the_papers_form_the_worse_one():
    """Gains 0.5, and 0.5 and 0.4; the last step of each has no gain and no outcome."""
    scores, outcomes = [[-2, -1.5], [-2, -1.5, -1.1]], [0, 0]
    found = np.asarray(igpo(scores, outcomes).step_advantage)
    np.testing.assert_allclose(found[:2, 0], [-0.4, 0.4], **CLOSE)
    paper = np.asarray(igpo(scores, outcomes, variant="paper", normalise="separate").step_advantage)
    assert paper[0, 0] > 0 > paper[1, 0]
    gains = np.array([0.5, 0.5, 0.4])
    scale = np.sqrt(gains.var() + 1e-8) + 1e-6
    np.testing.assert_allclose(paper[:2, 0] * scale, [0.0333, -0.0333], **CLOSE)


def igpo_loop(episodes, *, discount=1.0, gain="log_prob_diff", weight=1.0, baseline="rtg_loo", normalise="separate"):
    """The advantage of each step by the definition, `{(episode, step): advantage}`; a gain that is not known is None."""
    found = {}
    z = lambda x: [(v - np.mean(x)) / (np.sqrt(np.var(x) + 1e-8) + 1e-6) for v in x]
    for group in counted_groups(episodes).values():
        gains, rewards = {}, {}
        for e in group:
            scores = np.array([step.answer_log_prob for step in episodes[e].steps])
            scores = np.exp(scores) if gain == "prob_diff" else scores
            gains |= {(e, t): x for t, x in enumerate(np.diff(scores)) if np.isfinite(x)}
        outcome = {(e, len(episodes[e].steps) - 1): episodes[e].outcome for e in group}
        weighed = {place: weight * x for place, x in gains.items()}
        if baseline == "rtg_loo":
            rewards = weighed | outcome
        elif normalise == "joint":
            both = weighed | outcome
            rewards = dict(zip(both, z(list(both.values()))))
        else:
            rewards = {place: weight * x for place, x in zip(gains, z(list(gains.values())))} if gains else {}
            rewards |= dict(zip(outcome, z(list(outcome.values()))))
        rows = [returns_loop([rewards.get((e, t), 0.0) for t in range(len(episodes[e].steps))], discount) for e in group]
        rows = leave_one_out_loop(rows) if baseline == "rtg_loo" else rows
        found |= {(e, t): a for e, row in zip(group, rows) for t, a in enumerate(row)}
    return found


@pytest.mark.parametrize("packing", ["episode", "step"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"discount": 0.9, "gain": "prob_diff", "weight": 0.5},
        {"baseline": "paper", "discount": 0.9, "weight": 0.5},
        {"baseline": "paper", "normalise": "joint", "gain": "prob_diff"},
    ],
)
def test_advantages_are_those_of_the_definition(packing, options):
    episodes = random_episodes(np.random.default_rng(1), groups=(4, 3, 4, 1), failed=(5,), uniform=(2,))
    assert any(np.isnan(step.answer_log_prob) for episode in episodes for step in episode.steps)
    found = jax.jit(make("igpo", **options).credit)(pack(episodes, packing)).step_advantage
    assert_steps(found, igpo_loop(episodes, **options), atol=1e-4)


@pytest.mark.parametrize("baseline", ["rtg_loo", "paper"])
def test_without_a_reference_answer_the_outcome_is_left(baseline):
    unknown = igpo([[np.nan] * 3] * 2, OUTCOMES, baseline=baseline)
    constant = igpo([[-1.0] * 3] * 2, OUTCOMES, baseline=baseline)
    np.testing.assert_allclose(unknown.step_advantage, constant.step_advantage, atol=1e-6)
    assert unknown.metrics["gains_unknown"] == 1 and constant.metrics["gains_unknown"] == 0


def test_unknown_and_infinite_scores_enter_no_statistic():
    nan = igpo([[-2.0, np.nan, -1.4], [-2.0, -1.9, -2.2]], OUTCOMES, variant="paper")
    infinite = igpo([[-2.0, -np.inf, -1.4], [-2.0, -1.9, -2.2]], OUTCOMES, variant="paper")
    np.testing.assert_array_equal(nan.step_advantage, infinite.step_advantage)
    np.testing.assert_allclose(nan.step_advantage[:2, :3], [[1, 1, 1], [-1, -2, -1]], atol=2e-3)
    np.testing.assert_allclose(nan.metrics["gain_mean"], -0.1, atol=1e-6)
    np.testing.assert_allclose(nan.metrics["gains_unknown"], 0.5)


def test_what_the_environment_must_offer():
    assert make("igpo").capabilities == {"reference_answer"} and make("igpo").needs_group
    assert make("igpo").baseline == "rtg_loo" and make("igpo", variant="paper").baseline == "paper"
