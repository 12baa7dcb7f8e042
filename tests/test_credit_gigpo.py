"""GiGPO: a plain loop as reference, the anchors that the host finds, what happens without shared states, and its metrics."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references import gigpo_loop, literal, pack, random_episodes

from stepreward.credit import make
from stepreward.credit.gigpo import anchor_ids


@pytest.fixture(scope="module")
def episodes():
    return random_episodes(np.random.default_rng(1), groups=(4, 3, 4, 1), failed=(5,), uniform=(2,))


@pytest.mark.parametrize("packing", ["episode", "step"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scale": "std"},
        {"reward": "env", "discount": 0.5},
        {"reward": "env", "scale": "std", "weight": 0.3},
        {"episode_units": "steps"},
        {"episode_units": "steps", "scale": "std", "discount": 1.0},
    ],
)
def test_advantages_are_those_of_the_definition(episodes, packing, options):
    batch = pack(episodes, packing)
    found = np.asarray(jax.jit(make("gigpo", **options).credit)(batch).step_advantage)
    units = {"units" if name == "episode_units" else name: value for name, value in options.items()}
    expected = np.zeros_like(found)
    for (e, t), advantage in gigpo_loop(episodes, **units).items():
        expected[e, t] = advantage
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_step_rewards_are_the_outcome_or_the_environments(episodes):
    batch = pack(episodes)
    last = np.zeros_like(batch.env_reward)
    for e, episode in enumerate(episodes):
        last[e, len(episode.steps) - 1] = episode.outcome if episode.counted else 0.0
    np.testing.assert_array_equal(make("gigpo").credit(batch).step_reward, last)
    counted = np.asarray(batch.step_mask & batch.episode_mask[:, None])
    np.testing.assert_array_equal(make("gigpo", reward="env").credit(batch).step_reward, np.where(counted, batch.env_reward, 0.0))


@pytest.mark.parametrize("scale, outcome_method", [("none", "dr_grpo"), ("std", "grpo")])
def test_without_a_shared_state_it_is_the_outcome_method(episodes, scale, outcome_method):
    batch = pack(episodes)
    alone = jnp.arange(batch.step_mask.size).reshape(batch.step_mask.shape)
    for ids in (alone, jnp.full_like(alone, -1)):  # each step has an anchor of its own, or none has one
        found = make("gigpo", scale=scale).credit(batch.with_signals(anchor_id=ids))
        np.testing.assert_array_equal(found.advantage, make(outcome_method).credit(batch).advantage)
        assert found.metrics["anchors_shared"] == 0


def test_steps_in_no_anchor_leave_the_others_alone():
    """Outcomes 1 and 0; both first steps are taken from one state, and only they get A^S = ±0.95 / 2."""
    batch = literal([[1, 1], [1, 1]], [1, 0], state=[["a", "b"], ["a", "b"]])
    first = jnp.asarray(batch.signals["anchor_id"]).at[:, 1].set(-1)
    found = make("gigpo").credit(batch.with_signals(anchor_id=first)).step_advantage
    np.testing.assert_allclose(found[:2, :2], [[0.5 + 0.475, 0.5], [-0.5 - 0.475, -0.5]], atol=1e-6)


def test_an_episode_that_returns_to_a_state_is_compared_with_itself():
    """Returns-to-go of the only episode: 0.25, 0.5, 1; the first and the last step are taken from one state."""
    batch = literal([[1, 1, 1]], [1], state=[["a", "b", "a"]])
    found = make("gigpo", discount=0.5).credit(batch).step_advantage
    np.testing.assert_allclose(found[0, :3], [-0.375, 0.0, 0.375], atol=1e-6)


def test_the_only_unit_of_a_group_keeps_its_outcome_as_released():
    """The release counts steps: a group of one step has nothing to compare with, one of two equal steps has."""
    batch = literal([[1], [1, 1]], [3, 3], groups=[0, 1], state=[["a"], ["b", "c"]])
    found = make("gigpo", variant="released").credit(batch).step_advantage
    np.testing.assert_allclose(found[:2, :2], [[3, 0], [0, 0]], atol=1e-6)
    assert not make("gigpo", variant="released", singleton="zero").credit(batch).step_advantage.any()


def test_metrics_say_how_many_states_are_shared():
    """Anchors of 4, 2 and 1 steps: six of seven steps share theirs."""
    states = [["a", "b"], ["a", "b"], ["a", "a", "c"]]
    metrics = make("gigpo").credit(literal([[1] * len(s) for s in states], [1, 0, 1], state=states)).metrics
    np.testing.assert_allclose(metrics["anchors_shared"], 6 / 7, rtol=1e-6)
    np.testing.assert_allclose(metrics["anchor_size"], 7 / 3, rtol=1e-6)
    np.testing.assert_allclose(metrics["step_reward_mean"], 2 / 7, rtol=1e-6)
    np.testing.assert_allclose(metrics["step_reward_std"], np.std([1, 1, 0, 0, 0, 0, 0], ddof=1), rtol=1e-6)


def played(states, failure=None):
    """An episode as the rollout leaves it, of which only the states count."""
    steps = [SimpleNamespace(state_key=state, observation=f"You see {state}.") for state in states]
    return SimpleNamespace(steps=steps, failure=failure)


def test_the_host_joins_equal_states_of_a_group_and_leaves_out_failed_episodes():
    states = [["a", "b", "a"], ["b", "c"], ["a"], ["a", "b"], ["b", "a"]]
    batch = literal([[1] * len(s) for s in states], [1, 0, 1, 0, 1], groups=[0, 0, 0, 1, 1])
    batch = batch.replace(episode_mask=batch.episode_mask.at[2].set(False))
    episodes = [played(s, failure="it broke" if e == 2 else None) for e, s in enumerate(states)]
    ids = make("gigpo").host_signals(batch, episodes, np.random.default_rng(0))["anchor_id"]
    assert ids.dtype == np.int32 and ids.shape == batch.step_mask.shape
    np.testing.assert_array_equal(ids[:5, :3], [[0, 1, 0], [1, 2, -1], [-1, -1, -1], [3, 4, -1], [4, 3, -1]])
    assert (ids[5:] == -1).all() and (ids[:, 3:] == -1).all()


def test_a_masked_episode_is_in_no_anchor_though_it_did_not_fail():
    batch = literal([[1], [1]], [1, 0])
    batch = batch.replace(episode_mask=batch.episode_mask.at[1].set(False))
    ids = make("gigpo").host_signals(batch, [played("a"), played("a")], np.random.default_rng(0))["anchor_id"]
    assert ids[0, 0] == 0 and (ids[1:] == -1).all()


def test_similar_observations_share_an_anchor():
    """Eight of the ten letters of a text are those of the other, in order: the ratio is 0.8."""
    states = [["abcdefghij", "abcdefghxy"], ["abcdefgwxy"]]
    assert anchor_ids(states, [0, 0]) == [[0, 1], [2]]
    assert anchor_ids(states, [0, 0], similarity=0.8) == [[0, 0], [1]]  # the representative is the first text, not the second
    assert anchor_ids(states, [0, 0], similarity=0.7) == [[0, 0], [0]]
    assert anchor_ids(states, [0, 1], similarity=0.7) == [[0, 0], [1]]  # another group


def test_similar_anchors_depend_on_the_order_of_the_episodes():
    first, between, last = "abcdefghij", "abcdefghxy", "abcdefgwxy"
    assert anchor_ids([[first], [between], [last]], [0, 0, 0], similarity=0.8) == [[0], [0], [1]]
    assert anchor_ids([[between], [first], [last]], [0, 0, 0], similarity=0.8) == [[0], [0], [0]]


def test_similarity_reads_the_observation():
    batch = literal([[1], [1]], [1, 0])
    episodes = [played(["a long corridor"]), played(["a long corridos"])]  # the state keys differ in one letter
    for similarity, expected in ((1.0, [0, 1]), (0.9, [0, 0])):
        ids = make("gigpo", similarity=similarity).host_signals(batch, episodes, np.random.default_rng(0))["anchor_id"]
        assert ids[:2, 0].tolist() == expected
