"""ALFWorld: household tasks in text, in the benchmark's own games or in generated ones, by the stock engine."""

import os

from stepreward.envs.alfworld.env import AlfworldEnv, make
from stepreward.envs.alfworld.presets import PRESETS, TASK_TYPES, Settings, settings
from stepreward.envs.alfworld.prompts import prompts


def POOL(preset: str) -> str:
    """A process each where there are cores for them; on a few cores one process is faster, for it translates a game only once."""
    return "process" if (os.cpu_count() or 1) >= 16 else "inline"


__all__ = ["POOL", "PRESETS", "TASK_TYPES", "AlfworldEnv", "Settings", "make", "prompts", "settings"]
