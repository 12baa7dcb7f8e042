"""The shop's products, read from the benchmark's files (princeton-nlp/WebShop) or from data of the same schema.

| file | holds |
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
    """One product as the shop shows and judges it.

    price: in dollars, what the reward compares; price_tag: what the pages show.
    options: {name in lower case: its values in lower case}, in the order of the page.
    attributes: hidden properties, which the reward compares with those that a goal asks for.
    instruction, instruction_attributes: what the goals made from this product ask for; None and () without one.
    human: goals that people wrote for it, as in the file.
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
    """The raw products, the attributes and, with `human`, the human instructions in a folder of the benchmark's files.

    Where both sizes are there, the small one is read. Raises FileNotFoundError that names the missing file, ValueError
    that names a file that is no JSON of the right kind.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no WebShop data at {folder}: give the folder that holds {PRODUCT_FILES[0]}")
    products = next((name for name in PRODUCT_FILES if (folder / name).is_file()), None)
    if products is None:
        raise FileNotFoundError(f"{folder} holds neither {' nor '.join(PRODUCT_FILES)}: it is no folder of WebShop data")
    attributes = ATTRIBUTE_FILES[PRODUCT_FILES.index(products)]
    return (
        _load(folder / products, list),
        _load(folder / attributes, dict),
        _load(folder / HUMAN_FILE, dict) if human else {},
    )


def is_full(folder: str | Path) -> bool:
    """Whether a folder holds the full catalogue's files and not those of the 1,000 products."""
    return not (Path(folder) / PRODUCT_FILES[0]).is_file() and (Path(folder) / PRODUCT_FILES[1]).is_file()


def _load(file: Path, kind: type) -> Any:
    if not file.is_file():
        raise FileNotFoundError(f"{file.name} is missing beside the other WebShop files in {file.parent}")
    try:
        with file.open(encoding="utf-8-sig") as stream:
            value = json.load(stream)
    except ValueError as error:
        raise ValueError(f"{file}: not valid JSON, perhaps only half downloaded ({error})") from None
    if not isinstance(value, kind):
        raise ValueError(f"{file}: holds a {type(value).__name__}, not the {kind.__name__} that WebShop's file holds")
    return value


def build(
    raw: Sequence[Mapping[str, Any]],
    attributes: Mapping[str, Mapping[str, Any]],
    human: Mapping[str, Sequence[Mapping[str, Any]]],
    draw: random.Random,
) -> list[Product]:
    """Products from raw ones, in their order, with the benchmark's derived fields.

    Products without an asin, with one of more than ten characters, or with one seen before are left out. The price of
    a range "$a to $b" is drawn once, uniformly, from `draw`; a product without prices costs 100 dollars. Raises
    ValueError that names a product that lacks a field or has a malformed price.
    """
    products, seen = [], set()
    for number, item in enumerate(raw):
        asin = item.get("asin") if isinstance(item, Mapping) else None
        if not isinstance(asin, str):
            raise ValueError(f"product {number} has no asin: this is no list of WebShop products")
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
            raise ValueError(f"product {asin} ({number} of the file) is malformed: it lacks {error}") from None
        except (_Malformed, TypeError) as error:
            raise ValueError(f"product {asin} ({number} of the file) is malformed: {error}") from None
    return products


class _Malformed(Exception):
    """A field holds what it may not."""


def _pricing(text: Any) -> tuple[list[float], str]:
    """The lower and upper price, or the only one, and the tag; `text` is "$a", "$a to $b" or empty."""
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
    """A goal that a person wrote."""
    raw = _mapping("human instruction", raw)
    lists = {name: _texts(name, raw.get(name)) for name in ("instruction_attributes", "instruction_options")}
    return {"instruction": _text("instruction", raw.get("instruction")), **lists}


def _mapping(what: str, value: Any) -> Mapping[str, Any]:
    if value is not None and not isinstance(value, Mapping):
        raise _Malformed(f"{what} is {value!r}, not an object")
    return value or {}


def _text(what: str, value: Any) -> str:
    """The text; null is none."""
    if value is not None and not isinstance(value, str):
        raise _Malformed(f"{what} is {value!r}, not text")
    return value or ""


def _texts(what: str, value: Any) -> tuple[str, ...]:
    """The texts of a list; null, for the list or in it, is none."""
    if value is not None and not isinstance(value, (list, tuple)):
        raise _Malformed(f"{what} is {value!r}, not a list")
    return tuple(_text(what, item) for item in value or () if item is not None)
