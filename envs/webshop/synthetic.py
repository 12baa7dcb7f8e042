"""A synthetic catalogue in the benchmark's schema, so that the shop works without a download.

It has 40 kinds of products in the benchmark's five categories, with 25 products of each kind. A title names the brand, all
attributes and the kind; all products of a kind have the same options. So the pages show everything that a goal asks for, except
the exact price if it is a range. Descriptions also mention other attributes, so that the first hit of a search is the right one
for only about a third of the goals. The seed determines everything, on any machine.
"""

from __future__ import annotations

import functools

import numpy as np

SEED = 20_220_701
PER_KIND = 25
ASKED_FOR = 0.5  # share of the products with an instruction
RANGES = 0.08  # share of the products whose price is a range
MENTIONED = 3  # attributes that a description mentions although the product lacks them
DEAREST = 8.0  # ratio of the highest to the lowest price of a kind
WANTED = (0.5, 0.4, 0.1)  # shares of the instructions that name one, two and three attributes

_BRANDS = (
    "Avelin Borra Calder Dovina Elmsor Fendaro Galvi Hartun Ilvesa Jorin Kelda Lumora Mavik Nordel Orsa Pellin Quarro Rivane "
    "Solven Tarno Ulveth Vanda Wexel Yarrow Zintra Brisk Copal Dunmor Estra Folden"
).split()

# category: (path of the first two levels, attributes, {kind: (name in titles, lowest price)}, options that its kinds take in turn)
_COLOURS_A, _COLOURS_B, _COLOURS_C = ("black", "white", "red"), ("blue", "green", "pink"), ("purple", "orange", "grey")
_SIZES = ("small", "medium", "large")
_WORLD = {
    "beauty": (
        "Beauty › Care",
        "vegan|alcohol free|long lasting|sensitive skin|shea butter|travel size|quick drying|fragrance free|anti aging|"
        "sulfate free|aloe vera|waterproof",
        {"lip gloss": 6, "face cream": 14, "shampoo": 8, "nail polish": 5, "hair mask": 11, "body lotion": 9, "eye liner": 7,
         "hand soap": 4},
        ({"color": _COLOURS_A, "size": ("2 oz", "4 oz")}, {"scent": ("jasmine", "citrus", "cedar"), "size": ("4 oz", "8 oz")},
         {"scent": ("coconut", "clover", "apple")}),
    ),
    "electronics": (
        "Electronics › Devices",
        "wireless|fast charging|noise cancelling|heavy duty|high resolution|plug play|dust proof|ultra slim|voice control|"
        "dual band|shock absorbing|backlit",
        {"headphones": 25, "phone case": 8, "charger": 12, "keyboard": 22, "speaker": 30, "webcam": 28, "desk mouse": 13,
         "tablet stand": 10},
        ({"color": _COLOURS_A}, {"color": _COLOURS_B, "style": ("basic", "deluxe")},
         {"color": _COLOURS_C, "style": ("home", "sport")}),
    ),
    "garden": (
        "Home › Living",
        "solid wood|easy assembly|machine washable|space saving|eco friendly|hand woven|stain resistant|foldable|energy saving|"
        "mid century|rust proof|soft touch",
        {"floor lamp": 32, "throw pillow": 9, "area rug": 35, "bookshelf": 48, "curtain": 16, "bar stool": 42, "wall clock": 15,
         "storage basket": 11},
        ({"color": _COLOURS_B}, {"color": _COLOURS_C, "size": _SIZES}, {"color": _COLOURS_A, "size": ("small", "large")}),
    ),
    "fashion": (
        "Clothing › Wear",
        "slim fit|long sleeve|arch support|day comfort|button closure|memory foam|elastic waist|moisture wicking|rubber sole|"
        "drawstring|lightweight|fleece lined",
        {"hiking boots": 45, "rain jacket": 38, "summer dress": 24, "polo shirt": 18, "slippers": 14, "jogger pants": 22,
         "swim shorts": 16, "wool cardigan": 34},
        ({"color": _COLOURS_A, "size": _SIZES}, {"color": _COLOURS_B, "size": _SIZES},
         {"color": _COLOURS_C, "size": ("small", "large")}),
    ),
    "grocery": (
        "Grocery › Pantry",
        "gluten free|sugar free|keto|non gmo|dairy free|kosher|high protein|low sodium|organic|caffeine free|nut free|"
        "whole grain",
        {"herbal tea": 6, "snack bars": 9, "ground coffee": 11, "cookies": 5, "trail mix": 8, "hot sauce": 4, "oatmeal": 7,
         "fruit jam": 5},
        ({"flavor": ("vanilla", "ginger", "honey"), "pack": ("single", "family")}, {"flavor": ("cherry", "maple", "pepper")},
         {"flavor": ("cinnamon", "hazelnut", "berry"), "pack": ("double", "family")}),
    ),
}  # fmt: skip


@functools.cache
def catalogue() -> tuple[list[dict], dict[str, dict]]:
    """Returns the raw products and their attributes, in the form of `catalogue.read`."""
    draw = np.random.Generator(np.random.PCG64(np.random.SeedSequence(SEED)))
    kinds = [
        (category, f"{path} › {kind.title()}", attributes.split("|"), kind, lowest, options[number % len(options)])
        for category, (path, attributes, kinds, options) in _WORLD.items()
        for number, (kind, lowest) in enumerate(kinds.items())
    ]
    order = draw.permutation(len(kinds) * PER_KIND).tolist()
    products, known = [], {}
    for number, place in enumerate(order):
        category, path, names, kind, lowest, options = kinds[place // PER_KIND]
        shuffled = [names[index] for index in draw.permutation(len(names)).tolist()]
        attributes = shuffled[:3]
        # Words of other attributes in reverse order: a search matches them, the reward does not.
        others = [" ".join(reversed(name.split())) for name in shuffled[3:] if " " in name][:MENTIONED]
        brand = _BRANDS[int(draw.integers(len(_BRANDS)))]
        asin = _asin(number)
        products.append({
            "asin": asin,
            "name": f"{brand} {' '.join(attributes).title()} {kind.title()}",
            "full_description": f"Compare with the {kind} of {brand} for {' and '.join(others)}.",
            "small_description": [f"Made by {brand}.", *(f"{attribute.capitalize()}." for attribute in attributes)],
            "pricing": _pricing(lowest, draw),
            "images": [""],
            "category": category,
            "query": kind,
            "product_category": path,
            "customization_options": {name: [{"value": value} for value in values] for name, values in options.items()},
            "average_rating": "",
            "page": 1,
        })  # fmt: skip
        known[asin] = {"attributes": attributes}
        asked = int(draw.choice(3, p=WANTED)) + 1
        if draw.random() < ASKED_FOR:
            wanted = [attributes[index] for index in sorted(draw.permutation(3)[:asked].tolist())]
            known[asin] |= {"instruction": f"Find me {', '.join(wanted)} {kind}", "instruction_attributes": wanted}
    return products, known


def _asin(number: int) -> str:
    return f"B{number:03d}"


def _pricing(lowest: int, draw: np.random.Generator) -> str:
    price = round(lowest * DEAREST ** float(draw.random())) - 0.01
    if draw.random() >= RANGES:
        return f"${price:.2f}"
    return f"${price:.2f} to ${price * 1.2:.2f}"
