"""Sokoban's rules as pure functions. A room never changes; a state holds the positions of the player and the boxes.

Cells are numbered in reading order, `cell = row · width + column`. A move adds one number to a cell, and the closed outer
wall keeps it on the board. Rewards are those of gym-sokoban: −0.1 a step, ±1 for each box that enters or leaves a target,
and +10 when all boxes are on targets (Racanière et al. 2017, arXiv 1707.06203).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

ACTIONS = ("up", "down", "left", "right")

# Codes of the cells in a grid; SYMBOLS[code] is a cell's symbol.
WALL, FLOOR, TARGET, BOX_ON_TARGET, BOX, PLAYER, PLAYER_ON_TARGET = range(7)
SYMBOLS = "#_O√XPS"

STEP_REWARD = -0.1
BOX_REWARD = 1.0
FINISH_REWARD = 10.0


@dataclass(frozen=True)
class Room:
    """The fixed part of a board: its size, wall cells and target cells. Rooms compare and hash by value.

    Raises ValueError when the outer wall has a gap, or when a target is in a wall or off the board.
    """

    height: int
    width: int
    walls: frozenset[int]
    targets: frozenset[int]
    offsets: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        object.__setattr__(self, "offsets", {"up": -self.width, "down": self.width, "left": -1, "right": 1})
        for cell in range(self.height * self.width):
            row, column = divmod(cell, self.width)
            at_edge = row in (0, self.height - 1) or column in (0, self.width - 1)
            if at_edge and cell not in self.walls:
                raise ValueError(f"row {row}, column {column}: the outer wall has a gap; every cell on the border must be a wall")
        for cell in self.targets:
            if cell in self.walls or not 0 <= cell < self.height * self.width:
                raise ValueError(f"target cell {cell} is in a wall or off the {self.height}x{self.width} board")


class State(NamedTuple):
    """The moving part of a board: the player's cell and the boxes' cells, in ascending order."""

    player: int
    boxes: tuple[int, ...]


class Transition(NamedTuple):
    """The result of an action. `executed`: the state changed; `done`: every box is on a target."""

    state: State
    reward: float
    done: bool
    executed: bool


def is_solved(room: Room, state: State) -> bool:
    """Whether every box is on a target."""
    return room.targets.issuperset(state.boxes)


def step(room: Room, state: State, action: str) -> Transition:
    """Moves the player by one cell and pushes a box that is in the way.

    reward = −0.1 + (boxes on targets after − before) + 10 · [all boxes on targets]

    A move into a wall, or a push of a box against a wall or another box, leaves the state unchanged (reward −0.1).
    `action` is one of ACTIONS; any other raises KeyError.
    """
    offset = room.offsets[action]
    cell = state.player + offset
    if cell in room.walls:
        return Transition(state, STEP_REWARD, False, False)
    if cell not in state.boxes:
        return Transition(State(cell, state.boxes), STEP_REWARD, False, True)
    beyond = cell + offset
    if beyond in room.walls or beyond in state.boxes:
        return Transition(state, STEP_REWARD, False, False)
    after = State(cell, tuple(sorted(beyond if box == cell else box for box in state.boxes)))
    gained = (beyond in room.targets) - (cell in room.targets)
    done = is_solved(room, after)
    return Transition(after, STEP_REWARD + BOX_REWARD * gained + FINISH_REWARD * done, done, True)


def to_text(room: Room, state: State) -> str:
    """Writes the board as text, one symbol of SYMBOLS a cell and one line a row. The text determines room and state."""
    targets, walls = room.targets, room.walls
    symbols = ["#" if cell in walls else "_" for cell in range(room.height * room.width)]
    for cell in targets:
        symbols[cell] = "O"
    for cell in state.boxes:
        symbols[cell] = "√" if cell in targets else "X"
    symbols[state.player] = "S" if state.player in targets else "P"
    board, width = "".join(symbols), room.width
    return "\n".join(board[start : start + width] for start in range(0, len(board), width))


def from_text(text: str) -> tuple[Room, State]:
    """Reads a board in the format of `to_text`; ignores blank lines, and spaces around a row.

    Raises ValueError for an unknown symbol or a gap in the outer wall (with row and column, from 0), for a row of another
    length, and unless the board has one player, at least one box, and as many targets as boxes.
    """
    if not isinstance(text, str):
        raise ValueError(f"the room is {type(text).__name__}, not text; give one line a row, with the symbols {SYMBOLS}")
    rows = [row.strip() for row in text.splitlines()]
    rows = [row for row in rows if row]
    if not rows:
        raise ValueError(f"the room is empty; give one line a row, with the symbols {SYMBOLS}")
    height, width = len(rows), len(rows[0])
    found: dict[str, list[int]] = {symbol: [] for symbol in SYMBOLS}
    for row, line in enumerate(rows):
        if len(line) != width:
            raise ValueError(f"row {row} has {len(line)} symbols, but row 0 has {width}")
        for column, symbol in enumerate(line):
            if symbol not in found:
                raise ValueError(f"row {row}, column {column}: unknown symbol {symbol!r}; use only {SYMBOLS}")
            found[symbol].append(row * width + column)
    players = found["P"] + found["S"]
    boxes = found["X"] + found["√"]
    targets = found["O"] + found["√"] + found["S"]
    if len(players) != 1 or not boxes or len(boxes) != len(targets):
        raise ValueError(
            f"the room has players: {len(players)}, boxes: {len(boxes)}, targets: {len(targets)}; "
            "it needs one player, at least one box, and as many targets as boxes"
        )
    room = Room(height, width, frozenset(found["#"]), frozenset(targets))
    return room, State(players[0], tuple(sorted(boxes)))


def to_grid(room: Room, state: State) -> np.ndarray:
    """Returns the board as codes WALL … PLAYER_ON_TARGET: int8[height, width]."""
    grid = np.full(room.height * room.width, FLOOR, np.int8)
    grid[list(room.walls)] = WALL
    grid[list(room.targets)] = TARGET
    for cell in state.boxes:
        grid[cell] = BOX_ON_TARGET if cell in room.targets else BOX
    grid[state.player] = PLAYER_ON_TARGET if state.player in room.targets else PLAYER
    return grid.reshape(room.height, room.width)
