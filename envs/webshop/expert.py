"""A scripted shopper that searches with words of the instruction, opens the first fitting product, chooses its options and buys.

It plans with the site's own rules, so its actions lead to a reward of 1, and their number is the distance. A product fits
if some choice of its options gives a reward of 1. That uses data which the pages do not show (attributes, prices drawn from
ranges); in the embedded catalogue, the titles, price tags and options reveal them, except prices that are ranges. It takes only
listed actions: to search again, it returns to the home page, although the site accepts a search on any page.
"""

from __future__ import annotations

import math
import re

import numpy as np
from thefuzz import fuzz

from stepreward.envs.webshop import pages
from stepreward.envs.webshop.catalogue import Product
from stepreward.envs.webshop.goals import Goal
from stepreward.envs.webshop.instruction import read_instruction
from stepreward.envs.webshop.pages import State
from stepreward.envs.webshop.reward import ENOUGH, normal_colour, reward
from stepreward.envs.webshop.shop import Shop

KEPT = 256  # number of searches that a planner caches; bounded, because a model may search for anything


def queries(goal: Goal) -> tuple[str, ...]:
    """Returns the shopper's queries, plainest first: selections of the instruction's words."""
    asked = read_instruction(goal.text)
    values = " ".join(option.partition(": ")[2] or option for option in asked.options)
    short = asked.what.rpartition(", ")[2]
    texts = (asked.what, f"{asked.what} {values}", f"{short} {values}", f"{asked.what} {' '.join(asked.options)}", short)
    return tuple(dict.fromkeys(re.sub(r"[\[\]\r\n]", " ", text).strip().lower() for text in texts if text.strip()))


class Planner:
    """Plans for one goal. It caches its results for products and searches, so that a distance is cheap."""

    def __init__(self, shop: Shop, goal: Goal):
        self._shop, self._goal = shop, goal
        self._choices: dict[str, tuple[tuple[str, str], ...] | None] = {}
        self._targets: dict[str, tuple[tuple[int, Product], ...]] = {}

    def choice(self, product: Product) -> tuple[tuple[str, str], ...] | None:
        """Returns the (option, value) clicks after which buying `product` has reward 1; None if there are none."""
        if product.asin not in self._choices:
            self._choices[product.asin] = self._choose(product)
        return self._choices[product.asin]

    def _choose(self, product: Product) -> tuple[tuple[str, str], ...] | None:
        goal, chosen = self._goal, {}
        for wanted in goal.options:
            found = next((pair for pair in _candidates(product, wanted) if pair[0] not in chosen), None)
            if found is not None:
                chosen[found[0]] = found[1]
        return tuple(chosen.items()) if reward(product, goal, chosen).total == 1 else None

    def targets(self, query: str) -> tuple[tuple[int, Product], ...]:
        """Returns (page, first fitting product) for each page of a query's results that has a fitting product."""
        if query not in self._targets:
            if len(self._targets) >= KEPT:
                self._targets.clear()
            found = {}
            for place, product in enumerate(self._shop.search(query)):
                page = place // self._shop.page_size + 1
                if page not in found and self.choice(product) is not None:
                    found[page] = product
            self._targets[query] = tuple(found.items())
        return self._targets[query]

    def plan(self, state: State, rng: np.random.Generator | None = None) -> list[str] | None:
        """Returns this shopper's shortest list of actions from a state; None if it finds no way.

        Among plans of equal length, it prefers the current product or results to a new search. `rng` draws the order of the
        options.
        """
        if state.kind == pages.DONE:
            return None
        plans = [plan for plan in (self._here(state, rng), self._anew(state, rng)) if plan is not None]
        return min(plans, key=len, default=None)

    def distance(self, state: State) -> float:
        """Returns the number of actions in `plan`; math.inf if there is no plan."""
        plan = self.plan(state)
        return math.inf if plan is None else len(plan)

    def _here(self, state: State, rng: np.random.Generator | None) -> list[str] | None:
        """Returns a plan that uses the current product or results."""
        if state.asin is not None:
            choice = self.choice(self._shop.product(state))
            if choice is not None:
                back = ["click[< prev]"] if state.kind == pages.SUB else []
                return back + _purchase(choice, state.options, rng)
        if state.query is None:
            return None
        back = {pages.SUB: 2, pages.ITEM: 1}.get(state.kind, 0) * ["click[< prev]"]
        plan = self._from_results(state.query, state.page, rng)
        return None if plan is None else back + plan

    def _anew(self, state: State, rng: np.random.Generator | None) -> list[str] | None:
        """Returns the shortest plan that begins with a search on the home page; the first query wins a tie."""
        best = None
        for query in queries(self._goal):
            plan = self._from_results(query, 1, rng)
            if plan is not None and (best is None or len(plan) + 1 < len(best)):
                best = [f"search[{query}]", *plan]
                if self.targets(query)[0][0] == 1:
                    break
        back = [] if state.kind == pages.HOME else ["click[back to search]"]
        return None if best is None else back + best

    def _from_results(self, query: str, page: int, rng: np.random.Generator | None) -> list[str] | None:
        def length(target):
            return abs(target[0] - page) + len(self.choice(target[1]))

        targets = self.targets(query)
        if not targets:
            return None
        there, product = min(targets, key=length)
        turn = "click[next >]" if there > page else "click[< prev]"
        opened = f"click[{product.asin.lower()}]"
        return [turn] * abs(there - page) + [opened] + _purchase(self.choice(product), (), rng)


def _purchase(choice: tuple[tuple[str, str], ...], chosen: tuple[tuple[str, str], ...], rng) -> list[str]:
    clicks = [f"click[{value}]" for name, value in choice if dict(chosen).get(name) != value]
    if rng is not None:
        clicks = [clicks[index] for index in rng.permutation(len(clicks)).tolist()]
    return [*clicks, "click[buy now]"]


def _candidates(product: Product, wanted: tuple[str, str] | str):
    """Yields clickable (option, value) pairs that match a wanted option: the identical one first, then in the page's order."""
    if isinstance(wanted, tuple) and wanted[1] in product.options.get(wanted[0], ()) and _clickable(product, *wanted):
        yield wanted
    asked = normal_colour(wanted)
    for name, values in product.options.items():
        for value in values:
            if _clickable(product, name, value) and fuzz.token_set_ratio(normal_colour(value), asked) > ENOUGH:
                yield name, value


def _clickable(product: Product, name: str, value: str) -> bool:
    """Whether `click[value]` chooses this option. It does not if the value has brackets, names a button, or is a later option's."""
    owner = next(key for key in reversed(product.options) if value in product.options[key])
    reserved = (*pages.SUB_PAGES, pages.ATTRIBUTES, "buy now", "back to search", "< prev")
    return owner == name and bool(value) and value not in reserved and pages.parse(f"click[{value}]") == ("click", value)
