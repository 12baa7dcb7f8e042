"""The tasks: goals by name, their division into train and held_out, and the recipes that each one shows.

The benchmark has no split; the one here is ours. Every choice follows digests of names, so it is the same on any machine.
"""

from __future__ import annotations

import functools
import hashlib
from typing import NamedTuple

from stepreward.envs.textcraft.expert import plan
from stepreward.envs.textcraft.presets import Settings
from stepreward.envs.textcraft.recipes import Recipe, book

SPLITS = ("train", "held_out")
HELD_OUT_SHARE = 0.2


class Task(NamedTuple):
    """A goal, and the recipes that the task shows: all that lead to it, and some that do not."""

    goal: str
    shown: tuple[Recipe, ...]


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


@functools.lru_cache(maxsize=32)
def goals(settings: Settings) -> dict[str, tuple[str, ...]]:
    """Returns the goals of each split, in an order that mixes depths.

    The fifth of the goals of each depth with the smallest digests of (split_seed, name) is held out.
    """
    there = book()
    found = {"train": [], "held_out": []}
    for depth in settings.depths:
        names = [item for item in there.recipes if there.depth[item] == depth]
        if settings.max_plan is not None:
            names = [item for item in names if len(plan(item, {})) <= settings.max_plan]
        if settings.max_recipes is not None:
            names = [item for item in names if len(_leading_to(item)) <= settings.max_recipes]
        names.sort(key=lambda item: _digest(settings.split_seed, item))
        held = round(HELD_OUT_SHARE * len(names))
        found["held_out"] += names[:held]
        found["train"] += names[held:]
    if not found["train"] or not found["held_out"]:
        count = len(found["train"]) + len(found["held_out"])
        raise ValueError(
            f"depths={settings.depths}, max_plan={settings.max_plan}, max_recipes={settings.max_recipes} leave {count} goals, "
            "too few for two splits; widen them"
        )
    return {split: tuple(sorted(names, key=lambda item: _digest(settings.split_seed, item))) for split, names in found.items()}


@functools.lru_cache(maxsize=1024)
def task(goal: str, distractors: int) -> Task:
    """Returns the task of a goal. Its distractors are further recipes that use one of the items that its own recipes use."""
    own = _leading_to(goal)
    used = {name for recipe in own for name, _ in recipe.inputs}
    others = [recipe for recipe in _all() if used & _names(recipe)]
    known = set(own)
    others = sorted((recipe for recipe in others if recipe not in known), key=lambda recipe: _digest(goal, recipe.text))
    shown = sorted([*own, *others[:distractors]], key=lambda recipe: _digest("order", goal, recipe.text))
    return Task(goal, tuple(shown))


@functools.lru_cache(maxsize=1)
def _all() -> tuple[Recipe, ...]:
    return tuple(recipe for recipes in book().recipes.values() for recipe in recipes)


def _names(recipe: Recipe) -> frozenset[str]:
    return frozenset(name for name, _ in recipe.inputs)


def _leading_to(goal: str) -> tuple[Recipe, ...]:
    """Returns the recipes of the goal, of what they use, and so on. The recipes of a tag are those of all of its items."""
    there = book()
    found: dict[Recipe, None] = {}
    left, seen = [goal], set()
    while left:
        name = left.pop()
        if name in seen:
            continue
        seen.add(name)
        for item in there.items.get(name, (name,)):
            for recipe in there.recipes.get(item, ()):
                found[recipe] = None
                left += [used for used, _ in recipe.inputs]
    return tuple(found)
