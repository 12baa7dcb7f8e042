"""Sokoban: push every box onto a target. Seeded rooms or Boxoban levels, as text or RGB."""

from stepreward.envs.sokoban.board_html import board_svg as board_html
from stepreward.envs.sokoban.env import SokobanEnv, make, random_play_success
from stepreward.envs.sokoban.presets import PRESETS, Settings, settings
from stepreward.envs.sokoban.prompts import prompts

__all__ = ["PRESETS", "Settings", "SokobanEnv", "board_html", "make", "prompts", "random_play_success", "settings"]
