"""Automata of subgoals: their distances and checks, and those of every environment along its expert's and random paths."""

import dataclasses
import importlib
import pickle
import random

import numpy as np
import pytest
from test_play import GROUPED, KEY, WAYS, chat, on_sokoban, params, starts_of  # noqa: F401  (`chat` and `params` are fixtures)

from stepreward.envs import sokoban
from stepreward.envs.automata import Automaton, automaton, countdown, ladder
from stepreward.envs.protocol import AUTOMATON, AUTOMATON_STATE, replay_prefix
from stepreward.rollout.checked import checked
from stepreward.rollout.environment_host import EnvironmentFailure
from stepreward.rollout.environments import Call, EnvironmentPool
from stepreward.rollout.episode import Start
from stepreward.rollout.pools import make_pool

NEEDS = {"alfworld": "alfworld", "virtualhome": "virtualhome_eval"}
OPTIONS = {
    "sokoban": {"boxes": 2},
    "webshop": {},
    "alfworld": {},
    "alfworld, cool and two": {"task_types": ("pick_cool_then_place_in_recep", "pick_two_obj_and_place"), "max_steps": 40},
    "virtualhome": {},
}
DATA = {
    "states": ["away", "there", "lost", "done"],
    "start": "away",
    "accepting": ["done"],
    "edges": [
        {"from": "away", "to": "there", "when": {"near": True, "won": False}},
        {"from": "there", "to": "away", "when": {"near": False, "won": False}},
        {"from": "there", "to": "done", "when": {"won": True}},
        {"from": "away", "to": "done", "when": {"won": True}, "length": 2},
        {"from": "there", "to": "lost", "when": {"near": ["never", "gone"], "won": False}},
    ],
}


def test_a_written_automaton():
    found = automaton(DATA)
    assert pickle.loads(pickle.dumps(found)) == found and found.states[found.start] == "away"
    facts = [{"near": near, "won": won} for near, won in ((False, False), (True, False), (True, False), (False, False), (True, True))]
    q, names = found.start, []
    for fact in facts:
        q = found.next(q, fact)
        names.append(found.states[q])
    assert names == ["away", "there", "there", "away", "done"]
    assert found.states[found.next(1, {"near": "gone", "won": False})] == "lost" and found.next(3, facts[0]) == 3
    assert found.distances() == (2, 1, 3, 0) and found.traps() == (2,)
    with pytest.raises(ValueError, match="reads the fact 'won', which the environment does not give"):
        found.next(1, {"near": True})


def test_distances_are_the_shortest_ways():
    """The lengths of all ways without a repeated state, in a random graph."""
    rng = np.random.default_rng(0)
    names = list("abcdefg")
    edges = [{"from": str(a), "to": str(b), "when": {"to": str(b)}, "length": int(rng.integers(1, 5))}
             for a in names for b in names if a != b and b != "f" and rng.random() < 0.4]  # fmt: skip
    found = automaton(
        {"states": names, "start": "a", "accepting": ["g"], "edges": [*edges, {"from": "a", "to": "g", "when": {"to": "g"}, "length": 9}]}
    )

    def shortest(state, seen=()):
        ways = [edge.length + shortest(edge.target, (*seen, state)) for edge in found.edges
                if edge.source == state and edge.target not in (*seen, state)]  # fmt: skip
        return 0 if state in found.accepting else min(ways, default=np.inf)

    expected = np.array([shortest(state) for state in range(len(names))])
    far = expected[np.isfinite(expected)].max() + 1
    np.testing.assert_array_equal(found.distances(), np.where(np.isfinite(expected), expected, far))
    assert found.traps() == tuple(np.flatnonzero(np.isinf(expected)))


def changed(**changes):
    return DATA | changes


@pytest.mark.parametrize(
    "data, words",
    [
        (changed(start="home"), "the start of the automaton names the unknown state 'home'; its states are 'away', 'there'"),
        (changed(accepting=["won"]), "the list of accepting states of the automaton names the unknown state 'won'"),
        (changed(edges=[{"from": "away", "to": "near", "when": {}}]), "an edge of the automaton names the unknown state 'near'"),
        (changed(accepting=[]), "no accepting state: name at least one"),
        (changed(accepting=["done", "lost"], edges=DATA["edges"][:4]), "no way leads from the start 'away' to the accepting state 'lost'"),
        (changed(edges=[*DATA["edges"], {"from": "away", "to": "lost", "when": {"near": True}}]),
         "edges from 'away' to 'there' and to 'lost' may hold at once"),
        (changed(states=["away", "away"]), "two states named 'away'"),
        (changed(edges=[{"from": "away", "to": "done", "when": {}, "length": 0}]), "has the length 0: give a whole number, at least 1"),
        (changed(edges=[{"from": "away", "to": "done"}]), "an edge of the automaton must have the keys 'from', 'to', 'when'; got 'from', 'to'"),
        ({"states": ["a"]}, "an automaton must have the keys 'states', 'start', 'accepting', 'edges'; got 'states'"),
        ([], "got list"),
    ],
)  # fmt: skip
def test_a_bad_automaton_is_refused_with_its_reason(data, words):
    with pytest.raises(ValueError, match=words):
        automaton(data)


def test_a_ladder_and_a_countdown():
    found = countdown(3)
    assert found.states == ("3 left", "2 left", "1 left", "0 left") and found.distances() == (3, 2, 1, 0)
    assert found.next(0, {"left": 1}) == 2 and found.next(2, {"left": 3}) == 0
    assert {edge["length"] for edge in ladder([("a", {}), ("b", {}), ("c", {})])} == {1, 2}
    with pytest.raises(ValueError, match="parts=0"):
        countdown(0)


@pytest.fixture(params=OPTIONS, scope="module")
def played(request):
    """An environment with an automaton."""
    name = request.param.partition(",")[0]
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    make = importlib.import_module(f"stepreward.envs.{name}").make("tiny", automaton=True, **OPTIONS[request.param])
    environment = checked(make)()
    yield environment
    environment.close()


def test_an_expert_reaches_acceptance_with_the_goal_and_not_before(played):
    found = played.automaton()
    distances = found.distances()
    assert AUTOMATON in played.capabilities and isinstance(found, Automaton)
    for seed in range(6):
        _, info = played.reset(seed=seed)
        reached = [info[AUTOMATON_STATE]]
        for action in played.expert():
            assert reached[-1] not in found.accepting
            *_, info = played.step(action)
            reached.append(info[AUTOMATON_STATE])
        assert info["won"] and reached[-1] in found.accepting
        subgoals = [distances[q] for q in reached]
        assert subgoals[-1] == 0 < subgoals[0] and len(set(subgoals)) >= 2


def test_the_state_is_restored_replayed_and_accepting_only_in_a_success(played):
    found, draw = played.automaton(), random.Random(0)
    for seed in range(6):
        _, info = played.reset(seed=seed)
        plan, over, taken, snapshots = played.expert(), False, [], [(played.snapshot(), info[AUTOMATON_STATE])]
        while not over:
            choices = [*info.get("admissible", ("up", "down", "left", "right")), "nonsense", None]
            action = draw.choice(plan) if draw.random() < 0.5 else draw.choice(choices)
            *_, terminated, truncated, info = played.step(action)
            over = terminated or truncated
            taken.append(action)
            snapshots.append((played.snapshot(), info[AUTOMATON_STATE]))
            assert (info[AUTOMATON_STATE] in found.accepting) == info["won"]
        _, again = replay_prefix(played, taken, seed=seed)
        assert again[AUTOMATON_STATE] == info[AUTOMATON_STATE]
        turn = draw.randrange(len(taken))
        played.restore(snapshots[turn][0])
        *_, again = played.step(taken[turn])
        assert again[AUTOMATON_STATE] == snapshots[turn + 1][1]


@pytest.mark.parametrize("name", ["sokoban", "webshop", "alfworld", "virtualhome"])
def test_it_is_an_option_that_is_off_by_default(name):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    module = importlib.import_module(f"stepreward.envs.{name}")
    environment = module.make("tiny")()
    assert AUTOMATON not in environment.capabilities and AUTOMATON_STATE not in environment.reset(seed=0)[1]
    with pytest.raises(ValueError, match="automaton=True"):
        environment.automaton()
    environment.close()
    with pytest.raises(ValueError, match="automaton=1: give True or False"):
        module.make("tiny", automaton=1)


class Game:
    """A game with one door, whose automaton or state breaks the protocol."""

    capabilities = frozenset({AUTOMATON})

    def __init__(self, state=0, found=None):
        self._state, self._found = state, found

    def reset(self, *, seed=None, options=None):
        return {"text": "a door"}, {"won": False, "executed": True, "state_key": "a door", AUTOMATON_STATE: self._state}

    def automaton(self):
        return self._found

    def close(self):
        pass


@pytest.mark.parametrize("state", [-1, 0.5, "0", True])
def test_a_state_that_is_no_number_of_a_state_fails_the_call(state):
    with pytest.raises(EnvironmentFailure, match=r"info\['automaton_state'\] of reset is .*, not the number of a state"):
        checked(lambda: Game(state))().reset(seed=0)
    assert checked(lambda: Game(np.int64(3)))().reset(seed=0)[1][AUTOMATON_STATE] == 3


def test_what_is_no_automaton_fails_the_call():
    with pytest.raises(EnvironmentFailure, match="automaton returned a dict, not an automaton"):
        checked(lambda: Game(found=DATA))().automaton()


def test_an_automaton_travels_between_processes():
    with make_pool("process", checked(sokoban.make("tiny", boxes=2, automaton=True))) as pool:
        assert pool.call_all([Call(0, "automaton")]) == [countdown(2)]


@pytest.mark.parametrize("way", WAYS)
def test_an_episode_that_starts_in_the_middle_has_the_states_of_the_whole(chat, params, way):  # noqa: F811
    pool = EnvironmentPool(checked(sokoban.make("tiny", boxes=2, max_steps=15, automaton=True)))
    collector = dataclasses.replace(on_sokoban(chat), pool=pool)
    assert collector.automaton() == countdown(2)
    whole = collector.play(params, [Start(task) for task in GROUPED], KEY, keep=True)
    again = collector.play(params, starts_of(whole, 2, way), KEY)
    assert [episode.automaton_states for episode in again] == [episode.automaton_states for episode in whole]
    assert all(len(episode.automaton_states) == len(episode.steps) + 1 and min(episode.automaton_states) >= 0 for episode in whole)
    with pytest.raises(ValueError, match="SokobanEnv has no automaton of subgoals: .*automaton=True"):
        on_sokoban(chat).automaton()
