"""The shop's pages: what each shows, what can be clicked on it, and where a click or a search leads.

home → results (10 of at most 50 hits a page) → item → description, features, reviews (attributes) → … → done

A page is a list of nodes, as the benchmark's text mode finds them in its HTML: strings in the order of the page, each of a kind.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import NamedTuple

from stepreward.envs.webshop.catalogue import Product

HOME, RESULTS, ITEM, SUB, DONE = "home", "results", "item", "sub", "done"
SUB_PAGES = ("description", "features", "reviews")
ATTRIBUTES = "attributes"  # a fourth sub page, which the benchmark shows on demand only

SEPARATOR = " [SEP] "
SEARCH_ACTION = "search[<your query>]"  # how the list of actions stands for every search

TEXT, BUTTON, LINK, OPTION = "text", "button", "link", "option"
Node = tuple[str, str]  # kind, string

_ACTION = re.compile(r"(.+)\[(.+)\]")
_HTML_SPACE = " \n\t\f\r"


class State(NamedTuple):
    """Where a shopper is; plain data.

    kind: one of HOME … DONE. query, page: the last search and the page of its hits, from 1; None, 0 before one.
    asin, sub: the product and sub page looked at. options: (name, value) pairs chosen, in the order of their first choice.
    visited: the products opened since the home page, in order.
    """

    kind: str = HOME
    query: str | None = None
    page: int = 0
    asin: str | None = None
    sub: str | None = None
    options: tuple[tuple[str, str], ...] = ()
    visited: tuple[str, ...] = ()


def parse(action: object) -> tuple[str, str] | None:
    """("search" or "click", argument in lower case) as the benchmark reads an action; None for anything else."""
    found = _ACTION.match(action) if isinstance(action, str) else None
    if found is None or found[1] not in ("search", "click"):
        return None
    return found[1], found[2].lower()


def searched(state: State, query: str) -> State:
    """The first page of results. Any page accepts a search; options and product are forgotten."""
    return State(RESULTS, query, 1, visited=state.visited)


def clicked(state: State, name: str, product: Product | None) -> State:
    """Where a click on `name`, one of the page's clickables, leads; `product` is the one of the page, if it shows one.

    "back to search" forgets everything. "< prev" leads from a sub page to its item, from an item to the results it came
    from (whose options are forgotten), from results to the page before. Options stay chosen, one value a name.
    """
    if name == "buy now":
        return state._replace(kind=DONE, sub=None)
    if name == "back to search":
        return State()
    if state.kind == RESULTS:
        if name in ("next >", "< prev"):
            return State(RESULTS, state.query, state.page + (1 if name == "next >" else -1), visited=state.visited)
        asin = name.upper()
        visited = state.visited if asin in state.visited else (*state.visited, asin)
        return State(ITEM, state.query, state.page, asin, visited=visited)
    if name == "< prev":
        if state.kind == SUB:
            return state._replace(kind=ITEM, sub=None)
        return State(RESULTS, state.query, state.page, visited=state.visited)
    if name in (*SUB_PAGES, ATTRIBUTES):  # also when an option has such a value
        return state._replace(kind=SUB, sub=name)
    # A value that several options share belongs to the last of them.
    option = next(key for key in reversed(product.options) if name in product.options[key])
    return state._replace(options=tuple({**dict(state.options), option: name}.items()))


def home_nodes(instruction: str) -> list[Node]:
    """The page with the search bar."""
    return [(TEXT, "WebShop"), (TEXT, "Instruction: "), (TEXT, instruction), (BUTTON, "Search")]


def head_nodes(instruction: str) -> list[Node]:
    """What every page between home and done begins with."""
    return [(TEXT, "Instruction:"), (TEXT, instruction)]


def results_nodes(products: Sequence[Product], page: int, total: int, size: int) -> list[Node]:
    """A page of results without its head; `products` are those of the page, `total` all hits, `size` hits a page."""
    nodes = [(BUTTON, "Back to Search"), (TEXT, f"Page {page} (Total results: {total})")]
    if page > 1:
        nodes.append((BUTTON, "< Prev"))
    if page * size < total:
        nodes.append((BUTTON, "Next >"))
    for product in products:
        nodes += [(LINK, product.asin), (TEXT, product.title), (TEXT, product.price_tag)]
    return shown(nodes)


def item_nodes(product: Product, show_attributes: bool) -> list[Node]:
    """A product's page without its head."""
    nodes = [(BUTTON, "Back to Search"), (BUTTON, "< Prev")]
    for name, values in product.options.items():
        nodes.append((TEXT, name))
        nodes += [(OPTION, value) for value in values]
    nodes += [(TEXT, product.title), (TEXT, f"Price: {product.price_tag}"), (TEXT, "Rating: N.A.")]
    nodes += [(BUTTON, name.title()) for name in (*SUB_PAGES, *((ATTRIBUTES,) if show_attributes else ()))]
    return shown([*nodes, (BUTTON, "Buy Now")])


def sub_nodes(product: Product, sub: str) -> list[Node]:
    """A sub page of a product without its head."""
    texts = {
        "description": (product.description,),
        "features": product.bullets,
        "reviews": ("No reviews found",),
        ATTRIBUTES: (*product.attributes, product.category, product.query, product.product_category),
    }[sub]
    return shown([(BUTTON, "Back to Search"), (BUTTON, "< Prev"), *((TEXT, text) for text in texts)])


def done_nodes(state: State, score: float) -> list[Node]:
    """The page after a purchase, which tells the score in [0, 1]."""
    chosen = json.dumps(dict(state.options), sort_keys=True)
    for character in "<>&'":
        chosen = chosen.replace(character, f"\\u{ord(character):04x}")
    texts = (
        "Thank you for shopping with us!", "Your code: ", "None", "(Paste it in your MTurk interface.)", "Purchased",
        "asin", state.asin, "options", chosen, "attrs", "None", "category", "None", "query", "None", "product category",
        "None", "Target", "asin", "options", "attrs", "price upper", "instuction text", "category", "product category",
        "query", "Goal", "None", "Reward", "Your score (min 0.0, max 1.0)", f"{score}", "Reward Details", "None",
    )  # fmt: skip
    return [(TEXT, text) for text in texts]


def shown(nodes: list[Node]) -> list[Node]:
    """The nodes that the benchmark's text mode keeps.

    Its HTML parser makes no node of an empty string, and one newline, which is then dropped, of white space with a newline in
    it. Other white space remains, as one blank.
    """
    kept = []
    for kind, text in nodes:
        if not text.strip(_HTML_SPACE):
            if not text or "\n" in text:
                continue
            text = " "
        kept.append((kind, text))
    return kept


def plain(nodes: Sequence[Node]) -> str:
    """The benchmark's observation `text`: the stripped strings, joined by " [SEP] "."""
    return SEPARATOR.join(text.strip() for _, text in nodes)


def rich(nodes: Sequence[Node], state: State) -> str:
    """The benchmark's observation `text_rich`: a line a string, buttons marked, and those chosen or visited marked so.

    Like the benchmark, it takes an option for chosen when its value stands in double quotes in the page's address.
    """
    address = f"{'+'.join((state.query or '').split(' '))}/{state.page}/{json.dumps(dict(state.options))}"
    text = ""
    for kind, string in nodes:
        if kind == OPTION:
            chosen = f'"{string}"' in address
            line = f"  {_button(string, chosen)}"
            text = f"You have clicked {string}.\n{text}" if chosen else text
        elif kind == LINK:
            line = f"\n{_button(string, string in state.visited)}"
        else:
            line = _button(string, False) if kind == BUTTON else string
        text += f"{line}\n"
    return text


def _button(text: str, chosen: bool) -> str:
    return f"[clicked button] {text} [clicked button_]" if chosen else f"[button] {text} [button_]"


def clickables(nodes: Sequence[Node]) -> tuple[str, ...]:
    """What can be clicked, in lower case: buttons, then products, then options. The benchmark's "search" is left out, as
    it does nothing when clicked."""
    names = [text.lower() for kind, text in nodes if kind == BUTTON]
    names += [text.lower() for kind, text in nodes if kind == LINK]
    names += [text for kind, text in nodes if kind == OPTION]
    return tuple(dict.fromkeys(name for name in names if name != "search"))


def without_instruction(text: str, instruction: str) -> str:
    """What verl-agent shows of a `text` observation: the strings after the instruction, each in single quotes.

    A text that does not hold the instruction (the page after a purchase) is returned as it is.
    """
    parts = text.split(SEPARATOR)
    if instruction not in parts:
        return text
    return SEPARATOR.join(f"'{part}'" for part in parts[parts.index(instruction) + 1 :])
