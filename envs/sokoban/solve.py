"""Exact shortest solutions, from a table of all states' distances for small rooms and from a bounded A* for large ones."""

from __future__ import annotations

import heapq
import math
from collections import deque
from functools import lru_cache

import numpy as np

from stepreward.envs.sokoban.core import Room, State, is_solved

TABLE_STATES = 30_000  # A* searches rooms with more placements than this; smaller ones get a table
NODE_LIMIT = 200_000  # states that one A* search may expand


class SearchLimit(RuntimeError):
    """A* stopped at NODE_LIMIT states, so the distance is unknown."""


def placements(floor: int, boxes: int) -> int:
    """Returns an upper bound on the number of states of a room with `floor` free cells: floor · C(floor − 1, boxes)."""
    return floor * math.comb(max(floor - 1, 0), boxes)


def solve(room: Room, state: State, rng: np.random.Generator | None = None) -> list[str] | None:
    """Returns a shortest list of actions that puts every box on a target; None when there is none.

    With `rng`, draws each action uniformly among those that shorten the distance (only in rooms with a table; A* finds one
    solution). Raises SearchLimit when the room is too large for a table and A* reached its limit.
    """
    if not tabulated(room, state):
        return _a_star(room, state)
    table = distances(room, state)
    left = table[state]
    if left == math.inf:
        return None
    actions = []
    while left > 0:
        choices = [(action, after) for action, after in _moves(room, state) if table[after] == left - 1]
        action, state = choices[0 if rng is None else int(rng.integers(len(choices)))]
        actions.append(action)
        left -= 1
    return actions


def distance(room: Room, state: State) -> float:
    """Returns the number of actions in a shortest solution from `state`; math.inf in a dead end. Raises as `solve` does."""
    if tabulated(room, state):
        return distances(room, state)[state]
    actions = _a_star(room, state)
    return math.inf if actions is None else len(actions)


def solution_length(room: Room, state: State) -> float:
    """Computes `distance` for a single state: it searches only to the first solution and keeps no table."""
    if not tabulated(room, state):
        return distance(room, state)
    seen, layer, depth = {state}, [state], 0
    while layer:
        if any(is_solved(room, reached) for reached in layer):
            return depth
        following = []
        for before in layer:
            for _, after in _moves(room, before):
                if after not in seen:
                    seen.add(after)
                    following.append(after)
        layer, depth = following, depth + 1
    return math.inf


def tabulated(room: Room, state: State) -> bool:
    """Whether the room is small enough for the table of `distances`."""
    return placements(room.height * room.width - len(room.walls), len(state.boxes)) <= TABLE_STATES


@lru_cache(maxsize=128)
def _tables(room: Room) -> list[dict[State, float]]:
    """The tables of a room so far. A table covers all states that can be reached from its first state."""
    return []


def distances(room: Room, state: State) -> dict[State, float]:
    """Returns the distance to a solution for `state` and every state that can be reached from it.

    A solved state has distance 0 and ends the episode, so no path leads through it. A state that cannot reach a solution has
    distance math.inf. Tables are cached by room. Use it only for rooms that are `tabulated`.
    """
    for table in _tables(room):
        if state in table:
            return table
    table: dict[State, float] = {state: math.inf}
    before_of: dict[State, list[State]] = {state: []}
    solved, queue = [], deque([state])
    while queue:
        before = queue.popleft()
        if is_solved(room, before):
            solved.append(before)
            continue
        for _, after in _moves(room, before):
            if after not in table:
                table[after] = math.inf
                before_of[after] = []
                queue.append(after)
            before_of[after].append(before)
    for end in solved:
        table[end] = 0
    queue = deque(solved)
    while queue:
        after = queue.popleft()
        further = table[after] + 1
        for before in before_of[after]:
            if table[before] == math.inf:
                table[before] = further
                queue.append(before)
    _tables(room).append(table)
    return table


def _moves(room: Room, state: State) -> list[tuple[str, State]]:
    """Returns the actions that change the state, and the states they lead to: `core.step` without rewards, for speed."""
    player, boxes = state
    walls = room.walls
    moves = []
    for action, offset in room.offsets.items():
        cell = player + offset
        if cell in walls:
            continue
        if cell not in boxes:
            moves.append((action, State(cell, boxes)))
            continue
        beyond = cell + offset
        if beyond not in walls and beyond not in boxes:
            moves.append((action, State(cell, tuple(sorted(beyond if box == cell else box for box in boxes)))))
    return moves


@lru_cache(maxsize=1024)
def _push_distances(room: Room) -> dict[int, int]:
    """Maps a cell to the number of pushes that a lone box there needs to the nearest target; omits cells without a way."""
    pushes = dict.fromkeys(room.targets, 0)
    queue = deque(room.targets)
    while queue:
        cell = queue.popleft()
        for offset in room.offsets.values():
            before, player = cell - offset, cell - 2 * offset
            if before not in pushes and before not in room.walls and player not in room.walls:
                pushes[before] = pushes[cell] + 1
                queue.append(before)
    return pushes


def _a_star(room: Room, start: State) -> list[str] | None:
    """Finds a shortest solution by A*. Its admissible heuristic is the sum of the boxes' distances in `_push_distances`."""
    pushes = _push_distances(room)

    def estimate(boxes):
        return sum(pushes.get(box, math.inf) for box in boxes)

    cost = {start: 0}
    came_from: dict[State, tuple[State, str]] = {}
    frontier = [(estimate(start.boxes), 0, 0, start)]
    closed, pushed_count = set(), 0
    if frontier[0][0] == math.inf:
        return None
    while frontier:
        _, _, _, state = heapq.heappop(frontier)
        if state in closed:
            continue
        if is_solved(room, state):
            actions = []
            while state in came_from:
                state, action = came_from[state]
                actions.append(action)
            return actions[::-1]
        closed.add(state)
        if len(closed) > NODE_LIMIT:
            raise SearchLimit(
                f"no solution found among {NODE_LIMIT} states of a {room.height}x{room.width} room with "
                f"{len(start.boxes)} boxes; its distance is unknown"
            )
        steps = cost[state] + 1
        for action, after in _moves(room, state):
            if steps < cost.get(after, math.inf):
                left = estimate(after.boxes)
                if left == math.inf:
                    continue
                cost[after] = steps
                came_from[after] = (state, action)
                pushed_count += 1
                # Prefer the deeper state on ties, then the newer one.
                heapq.heappush(frontier, (steps + left, left, -pushed_count, after))
    return None
