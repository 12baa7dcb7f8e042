"""WebShop's catalogue, goals and search: derived fields, the benchmark's counts, bad files, the embedded catalogue."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter

import numpy as np
import pytest
from webshop_data import ATTRIBUTES, HUMAN, PRODUCTS, REAL, product, write

from stepreward.envs.bm25 import Index
from stepreward.envs.webshop import catalogue, shop, synthetic
from stepreward.envs.webshop.goals import NO_LIMIT, human_goals, shuffled, synthetic_goals


def _built(human=None):
    return catalogue.build(PRODUCTS, ATTRIBUTES, human or {}, random.Random(0))


def _load(data=None, goals="auto", held_out=500, indices=None, seed=42):
    return shop.load(data, goals, seed, held_out, indices, 50, 10)


def test_derived_fields():
    mug, lid, rack, *cups = _built()
    assert (mug.title, mug.price, mug.price_tag, mug.query) == ("Blue Clay Mug", 12.5, "$12.5", "mugs")
    assert mug.options == {"color": ("red", "sky | blue"), "size": ("small", "large")}
    assert mug.bullets == ("Dishwasher safe", "Holds 12 oz")
    assert mug.attributes == ("dishwasher safe", "hand made")
    assert (mug.instruction, mug.instruction_attributes) == ("Find me hand made mugs", ("hand made",))
    assert lid.bullets == ("Lid of wood",)
    assert lid.price_tag == "$20.0 to $30.0" and 20 <= lid.price <= 30
    assert (rack.price, rack.price_tag, rack.attributes, rack.options) == (100.0, "$100.0", ("DUMMY_ATTR",), {})
    assert len(cups) == 23  # without the repeated asin, "nan" and the long asin


def test_a_price_of_a_range_is_drawn_once_from_the_seed():
    prices = [catalogue.build(PRODUCTS, {}, {}, random.Random(seed))[1].price for seed in (0, 0, 1)]
    assert prices[0] == prices[1] != prices[2]
    assert prices[0] == random.Random(0).uniform(20, 30)


def test_goals_are_the_product_of_all_options():
    goals = synthetic_goals(_built(), random.Random(0))
    limit = max(random.Random(0).sample([20.0, 30.0, 40.0, 50.0], 2))
    assert [goal.options for goal in goals] == [
        (("color", "red"), ("size", "small")),
        (("color", "red"), ("size", "large")),
        (("color", "sky | blue"), ("size", "small")),
        (("color", "sky | blue"), ("size", "large")),
    ]
    assert goals[1].text == f"Find me hand made mugs with color: red, and size: large, and price lower than {limit:.2f} dollars"
    assert {goal.price_upper for goal in goals} == {limit}


def test_a_price_above_all_limits_has_no_limit():
    raw = [product("B1", "Vase", pricing="$985.00")]
    asked = {"B1": {"attributes": ["tall"], "instruction": "Find me a vase", "instruction_attributes": ["tall"]}}
    (goal,) = synthetic_goals(catalogue.build(raw, asked, {}, random.Random(0)), random.Random(0))
    assert (goal.text, goal.price_upper) == ("Find me a vase", NO_LIMIT)


def test_the_embedded_shop_never_changes():
    def digest(text):
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    assert digest(json.dumps(synthetic.catalogue(), sort_keys=True, ensure_ascii=False)) == "58a075277180f9f6"
    assert digest("\n".join(goal.text for goal in _load().goals)) == "6a0f79301b6857c7"
    assert NO_LIMIT == 1_000_000  # dollars, as in the benchmark


def test_human_goals_need_an_attribute():
    (goal,) = human_goals(_built(HUMAN), random.Random(0))
    assert goal.text.startswith("i want a mug with a lid, and price lower than ")
    assert (goal.attributes, goal.options) == (("with lid",), ())


def test_goals_are_shuffled_as_the_benchmark_does():
    numbers = list(range(20))
    random.seed(233)
    random.shuffle(numbers)
    assert shuffled(range(20)) == numbers


@pytest.mark.parametrize(("full", "goals", "count"), [(False, "auto", 4), (False, "human", 1), (True, "auto", 1)])
def test_layouts_and_kinds_of_goals(tmp_path, full, goals, count):
    folder = write(tmp_path, full=full)
    with pytest.raises(ValueError, match=f"has {count} goals, too few to hold out {count}"):
        _load(folder, goals, held_out=count)
    if count > 1:
        assert _load(folder, goals, held_out=1).splits == {"train": [1, 2, 3], "held_out": [0]}


def test_splits_from_index_lists(tmp_path):
    folder = write(tmp_path)
    (tmp_path / "a.json").write_text("[3, 1]")
    (tmp_path / "b.json").write_text("[0]")
    (tmp_path / "far.json").write_text("[4]")
    files = str(tmp_path / "a.json"), str(tmp_path / "b.json")
    assert _load(folder, indices=files).splits == {"train": [3, 1], "held_out": [0]}
    with pytest.raises(ValueError, match="names goal 4, but .* has 4 goals"):
        _load(folder, indices=(str(tmp_path / "far.json"), files[1]))
    with pytest.raises(FileNotFoundError, match="none.json"):
        _load(folder, indices=(str(tmp_path / "none.json"), files[1]))


def test_bad_data_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no WebShop data at"):
        catalogue.read(tmp_path / "none", human=False)
    with pytest.raises(FileNotFoundError, match="items_shuffle_1000.json nor items_shuffle.json"):
        catalogue.read(tmp_path, human=False)
    (tmp_path / "items_shuffle_1000.json").write_text("[{")
    with pytest.raises(ValueError, match="items_shuffle_1000.json: this is not valid JSON"):
        catalogue.read(tmp_path, human=False)
    (tmp_path / "items_shuffle_1000.json").write_text("{}")
    with pytest.raises(ValueError, match="the content is a dict, not a list"):
        catalogue.read(tmp_path, human=False)
    (tmp_path / "items_shuffle_1000.json").write_text("[]")
    with pytest.raises(FileNotFoundError, match="items_ins_v2_1000.json is missing"):
        catalogue.read(tmp_path, human=False)
    for raw, named in (({"asin": "B7"}, "product B7"), (product("B8", "x", pricing="$?"), "product B8"), ("x", "product 0")):
        with pytest.raises(ValueError, match=named):
            catalogue.build([raw], {}, {}, random.Random(0))
    with pytest.raises(ValueError, match="embedded catalogue has no human goals"):
        _load(None, "human")


def test_nulls_are_empty():
    raw = product("B1", None, full_description=None, small_description=["soft", None], customization_options=None)
    known = {"attributes": None, "instruction": None, "instruction_attributes": None}
    (found,) = catalogue.build([raw], {"B1": known}, {"B1": None}, random.Random(0))
    assert (found.title, found.description, found.bullets, found.options) == ("", "", ("soft",), {})
    assert (found.attributes, found.instruction, found.human) == ((), None, ())
    assert catalogue.build([raw | {"small_description": None}], {"B1": None}, {}, random.Random(0))[0].bullets == ()
    Index([f"{found.title} {found.description}"])


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"pricing": "Price: $"}, "the price 'Price: \\$' is neither"),
        ({"pricing": 12.5}, "pricing is 12.5, not text"),
        ({"name": 3}, "name is 3, not text"),
        ({"small_description": {"a": 1}}, "small_description is {'a': 1}, not a list"),
        ({"customization_options": ["red"]}, "customization_options is .'red'., not an object"),
        ({"customization_options": {"color": [{"image": None}]}}, "it lacks 'value'"),
        ({"customization_options": {"color": ["red"]}}, "option color is 'red', not an object"),
    ],
)
def test_a_malformed_product_is_named(changes, words):
    with pytest.raises(ValueError, match=f"product B1 .entry 0 of the file. is malformed: {words}"):
        catalogue.build([product("B1", "x") | changes], {}, {}, random.Random(0))


def test_a_malformed_human_goal_is_named():
    with pytest.raises(ValueError, match="product B1 .* is malformed: instruction_options is 'red', not a list"):
        catalogue.build([product("B1", "x")], {}, {"B1": [{"instruction": "a", "instruction_options": "red"}]}, random.Random(0))


def test_a_byte_order_mark_is_ignored(tmp_path):
    write(tmp_path)
    for file in tmp_path.glob("*.json"):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert catalogue.read(tmp_path, human=False)[0]


def test_search_ranks_by_bm25():
    index = Index(["red mug", "a mug and a mug", "blue cup", "the red, red mugs of clay"])
    norm = 0.9 * (0.6 + 0.4 * 2 / 2.5)  # the first three documents have two words; the average is 2.5
    idf = np.log(1 + (4 - 3 + 0.5) / (3 + 0.5))
    np.testing.assert_allclose(index.scores("Mugs!")[:3], [idf / (1 + norm), 2 * idf / (2 + norm), 0], rtol=1e-6)
    assert index.search("mug", 50)[0] == 1
    assert index.search("mug", 1) == [1]
    assert index.search("the of and zebra", 50) == []


def test_ties_go_to_the_first_document():
    assert Index(["clay pot"] * 60).search("pot", 50) == list(range(50))


def test_search_scores_follow_the_formula():
    texts = ["red clay pot pot", "clay mugs", "a garden of stones"]
    stems = [["red", "clai", "pot", "pot"], ["clai", "mug"], ["garden", "stone"]]
    mean = np.mean([len(s) for s in stems])

    def score(document, stem):
        n, f = sum(stem in s for s in stems), document.count(stem)
        return np.log(1 + (3 - n + 0.5) / (n + 0.5)) * f / (f + 0.9 * (1 - 0.4 + 0.4 * len(document) / mean))

    expected = [score(s, "clai") + score(s, "pot") for s in stems]
    np.testing.assert_allclose(Index(texts).scores("the clay pots"), expected, rtol=1e-5)


def test_the_embedded_catalogue():
    made = _load()
    assert Counter(item.category for item in made.products) == dict.fromkeys(("beauty", "electronics", "garden", "fashion", "grocery"), 200)
    assert len(made.goals) == 2916 and len(made.splits["train"]) == 2416
    assert made.products[0].title == "Lumora High Resolution Heavy Duty Ultra Slim Keyboard"
    assert made.goals[0].text == (
        "Find me day comfort hiking boots with color: white, and size: small, and price lower than 100.00 dollars"
    )
    raw, attributes = synthetic.catalogue()
    json.dumps([raw, attributes])  # the schema of the benchmark's files


@pytest.mark.skipif(not REAL.is_dir(), reason="the benchmark's data is not here")
def test_the_real_catalogue():
    made = _load(str(REAL), "synthetic")
    assert len(made.products) == 1000 and len(made.goals) == 6910
    assert len(made.splits["train"]) == 6410 and made.splits["held_out"] == list(range(500))
    assert Counter(item.category for item in made.products) == {
        "beauty": 238, "electronics": 229, "garden": 216, "fashion": 200, "grocery": 117
    }  # fmt: skip
    assert sum(item.instruction is not None for item in made.products) == 415
    human = catalogue.build(*catalogue.read(REAL, human=True), random.Random(0))
    assert sum(bool(item.human) for item in human) == 13
    files = str(REAL / "webshop_train_indices.json"), str(REAL / "webshop_test_indices.json")
    with pytest.raises(ValueError, match="the list belongs to another catalogue"):
        _load(str(REAL), "synthetic", indices=files)
