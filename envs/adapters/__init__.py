"""Environments of others behind `envs.protocol`: gymnasium and GEM (`gym`), TextArena (`textarena`), any class (`TextEnv`)."""

from envs.adapters.gym import make
from envs.adapters.prompts import prompts
from envs.adapters.text_env import Settings, TextEnv

__all__ = ["Settings", "TextEnv", "make", "prompts"]
