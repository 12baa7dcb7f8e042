"""A scripted expert: gets all items that it needs from the world, then crafts from the bottom up, and uses what it already holds."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

from stepreward.envs.textcraft.recipes import Recipe, book


@functools.lru_cache(maxsize=1)
def _costs() -> dict[str, float]:
    """Returns, for each item and tag, the actions that a single one takes from an empty inventory, without sharing between inputs."""
    there, costs = book(), {}
    changed = True
    while changed:  # costs only fall, so the loop ends
        changed = False
        for item, recipes in there.recipes.items():
            least = min(1 + sum(_cost(costs, each) for each, _ in recipe.inputs) for recipe in recipes)
            if least < costs.get(item, math.inf):
                costs[item], changed = least, True
        for tag, items in there.items.items():
            least = min((_cost(costs, item) for item in items), default=math.inf)
            if least < costs.get(tag, math.inf):
                costs[tag], changed = least, True
    return costs


def _cost(costs: Mapping[str, float], item: str) -> float:
    there = book()
    return costs.get(item, math.inf if item in there.recipes or item in there.items else 1.0)


class _Plan:
    """Collects the actions for one goal. `stock` is the inventory without what earlier crafts of the plan use up."""

    def __init__(self, inventory: Mapping[str, int]):
        self.stock = dict(inventory)
        self.gets: dict[str, int] = {}
        self.crafts: list[str] = []

    def take(self, item: str, count: int) -> None:
        """Makes `count` of `item` available and reserves them."""
        recipes = book().recipes.get(item)
        lacking = count - self.stock.get(item, 0)
        if recipes is None and lacking > 0:
            self.gets[item] = self.gets.get(item, 0) + lacking
            self.stock[item] = count
        while self.stock.get(item, 0) < count:
            self.craft(min(recipes, key=lambda recipe: (self.missing(recipe), recipe.text)))
        self.stock[item] -= count

    def craft(self, recipe: Recipe) -> None:
        """Crafts once, after making the inputs."""
        used = [(self.choose(name, count), count) for name, count in recipe.inputs]
        for item, count in used:
            self.take(item, count)
        self.crafts.append(Recipe(recipe.item, recipe.count, tuple(used)).text)
        self.stock[recipe.item] = self.stock.get(recipe.item, 0) + recipe.count

    def choose(self, name: str, count: int) -> str:
        """Returns the item for an input: for a tag, one that is held in a sufficient number, or else the cheapest."""
        items = book().items.get(name)
        return name if items is None else min(items, key=lambda item: (self.stock.get(item, 0) < count, _cost(_costs(), item), item))

    def missing(self, recipe: Recipe) -> float:
        """Returns about how many actions the inputs take that are not held."""
        chosen = [(self.choose(name, count), count) for name, count in recipe.inputs]
        return sum(_cost(_costs(), item) for item, count in chosen if self.stock.get(item, 0) < count)


def plan(goal: str, inventory: Mapping[str, int]) -> list[str]:
    """Returns actions that craft one more `goal` from an inventory: one "get" for each item of the world, then the crafts.

    If an item has several recipes, or several items have a tag, the plan uses those whose missing inputs are cheapest. It is then not
    always the shortest plan.
    """
    found = _Plan({item: count for item, count in inventory.items() if item != goal})
    found.take(goal, 1)
    return [f"get {count} {item}" for item, count in found.gets.items()] + found.crafts


@functools.lru_cache(maxsize=1024)
def needed(goal: str) -> frozenset[str]:
    """Returns the items that the plan from an empty inventory obtains, the goal included."""
    found = _Plan({})
    found.take(goal, 1)
    made = {line.split(" using ")[0].split(" ", 2)[2] for line in found.crafts}
    return frozenset(found.gets) | made
