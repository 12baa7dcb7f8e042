"""Sokoban in pictures, with words of a few tokens, for runs of tiny models."""

from stepreward.envs import sokoban
from stepreward.envs.sokoban.prompts import CompactPrompt


def make(preset, **settings):
    return sokoban.make("istar_image", **settings)


class Prompt(CompactPrompt):
    def first(self, observation):
        return "box <image>"


def prompts(name):
    return Prompt()
