"""WebShop's reward: the benchmark's own expectations, its quirks, and its solvability on the embedded catalogue."""

from __future__ import annotations

import random

import pytest
from webshop_data import product

from stepreward.envs.webshop import catalogue, reward, shop
from stepreward.envs.webshop.goals import Goal
from stepreward.envs.webshop.reward import normal_colour, options_found, title_score


@pytest.fixture(autouse=True)
def _tokens(monkeypatch):
    """Forces the rule without spaCy's model."""
    monkeypatch.setattr(reward, "_tagger", lambda: None)
    reward.nouns.cache_clear()
    yield
    reward.nouns.cache_clear()


def _product(name="Blue Clay Mug", attributes=("hand made",), **fields):
    raw = product("B1", name, **fields)
    return catalogue.build([raw], {"B1": {"attributes": list(attributes)}}, {}, random.Random(0))[0]


def _goal(**fields):
    known = {
        "asin": "B1", "text": "", "attributes": ("hand made",), "options": (), "price_upper": 40.0, "query": "mugs",
        "name": "Blue Clay Mug", "product_category": "Home › Kitchen › Mugs",
    }  # fmt: skip
    return Goal(**{**known, **fields})


_CORD = "Saireed UL Listed 2 Prong Power Cord for JBL Bar 3.1 Bar 2.1 Channel 4K Ultra HD Soundbar"
_OTHER_CORD = "BRST AC Power Cord Outlet Socket Cable Plug Lead for Panasonic SC-HT830V DVD/VCR Combo Home Theater System"


@pytest.mark.parametrize(
    ("asked", "bought", "score"),
    [
        (
            "Mens D.O.N. Issue 2 Gca Basketball Sneakers Shoes Casual - Off White",
            "PEAK High Top Mens Basketball Shoes Lou Williams Streetball Master Breathable Non Slip Outdoor Sneakers",
            0.444,
        ),
        (f"{_CORD} Home Theater System Subwoofer", _OTHER_CORD, 0.278),
        (_CORD, _OTHER_CORD, 0.143),
        (
            "Rusticware 921ORB Kitchen and Bath Cabinet Knob",
            "Minkissy 2pcs Stainless Steel Eyebrow Tweezers Blackhead Acne Remover Portable Makeup Tweezers (Silver)",
            0,
        ),
        ("Name 1", "Name 1", 1),
        ("100 %", "Name 1", 0.2),
    ],
)
def test_title_scores_of_the_token_rule(asked, bought, score):
    assert title_score(bought, asked) == pytest.approx(score, abs=1e-3)
    assert reward.noun_score() == "tokens"


def test_spacys_nouns_where_its_model_is_installed(monkeypatch):
    class Token:
        def __init__(self, text):
            self.text, self.pos_ = text, {"Clay": "PROPN", "Mug": "NOUN"}.get(text, "ADJ")

    monkeypatch.setattr(reward, "_tagger", lambda: lambda title: map(Token, title.split()))
    assert reward.noun_score() == "spacy"
    assert reward.nouns("Blue Clay Mug") == ("clay", "mug")
    assert title_score("Red Clay Pot", "Blue Clay Mug") == 1 / 2


@pytest.mark.parametrize(
    ("name", "query", "path", "r_type"),
    [
        ("Blue Clay Mug", "pots", "A › B", 1.0),  # a similar title
        (_OTHER_CORD, "power cords", "A › B", 1.0),  # the same query
        (_OTHER_CORD, "cords", "Audio › Cables › X", 1.0),  # two levels shared
        (_OTHER_CORD, "cords", "Audio › Audio › X", 0.5),  # one level, twice
        ("Television Cord", "cords", "A › B", 0.1),  # one noun in 14
        ("Blue Clay Mug", "power cords", "Audio › Cables", 0.0),  # no shared noun, although query and category match
    ],
)
def test_type(name, query, path, r_type):
    goal = _goal(name=_CORD, query="power cords", product_category="Audio › Cables › Power")
    if name == "Blue Clay Mug" and r_type == 1:
        goal = _goal(query="mugs")
    assert reward.type_reward(_product(name, query=query, product_category=path), goal) == r_type


def test_attributes_match_fuzzily_or_in_the_texts():
    goal = _goal(attributes=("tea tree", "essential oils", "natural ingredients"))
    assert reward.attributes_found(_product(attributes=("tea tree", "essential oil", "natural ingredients")), goal) == 3
    fields = {"small_description": ["Has essential oils"], "full_description": "Made with Natural Ingredients"}
    assert reward.attributes_found(_product(attributes=(), **fields), goal) == 2
    assert reward.attributes_found(_product(attributes=("tea bag", "earl gray")), goal) == 0


def test_options_written_by_people_match_fuzzily_and_by_colour():
    assert options_found(("grey", "xl", "pack of 12"), ("pack of 12", "grey", "xl")) == 3
    assert options_found(("grey", "xl", "pack of 12"), ("pack of 12", "blue", "xl")) == 2
    assert options_found(("cool powder snow",), ("powder snow",)) == 1
    assert options_found(("grey",), ("grey heather",)) == 1
    assert options_found((), ("grey",)) == 0
    assert normal_colour("steelivy fuchsia") == "fuchsia" and normal_colour("webshop") == "webshop"


def test_options_from_the_catalogue_are_compared_as_pairs():
    assert options_found((("color", "red"), ("size", "small")), ("red", "small")) == 2
    assert options_found((("size", "large"),), ("small",)) == 0
    assert options_found((("size", "x-small"),), ("small",)) == 1  # all words of one are in the other
    assert normal_colour(("color", "red")) == "red"
    # The benchmark finds the colour in the value but not in the pair, so the goal cannot be reached.
    assert options_found((("color", "r.brown2070"),), ("r.brown2070",)) == 0


def test_the_whole_reward():
    goal = _goal(attributes=("hand made", "with lid"), options=(("color", "red"), ("size", "small")))
    mug = _product(pricing="$35.00")
    assert reward.reward(mug, goal, {"color": "red", "size": "small"}) == (4 / 5, 1.0, 1, 2, True)
    assert reward.reward(mug, goal, {"color": "red"}).total == 3 / 5
    assert reward.reward(_product(pricing="$40.01"), goal, {}).total == 1 / 5
    assert reward.reward(_product(pricing="$40.00"), goal, {}).total == 2 / 5
    assert reward.reward(_product("Television", query="x", product_category="y"), goal, {}).total == 0


def test_every_embedded_goal_is_solvable_and_wrong_options_cost_reward():
    made = shop.load(None, "synthetic", 42, 500, None, 50, 10)
    for number, goal in enumerate(made.goals):
        item, chosen = made.by_asin[goal.asin], dict(goal.options)
        assert reward.reward(item, goal, chosen).total == 1
        if number < 300:
            for name, value in goal.options:
                others = [other for other in item.options[name] if other != value]
                assert all(reward.reward(item, goal, {**chosen, name: other}).total < 1 for other in others)
