"""Keeps line breaks of docstrings that were meant: those of formulas, which stand on lines of their own.

A line of prose ends because the next word did not fit. So a break is meant if the next word would have fitted; Markdown keeps it behind two blanks.
"""

from __future__ import annotations

import re

import griffe

WIDTH = 110  # columns, without the indentation; prose is wrapped behind them

EQUATION = re.compile(r"\S.{0,30} = ")


class Lines(griffe.Extension):
    """Marks the breaks that were meant in every docstring."""

    def on_instance(self, *, obj, **_) -> None:
        """Changes the docstring of a module, class, function or attribute."""
        if not obj.is_alias and obj.docstring:
            obj.docstring.value = kept_breaks(obj.docstring.value)


def kept_breaks(text: str) -> str:
    """The text with two blanks at the end of each line whose break was meant: the next word would have fitted, or both lines are equations."""
    lines = text.split("\n")
    for index, (line, following) in enumerate(zip(lines, lines[1:])):
        first = following.split(" ")[0] if following and not following[0].isspace() else ""
        meant = line and not line[0].isspace() and not line.endswith(":") and not line.startswith(("- ", "* "))
        fits = len(re.sub(" +", " ", line)) + 1 + len(first) < WIDTH
        if meant and first and not first.endswith(":") and (fits or (EQUATION.match(line) and EQUATION.match(following))):
            lines[index] = f"{line}  "
    return "\n".join(lines)
