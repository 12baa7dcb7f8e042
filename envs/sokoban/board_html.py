"""Draws a Sokoban observation as a small inline SVG, for reports."""

from __future__ import annotations

import html

SYMBOLS = frozenset("#_O√XPS")

_FLOOR, _WALL, _MORTAR, _TARGET = "#ece5d8", "#5d6675", "#757f8f", "#d0473f"
_BOX, _BOX_EDGE, _PLACED, _PLACED_EDGE = "#c98b45", "#8a5a22", "#4fa35f", "#2c6b3a"
_PLAYER, _SKIN = "#2f62c9", "#f0c9a0"


def board_svg(observation: str) -> str:
    """Returns a board as one self-contained `<svg>`, or an escaped `<pre>` if the text is not a board.

    Args:
      observation: rows of `#` wall, `_` floor, `O` target, `√` box on target, `X` box, `P` player and `S` player on
        target, separated by newlines. Blanks are ignored, and short rows are filled with walls.
    """
    rows = [row for row in ("".join(line.split()) for line in observation.splitlines()) if row]
    if not rows or not set("".join(rows)) <= SYMBOLS:
        return f"<pre>{html.escape(observation)}</pre>"
    width = max(map(len, rows))
    cells = [(x, y, symbol) for y, row in enumerate(rows) for x, symbol in enumerate(row.ljust(width, "#"))]
    walls = [(x, y) for x, y, symbol in cells if symbol == "#"]
    things = "".join(_thing(x, y, symbol) for x, y, symbol in cells)
    return (
        f'<svg class="board" viewBox="0 0 {width} {len(rows)}" role="img" aria-label="{_describe(rows)}">'
        f'<rect width="{width}" height="{len(rows)}" fill="{_FLOOR}"/>'
        f'<path fill="{_WALL}" d="{"".join(f"M{x} {y}h1v1h-1z" for x, y in walls)}"/>'
        f'<path fill="none" stroke="{_MORTAR}" stroke-width=".06" d="{"".join(_bricks(x, y) for x, y in walls)}"/>'
        f"{things}</svg>"
    )


def _bricks(x: int, y: int) -> str:
    """Two courses of bricks, their joints staggered."""
    return f"M{x} {y + 0.03}h1M{x} {y + 0.5}h1M{x + 0.5} {y}v.5M{x} {y + 0.5}v.5"


def _thing(x: int, y: int, symbol: str) -> str:
    radius = 0.42 if symbol == "S" else 0.26  # the ring must show around a player
    target = (
        f'<circle cx="{x + 0.5}" cy="{y + 0.5}" r="{radius}" fill="none" stroke="{_TARGET}" stroke-width=".1"/>'
        f'<circle cx="{x + 0.5}" cy="{y + 0.5}" r=".09" fill="{_TARGET}"/>'
    )
    player = (
        f'<path fill="{_PLAYER}" d="M{x + 0.2} {y + 0.92}v-.16a.3 .3 0 0 1 .6 0v.16z"/>'
        f'<circle cx="{x + 0.5}" cy="{y + 0.3}" r=".2" fill="{_SKIN}" stroke="{_PLAYER}" stroke-width=".07"/>'
    )
    if symbol == "O":
        return target
    if symbol == "P":
        return player
    if symbol == "S":
        return target + player
    if symbol == "X":
        return _box(x, y, _BOX, _BOX_EDGE)
    if symbol == "√":
        return _box(x, y, _PLACED, _PLACED_EDGE)
    return ""


def _box(x: int, y: int, fill: str, edge: str) -> str:
    return (
        f'<rect x="{x + 0.12}" y="{y + 0.12}" width=".76" height=".76" rx=".08" fill="{fill}" stroke="{edge}" '
        f'stroke-width=".08"/><path stroke="{edge}" stroke-width=".07" '
        f'd="M{x + 0.16} {y + 0.16}l.68 .68M{x + 0.84} {y + 0.16}l-.68 .68"/>'
    )


def _describe(rows: list[str]) -> str:
    text = "".join(rows)
    boxes, placed = text.count("X") + text.count("√"), text.count("√")
    return f"Sokoban board, {placed} of {boxes} boxes on target"
