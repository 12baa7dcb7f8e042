"""PPR: ReNorm on numbers that can be computed by hand, its pay for length, plain loops as references, and scores that are missing."""

import jax
import numpy as np
import pytest
from references import (
    advantages_loop,
    assert_steps,
    counted_groups,
    literal,
    pack,
    random_episodes,
)

from stepreward.credit import make

CLOSE = dict(atol=1e-5, rtol=0)


def ppr(scores, outcomes, **options):
    batch = literal([[1] * len(s) for s in scores], outcomes, process_score=scores, value=[[0.0] * len(s) for s in scores])
    return make("ppr", **{"whiten": False, **options}).credit(batch)


def test_scores_and_outcomes_are_centred_together():
    found = ppr([[0.8, 0.4, 0.3], [0.8, 0.4, 0.3]], [1, 0]).step_reward
    np.testing.assert_allclose(found[:2, :3], [[0.8, 0.4, 1], [-0.2, -0.6, 0]], **CLOSE)
    found = ppr([[0.8, 0.4, 0.3], [0.8, 0.4, 0.3]], [1, 0], final="renorm").step_reward
    np.testing.assert_allclose(found[:2, :3], [[0.8, 0.4, 0.3], [-0.2, -0.6, -0.7]], **CLOSE)


def test_a_long_success_earns_more_than_a_short_one():
    """What ReNorm pays for length: 0.8 a step, against a constant score."""
    found = ppr([[0.8] * 2, [0.8] * 4], [1, 1], final="renorm").step_advantage
    np.testing.assert_allclose(found[:2, 0], [1.6, 3.2], **CLOSE)


def test_going_on_is_preferred_where_it_earns_more():
    """Rewards 0.5, and 0.5 and 0.4, compared with the other's return-to-go."""
    found = ppr([[0.5], [0.5, 0.4]], [1, 1], final="renorm", baseline="group").step_advantage
    np.testing.assert_allclose(found[:2, 0], [-0.4, 0.4], **CLOSE)


def rewards_loop(episode, final):
    score = [0.5 if np.isnan(step.process_score) else step.process_score for step in episode.steps]
    rewards = [p + episode.outcome - 1 for p in score]
    return rewards[:-1] + [episode.outcome] if final == "outcome" else rewards


@pytest.mark.parametrize("packing", ["episode", "step"])
@pytest.mark.parametrize(
    "options",
    [{}, {"final": "renorm", "discount": 0.9, "trace": 0.7}, {"baseline": "group", "discount": 0.9}],
)
def test_advantages_are_those_of_the_definition(packing, options):
    episodes = random_episodes(np.random.default_rng(1), groups=(4, 3, 4, 1), failed=(5,), uniform=(2,))
    assert any(np.isnan(step.process_score) for episode in episodes for step in episode.steps)
    found = jax.jit(make("ppr", whiten=False, **options).credit)(pack(episodes, packing)).step_advantage
    rewards = {e: rewards_loop(episodes[e], options.get("final", "outcome")) for g in counted_groups(episodes).values() for e in g}
    assert_steps(found, advantages_loop(episodes, rewards, **{name: value for name, value in options.items() if name != "final"}))


@pytest.mark.parametrize("unknown", [np.nan, np.inf])
def test_a_missing_score_is_the_centre_of_the_scale(unknown):
    found = ppr([[unknown, 0.4, unknown], [0.8, 0.4, 0.3]], [1, 0])
    np.testing.assert_allclose(found.step_reward[0, :3], [0.5, 0.4, 1], **CLOSE)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    np.testing.assert_allclose(found.metrics["scores_unknown"], 2 / 6, rtol=1e-6)
    np.testing.assert_allclose(found.metrics["score_mean"], (0.4 + 0.8 + 0.4 + 0.3) / 4, rtol=1e-6)


def test_what_is_needed():
    assert make("ppr").requires == {"value", "process_score"} and make("ppr").has_critic and not make("ppr").needs_group
    group = make("ppr", baseline="group")
    assert group.requires == {"process_score"} and group.needs_group and not group.has_critic
