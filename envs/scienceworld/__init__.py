"""ScienceWorld: experiments of elementary school in a simulated house, in text. Needs the package scienceworld, and Java."""

from stepreward.envs.scienceworld.env import ScienceWorldEnv, make
from stepreward.envs.scienceworld.presets import PRESETS, TASK_NAMES, Settings, settings
from stepreward.envs.scienceworld.prompts import prompts

POOL = "process"  # each environment starts a Java process, which may hang or die

__all__ = ["POOL", "PRESETS", "TASK_NAMES", "ScienceWorldEnv", "Settings", "make", "prompts", "settings"]
