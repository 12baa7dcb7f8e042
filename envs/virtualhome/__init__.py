"""VirtualHome: household tasks in a simulated home, with actions in natural language. Needs the package virtualhome-eval."""

from stepreward.envs.virtualhome.env import VirtualHomeEnv, make
from stepreward.envs.virtualhome.presets import PRESETS, Settings, settings
from stepreward.envs.virtualhome.prompts import prompts

POOL = "inline"  # a step takes about a millisecond and cannot hang, and environments in one process share their scenes

__all__ = ["POOL", "PRESETS", "Settings", "VirtualHomeEnv", "make", "prompts", "settings"]
