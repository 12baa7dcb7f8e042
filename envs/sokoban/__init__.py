"""Sokoban: push every box onto a target. Seeded rooms or Boxoban levels, as text or RGB."""

from stepreward.envs.sokoban.board_html import board_svg as board_html
from stepreward.envs.sokoban.env import SokobanEnv, make, random_play_success
from stepreward.envs.sokoban.presets import PRESETS, Settings, settings
from stepreward.envs.sokoban.prompts import prompts

# How a terminal shows the symbols of a board: the names of styles are those of `rich`.
TERMINAL_STYLES = {
    "#": "bright_black",
    "_": "bright_black",
    "O": "red",
    "√": "bold green",
    "X": "bold yellow",
    "P": "bold cyan",
    "S": "bold magenta",
}

__all__ = ["PRESETS", "TERMINAL_STYLES", "Settings", "SokobanEnv", "board_html", "make", "prompts", "random_play_success", "settings"]
