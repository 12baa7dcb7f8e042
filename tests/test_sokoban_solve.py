"""The solver, compared with a plain breadth-first search."""

import math

import numpy as np
import pytest

from stepreward.envs.sokoban import core, settings, solve
from stepreward.envs.sokoban.core import ACTIONS
from stepreward.envs.sokoban.generate import room_for


def brute_force(room, start):
    """The length of a shortest solution by breadth-first search over core.step."""
    layer, seen, depth = [start], {start}, 0
    while layer:
        following = []
        for state in layer:
            if core.is_solved(room, state):
                return depth
            for action in ACTIONS:
                after = core.step(room, state, action).state
                if after not in seen:
                    seen.add(after)
                    following.append(after)
        layer, depth = following, depth + 1
    return math.inf


def wander(room, state, generator, steps):
    """Returns the states of a random walk that ends when the room is solved."""
    for _ in range(steps):
        yield state
        if core.is_solved(room, state):
            return
        state = core.step(room, state, ACTIONS[generator.integers(4)]).state


@pytest.mark.parametrize(("preset", "rooms"), [("istar", 15), ("ragen_large", 4)])
def test_distances_equal_brute_force_dead_ends_included(preset, rooms):
    generator = np.random.default_rng(0)
    dead_ends = 0
    for seed in range(rooms):
        room, start = room_for(settings(preset), seed)
        for state in wander(room, start, generator, 30):
            expected = brute_force(room, state)
            assert solve.distance(room, state) == solve.solution_length(room, state) == expected
            dead_ends += expected == math.inf
    assert dead_ends > 0


def test_every_state_of_the_table_is_right():
    room, start = room_for(settings("istar"), 1)
    table = solve.distances(room, start)
    assert len(table) > 20
    for state, left in table.items():
        assert left == brute_force(room, state)


@pytest.mark.parametrize("preset", ["tiny", "ragen_large"])
def test_every_expert_action_reduces_the_distance_by_one(preset):
    generator = np.random.default_rng(1)
    for seed in range(10):
        room, state = room_for(settings(preset), seed)
        for rng in (None, generator):
            reached, left = state, solve.distance(room, state)
            for action in solve.solve(room, state, rng):
                reached, left = core.step(room, reached, action).state, left - 1
                assert solve.distance(room, reached) == left
            assert core.is_solved(room, reached)


def test_the_random_expert_draws_all_optimal_actions():
    room, state = core.from_text("######\n#P___#\n#____#\n#__X_#\n#__O_#\n######")
    plans = {tuple(solve.solve(room, state, np.random.default_rng(seed))) for seed in range(60)}
    assert plans == {
        ("right", "right", "down", "down"),
        ("right", "down", "right", "down"),
        ("down", "right", "right", "down"),
    }


def test_a_box_in_a_corner_is_a_dead_end():
    room, state = core.from_text("######\n#X___#\n#_P__#\n#___O#\n######")
    assert solve.distance(room, state) == math.inf
    assert solve.solve(room, state) is None


def test_a_solved_state_needs_nothing():
    room, state = core.from_text("#####\n#P√_#\n#####")
    assert solve.distance(room, state) == 0
    assert solve.solve(room, state) == []


def test_a_star_agrees_with_the_table(monkeypatch):
    generator = np.random.default_rng(2)
    cases = []
    for seed in range(6):
        room, start = room_for(settings("ragen_large"), seed)
        cases += [(room, state, solve.distance(room, state)) for state in wander(room, start, generator, 6)]
    monkeypatch.setattr(solve, "TABLE_STATES", 0)
    for room, state, expected in cases:
        assert solve.distance(room, state) == expected
        if expected < math.inf:
            for action in solve.solve(room, state):
                state = core.step(room, state, action).state
            assert core.is_solved(room, state)


def test_a_star_prefers_the_deeper_state_and_then_the_newer_one():
    plans = ["".join(action[0] for action in solve.solve(*room_for(settings("large"), seed))) for seed in (1, 2)]
    assert plans == ["ruululludddlrru", "llluluuuddddldrrurrruuuuuullrdd"]  # among the shortest plans


def test_a_star_raises_at_its_limit(monkeypatch):
    room, state = room_for(settings("large"), 1)
    monkeypatch.setattr(solve, "NODE_LIMIT", 10)
    with pytest.raises(solve.SearchLimit, match="among 10 states of a 10x10 room with 4 boxes"):
        solve.solve(room, state)
