"""A shop: its catalogue, goals and search index. A process loads it once and shares it among environments."""

from __future__ import annotations

import functools
import json
import random
from pathlib import Path

from stepreward.envs.bm25 import Index
from stepreward.envs.webshop import catalogue, pages, synthetic
from stepreward.envs.webshop.catalogue import Product
from stepreward.envs.webshop.goals import Goal, human_goals, shuffled, synthetic_goals
from stepreward.envs.webshop.pages import Node, State

SPLITS = ("train", "held_out")
CACHED = 4096  # number of pages, and of searches, that a shop caches


class Shop:
    """The immutable part of the environment. `hits`: maximum number of hits of a search; `page_size`: hits per page."""

    def __init__(self, products: list[Product], goals: list[Goal], splits: dict[str, list[int]], hits: int, page_size: int):
        self.products, self.goals, self.splits = products, goals, splits
        self.by_asin = {product.asin: product for product in products}
        self.by_upper = {product.asin.upper(): product for product in products}
        self.page_size = page_size
        self._hits = hits
        self._index = Index([document(product) for product in products])
        # The caches are bounded: queries are a model's output, and the full catalogue has a million pages.
        self.search = functools.lru_cache(CACHED)(self._search)
        self.nodes = functools.lru_cache(CACHED)(self._nodes)
        self.view = functools.lru_cache(CACHED)(self._view)

    def _search(self, query: str) -> tuple[Product, ...]:
        """Returns the hits of a query, best first."""
        return tuple(self.products[number] for number in self._index.search(query, self._hits))

    def on_page(self, query: str, page: int) -> tuple[Product, ...]:
        """Returns the hits on a page of results; pages count from 1."""
        return self.search(query)[(page - 1) * self.page_size : page * self.page_size]

    def product(self, state: State) -> Product | None:
        """Returns the product on a state's page, or None."""
        return None if state.asin is None else self.by_upper.get(state.asin)

    def _nodes(self, kind: str, query: str | None, page: int, asin: str | None, sub: str | None, attributes: bool) -> list[Node]:
        """Returns the nodes of a page after its head. They do not depend on the goal or the chosen options."""
        if kind == pages.RESULTS:
            return pages.results_nodes(self.on_page(query, page), page, len(self.search(query)), self.page_size)
        if kind == pages.ITEM:
            return pages.item_nodes(self.by_upper[asin], attributes)
        return pages.sub_nodes(self.by_upper[asin], sub)

    def _view(self, kind: str, query: str | None, page: int, asin: str | None, sub: str | None, attributes: bool):
        """Returns (text after the head, clickables, admissible actions) of a page."""
        nodes = self.nodes(kind, query, page, asin, sub, attributes)
        names = pages.clickables(nodes)
        return pages.plain(nodes), frozenset(names), tuple(f"click[{name}]" for name in names)


def document(product: Product) -> str:
    """Returns a product's text for the search index: title, description, first feature and options."""
    options = ", and ".join(f"{name}: {', '.join(values)}" for name, values in product.options.items())
    return " ".join([product.title, product.description, product.bullets[0] if product.bullets else "", options]).lower()


@functools.lru_cache(maxsize=4)
def load(data: str | None, goals: str, seed: int, held_out: int, indices: tuple[str, str] | None, hits: int, page_size: int) -> Shop:
    """Loads a shop.

    Args:
      data: folder with the benchmark's files; None for the embedded catalogue.
      goals: "synthetic", "human", or "auto": human with the full catalogue, synthetic otherwise.
      seed: seeds the prices that are ranges and the goals' price limits.
      held_out: the shuffled goals 0 … held_out − 1 form the held-out split, the others the train split.
      indices: files with JSON lists of goal indices, (train, held_out), that replace these splits.
      hits: maximum number of hits of a search.
      page_size: hits per page.

    Raises FileNotFoundError for missing files, ValueError for malformed files or settings that do not fit.
    """
    human = goals == "human" or (goals == "auto" and data is not None and catalogue.is_full(data))
    if data is None:
        if human:
            raise ValueError('the embedded catalogue has no human goals; set data=, or goals="synthetic"')
        raw, attributes, asked = *synthetic.catalogue(), {}
    else:
        raw, attributes, asked = catalogue.read(data, human=human)
    draw = random.Random(seed)
    products = catalogue.build(raw, attributes, asked, draw)
    made = shuffled(human_goals(products, draw) if human else synthetic_goals(products, draw))
    where = "the embedded catalogue" if data is None else data
    if indices is None:
        if len(made) <= held_out:
            raise ValueError(f"{where} has {len(made)} goals, too few to hold out {held_out}; set held_out= to a smaller number")
        splits = {"train": list(range(held_out, len(made))), "held_out": list(range(held_out))}
    else:
        splits = {split: _indices(file, len(made), where) for split, file in zip(SPLITS, indices)}
    return Shop(products, made, splits, hits, page_size)


def _indices(file: str, goals: int, where: str) -> list[int]:
    if not Path(file).is_file():
        raise FileNotFoundError(f"no list of goal indices at {file}; set train_indices and held_out_indices to existing files")
    try:
        numbers = json.loads(Path(file).read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{file}: this is not valid JSON ({error})") from None
    if not isinstance(numbers, list) or not numbers or not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError(f"{file}: give a JSON list of goal indices, whole numbers from 0")
    if max(numbers) >= goals:
        raise ValueError(f"{file} names goal {max(numbers)}, but {where} has {goals} goals; the list belongs to another catalogue")
    return numbers
