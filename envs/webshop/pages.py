"""The shop's pages: their content, what can be clicked on them, and where clicks and searches lead.

home → results (10 of at most 50 hits per page) → item → description, features, reviews (attributes) → … → done

A page is a list of nodes, as the benchmark's text mode finds them in its HTML: (kind, string) pairs in the order of the page.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import NamedTuple

from stepreward.envs.webshop.catalogue import Product

HOME, RESULTS, ITEM, SUB, DONE = "home", "results", "item", "sub", "done"
SUB_PAGES = ("description", "features", "reviews")
ATTRIBUTES = "attributes"  # a fourth sub page, which the benchmark shows only on demand

SEPARATOR = " [SEP] "
SEARCH_ACTION = "search[<your query>]"  # stands for every search in a list of actions

TEXT, BUTTON, LINK, OPTION = "text", "button", "link", "option"
Node = tuple[str, str]  # kind, string

_ACTION = re.compile(r"(.+)\[(.+)\]")
_HTML_SPACE = " \n\t\f\r"


class State(NamedTuple):
    """The state of a shopping session, as plain data.

    kind: one of HOME … DONE. query, page: the last search and its current page, from 1; None and 0 before the first search.
    asin, sub: the current product and sub page. options: the chosen (name, value) pairs, in the order of their first choice.
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
    """Parses an action as the benchmark does: ("search" or "click", argument in lower case); None for anything else."""
    found = _ACTION.match(action) if isinstance(action, str) else None
    if found is None or found[1] not in ("search", "click"):
        return None
    return found[1], found[2].lower()


def searched(state: State, query: str) -> State:
    """Returns the state after a search, which any page accepts: the first page of results, without product and options."""
    return State(RESULTS, query, 1, visited=state.visited)


def clicked(state: State, name: str, product: Product | None) -> State:
    """Returns the state after a click on `name`, one of the page's clickables; `product` is the page's product, if any.

    "back to search" clears the state. "< prev" leads from a sub page to its item, from an item to the results (and clears the
    chosen options), and from a page of results to the previous one. Each option keeps one chosen value.
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
    """Returns the page with the search bar."""
    return [(TEXT, "WebShop"), (TEXT, "Instruction: "), (TEXT, instruction), (BUTTON, "Search")]


def head_nodes(instruction: str) -> list[Node]:
    """Returns the head of every page between home and done."""
    return [(TEXT, "Instruction:"), (TEXT, instruction)]


def results_nodes(products: Sequence[Product], page: int, total: int, size: int) -> list[Node]:
    """Returns a page of results without its head; `products`: those of the page; `total`: all hits; `size`: hits per page."""
    nodes = [(BUTTON, "Back to Search"), (TEXT, f"Page {page} (Total results: {total})")]
    if page > 1:
        nodes.append((BUTTON, "< Prev"))
    if page * size < total:
        nodes.append((BUTTON, "Next >"))
    for product in products:
        nodes += [(LINK, product.asin), (TEXT, product.title), (TEXT, product.price_tag)]
    return shown(nodes)


def item_nodes(product: Product, show_attributes: bool) -> list[Node]:
    """Returns a product's page without its head."""
    nodes = [(BUTTON, "Back to Search"), (BUTTON, "< Prev")]
    for name, values in product.options.items():
        nodes.append((TEXT, name))
        nodes += [(OPTION, value) for value in values]
    nodes += [(TEXT, product.title), (TEXT, f"Price: {product.price_tag}"), (TEXT, "Rating: N.A.")]
    nodes += [(BUTTON, name.title()) for name in (*SUB_PAGES, *((ATTRIBUTES,) if show_attributes else ()))]
    return shown([*nodes, (BUTTON, "Buy Now")])


def sub_nodes(product: Product, sub: str) -> list[Node]:
    """Returns a sub page of a product without its head."""
    texts = {
        "description": (product.description,),
        "features": product.bullets,
        "reviews": ("No reviews found",),
        ATTRIBUTES: (*product.attributes, product.category, product.query, product.product_category),
    }[sub]
    return shown([(BUTTON, "Back to Search"), (BUTTON, "< Prev"), *((TEXT, text) for text in texts)])


def done_nodes(state: State, score: float) -> list[Node]:
    """Returns the page after a purchase, which shows the score in [0, 1]."""
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
    """Returns the nodes that the benchmark's text mode keeps.

    Its HTML parser makes no node from an empty string. It turns white space with a newline into one newline, which is then
    dropped, and other white space into one blank, which remains.
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
    """Writes the benchmark's observation `text`: the stripped strings, joined by " [SEP] "."""
    return SEPARATOR.join(text.strip() for _, text in nodes)


def rich(nodes: Sequence[Node], state: State) -> str:
    """Writes the benchmark's observation `text_rich`: one string a line, with marks on buttons and on chosen or visited ones.

    Like the benchmark, it treats an option as chosen if the page's address contains its value in double quotes.
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
    """Returns what can be clicked, in lower case: buttons, then products, then options. It omits the benchmark's "search",
    because clicking it has no effect."""
    names = [text.lower() for kind, text in nodes if kind == BUTTON]
    names += [text.lower() for kind, text in nodes if kind == LINK]
    names += [text for kind, text in nodes if kind == OPTION]
    return tuple(dict.fromkeys(name for name in names if name != "search"))


def without_instruction(text: str, instruction: str) -> str:
    """Returns verl-agent's form of a `text` observation: the strings after the instruction, each in single quotes.

    A text without the instruction (the page after a purchase) is returned unchanged.
    """
    parts = text.split(SEPARATOR)
    if instruction not in parts:
        return text
    return SEPARATOR.join(f"'{part}'" for part in parts[parts.index(instruction) + 1 :])
