"""Search QA: answer questions of several hops by searching documents, in an embedded world or in published data sets."""

from stepreward.envs.search_qa.env import SearchEnv, make, random_play_success
from stepreward.envs.search_qa.presets import PRESETS, Settings, settings
from stepreward.envs.search_qa.prompts import prompts

POOL = "inline"

__all__ = ["POOL", "PRESETS", "SearchEnv", "Settings", "make", "prompts", "random_play_success", "settings"]
