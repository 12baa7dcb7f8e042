"""A terse view of the shop for small models: the request, the current page, and what can be clicked there.

    vegan, long lasting lip gloss | color: red | size: 2 oz | < $30
    results 1/3
    1 orsa vegan long lasting waterproof lip gloss $12
    …

On a page of results, a product is named by its place, as in `click[1]`, so that choosing one takes one token, whatever its id.
Prices are rounded up to whole dollars; limits are multiples of ten. An option without a chosen value lists its values
after a question mark; otherwise it shows the chosen value:

    item orsa vegan long lasting waterproof lip gloss $12
    color: red
    size? 2 oz, 4 oz
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence

from stepreward.envs.webshop import pages
from stepreward.envs.webshop.catalogue import Product
from stepreward.envs.webshop.goals import Goal
from stepreward.envs.webshop.instruction import read_instruction
from stepreward.envs.webshop.pages import State
from stepreward.envs.webshop.shop import Shop

TITLE_WORDS = 10  # words of a title that are shown
SUB_WORDS = 60  # words of a sub page that are shown
VALUES = 12  # values of an option that are shown


def observation(shop: Shop, goal: Goal, state: State, score: float) -> str:
    """Writes the page of a state as short lines."""
    return f"{request(goal.text)}\n{_page(shop, state, score)}"


@functools.lru_cache(maxsize=4096)
def request(instruction: str) -> str:
    """Shortens an instruction to the product, its options and the price limit, separated by bars."""
    asked = read_instruction(instruction)
    limit = () if asked.limit is None else (f"< ${asked.limit}",)
    return " | ".join((asked.what, *asked.options, *limit)).lower()


def _page(shop: Shop, state: State, score: float) -> str:
    if state.kind == pages.HOME:
        return "search"
    if state.kind == pages.DONE:
        return f"done {score:.2f}"
    if state.kind == pages.RESULTS:
        count = -(-len(shop.search(state.query)) // shop.page_size)
        found = shop.on_page(state.query, state.page)
        lines = [f"{place} {_short(product.title)} {_price(product)}" for place, product in enumerate(found, 1)]
        return "\n".join([f"results {state.page}/{count}", *lines]).lower()
    product = shop.product(state)
    if state.kind == pages.SUB:
        texts = [text.strip() for _, text in pages.sub_nodes(product, state.sub)[2:]]
        return f"{state.sub}\n{_short(' '.join(texts), SUB_WORDS)}".lower()
    lines = [f"item {_short(product.title)} {_price(product)}".lower()]
    chosen = dict(state.options)
    for name, values in product.options.items():
        lines.append(f"{name}: {chosen[name]}" if name in chosen else f"{name}? {', '.join(values[:VALUES])}")
    return "\n".join(lines)


def to_site(shop: Shop, state: State, name: str) -> str:
    """Translates a compact name to the site's: a place on a page of results becomes the product's id."""
    if state.kind == pages.RESULTS and name.isascii() and name.isdigit() and len(name) < 4:
        found = shop.on_page(state.query, state.page)
        if 1 <= int(name) <= len(found):
            return found[int(name) - 1].asin.lower()
    return name


def from_site(shop: Shop, state: State, actions: Sequence[str]) -> tuple[str, ...]:
    """Translates actions from the site's names to compact ones."""
    if state.kind != pages.RESULTS:
        return tuple(actions)
    found = shop.on_page(state.query, state.page)
    places = {f"click[{product.asin.lower()}]": f"click[{place}]" for place, product in enumerate(found, 1)}
    return tuple(places.get(action, action) for action in actions)


def _price(product: Product) -> str:
    return re.sub(r"\d+(\.\d+)?", lambda number: str(math.ceil(float(number[0]))), product.price_tag)


def _short(text: str, words: int = TITLE_WORDS) -> str:
    return " ".join(text.split()[:words])
