"""Generates solvable rooms from a seed by playing backwards from the solution.

A random walk digs the floor. The player and the boxes are placed, every box on its target, and a depth-first search pulls
the boxes away. The state with the largest displacement of the boxes becomes the start (Racanière et al. 2017, arXiv
1707.06203, with the final walk of the player that RAGEN adds, arXiv 2504.20073). Pulling reverses pushing, so every
room can be solved.

A seed gives the same room on every machine: all randomness comes from PCG64, and nothing depends on Python's `hash`.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b

import numpy as np

from stepreward.envs.sokoban.core import Room, State, to_text
from stepreward.envs.sokoban.presets import Settings
from stepreward.envs.sokoban.solve import solution_length

SPLITS = ("train", "held_out")
HELD_OUT_ONE_IN = 8

_TURN = 0.35  # chance that the digging walk takes a new direction
_DIG_STEPS = 1.7  # steps of the digging walk per cell of height + width
_DIRECTIONS = ((1, 0), (0, 1), (-1, 0), (0, -1))
# The cells that one step of the walk digs, as (row, column) offsets from its cell: two bars, two corners and a block.
_SHAPES = (
    ((0, -1), (0, 0), (0, 1)),
    ((-1, 0), (0, 0), (1, 0)),
    ((0, -1), (0, 0), (1, 0)),
    ((0, -1), (0, 0), (1, -1), (1, 0)),
    ((0, 0), (0, 1), (1, 0)),
)


class _Draws:
    """Uniform draws from one PCG64 stream, fetched in blocks because one NumPy call costs as much as a hundred draws."""

    def __init__(self, seed: int, attempt: int):
        self._generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(attempt,))))
        self._block: list[float] = []

    def uniform(self) -> float:
        if not self._block:
            self._block = self._generator.random(128).tolist()
        return self._block.pop()

    def below(self, count: int) -> int:
        return int(self.uniform() * count)


def room_for(settings: Settings, seed: int, split: str = "train") -> tuple[Room, State]:
    """Returns the room and initial state for a seed and a split.

    Draws rooms from the seed's child streams 0, 1, 2, … until one belongs to the split and its shortest solution
    has min_moves to max_moves moves. The splits share no room, not even a rotated or mirrored one.

    Raises ValueError for a negative seed or an unknown split, or when none of settings.attempts rooms fits.
    """
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ValueError(f"seed={seed!r}: give a whole number, at least 0")
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; the splits are {', '.join(SPLITS)}")
    return _room_for(settings, int(seed), split)


@lru_cache(maxsize=8192)
def _room_for(settings: Settings, seed: int, split: str) -> tuple[Room, State]:
    for attempt in range(settings.attempts):
        drawn = draw_room(settings, _Draws(seed, attempt))
        if drawn is not None and split_of(*drawn) == split and _fits(settings, *drawn):
            return drawn
    raise ValueError(
        f"seed {seed}: none of {settings.attempts} rooms of {settings.height}x{settings.width} with boxes={settings.boxes} is in the "
        f"{split} split and has a shortest solution within min_moves={settings.min_moves} and max_moves={settings.max_moves}; "
        "widen min_moves and max_moves, or raise attempts or search_depth"
    )


def _fits(settings: Settings, room: Room, state: State) -> bool:
    if settings.min_moves == 0 and settings.max_moves is None:
        return True
    length = solution_length(room, state)
    return settings.min_moves <= length and (settings.max_moves is None or length <= settings.max_moves)


def split_of(room: Room, state: State) -> str:
    """Returns the split of a room, which its content alone decides: "held_out" for one room in eight, else "train".

    The eight rotations and reflections of a room have the same digest, that of their least text, and so the same split.
    """
    digest = blake2b(canonical(room, state).encode(), digest_size=8).digest()
    return "held_out" if int.from_bytes(digest, "big") % HELD_OUT_ONE_IN == 0 else "train"


def canonical(room: Room, state: State) -> str:
    """Returns the least text among the eight rotations and reflections of a room and its state."""
    rows = to_text(room, state).split("\n")
    columns = ["".join(column) for column in zip(*rows, strict=True)]
    forms = []
    for lines in (rows, columns):
        mirrored = [line[::-1] for line in lines]
        forms += ["\n".join(form) for form in (lines, lines[::-1], mirrored, mirrored[::-1])]
    return min(forms)


def draw_room(settings: Settings, draws: _Draws) -> tuple[Room, State] | None:
    """Draws one room without filtering; None when the floor is too small or the reverse play moved no box."""
    height, width, boxes = settings.height, settings.width, settings.boxes
    floor = _dig(height, width, draws)
    if len(floor) < 2 * boxes + 1:
        return None
    free = sorted(floor)
    player = free.pop(draws.below(len(free)))
    targets = tuple(free.pop(draws.below(len(free))) for _ in range(boxes))
    offsets = (-width, width, -1, 1)
    start = _reverse_play(floor, targets, player, offsets, settings.search_depth, settings.search_states)
    if start is None:
        return None
    player, places, displacement = start
    player = _walk(floor, player, places, offsets, 0.8 if displacement == 1 else 0.5, draws)
    room = Room(height, width, frozenset(range(height * width)) - floor, frozenset(targets))
    return room, State(player, tuple(sorted(places)))


def _dig(height: int, width: int, draws: _Draws) -> frozenset[int]:
    """Returns the floor: all cells inside the outer wall that the shapes of the walk cover."""
    down, right = _DIRECTIONS[draws.below(4)]
    row, column = 1 + draws.below(height - 1), 1 + draws.below(width - 1)
    floor = set()
    for _ in range(int(_DIG_STEPS * (height + width))):
        if draws.uniform() < _TURN:
            down, right = _DIRECTIONS[draws.below(4)]
        row, column = min(max(row + down, 1), height - 2), min(max(column + right, 1), width - 2)
        for shape_row, shape_column in _SHAPES[draws.below(len(_SHAPES))]:
            at_row, at_column = row + shape_row, column + shape_column
            if 0 < at_row < height - 1 and 0 < at_column < width - 1:
                floor.add(at_row * width + at_column)
    return frozenset(floor)


def _reverse_play(floor, targets, player, offsets, depth_limit, state_limit):
    """Searches depth first over moves in which the player pulls along any box behind it.

    score = (number of changes of the pulled box) · Σ (Manhattan distance of each box from its target), and 0 while a box or
    the player covers a target. Returns (player, places, displacement) of the state with the highest score, where
    places[i] is the cell of the box for targets[i]; None when no state has a positive score.
    """
    width = offsets[1]
    target_set = frozenset(targets)
    best, best_score = None, 0
    seen = set()
    # Entries: player, places, index of the box pulled last (−1: none yet), changes of that box, moves so far + 1.
    stack = [(player, targets, -1, 0, 1)]
    while stack and len(seen) < state_limit:
        player, places, pulled, swaps, depth = stack.pop()
        key = (player, tuple(sorted(places)))
        if key in seen:
            continue
        seen.add(key)
        if swaps and player not in target_set and target_set.isdisjoint(places):
            displacement = sum(
                abs(place // width - target // width) + abs(place % width - target % width)
                for place, target in zip(places, targets, strict=True)
            )
            if swaps * displacement > best_score:
                best, best_score = (player, places, displacement), swaps * displacement
        if depth + 1 >= depth_limit:
            continue
        for offset in reversed(offsets):
            ahead, behind = player + offset, player - offset
            if ahead not in floor or ahead in places:
                continue
            if behind in places:
                box = places.index(behind)
                moved = places[:box] + (player,) + places[box + 1 :]
                stack.append((ahead, moved, box, swaps + (box != pulled), depth + 1))
            else:
                stack.append((ahead, places, pulled, swaps, depth + 1))
    return best


def _walk(floor, player, places, offsets, chance, draws):
    """Moves the player by up to three free cells, never back, so that it rarely starts next to the last box."""
    visited = {player}
    for _ in range(3):
        if draws.uniform() >= chance:
            break
        chance = 0.5
        free = [
            player + offset
            for offset in offsets
            if player + offset in floor and player + offset not in places and player + offset not in visited
        ]
        if not free:
            break
        player = free[draws.below(len(free))]
        visited.add(player)
    return player
