"""VirtualHome: household tasks in a simulated home, by actions in words. Needs the package virtualhome-eval."""

from envs.virtualhome.env import VirtualHomeEnv, make
from envs.virtualhome.presets import PRESETS, Settings, settings
from envs.virtualhome.prompts import prompts

POOL = "inline"  # a step costs about a millisecond and cannot hang: environments of one process share their scenes

__all__ = ["POOL", "PRESETS", "Settings", "VirtualHomeEnv", "make", "prompts", "settings"]
