"""Reports of a run for people: replayed episodes, learning curves, and one HTML page."""

from stepreward.report.curves import mean_and_band, plot_curves
from stepreward.report.episodes import drop_episodes, read_episodes, telling, write_episodes
from stepreward.report.page import write_report

__all__ = ["drop_episodes", "mean_and_band", "plot_curves", "read_episodes", "telling", "write_episodes", "write_report"]
