"""Shows the progress of a run: a live display in a terminal, plain lines in a log file, and a table at the end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from stepreward.metrics import wilson_interval

_STYLES = {"rollout": "cyan", "scoring": "magenta", "policy": "green"}
_OTHER_STYLES = ("yellow", "red", "blue")


class RunDisplay:
    """Shows the progress of a run: stage, bar, success rate, tokens per second, seconds by part, and time left.

    In a terminal, the display is updated in place, and `print` writes above it. Elsewhere (a file, a pipe, a notebook), one plain line is
    printed every `every` updates, when the stage changes and when it ends.

        with RunDisplay(total=300) as display:
            display.update(stage="reinforcement", completed=12, success=0.4, seconds={"rollout": 3.2, "policy": 1.1})

    Args:
      total: units of work of the first stage; None if unknown.
      quiet: True shows nothing.
      console: where to write; standard output by default.
      every: number of updates between two plain lines.
      clock: returns the current time in seconds from any origin, to estimate the time left.
    """

    def __init__(
        self,
        total: int | None = None,
        quiet: bool = False,
        *,
        console: Console | None = None,
        every: int = 10,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.console = console or Console()
        self.quiet = quiet
        self.live = not quiet and self.console.is_terminal and not self.console.is_dumb_terminal
        self.stage = ""
        self.completed = 0
        self.total = total
        self.success: float | None = None
        self.tokens_per_second: float | None = None
        self.sampled_tokens: int | None = None
        self.seconds: dict[str, float] = {}
        self._every = max(1, every)
        self._clock = clock
        self._updates = 0
        self._start: tuple[float, int] | None = None
        self._display: Live | None = None

    def __enter__(self) -> RunDisplay:
        self._start = (self._clock(), self.completed)
        if self.live:
            self._display = Live(self, console=self.console, refresh_per_second=2)
            self._display.start()
        return self

    def __exit__(self, *exception) -> None:
        if self._display is not None:
            self._display.stop()
            self._display = None

    def update(
        self,
        *,
        stage: str | None = None,
        completed: int | None = None,
        total: int | None = None,
        success: float | None = None,
        tokens_per_second: float | None = None,
        sampled_tokens: int | None = None,
        seconds: Mapping[str, float] | None = None,
    ) -> None:
        """Updates the given values and keeps the others.

        Args:
          stage: the name of the stage, such as "warm start"; a new name restarts the estimate of the time left.
          completed: finished units of the stage's work.
          total: all units of the stage's work.
          success: success rate in [0, 1].
          tokens_per_second: processed tokens per second.
          sampled_tokens: tokens that the run has sampled for training so far, those of branches included.
          seconds: seconds of the last iteration by part, such as "rollout", "scoring" and "policy".
        """
        new_stage = stage is not None and stage != self.stage
        if new_stage:
            self.stage, self.seconds = stage, {}
            self.completed = completed if completed is not None else 0
            # The time left is estimated from the work of this process, without what a checkpoint restored.
            self._start = (self._clock(), self.completed)
        if completed is not None:
            self.completed = int(completed)
        if total is not None:
            self.total = int(total)
        if success is not None:
            self.success = float(success)
        if tokens_per_second is not None:
            self.tokens_per_second = float(tokens_per_second)
        if sampled_tokens is not None:
            self.sampled_tokens = int(sampled_tokens)
        if seconds is not None:
            self.seconds = {name: float(value) for name, value in seconds.items()}
        self._updates += 1
        if self.live or self.quiet:
            return
        if new_stage or self._updates % self._every == 0 or self.completed == self.total:
            self._print_line()

    def seconds_left(self) -> float | None:
        """Returns (total − completed) × mean seconds per unit of work in this stage; None before the first unit is completed."""
        if self._start is None or self.total is None:
            return None
        since, already = self._start
        done = self.completed - already
        if done <= 0:
            return 0.0 if self.completed >= self.total else None
        return max(0, self.total - self.completed) * (self._clock() - since) / done

    def final_table(self, rows: Sequence[tuple[str, str]], title: str = "Run finished") -> None:
        """Prints `rows` of (name, value), as a table in a terminal and as lines elsewhere; nothing if quiet. See `summary_rows`."""
        if self.quiet:
            return
        if self._display is not None:
            self._display.stop()
            self._display = None
        if not self.live:
            for line in [title, *(f"{name}: {value}" for name, value in rows)]:
                self.console.print(line, markup=False, highlight=False, soft_wrap=True)
            return
        table = Table(title=title, title_justify="left", title_style="bold", show_header=False)
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in rows:
            table.add_row(Text(str(name)), Text(str(value)))
        self.console.print(table)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        head = Table.grid(padding=(0, 2), expand=True)
        head.add_column(no_wrap=True, style="bold")
        head.add_column(ratio=1)
        head.add_column(no_wrap=True, justify="right")
        head.add_column(no_wrap=True, justify="right", style="dim")
        bar = ProgressBar(total=self.total, completed=self.completed, pulse=self.total is None)
        head.add_row(Text(self.stage or "starting"), bar, Text(self._count()), Text(self._left()))
        facts = Text("  ").join([Text(fact) for fact in self._facts()])
        parts = []
        whole = sum(self.seconds.values())
        others = [name for name in self.seconds if name not in _STYLES]
        styles = _STYLES | {name: _OTHER_STYLES[index % len(_OTHER_STYLES)] for index, name in enumerate(others)}
        for name, value in self.seconds.items():
            share = f" {value / whole:.0%}" if whole > 0 else ""
            parts.append(Text.assemble((name, styles[name]), f" {value:.2f} s{share}"))
        lines = [head, *([facts] if facts else []), *([Text("  ").join(parts)] if parts else [])]
        yield Group(*lines)

    def _print_line(self) -> None:
        seconds = [f"{name} {value:.2f} s" for name, value in self.seconds.items()]
        fields = [f"{self.stage or 'run'} {self._count()}", *self._facts(), *seconds, self._left()]
        line = " | ".join(field for field in fields if field)
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _count(self) -> str:
        return f"{self.completed:,}" if self.total is None else f"{self.completed:,}/{self.total:,}"

    def _left(self) -> str:
        left = self.seconds_left()
        return "" if left is None else f"{format_duration(left)} left"

    def _facts(self) -> list[str]:
        facts = []
        if self.success is not None:
            facts.append(f"success {_percent(self.success)}")
        if self.tokens_per_second is not None:
            facts.append(f"{self.tokens_per_second:,.0f} tokens/s")
        if self.sampled_tokens is not None:
            facts.append(f"{self.sampled_tokens:,} tokens sampled")
        return facts


def summary_rows(
    *,
    start: tuple[int, int] | None,
    end: tuple[int, int] | None,
    wall_s: float,
    report: Any = None,
    counted: str = "",
    grounding: tuple[float, float] | None = None,
    steps: tuple[float, float] | None = None,
    estimator: tuple[float, float] | None = None,
    failed: int = 0,
    cut: tuple[int, int] = (0, 0),
) -> list[tuple[str, str]]:
    """Returns the rows of the final table: held-out success at start and end with 95 % intervals, time, report.

    Args:
      start: (successes, episodes) of the first evaluation, or None.
      end: (successes, episodes) of the last evaluation, or None.
      wall_s: seconds that the run took.
      report: the path of the report, or None.
      counted: what `start` and `end` count, such as "tasks of the final evaluation".
      grounding: grounding accuracy (share of steps whose action took effect) at the start and the end, or None.
      steps: steps per episode at the start and the end, or None.
      estimator: mean squared errors of the progress estimator and of a constant prediction of the mean outcome, or None.
      failed: number of episodes that were left out because their environments failed.
      cut: numbers of rollout episodes that ended because a length limit was exceeded, and of prompts with a cut observation.
    """
    rows = []
    for name, counts in (("held-out success, start", start), ("held-out success, end", end)):
        if counts is not None:
            rows.append((name, format_success(*counts, counted)))
    if grounding is not None:
        rows.append(("grounding accuracy", _start_and_end(*map(_percent, grounding))))
    if steps is not None:
        rows.append(("steps per episode", _start_and_end(*(f"{count:.1f}" for count in steps))))
    if estimator is not None:
        rows.append(("progress estimator", "squared error {:.4f}, predicting the mean {:.4f}".format(*estimator)))
    if failed:
        rows.append(("failed episodes", f"{failed:,}, left out because their environments failed"))
    for count, what in zip(cut, ("episodes ended by a length limit", "observations cut to fit")):
        if count:
            rows.append((what, f"{count:,}, see the report"))
    rows.append(("wall time", format_duration(wall_s)))
    if report is not None:
        rows.append(("report", str(report)))
    return rows


def format_success(successes: int, n: int, counted: str = "") -> str:
    """Returns "41.0 % (34.5 to 47.9, 82 of 200)": the rate and its 95 % Wilson interval; "no episodes" for n = 0."""
    if n < 1:
        return "no episodes"
    low, high = wilson_interval(successes, n)
    among = f"{successes:,} of {n:,} {counted}".rstrip()
    return f"{100 * successes / n:.1f} % ({100 * low:.1f} to {100 * high:.1f}, {among})"


def format_duration(seconds: float) -> str:
    """Formats seconds: "42 s", "3 min 20 s", "2 h 05 min"."""
    if not math.isfinite(seconds):
        return "unknown time"
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600:,} h {seconds % 3600 // 60:02d} min"


def _start_and_end(start: str, end: str) -> str:
    """Formats a change in words, since the encoding of a log file may have no arrow."""
    return f"{start} at the start, {end} at the end"


def _percent(rate: float) -> str:
    return f"{100 * rate:.1f} %" if math.isfinite(rate) else "unknown"
