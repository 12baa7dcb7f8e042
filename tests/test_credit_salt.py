"""SALT-style credit: golden values, a plain loop as reference, and the steps that the host finds to be equal."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from references import assert_steps, counted_groups, literal, pack, random_episodes

from stepreward.credit import make

CLOSE = dict(atol=1e-4, rtol=0)
FOUR, OUTCOMES = ["abc", "abd", "aec", "fbc"], [1, 0, 1, 0]
EXPECTED = {
    "state_action": [[0.2887, -0.2887, 0.2887], [0.2887, -0.2887, -0.866], [0.2887, 0.866, 0.2887], [-0.866, -0.2887, 0.2887]],
    "prefix": [[0.2887, 0, 0.866], [0.2887, 0, -0.866], [0.2887, 0.866, 0.866], [-0.866] * 3],
    # The steps ab are shared by the first two episodes, and bc by the first and the last.
    "window": [[0.2887, 0, 0], [0.2887, 0, -0.866], [0.2887, 0.866, 0.866], [-0.866, -0.866, 0]],
}


def played(actions, state="room", failure=None):
    return SimpleNamespace(steps=[SimpleNamespace(state_key=state, action=a) for a in actions], failure=failure)


def ids_of(method, batch, episodes):
    return method.host_signals(batch, episodes, np.random.default_rng(0))["equal_id"]


@pytest.mark.parametrize("key", EXPECTED)
def test_four_episodes(key):
    method, batch = make("salt", key=key), literal([[1] * 3] * 4, OUTCOMES)
    found = method.credit(batch.with_signals(equal_id=ids_of(method, batch, [played(a) for a in FOUR])))
    np.testing.assert_allclose(found.step_advantage[:4, :3], EXPECTED[key], **CLOSE)


def test_a_window_of_one_step_compares_states_and_actions():
    batch, episodes = literal([[1] * 3] * 4, OUTCOMES), [played(a) for a in FOUR]
    one, key = (ids_of(make("salt", **options), batch, episodes) for options in ({"key": "window", "window": 1}, {}))
    np.testing.assert_array_equal(one, key)


def test_the_same_action_in_another_state_group_or_masked_episode_is_another_step():
    batch = literal([[1]] * 6, [1, 0, 1, 0, 1, 0], groups=[0, 0, 0, 1, 0, 0])
    batch = batch.replace(episode_mask=batch.episode_mask.at[4].set(False).at[5].set(False))
    episodes = [played("a"), played("a"), played("a", state="hall"), played("a"), played("a"), played("a", failure="it broke")]
    for key in ("state_action", "prefix", "window"):
        ids = ids_of(make("salt", key=key), batch, episodes)
        assert ids.dtype == np.int32 and ids[:6, 0].tolist() == [0, 0, 1, 2, -1, -1] and (ids[6:] == -1).all() and (ids[:, 1:] == -1).all()


def test_two_answers_without_an_action_in_one_state_are_equal_steps():
    batch = literal([[1]] * 2, [1, 0])
    assert ids_of(make("salt"), batch, [played([None]), played([None])])[:2, 0].tolist() == [0, 0]


@pytest.mark.parametrize("packing", ["episode", "step"])
@pytest.mark.parametrize("name", ["grpo", "rloo"])
def test_advantages_are_those_of_the_definition(packing, name):
    episodes = random_episodes(np.random.default_rng(1), groups=(4, 3, 4, 1), failed=(5,), uniform=(2,))
    batch = pack(episodes, packing)
    found = jax.jit(make("salt", episode_advantage=name).credit)(batch).step_advantage
    of_episode, expected = np.asarray(make(name).credit(batch).step_advantage), {}
    for group in counted_groups(episodes).values():
        places = [(e, t) for e in group for t in range(len(episodes[e].steps))]
        key = lambda place: (episodes[place[0]].steps[place[1]].state, episodes[place[0]].steps[place[1]].action)
        expected |= {place: np.mean([of_episode[other] for other in places if key(other) == key(place)]) for place in places}
    assert_steps(found, expected)


def test_where_no_step_equals_another_it_is_the_outcome_method():
    batch = pack(random_episodes(np.random.default_rng(3)))
    alone = np.arange(batch.step_mask.size, dtype=np.int32).reshape(batch.step_mask.shape)
    for ids in (alone, np.full_like(alone, -1)):
        found = make("salt").credit(batch.with_signals(equal_id=ids))
        np.testing.assert_allclose(found.advantage, make("grpo").credit(batch).advantage, atol=1e-6)
        assert found.metrics["steps_shared"] == 0
