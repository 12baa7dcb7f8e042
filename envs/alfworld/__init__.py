"""ALFWorld: household tasks in text. The stock engine plays the benchmark's own games, or generated ones."""

import os

from stepreward.envs.alfworld.env import AlfworldEnv, make
from stepreward.envs.alfworld.presets import PRESETS, TASK_TYPES, Settings, settings
from stepreward.envs.alfworld.prompts import prompts


def POOL(preset: str) -> str:
    """One process per environment on many cores. On few cores, one process is faster because it translates each game only once."""
    return "process" if (os.cpu_count() or 1) >= 16 else "inline"


__all__ = ["POOL", "PRESETS", "TASK_TYPES", "AlfworldEnv", "Settings", "make", "prompts", "settings"]
