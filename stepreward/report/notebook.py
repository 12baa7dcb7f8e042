"""A run inside a notebook: curves that grow while it trains, and recorded episodes with the reward under each step."""

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
    """Draws a run's curves under the cell that trains: the `on_tick` of a `Runner`.

    Args:
      second: metrics of the right panel, name → label; the left one shows success.
      title: of the right panel.
      every_s: seconds between two drawings; the ticks between are not drawn one by one.
      show: takes each PNG; by default IPython's display, which replaces the picture before.
    """

    def __init__(self, second: Mapping[str, str], title: str, *, every_s: float = 5.0, show=None):
        self._panels = (("Success", _SUCCESS), (title, second))
        self._every_s, self._show, self._last = every_s, show or _Display(), -float("inf")

    def __call__(self, runner: Any, metrics: Mapping[str, Any]) -> None:
        """Draws, if it is time, or the run has come to an end."""
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
    """One picture in the cell's output, replaced by the next."""

    def __init__(self):
        self._handle = None

    def __call__(self, png: bytes) -> None:
        from IPython.display import Image, display

        if self._handle is None:
            self._handle = display(Image(png), display_id=True)
        else:
            self._handle.update(Image(png))


def show_episodes(workdir: str | os.PathLike, board: BoardRenderer = plain_board, *, limit: int = 2, height: int = 640):
    """Returns recorded episodes for a notebook to display, as the last value of a cell: what the agent saw, did, and got for each step.

    Args:
      workdir: folder of the run.
      board: observation text → trusted HTML or SVG.
      limit: episodes at most: a success and a failure of the last recording first.
      height: of the frame that they are in, in CSS pixels.

    Raises:
      FileNotFoundError: the run has recorded no episodes yet.
    """
    files = [read_episodes(path) for path in list_episodes(workdir)[-1:]]
    chosen = choose_episodes(files, limit)
    if not chosen:
        raise FileNotFoundError(f"{str(workdir)!r} holds no recorded episodes yet: they come with an evaluation during training.")
    articles = "".join(episode_html(at, episode, board) for at, episode in chosen)
    page = f'<!doctype html><html lang="en"><meta charset="utf-8"><style>{CSS} body {{ padding: .5rem }}</style>{articles}</html>'
    return _Frame(page, height)


class _Frame:
    """A page in a frame of its own: its style sheet is made for a page, and a notebook has one already."""

    def __init__(self, page: str, height: int):
        self._page, self._height = page, height

    def _repr_html_(self) -> str:
        return f'<iframe srcdoc="{html.escape(self._page)}" style="width: 100%; height: {self._height}px; border: 0"></iframe>'
