"""A small hand-made shop in the benchmark's file layout, and the location of the real data."""

from __future__ import annotations

import json
from pathlib import Path

REAL = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "webshop"


def product(asin: str, name: str, **fields) -> dict:
    """A raw product; `fields` replace the defaults."""
    return {
        "asin": asin, "name": name, "full_description": "", "small_description": [], "pricing": "$10.00", "images": ["x.jpg"],
        "category": "garden", "query": "Mugs ", "product_category": "Home › Kitchen › Mugs", "customization_options": "",
        "average_rating": "", "page": 1,
    } | fields  # fmt: skip


def values(*names: str) -> list[dict]:
    return [{"value": name, "image": None} for name in names]


PRODUCTS = [
    product(
        "B00000000A", "Blue Clay Mug",
        full_description="A mug for tea.", small_description=["Dishwasher safe", "Holds 12 oz"], pricing="$12.50",
        customization_options={"Color": values("Red", "Sky/Blue"), "Size": values("Small ", "Large"), "Gone": None},
    ),
    product("B00000000B", "Clay Mug with Lid", small_description="Lid of wood", pricing="$20.00 to $30.00"),
    product("B00000000C", "Clay Mug Rack", pricing=""),
    product("B00000000A", "The same asin again"),
    product("nan", "No asin"),
    product("B00000000TOOLONG", "An asin of more than ten characters"),
    *(product(f"B0000001{number:02d}", f"Plain Cup {number}", query="cups") for number in range(23)),
]  # fmt: skip
ATTRIBUTES = {
    "B00000000A": {
        "attributes": ["dishwasher safe", "hand made"],
        "instruction": "Find me hand made mugs",
        "instruction_attributes": ["hand made"],
    },
    "B00000000B": {"attributes": ["with lid"]},
}
HUMAN = {
    "B00000000B": [
        {"instruction": "i want a mug with a lid.", "instruction_attributes": ["with lid"], "instruction_options": []},
        {"instruction": "no attribute", "instruction_attributes": [], "instruction_options": []},
    ]
}


def write(folder: Path, *, full: bool = False) -> str:
    """Writes the hand-made shop's files; returns the folder's path."""
    size = "" if full else "_1000"
    for name, content in (
        (f"items_shuffle{size}.json", PRODUCTS), (f"items_ins_v2{size}.json", ATTRIBUTES), ("items_human_ins.json", HUMAN)
    ):  # fmt: skip
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return str(folder)
