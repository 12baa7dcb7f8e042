"""An episode with the credit of each step, as text for a terminal, a log file or a notebook."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from stepreward.envs.choosing import environment_module
from stepreward.metrics import is_number
from stepreward.report.episode_html import ENDS, episode_html, plain_board
from stepreward.report.style import CSS
from stepreward.text import clean

CREDITS = {"step_reward": "step reward", "step_advantage": "advantage", "exact_advantage": "exact advantage"}
_BOARD_WIDTH = 20  # characters; wider text is prose, which is shown above its step
_PROSE_LINES = 12  # lines of prose that are shown
_BAR = 12  # characters of the longest bar
_ARROWS = {"up": "↑", "down": "↓", "left": "←", "right": "→"}
_WIDTH = 100  # characters of a line outside of a terminal


@dataclasses.dataclass(frozen=True)
class CreditedEpisode:
    """An episode that an agent has played, with the credit of each step; `print` shows it.

    Attributes:
      record: the episode as plain values, in the format of `stepreward.report.episodes`. Each step also has `exact_advantage`.
      agent: the agent's name.
      method: the credit method.
      environment: the name of the environment.
      solved, attempts: how many of the attempts at the task solved it.
      uncredited: why there is no credit of the method; "" if there is.
    """

    record: Mapping[str, Any]
    agent: str
    method: str
    environment: str
    solved: int
    attempts: int
    uncredited: str = ""

    @property
    def success(self) -> bool:
        return bool(self.record["success"])

    @property
    def steps(self) -> list[dict[str, Any]]:
        """The steps: dicts with `observation`, `action`, `reward`, and `step_reward`, `step_advantage`, `exact_advantage` (None if unknown)."""
        return self.record["steps"]

    @property
    def actions(self) -> list[str | None]:
        return [step["action"] for step in self.steps]

    @property
    def outcome(self) -> str:
        """How the episode ended, in words."""
        count = f"{len(self.steps)} step{'s' if len(self.steps) != 1 else ''}"
        if self.success:
            return f"solved in {count}"
        reason = ENDS.get(self.record.get("end") or "", "") if self.record.get("truncated") else ""
        return f"failed after {count}" + (f" ({reason})" if reason else "")

    def renderables(self) -> Iterator[RenderableType]:
        """What `rich` prints: the head, each step, and the end."""
        yield self._head()
        names = [name for name in CREDITS if any(_shown(name, step.get(name)) for step in self.steps)]
        largest = {name: max(abs(step[name]) for step in self.steps if is_number(step.get(name))) for name in names}
        for number, step in enumerate(self.steps, 1):
            yield self._step(number, step, names, largest)
        yield self._end()

    def __rich_console__(self, console, options) -> Iterator[RenderableType]:
        yield from self.renderables()

    def __str__(self) -> str:
        file = io.StringIO()
        Console(file=file, width=_WIDTH, no_color=True, force_terminal=False, legacy_windows=False).print(self)
        return "\n".join(line.rstrip() for line in file.getvalue().split("\n")).strip("\n")

    def _repr_html_(self) -> str:
        """The episode as HTML, for notebooks; all text of models and environments is escaped."""
        board = getattr(environment_module(self.environment), "board_html", plain_board)
        return f"<style>{CSS}</style>{episode_html(0, self.record, board)}"

    # --- Parts ---

    def _head(self) -> RenderableType:
        said = f"{printable(self.environment)}, {printable(self.record['task'])}, played by {printable(self.agent)}"
        lines = [Text(said, "bold")]
        if self.uncredited:
            lines.append(Text(f"no credit of {self.method}: {self.uncredited}", "yellow"))
        return Group(*lines, Text())

    def _step(self, number: int, step: Mapping[str, Any], names: list[str], largest: Mapping[str, float]) -> RenderableType:
        details = Table.grid(padding=(0, 2))
        details.add_column(no_wrap=True)
        details.add_column(no_wrap=True, justify="right")
        details.add_column(no_wrap=True)
        for name in names:
            if is_number(value := step.get(name)):
                length = round(_BAR * abs(value) / largest[name]) if largest[name] else 0
                style = "green" if value > 0 else "red"
                details.add_row(Text(CREDITS[name], "dim"), Text(_number(value), style), Text("▇" * length, style))
        board = self._board(step["observation"])
        credit = Group(_action(step), details, Text())
        if board is None:
            return Group(Text(f"{number:>3}  ", "dim") + _prose(step["observation"]), _indented(credit))
        row = Table.grid(padding=(0, 2))
        row.add_column(no_wrap=True, justify="right", min_width=3)
        row.add_column(no_wrap=True, min_width=8)
        row.add_column()
        row.add_row(Text(str(number), "dim"), Group(board, Text()), credit)
        return row

    def _end(self) -> RenderableType:
        last = self.record.get("final_observation") or ""
        board = self._board(last) if last else None
        verdict = Text(self.outcome, "bold green" if self.success else "bold red")
        if self.attempts > 1:
            verdict += Text(f"; {self.solved} of {self.attempts} attempts at this task solved it", "not bold")
        lines: list[Text] = [verdict, *self._extremes()]
        if board is None:
            return Group(*([_prose(last)] if last else []), *lines)
        row = Table.grid(padding=(0, 2))
        row.add_column(no_wrap=True, min_width=3)
        row.add_column(no_wrap=True, min_width=8)
        row.add_column()
        row.add_row(Text("end", "dim"), board, Group(*lines))
        return row

    def _extremes(self) -> list[Text]:
        """Names the steps with the most and the least credit."""
        credited = [(step["step_advantage"], n, step) for n, step in enumerate(self.steps, 1) if is_number(step.get("step_advantage"))]
        if len(credited) < 2 or len({value for value, *_ in credited}) < 2:
            return []
        words = []
        for name, (value, number, step) in (("most", max(credited, key=lambda x: x[0])), ("least", min(credited, key=lambda x: x[0]))):
            words.append(f"{name} advantage: step {number} ({_said(step)}, {_number(value)})")
        return [Text("; ".join(words), "dim")]

    def _board(self, observation: str) -> Text | None:
        """The observation as a board; None for prose."""
        lines = printable(observation).split("\n")
        if max(map(len, lines)) > _BOARD_WIDTH:
            return None
        styles = getattr(environment_module(self.environment), "TERMINAL_STYLES", {})
        board = Text()
        for symbol in "\n".join(lines):
            board.append(symbol, styles.get(symbol))
        return board


def printable(text: Any) -> str:
    """Text of a model or an environment without control characters, which could change what a terminal shows."""
    text = clean(str(text)).replace("\t", " ").replace("\r\n", "\n")
    return "".join(c if c == "\n" or c.isprintable() else "�" for c in text)


def _number(value: float) -> str:
    """Returns "+0.013", "−1.200": a true minus, and as many digits in each line that columns align."""
    return f"{value:+.3f}".replace("-", "−")


def _said(step: Mapping[str, Any]) -> str:
    action = step.get("action")
    return "no action" if action is None else printable(action).replace("\n", " ")


def _action(step: Mapping[str, Any]) -> Text:
    action = step.get("action")
    if action is None:
        output = printable(step.get("output") or "").replace("\n", " ")
        return Text.assemble(("no action", "bold yellow"), f" in the answer {output[:60]!r}")
    said = _said(step)
    arrow = _ARROWS.get(said.strip().lower())
    found = Text(f"{arrow} {said}" if arrow else said, "bold")
    return found if step.get("executed") is not False else found + Text(" (no effect)", "not bold dim")


def _prose(text: str) -> Text:
    lines = printable(text).strip().split("\n")
    more = len(lines) - _PROSE_LINES
    if more > 1:
        lines = [*lines[:_PROSE_LINES], f"… {more} more lines"]
    return Text("\n".join(lines), "dim")


def _indented(inner: RenderableType) -> RenderableType:
    row = Table.grid()
    row.add_column(min_width=5)
    row.add_column()
    row.add_row("", inner)
    return row


def _shown(name: str, value: Any) -> bool:
    """Whether a number is worth a line: a method without step rewards gives each step 0."""
    return is_number(value) and math.isfinite(value) and (name != "step_reward" or value != 0)
