"""Reads the shop's products from the benchmark's files (princeton-nlp/WebShop), or from data with the same schema.

| file | content |
|---|---|
| items_shuffle_1000.json or items_shuffle.json | a list of raw products |
| items_ins_v2_1000.json or items_ins_v2.json | {asin: {"attributes", "instruction", "instruction_attributes"}} |
| items_human_ins.json | {asin: [{"instruction", "instruction_attributes", "instruction_options"}]}, for human goals |
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

PRODUCT_FILES = ("items_shuffle_1000.json", "items_shuffle.json")
ATTRIBUTE_FILES = ("items_ins_v2_1000.json", "items_ins_v2.json")
HUMAN_FILE = "items_human_ins.json"


@dataclass(frozen=True, slots=True, eq=False)
class Product:
    """One product, as shown on the pages and as compared by the reward.

    price: price in dollars, for the reward. price_tag: price as shown on the pages.
    options: {name: values}, in lower case and in the order of the page.
    attributes: hidden properties, which the reward compares with those of a goal.
    instruction, instruction_attributes: the request of the goals made from this product; None and () if there is none.
    human: goals that people wrote for this product, as in the file.
    """

    asin: str
    title: str
    description: str
    bullets: tuple[str, ...]
    price: float
    price_tag: str
    options: Mapping[str, tuple[str, ...]]
    attributes: tuple[str, ...]
    query: str
    category: str
    product_category: str
    instruction: str | None = None
    instruction_attributes: tuple[str, ...] = ()
    human: tuple[Mapping[str, Any], ...] = ()


def read(folder: str | Path, *, human: bool) -> tuple[list[dict], dict[str, dict], dict[str, list]]:
    """Reads the raw products, the attributes and, with `human`, the human instructions from a folder of the benchmark's files.

    If the folder has both catalogues, it reads the small one. Raises FileNotFoundError that names a missing file, and
    ValueError that names a malformed one.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no WebShop data at {folder}; set data to the folder with {PRODUCT_FILES[0]}")
    products = next((name for name in PRODUCT_FILES if (folder / name).is_file()), None)
    if products is None:
        raise FileNotFoundError(f"{folder} has neither {' nor '.join(PRODUCT_FILES)}; set data to a folder of WebShop data")
    attributes = ATTRIBUTE_FILES[PRODUCT_FILES.index(products)]
    return (
        _load(folder / products, list),
        _load(folder / attributes, dict),
        _load(folder / HUMAN_FILE, dict) if human else {},
    )


def is_full(folder: str | Path) -> bool:
    """Whether a folder has the files of the full catalogue and not those of the catalogue of 1,000 products."""
    return not (Path(folder) / PRODUCT_FILES[0]).is_file() and (Path(folder) / PRODUCT_FILES[1]).is_file()


def _load(file: Path, kind: type) -> Any:
    if not file.is_file():
        raise FileNotFoundError(f"{file.name} is missing in the folder of WebShop data {file.parent}; download it")
    try:
        with file.open(encoding="utf-8-sig") as stream:
            value = json.load(stream)
    except ValueError as error:
        raise ValueError(f"{file}: this is not valid JSON, perhaps an incomplete download ({error}); download it again") from None
    if not isinstance(value, kind):
        raise ValueError(f"{file}: the content is a {type(value).__name__}, not a {kind.__name__}; download the file again")
    return value


def build(
    raw: Sequence[Mapping[str, Any]],
    attributes: Mapping[str, Mapping[str, Any]],
    human: Mapping[str, Sequence[Mapping[str, Any]]],
    draw: random.Random,
) -> list[Product]:
    """Builds products from raw ones, in the same order, with the benchmark's derived fields.

    It skips products whose asin is "nan", has more than ten characters, or has occurred before. `draw` draws the price of a range
    "$a to $b" once, uniformly; a product without a price costs 100 dollars. Raises ValueError that names a malformed product.
    """
    products, seen = [], set()
    for number, item in enumerate(raw):
        asin = item.get("asin") if isinstance(item, Mapping) else None
        if not isinstance(asin, str):
            raise ValueError(f"product {number} has no asin: this is not a list of WebShop products")
        if asin == "nan" or len(asin) > 10 or asin in seen:
            continue
        seen.add(asin)
        try:
            known = _mapping("attributes of the product", attributes.get(asin))
            prices, tag = _pricing(item.get("pricing"))
            small = item["small_description"]
            products.append(
                Product(
                    asin=asin,
                    title=_text("name", item["name"]),
                    description=_text("full_description", item["full_description"]),
                    bullets=_texts("small_description", [small] if isinstance(small, str) else small),
                    price=prices[0] if len(prices) == 1 else draw.uniform(*prices),
                    price_tag=tag,
                    options=_options(item["customization_options"]),
                    attributes=_texts("attributes", known.get("attributes", ("DUMMY_ATTR",))),
                    query=_text("query", item["query"]).lower().strip(),
                    category=_text("category", item["category"]),
                    product_category=_text("product_category", item["product_category"]),
                    instruction=None if known.get("instruction") is None else _text("instruction", known["instruction"]),
                    instruction_attributes=_texts("instruction_attributes", known.get("instruction_attributes")),
                    human=tuple(map(_asked, human.get(asin) or ())),
                )
            )
        except KeyError as error:
            raise ValueError(f"product {asin} (entry {number} of the file) is malformed: it lacks {error}") from None
        except (_Malformed, TypeError) as error:
            raise ValueError(f"product {asin} (entry {number} of the file) is malformed: {error}") from None
    return products


class _Malformed(Exception):
    """A field has a value of the wrong kind."""


def _pricing(text: Any) -> tuple[list[float], str]:
    """Parses "$a", "$a to $b" or an empty text; returns ([a] or [a, b], price tag)."""
    try:
        prices = [float(Decimal(re.sub(r"[^\d.]", "", part))) for part in _text("pricing", text).split("$")[1:]][:2]
    except InvalidOperation:
        raise _Malformed(f"the price {text!r} is neither '$a' nor '$a to $b'") from None
    if not prices:
        return [100.0], "$100.0"
    return prices, " to ".join(f"${price}" for price in prices)


def _options(raw: Any) -> dict[str, tuple[str, ...]]:
    return {
        name.lower(): tuple(
            _text("value", _mapping(f"option {name}", value)["value"]).strip().replace("/", " | ").lower() for value in values
        )
        for name, values in _mapping("customization_options", raw or {}).items()
        if values is not None
    }


def _asked(raw: Any) -> dict[str, Any]:
    """Checks a goal that a person wrote."""
    raw = _mapping("human instruction", raw)
    lists = {name: _texts(name, raw.get(name)) for name in ("instruction_attributes", "instruction_options")}
    return {"instruction": _text("instruction", raw.get("instruction")), **lists}


def _mapping(what: str, value: Any) -> Mapping[str, Any]:
    if value is not None and not isinstance(value, Mapping):
        raise _Malformed(f"{what} is {value!r}, not an object")
    return value or {}


def _text(what: str, value: Any) -> str:
    """Returns a text; null counts as empty."""
    if value is not None and not isinstance(value, str):
        raise _Malformed(f"{what} is {value!r}, not text")
    return value or ""


def _texts(what: str, value: Any) -> tuple[str, ...]:
    """Returns the texts of a list; null counts as an empty list, and is skipped inside a list."""
    if value is not None and not isinstance(value, (list, tuple)):
        raise _Malformed(f"{what} is {value!r}, not a list")
    return tuple(_text(what, item) for item in value or () if item is not None)
