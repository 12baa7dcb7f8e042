"""Curves of several arms, averaged over seeds with a confidence band, for documents and comparisons."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

COLOURS = ("#2563eb", "#d9730d", "#1a8f4f", "#8b47c9", "#c2304a", "#647084")

Run = tuple[Sequence[float], Sequence[float]]


def mean_and_band(runs: Sequence[Run], confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Averages runs and returns the mean with the half-width of its t interval.

    mean ± t_{(1 + confidence)/2, n − 1} · s / √n, with s the standard deviation over the n runs (ddof 1), pointwise.
    Runs with different x are interpolated linearly at every x of any run that is within the range of all runs.

    Args:
      runs: one pair (x, y) a seed, `[N]` each; points with a NaN or infinite coordinate are ignored.
      confidence: coverage, in (0, 1).

    Returns:
      x `[M]` ascending, mean `[M]`, half-width `[M]` (NaN for a single run), float64.

    Raises:
      ValueError: if there are no runs, a run has no finite points, x and y have different lengths, or the ranges of x do not overlap.
    """
    if not runs:
        raise ValueError("There are no runs to average.")
    cleaned = []
    for index, (x, y) in enumerate(runs):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        if x.ndim != 1 or x.shape != y.shape:
            raise ValueError(f"Run {index} has x of shape {x.shape} and y of shape {y.shape}; both must be [N].")
        keep = np.isfinite(x) & np.isfinite(y)
        if not keep.any():
            raise ValueError(f"Run {index} has no finite point.")
        order = np.argsort(x[keep], kind="stable")
        cleaned.append((x[keep][order], y[keep][order]))
    low, high = max(x[0] for x, _ in cleaned), min(x[-1] for x, _ in cleaned)
    grid = np.unique(np.concatenate([x for x, _ in cleaned]))
    grid = grid[(grid >= low) & (grid <= high)]
    if grid.size == 0:
        raise ValueError("There is no x that lies within the range of every run.")
    values = np.stack([np.interp(grid, x, y) for x, y in cleaned])
    if len(cleaned) == 1:
        return grid, values[0], np.full(grid.shape, np.nan)
    from scipy.stats import t

    quantile = t.ppf(0.5 + confidence / 2, len(cleaned) - 1)
    return grid, values.mean(0), quantile * values.std(0, ddof=1) / np.sqrt(len(cleaned))


def plot_curves(
    axes_or_path: Any,
    arms: Mapping[str, Sequence[Run]],
    *,
    x_label: str = "environment steps",
    y_label: str = "held-out success",
    title: str = "",
    y_limits: tuple[float, float] | None = None,
    confidence: float = 0.95,
) -> Any:
    """Draws the mean of each arm over its runs with its band (see `mean_and_band`); a single run has no band.

    Args:
      axes_or_path: matplotlib axes to draw on, or the path of an image (.png, .svg, .pdf) to write.
      arms: name → runs of that arm, one pair (x, y) a seed; drawn in this order.
      x_label, y_label, title: labels of the figure.
      y_limits: limits of the y axis, such as (0, 1) for a rate.
      confidence: coverage of the band, in (0, 1).

    Returns:
      The axes, or the path.

    Raises:
      ValueError: if there are no arms, or the runs of an arm cannot be averaged; the message names the arm.
    """
    if not arms:
        raise ValueError("There are no arms to plot.")
    averaged = {}
    for name, runs in arms.items():
        try:
            averaged[name] = mean_and_band(runs, confidence)
        except ValueError as error:
            raise ValueError(f"Arm {name!r}: {error}") from error
    figure = None
    axes = axes_or_path
    if isinstance(axes_or_path, (str, os.PathLike)):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.4, 3.8), layout="constrained")
        axes = figure.subplots()
    for index, (name, (x, mean, half)) in enumerate(averaged.items()):
        colour = COLOURS[index % len(COLOURS)]
        seeds = len(arms[name])
        label = f"{name} ({seeds} seed{'s' if seeds > 1 else ''})"
        axes.plot(x, mean, color=colour, linewidth=1.8, label=label, marker="o" if x.size <= 30 else None, markersize=3)
        if seeds > 1:
            axes.fill_between(x, mean - half, mean + half, color=colour, alpha=0.18, linewidth=0)
    axes.set(xlabel=x_label, ylabel=y_label, title=title)
    if y_limits is not None:
        axes.set_ylim(*y_limits)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.legend(frameon=False, fontsize=9)
    if figure is None:
        return axes
    path = Path(axes_or_path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)
    return path
