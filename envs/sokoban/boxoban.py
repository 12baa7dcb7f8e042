"""Boxoban levels from a file or a folder of files (Guez et al. 2018, github.com/google-deepmind/boxoban-levels).

A file lists its levels one after another. A level is a line `; 12` with its number, then its rows of `#` wall, ` ` floor,
`.` target, `$` box, `@` player, `*` box on target and `+` player on target. This package contains no levels.
"""

from __future__ import annotations

from functools import cached_property, lru_cache
from pathlib import Path

from stepreward.envs.sokoban import core
from stepreward.envs.sokoban.core import Room, State
from stepreward.envs.sokoban.generate import SPLITS, split_of

_SYMBOLS = {"#": "#", " ": "_", ".": "O", "$": "X", "@": "P", "*": "√", "+": "S"}


class Levels:
    """Rooms from files. The content of a room decides whether it belongs to the train or to the held-out split."""

    def __init__(self, source: str, rooms: list[tuple[Room, State]]):
        self.source = source
        self.rooms: dict[str, list[tuple[Room, State]]] = {split: [] for split in SPLITS}
        for room in rooms:
            self.rooms[split_of(*room)].append(room)

    @cached_property
    def boxes(self) -> int:
        """The largest number of boxes in a room."""
        return max(len(state.boxes) for rooms in self.rooms.values() for _, state in rooms)

    def room_for(self, seed: int, split: str = "train") -> tuple[Room, State]:
        """Returns room number `seed` mod the number of rooms of a split. Raises ValueError for a bad seed, or a bad or empty split."""
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; the splits are {', '.join(SPLITS)}")
        if seed < 0:
            raise ValueError(f"seed={seed!r}: give a whole number, at least 0")
        rooms = self.rooms[split]
        if not rooms:
            raise ValueError(f"{self.source}: no level belongs to the {split} split; give more levels")
        return rooms[seed % len(rooms)]


@lru_cache(maxsize=8)
def load(path: str) -> Levels:
    """Reads a file, or all .txt files below a folder, sorted by name.

    Raises FileNotFoundError when there is no such file, and ValueError with the file, the level and the line of a bad row.
    """
    source = Path(path)
    files = sorted(source.rglob("*.txt")) if source.is_dir() else [source]
    if not files or not files[0].is_file():
        raise FileNotFoundError(f"no Boxoban levels at {source}: give a level file, or a folder with .txt files in it")
    return Levels(str(source), [room for file in files for room in parse(file)])


def parse(file: Path) -> list[tuple[Room, State]]:
    """Returns the rooms of one file, in order. Raises ValueError as `load` does."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()  # some editors write a byte-order mark
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not a text file of Boxoban levels ({error})") from None
    rooms: list[tuple[Room, State]] = []
    number, first, rows = "", 0, []

    def finish():
        where = f"{file}, level {number}, line {first}"
        if not rows:
            raise ValueError(f"{where}: the level has no rows; add them below its header")
        try:
            room, state = core.from_text("\n".join(rows))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        if core.is_solved(room, state):
            raise ValueError(f"{where}: the level is already solved; remove it")
        rooms.append((room, state))

    for line_number, line in enumerate(lines, start=1):
        if line.startswith(";"):
            if number:
                finish()
            number, first, rows = line[1:].strip(), line_number, []
            if not number:
                raise ValueError(f"{file}, line {line_number}: the header has no level number; write one, as in `; 0`")
        elif line.strip():
            if not number:
                raise ValueError(
                    f"{file}, line {line_number}: this row comes before the first header; write a header such as `; 0` above it"
                )
            for column, symbol in enumerate(line):
                if symbol not in _SYMBOLS:
                    raise ValueError(
                        f"{file}, level {number}, line {line_number}, column {column}: unknown symbol {symbol!r}; "
                        f"use only {''.join(_SYMBOLS)!r}"
                    )
            rows.append("".join(_SYMBOLS[symbol] for symbol in line))
    if not number:
        raise ValueError(f"{file}: the file has no levels; each must begin with a header such as `; 0`")
    finish()
    return rooms
