"""Shows a run in a notebook: curves that are redrawn during training, and recorded episodes with the reward of each step."""

from __future__ import annotations

import html
import io
import os
import time
from collections.abc import Mapping
from typing import Any

from stepreward.display import format_duration
from stepreward.metrics import read_metrics, series
from stepreward.report.curves import COLOURS
from stepreward.report.episode_html import BoardRenderer, choose_episodes, episode_html, plain_board
from stepreward.report.episodes import list_episodes, read_episodes
from stepreward.report.style import CSS

_SUCCESS = {"eval/success": "held-out tasks", "rollout/success": "rollouts"}


class LiveCurves:
    """Draws a run's curves below the cell that trains it; pass it to a `Runner` as `on_tick`.

    Args:
      second: metrics of the right panel, name → label; the left panel shows success.
      title: title of the right panel.
      every_s: least seconds between two drawings; ticks in between are not drawn separately.
      show: called with each PNG; by default IPython's display, which replaces the previous image.
    """

    def __init__(self, second: Mapping[str, str], title: str, *, every_s: float = 5.0, show=None):
        self._panels = (("Success", _SUCCESS), (title, second))
        self._every_s, self._show, self._last = every_s, show or _Display(), -float("inf")

    def __call__(self, runner: Any, metrics: Mapping[str, Any]) -> None:
        """Draws the curves if `every_s` seconds have passed or the run is finished."""
        if time.monotonic() - self._last < self._every_s and not runner.finished:
            return
        self._show(self.draw(read_metrics(runner.workdir)))
        self._last = time.monotonic()

    def draw(self, records: list[dict]) -> bytes:
        """Returns the two panels over the run's ticks as a PNG.

        Args:
          records: lines of `metrics.jsonl`, at least one.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 3.4), layout="constrained")
        last = records[-1]
        figure.suptitle(f"{last['stage']}, {last['env_steps']:,} environment steps, {format_duration(last['wall_s'])}", fontsize=10)
        for axes, (title, keys) in zip(figure.subplots(1, 2), self._panels):
            for (key, label), colour in zip(keys.items(), COLOURS):
                x, y = series(records, key)
                marker = "o" if x.size < 20 else None
                axes.plot(x, y, label=label, color=colour, linewidth=1.4, marker=marker, markersize=3)
            axes.set(title=title, xlabel="tick", xlim=(0, 1.02 * max(2, last["tick"])))
            axes.xaxis.get_major_locator().set_params(integer=True)
            if keys is _SUCCESS:
                axes.set_ylim(0, 1)
            axes.legend(frameon=False, fontsize=8)
            axes.spines[["top", "right"]].set_visible(False)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=110)
        return file.getvalue()


class _Display:
    """Shows one image in the cell's output and replaces it by the next."""

    def __init__(self):
        self._handle = None

    def __call__(self, png: bytes) -> None:
        from IPython.display import Image, display

        if self._handle is None:
            self._handle = display(Image(png), display_id=True)
        else:
            self._handle.update(Image(png))


def show_episodes(workdir: str | os.PathLike, board: BoardRenderer = plain_board, *, limit: int = 2, height: int = 640):
    """Returns recorded episodes as an object that a notebook displays if it is the last value of a cell.

    It shows what the agent saw, its action, and its reward at each step.

    Args:
      workdir: folder of the run.
      board: observation text → trusted HTML or SVG.
      limit: most episodes to show, starting with a success and a failure of the last recording.
      height: height of the frame, in CSS pixels.

    Raises:
      FileNotFoundError: if the run has not recorded any episodes yet.
    """
    files = [read_episodes(path) for path in list_episodes(workdir)[-1:]]
    chosen = choose_episodes(files, limit)
    if not chosen:
        raise FileNotFoundError(f"{str(workdir)!r} holds no recorded episodes yet: evaluations during training record them.")
    articles = "".join(episode_html(at, episode, board) for at, episode in chosen)
    page = f'<!doctype html><html lang="en"><meta charset="utf-8"><style>{CSS} body {{ padding: .5rem }}</style>{articles}</html>'
    return _Frame(page, height)


class _Frame:
    """A page in an iframe, because its style sheet is written for a whole page and would conflict with the notebook's."""

    def __init__(self, page: str, height: int):
        self._page, self._height = page, height

    def _repr_html_(self) -> str:
        return f'<iframe srcdoc="{html.escape(self._page)}" style="width: 100%; height: {self._height}px; border: 0"></iframe>'
