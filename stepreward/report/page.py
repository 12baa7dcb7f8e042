"""One self-contained HTML page about a run: headline numbers, learning curves, replayed episodes, the config."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stepreward.display import format_duration
from stepreward.metrics import is_number, read_metrics, write_atomically
from stepreward.report.episode_html import LEGEND, BoardRenderer, choose_episodes, episode_html, plain_board
from stepreward.report.episodes import list_episodes, read_episodes
from stepreward.report.figures import evaluations, learning_curves
from stepreward.report.pieces import cards_html, config_html, document, tables_html
from stepreward.report.tables import failed_episodes, final_evaluation, percent
from stepreward.report.tree_html import tree_html

REPORT_FILE = "report.html"
CONFIG_FILE = "config.json"


def write_report(
    workdir: str | os.PathLike,
    *,
    board_renderer: BoardRenderer = plain_board,
    title: str | None = None,
    max_episodes: int = 3,
) -> Path:
    """Writes `workdir/report.html` from the run's metrics, config and recorded episodes; needs no network to open.

    A missing or unreadable source is left out, and errors are listed at the top of the page.

    Args:
      workdir: folder of the run, with `metrics.jsonl`, `config.json` and `episodes/*.json`, each optional.
      board_renderer: observation text → HTML or SVG. It is inserted into the page unchanged, so it must escape its input.
      title: heading of the page; by default the config's `name`, or else the folder's name.
      max_episodes: most episodes to replay.

    Returns:
      Path of the page.

    Raises:
      FileNotFoundError: if `workdir` is not a folder.
    """
    workdir = Path(workdir)
    if not workdir.is_dir():
        raise FileNotFoundError(f"No workdir at {workdir}: give the folder that holds {CONFIG_FILE} and metrics.jsonl.")
    notices: list[str] = []
    records = _attempt(notices, read_metrics, workdir) or []
    config = _attempt(notices, read_config, workdir / CONFIG_FILE) or {}
    paths = list_episodes(workdir)
    files = [file for path in paths if (file := _attempt(notices, read_episodes, path))]
    if not records and not notices:
        notices.append("No iteration has been recorded yet.")
    page = _page(
        title=title or str(config.get("name") or workdir.resolve().name),
        notices=notices,
        records=records,
        config=config,
        tree=tree_html(files),
        episodes=[episode_html(at, e, board_renderer) for at, e in choose_episodes(files, max_episodes)],
    )
    path = workdir / REPORT_FILE
    write_atomically(path, page)
    return path


def summarize(records: Sequence[Mapping[str, Any]]) -> tuple[str, list[tuple[str, str, str]]]:
    """Returns the headline of a run: one paragraph (HTML) and cards of (number, label, detail) in plain text.

    A final evaluation is preferred to the evaluations during training, because it has more episodes.

    Args:
      records: lines of `metrics.jsonl`.
    """
    found = evaluations(records)
    final = final_evaluation(records)
    sentences, cards = [], []
    if final:
        found = [start, end] = [_as_evaluation(final[name]) for name in ("start", "end")]
        sentences.append(
            f"Success on held-out tasks went from <b>{_rate(start)}</b>{_interval(start)} under the supervised policy to "
            f"<b>{_rate(end)}</b>{_interval(end)} under the trained one{_over(end)}."
        )
        cards = [(_rate(start), "held-out success, start", _detail(start)), (_rate(end), "held-out success, end", _detail(end))]
    elif len(found) > 1:
        start, end = found[0], found[-1]
        sentences.append(
            f"Success on held-out tasks went from <b>{_rate(start)}</b>{_interval(start)} to <b>{_rate(end)}</b>"
            f"{_interval(end)}{_over(end)}."
        )
        cards = [(_rate(start), "held-out success, start", _detail(start))]
        middle = _before_rl(records, found)
        if middle is not None and middle is not start and middle is not end:
            sentences.append(f"When reinforcement learning began, it was {_rate(middle)}{_interval(middle)}.")
            cards.append((_rate(middle), "when reinforcement learning began", _detail(middle)))
        cards.append((_rate(end), "held-out success, end", _detail(end)))
    elif found:
        only = found[0]
        sentences.append(f"Success on held-out tasks is <b>{_rate(only)}</b>{_interval(only)}{_over(only)}.")
        cards = [(_rate(only), "held-out success", _detail(only))]
    else:
        sentences.append("No evaluation on held-out tasks has been recorded.")
    iterations = max((record["iteration"] for record in records if is_number(record.get("iteration"))), default=None)
    if iterations is not None:
        spent = [f"{iterations:,} iteration{'' if iterations == 1 else 's'}"]
        steps = [record["env_steps"] for record in records if is_number(record.get("env_steps"))]
        seconds = [record["wall_s"] for record in records if is_number(record.get("wall_s"))]
        if steps:
            spent.append(f"{max(steps):,.0f} environment steps")
        took = f" took {format_duration(max(seconds))}" if seconds else ""
        sentences.append(f"The run's {' and '.join(spent)}{took}." if took else f"The run has {' and '.join(spent)}.")
        if seconds:
            cards.append((format_duration(max(seconds)), "wall time", ", ".join(spent)))
    if failed := failed_episodes(records):
        sentences.append(f"<b>{failed:,} episodes</b> were left out of all numbers, because their environments failed.")
    if any("low" in entry for entry in found):
        sentences.append('<span class="soft">Intervals: 95\u00a0% Wilson, over the evaluated episodes.</span>')
    return " ".join(sentences), cards


def _as_evaluation(row: Mapping[str, float]) -> dict[str, Any]:
    """A row of the final evaluation, with the keys of an evaluation during training."""
    entry = {"eval/success": row["success"]}
    if all(name in row for name in ("success_low", "success_high", "episodes")):
        entry |= {"low": row["success_low"], "high": row["success_high"], "eval/episodes": row["episodes"]}
    return entry


def _before_rl(records: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The last evaluation before the stage "train", or the first one in it if there is none before; None for a run of one stage."""
    names = {record.get("stage") for record in records if record.get("stage")}
    if "train" not in names or len(names) < 2:
        return None
    inside = [index for index, entry in enumerate(found) if entry.get("stage") == "train"]
    if not inside:
        return None
    return found[max(0, inside[0] - 1)]


def _page(*, title: str, notices: list[str], records, config: Mapping[str, Any], tree: str, episodes: list[str]) -> str:
    paragraph, cards = summarize(records)
    body = [f"<h1>{html.escape(title)}</h1>"]
    body += [f'<p class="notice">{html.escape(notice)}</p>' for notice in notices]
    if records:
        body.append(f'<p class="lead">{paragraph}</p>')
    body += [section for section in (cards_html(cards), tables_html(records, config)) if section]
    figures = learning_curves(records)
    if figures:
        drawn = (
            f'<figure role="group" aria-label="{name}"><figcaption>{name}<span>{note}</span></figcaption>{svg}</figure>'
            for name, note, svg in figures
        )
        note = "Thin lines are single ticks, bold lines a moving mean. Dotted lines separate the run's stages."
        body.append(f'<section><h2>Learning curves</h2><p class="facts">{note}</p><div class="curves">{"".join(drawn)}</div></section>')
    if tree:
        body.append(tree)
    if episodes:
        body.append(f'<section><h2>Replayed episodes</h2><p class="facts">{LEGEND}</p>{"".join(episodes)}</section>')
    if config:
        body.append(config_html(config))
    return document(title, "\n".join(body))


def _attempt(notices: list[str], read, path: Path) -> Any:
    """Reads one source; an error in it becomes a notice on the page and does not stop the report."""
    try:
        return read(path)
    except (OSError, ValueError) as error:
        notices.append(str(error))
        return None


def read_config(path: Path) -> dict[str, Any] | None:
    """Reads a run's `config.json`; None if there is none.

    Raises:
      ValueError: the file is not a JSON object.
    """
    if not path.exists():
        return None
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}).") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} does not hold a JSON object.")
    return config


def _rate(entry: Mapping[str, Any]) -> str:
    return percent(entry["eval/success"])


def _interval(entry: Mapping[str, Any]) -> str:
    return f" ({100 * entry['low']:.1f} to {100 * entry['high']:.1f})" if "low" in entry else ""


def _over(entry: Mapping[str, Any]) -> str:
    return f" over {entry['eval/episodes']:,.0f} episodes" if "low" in entry else ""


def _detail(entry: Mapping[str, Any]) -> str:
    at = f"iteration {entry['iteration']:,}" if is_number(entry.get("iteration")) else ""
    interval = f"95\u00a0% interval {100 * entry['low']:.1f} to {100 * entry['high']:.1f}" if "low" in entry else ""
    return ", ".join(part for part in (interval, at) if part)
