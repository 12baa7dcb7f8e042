"""The arena's tasks: a name, what kind of credit problem it is, and a pure function that makes its arrays.

In every task an episode succeeds or fails, its outcome is 1 or 0, and no step has another reward. All tasks have four actions. The arrays
are padded to one of a few shapes, so that a compiled program serves several tasks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

from stepreward.arena.task import Result, Task, explore
from stepreward.envs.sokoban import core

SHORT = {"states": 64, "max_steps": 16}
MIDDLE = {"states": 192, "max_steps": 40}
LONGEST = {"states": 64, "max_steps": 100}
MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))  # up, down, left, right: actions 0 to 3
DEAD, GOAL = "dead", "goal"  # states of several tasks


class Entry(NamedTuple):
    """A task of the registry: what kind of credit problem it is, in one sentence; and the function that makes it."""

    kind: str
    make: Callable[[], Task]


TASKS: dict[str, Entry] = {}


def task(kind: str) -> Callable[[Callable[[], Task]], Callable[[], Task]]:
    """Decorator that registers a function under its name."""

    def add(make: Callable[[], Task]) -> Callable[[], Task]:
        TASKS[make.__name__] = Entry(kind, functools.cache(make))
        return make

    return add


def names() -> tuple[str, ...]:
    """The registered tasks, in the order of the table."""
    return tuple(TASKS)


def make(name: str) -> Task:
    """Returns the arrays of a task. Raises ValueError that lists the names if there is none."""
    if name not in TASKS:
        raise ValueError(f"unknown task '{name}' of the arena; there are: {', '.join(TASKS)}")
    return TASKS[name].make()


# --- Short tasks ---


@task("one step: a control, in which there is nothing to distribute")
def bandit() -> Task:
    """Four contexts with one good action each: success with probability 0.9 instead of 0.1."""

    def act(state, action):
        p = 0.9 if action == state else 0.1
        return [Result(GOAL, p, success=True), Result(DEAD, 1 - p, end=True)]

    return explore(range(4), act, lambda s: int(s == GOAL), subgoals=1, horizon=1, **SHORT)


@task("a corridor with decoys: two of four actions change what is seen, but bring nobody closer")
def corridor() -> Task:
    """Eight cells in a row and two lamps: actions move forward and back, or switch a lamp. The last cell is the goal."""

    def act(state, action):
        cell, lamp, other = state
        if action == 0:
            return [Result((cell + 1, lamp, other), success=cell + 1 == 7)]
        if action == 1:
            return [Result((max(cell - 1, 0), lamp, other))]
        return [Result((cell, 1 - lamp, other) if action == 2 else (cell, lamp, 1 - other))]

    return explore([(0, 0, 0), (0, 1, 1)], act, lambda s: s[0], subgoals=7, horizon=16, **SHORT)


@task("a lock with irrelevant steps: four actions decide, five do not matter, and no mistake shows before the end")
def lock() -> Task:
    """Nine steps, of which every other one decides: one or two of four buttons are right. A wrong one cannot be undone, but the episode goes on."""

    def act(state, action):
        step, broken = state
        right = step % 2 == 0 or action == step % 4 or (step > 4 and action == (step + 1) % 4)
        broken = broken or not right
        return [Result((step + 1, broken), success=step == 8 and not broken, end=step == 8)]

    reached = lambda s: 0 if s[1] else (s[0] + 1) // 2 if s[0] < 9 else 5
    return explore([(0, False)], act, lambda s: min(reached(s), 5), subgoals=5, horizon=9, **SHORT)


@task("irreversible mistakes: one wrong move leads to a state without a way out, in which the episode goes on")
def trap() -> Task:
    """Six stages. One action advances, one falls into a trap, two stay."""

    def act(state, action):
        if state == DEAD:
            return [Result(DEAD)]
        if action == (state + 1) % 4:
            return [Result(DEAD)]
        return [Result(state + 1 if action == state % 4 else state, success=action == state % 4 and state == 5)]

    return explore([0], act, lambda s: 0 if s == DEAD else s, subgoals=6, horizon=14, **SHORT)


@task("variable length: every further step looks like work but lowers the chance, so rewards that pay for steps mislead")
def stopping() -> Task:
    """At each of eight steps one action ends the episode, with a success probability that falls from 0.9; the others go on."""

    def act(state, action):
        if action == 0 or state == 7:
            p = 0.9 - 0.11 * state
            return [Result(GOAL, p, success=True), Result(DEAD, 1 - p, end=True)]
        return [Result(state + 1)]

    return explore([0], act, lambda s: int(s == GOAL), subgoals=1, horizon=8, **SHORT)


@task("dense turn rewards: each of six subgoals is reported when it is reached, though only the last one succeeds")
def ladder() -> Task:
    """Six rungs. One action climbs, one falls back by one rung, two stay."""

    def act(state, action):
        if action == state % 4:
            return [Result(state + 1, success=state + 1 == 6)]
        return [Result(max(state - 1, 0) if action == (state + 1) % 4 else state)]

    return explore([0], act, lambda s: s, subgoals=6, horizon=12, **SHORT)


# --- Rooms ---


def _walk(cell: tuple[int, int], action: int, size: int) -> tuple[int, int]:
    """The cell that a move leads to; a move off the board stays."""
    row, column = cell[0] + MOVES[action][0], cell[1] + MOVES[action][1]
    return (row, column) if 0 <= row < size and 0 <= column < size else cell


def _key_door(size: int, horizon: int) -> Task:
    """A wall parts the board; its door opens with the key, and the goal lies behind it."""
    wall, door, key, goal = size // 2, (size // 2, size // 2), (0, 0), (size // 2, size - 1)

    def act(state, action):
        cell, holds = state
        after = _walk(cell, action, size)
        if after[1] == wall and not (after == door and holds):
            after = cell
        return [Result((after, holds or after == key), success=after == goal)]

    def subgoal(state):
        cell, holds = state
        return 2 if cell == goal else int(holds)

    return explore([((1, 0), False), ((0, 1), False)], act, subgoal, subgoals=2, horizon=horizon, **MIDDLE)


@task("key and door on 5×5 cells, 20 steps: a subgoal far from the end; states recur")
def key_door_5() -> Task:
    return _key_door(5, 20)


@task("delayed consequence: a tool that is taken or left at the second step decides at the door, eight steps later")
def detour() -> Task:
    """A corridor of nine cells; an action in the second one takes the tool, which costs two steps, and without it the door stays shut."""

    def act(state, action):
        cell, tool, wait = state
        if wait:
            return [Result((cell, tool, wait - 1))]
        if action == 2 and cell == 1 and not tool:
            return [Result((cell, True, 1))]
        if action == 1:
            return [Result((max(cell - 1, 0), tool, 0))]
        if action == 0 or (action == 3 and cell >= 2):
            after = min(cell + 1, 8)
            return [Result((after, tool, 0), success=tool and after == 8, end=after == 8)]
        return [Result(state)]

    return explore(
        [(0, False, 0)], act, lambda s: int(s[1]) + int(s[1] and s[0] >= 4) + int(s[1] and s[0] == 8), subgoals=3, horizon=20, **MIDDLE
    )


@task("stochastic transitions: on ice a move slips aside with probability 0.2, and two cells are holes")
def ice() -> Task:
    """Five by five cells with two holes; a slip goes to the right of the intended direction."""
    holes, goal, right = {(1, 3), (3, 1)}, (4, 4), (3, 2, 0, 1)

    def land(cell, action, p):
        after = _walk(cell, action, 5)
        return Result(DEAD if after in holes else after, p, success=after == goal, end=after in holes)

    def act(state, action):
        return [land(state, action, 0.8), land(state, right[action], 0.2)]

    far = lambda s: 0 if s == DEAD else (s[0] + s[1]) // 2
    return explore([(0, 0), (1, 1)], act, far, subgoals=4, horizon=20, **MIDDLE)


LEVELS = (
    """
    ######
    #P__##
    #_X__#
    #__O_#
    ######
    """,
    """
    ######
    #__O_#
    #_X#_#
    #P___#
    ######
    """,
)


@task("one-box Sokoban: a push against a wall cannot be undone, and the room's states recur")
def sokoban() -> Task:
    """Two rooms."""
    rooms = [core.from_text(level) for level in LEVELS]

    def act(state, action):
        number, board = state
        after = core.step(rooms[number][0], board, core.ACTIONS[action])
        return [Result((number, after.state), success=after.done)]

    solved = lambda s: int(core.is_solved(rooms[s[0]][0], s[1]))
    return explore([(i, board) for i, (_, board) in enumerate(rooms)], act, solved, subgoals=1, horizon=15, **MIDDLE)


# --- Long tasks ---


@task("key and door on 7×7 cells, 40 steps: the same with more steps between")
def key_door_7() -> Task:
    return _key_door(7, 40)


@task("a horizon of 100 steps: the outcome is one bit on a hundred actions, most of which do not matter")
def journey() -> Task:
    """A road of 20 cells: forward, back, and two actions that do nothing."""

    def act(cell, action):
        after = {0: cell + 1, 1: max(cell - 1, 0)}.get(action, cell)
        return [Result(after, success=after == 20)]

    return explore([0], act, lambda s: s // 4, subgoals=5, horizon=100, **LONGEST)


@task("locks on a long way: four doors, each with its own button, 30 steps, and a wrong button leads back to the last door")
def doors() -> Task:
    """Four doors with three cells between; at a door one button opens, one throws back, two do nothing."""

    def act(state, action):
        door, cell = state
        if cell < 2:
            return [Result((door, min(cell + 1, 2) if action in (0, 1) else cell))]
        if action == door:
            return [Result((door + 1, 0), success=door == 3)]
        return [Result((max(door - 1, 0), 0) if action == (door + 1) % 4 else state)]

    return explore([(0, 0)], act, lambda s: s[0], subgoals=4, horizon=30, **MIDDLE)
