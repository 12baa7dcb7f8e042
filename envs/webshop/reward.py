"""The benchmark's reward of a purchase (Yao et al. 2022, arXiv 2207.01206, and the code of its environment).

    r = r_type · (attributes found + options found + [price ≤ limit]) / (|attributes| + |options| + 1)

r_type compares the nouns of the two titles. The benchmark finds them with spaCy. If its model en_core_web_sm is not
installed, all words of a title with two or more letters or digits, at least one of them a letter, count as nouns, except stop
words.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from typing import NamedTuple

from thefuzz import fuzz

from stepreward.envs.bm25 import STOP_WORDS
from stepreward.envs.webshop.catalogue import Product
from stepreward.envs.webshop.goals import Goal

ENOUGH = 85  # a fuzzy match scores more than this

# The benchmark's colours, in the order in which it looks for them.
COLOURS = tuple(
    """alabaster apricot aqua ash asphalt azure banana beige black blue blush bordeaux bronze brown burgundy camel camo
    caramel champagne charcoal cheetah chestnut chocolate christmas coffee cognac copper coral cranberry cream crystal dark
    denim eggplant elephant espresso fuchsia gold granite grape graphite grass gray green grey heather indigo ivory ivy khaki
    lavender lemon leopard light lilac lime magenta maroon mauve merlot midnight mint mocha multicolor mushroom mustard
    natural navy nude olive orange peach pewter pink plum purple rainbow red rose royal rust sand sapphire seashell silver
    skull slate steel stone stonewash sunflower tan taupe teal tiger turquoise violet walnut wheat white wine yellow""".split()
)
_TOKEN = re.compile(r"[a-z0-9]{2,}")
_LETTER = re.compile(r"[a-z]")


class Reward(NamedTuple):
    """A purchase's reward, in [0, 1], and its parts: r_type, attributes and options found, and whether the price is in the limit."""

    total: float
    r_type: float
    attributes: int
    options: int
    price: bool


def reward(product: Product, goal: Goal, chosen: dict[str, str]) -> Reward:
    """Returns the reward for buying `product` with the options `chosen` ({name: value}) under `goal`."""
    r_type = type_reward(product, goal)
    attributes = attributes_found(product, goal)
    options = options_found(goal.options, tuple(chosen.values()))
    price = product.price <= goal.price_upper
    total = (attributes + options + price) / (len(goal.attributes) + len(goal.options) + 1)
    return Reward(total * r_type, r_type, attributes, options, price)


def title_score(bought: str, asked: str) -> float:
    """Returns the share of the nouns in the title `asked` that `bought` also has; 0.2 if `asked` has none."""
    wanted = nouns(asked)
    return len(set(nouns(bought)) & set(wanted)) / len(wanted) if wanted else 0.2


def type_reward(product: Product, goal: Goal) -> float:
    """Returns 1.0 for the same kind of product, 0.5 for another kind, and 0.1 or 0.0 if the titles share almost nothing."""
    score = title_score(product.title, goal.name)
    if score == 0:
        return 0.0
    if score < 0.1:
        return 0.1
    shared = _categories(product.product_category) & _categories(goal.product_category)
    return 1.0 if product.query == goal.query or len(shared) >= 2 or score > 0.2 else 0.5


def attributes_found(product: Product, goal: Goal) -> int:
    """Counts the goal's attributes that the product has: those that nearly equal one of its own or occur in its texts."""
    found = 0
    for wanted in goal.attributes:
        if any(fuzz.token_set_ratio(own, wanted) > ENOUGH for own in product.attributes):
            found += 1
        elif any(wanted in text for text in _texts(product)):
            found += 1
    return found


def options_found(wanted: tuple, chosen: tuple[str, ...]) -> int:
    """Counts the wanted options that a chosen value matches.

    A goal made from the catalogue wants (name, value) pairs. The benchmark compares a value with Python's text of the pair, so
    "red" fully matches ("color", "red"). A pair in which a colour is a part counts as that colour.
    """
    values = [normal_colour(value) for value in chosen]
    asked = [normal_colour(option) for option in wanted]
    return sum(any(fuzz.token_set_ratio(value, option) > ENOUGH for value in values) for option in asked)


def normal_colour(option):
    """Returns the first of COLOURS in a string, or among the parts of a tuple; `option` itself if there is none."""
    return next((colour for colour in COLOURS if colour in option), option)


def noun_score() -> str:
    """Returns the method of `nouns`: "spacy" if spaCy and its model en_core_web_sm are installed, else "tokens"."""
    return "tokens" if _tagger() is None else "spacy"


@functools.lru_cache(maxsize=16_384)
def nouns(title: str) -> tuple[str, ...]:
    """Returns the nouns of a title in lower case, with repetitions."""
    tagger = _tagger()
    if tagger is not None:
        return tuple(token.text.lower() for token in tagger(title) if token.pos_ in ("NOUN", "PROPN"))
    return tuple(word for word in _TOKEN.findall(title.lower()) if _LETTER.search(word) and word not in STOP_WORDS)


@functools.cache
def _tagger():
    # Look for the model first: importing spaCy, which other packages may have installed, loads PyTorch and takes seconds.
    if importlib.util.find_spec("en_core_web_sm") is None:
        return None
    try:
        import spacy

        return spacy.load("en_core_web_sm")
    except (ImportError, OSError):  # spaCy, or its model, is not installed
        return None


def _categories(path: str) -> set[str]:
    return {part.strip() for part in path.split("›")}


@functools.lru_cache(maxsize=4096)
def _texts(product: Product) -> tuple[str, str, str]:
    return product.title.lower(), " ".join(product.bullets).lower(), product.description.lower()
