"""Adapters from other libraries to `stepreward.envs.protocol`: gymnasium and GEM (`gym`), TextArena
(`textarena`), verifiers (`verifiers`), OpenEnv (`openenv`), any class (`TextEnv`)."""

from stepreward.envs.adapters.gym import make
from stepreward.envs.adapters.prompts import prompts
from stepreward.envs.adapters.text_env import Settings, TextEnv

__all__ = ["Settings", "TextEnv", "make", "prompts"]
