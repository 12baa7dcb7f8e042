"""Curves for the page: which panels there are, and few enough points of each metric."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stepreward.metrics import is_number, series
from stepreward.report.figures import SMOOTHED, Panel, chosen_panels, evaluations, is_recorded, running_mean, time_keys

POINTS = 400  # most points of a curve
# Panels that are shown before the user chooses others.
FIRST = (
    "Success on held-out tasks",
    "Success in rollouts",
    "Quality of the credit",
    "Agreement with exact advantages",
    "Losses",
    "Entropy of the policy",
)
_NO_METRIC = ("tick", "iteration", "stage", "env_steps", "wall_s", "step")

Records = Sequence[Mapping[str, Any]]


def panels(records: Records) -> list[dict[str, Any]]:
    """Returns the report's panels that the records have values for, and a panel for each remaining metric.

    Returns:
      Plain values: `title`, `note`, `keys` (metric → label), `rate`, `lowest`, `first` (shown at the start) and `group` of each panel.
    """
    found = [_plain(panel, present, "Main") for panel, present in chosen_panels(records)]
    times = {key: label for key, label in time_keys(records).items() if is_recorded(records, key)}
    if times:
        found.append(_plain(Panel("Where the time goes", times, "Seconds an iteration, by activity."), times, "Main"))
    shown = {key for panel in found for key in panel["keys"]}
    names = {key for key in set().union(*records) - shown - set(_NO_METRIC) if is_recorded(records, key)}
    return found + [_plain(Panel(name, {name: name}, ""), {name: name}, name.partition("/")[0]) for name in sorted(names)]


def _plain(panel: Panel, present: Mapping[str, str], group: str) -> dict[str, Any]:
    first = panel.title in FIRST or panel.title.endswith("of each environment")
    return {"title": panel.title, "note": panel.note, "keys": dict(present), "rate": panel.rate, "lowest": panel.lowest,
            "first": first, "group": group}  # fmt: skip


def merged(lists: Sequence[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Returns the panels of several runs as one list; a panel that several have holds the metrics of all."""
    found: dict[str, dict[str, Any]] = {}
    for panel in (panel for panels in lists for panel in panels):
        same = found.setdefault(panel["title"], panel | {"keys": {}})
        same["keys"] |= panel["keys"]
    ranks = {title: index for index, title in enumerate(found)}
    return sorted(
        found.values(),
        key=lambda panel: (panel["group"] != "Main", panel["group"] if panel["group"] != "Main" else "", ranks[panel["title"]]),
    )


def curve(records: Records, key: str) -> list[list[float]]:
    """Returns one metric over ticks: x, y, and x, y of its moving mean, which is empty for a short curve; at most 400 points each.

    `eval/success` also has x and the two ends of its 95 % Wilson interval, where the number of episodes is known. Of a longer curve, each part of equal length keeps its lowest and its highest point, so that no spike is lost.
    """
    x, y = series(records, key)
    order = np.argsort(x, kind="stable")
    x, y = x[order], y[order]
    keep = thinned(y)
    found = [x[keep].tolist(), _numbers(y[keep])]
    band = _band(records) if key == "eval/success" else []
    if x.size <= SMOOTHED:
        return [*found, [], [], *band]
    mean, even = running_mean(y), np.unique(np.linspace(0, x.size - 1, min(POINTS, x.size)).round().astype(int))
    return [*found, x[even].tolist(), _numbers(mean[even]), *band]


def _band(records: Records) -> list[list[float]]:
    found = sorted((e["tick"], e["low"], e["high"]) for e in evaluations(records) if "low" in e and is_number(e.get("tick")))
    rows = (
        [found[index] for index in np.unique(np.linspace(0, len(found) - 1, min(POINTS, len(found))).round().astype(int))] if found else []
    )
    return [list(column) for column in zip(*rows)]


def thinned(y: np.ndarray, points: int = POINTS) -> np.ndarray:
    """Returns the ascending indices of at most `points` values of `[N]`: the ends, and the lowest and highest of equal parts."""
    if y.size <= points:
        return np.arange(y.size)
    parts = np.array_split(np.arange(y.size), (points - 2) // 2)
    return np.unique([0, y.size - 1, *(part[pick(y[part])] for part in parts for pick in (np.argmin, np.argmax))])


def axes(records: Records) -> dict[str, list[float]]:
    """Returns how ticks map to environment steps and to seconds: `tick`, `env_steps` and `wall_s` at the same records, at most 400."""
    rows = [[record.get(name) for name in ("tick", "env_steps", "wall_s")] for record in records]
    rows = sorted(row for row in rows if all(map(is_number, row)))
    rows = [rows[index] for index in np.unique(np.linspace(0, len(rows) - 1, min(POINTS, len(rows))).round().astype(int))] if rows else []
    return {name: [row[index] for row in rows] for index, name in enumerate(("tick", "env_steps", "wall_s"))}


def stages(records: Records) -> list[tuple[float, str]]:
    """Returns the first tick and the name of each stage, in order."""
    found: list[tuple[float, str]] = []
    for record in records:
        stage, tick = record.get("stage"), record.get("tick")
        if isinstance(stage, str) and stage and is_number(tick) and (not found or found[-1][1] != stage):
            found.append((tick, re.sub(r"\s+", " ", stage)[:40]))
    return found


def _numbers(values: np.ndarray) -> list[float]:
    return [float(f"{value:.6g}") for value in values.tolist()]
