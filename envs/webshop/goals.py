"""Shopping goals, made from the catalogue or written by people."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

from stepreward.envs.webshop.catalogue import Product

LIMITS = tuple(10.0 * tens for tens in range(1, 100))  # dollars
NO_LIMIT = 1_000_000.0
SHUFFLE_SEED = 233  # as in the benchmark


@dataclass(frozen=True, slots=True, eq=False)
class Goal:
    """The goal of one task.

    text: the instruction, as shown to the shopper. asin: the product that the goal was made from.
    options: ((name, value), …) for a goal made from the catalogue, (value, …) for one that a person wrote.
    price_upper: maximum price of the purchase, in dollars.
    """

    asin: str
    text: str
    attributes: tuple[str, ...]
    options: tuple[tuple[str, str], ...] | tuple[str, ...]
    price_upper: float
    query: str
    name: str
    product_category: str


def synthetic_goals(products: Sequence[Product], draw: random.Random) -> list[Goal]:
    """Makes a goal for every combination of options of every product with an instruction, in the products' order.

    text = instruction + " with k: v, and k: v" + ", and price lower than X.00 dollars", where X is the larger of two
    numbers drawn from the next four multiples of 10 above the price.
    """
    goals = []
    for product in products:
        if product.instruction is None:
            continue
        limit, limit_text = _limit(product.price, draw)
        names = sorted(product.options)
        for values in itertools.product(*(product.options[name] for name in names)):
            chosen = ", and ".join(f"{name}: {value}" for name, value in zip(names, values))
            text = product.instruction + (f" with {chosen}" if chosen else "") + limit_text
            goals.append(_goal(product, text, product.instruction_attributes, tuple(zip(names, values)), limit))
    return goals


def human_goals(products: Sequence[Product], draw: random.Random) -> list[Goal]:
    """Returns the goals that people wrote and that name at least one attribute, in the products' order."""
    goals = []
    for product in products:
        for asked in product.human:
            attributes = tuple(asked["instruction_attributes"])
            if not attributes:
                continue
            limit, limit_text = _limit(product.price, draw)
            text = asked["instruction"].strip(".") + limit_text
            goals.append(_goal(product, text, attributes, tuple(asked["instruction_options"]), limit))
    return goals


def shuffled(goals: Sequence[Goal]) -> list[Goal]:
    """Returns the goals in the benchmark's order: `random.seed(233); random.shuffle(goals)`."""
    goals = list(goals)
    random.Random(SHUFFLE_SEED).shuffle(goals)
    return goals


def _goal(product: Product, text: str, attributes: tuple[str, ...], options: tuple, limit: float) -> Goal:
    return Goal(
        asin=product.asin,
        text=text,
        attributes=attributes,
        options=options,
        price_upper=limit,
        query=product.query,
        name=product.title,
        product_category=product.product_category,
    )


def _limit(price: float, draw: random.Random) -> tuple[float, str]:
    limits = [limit for limit in LIMITS if limit > price][:4]
    if len(limits) < 2:
        return NO_LIMIT, ""
    limit = max(draw.sample(limits, 2))
    return limit, f", and price lower than {limit:.2f} dollars"
