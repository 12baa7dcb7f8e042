"""ALFWorld: household tasks in text, in the benchmark's own games or in generated ones, by the stock engine."""

from envs.alfworld.env import AlfworldEnv, make
from envs.alfworld.presets import PRESETS, TASK_TYPES, Settings, settings
from envs.alfworld.prompts import prompts

# The planner's library and the template parser keep state of their process.
POOL = "process"

__all__ = ["POOL", "PRESETS", "TASK_TYPES", "AlfworldEnv", "Settings", "make", "prompts", "settings"]
