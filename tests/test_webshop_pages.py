"""WebShop's pages: their strings, the results of clicks, and every quirk of the benchmark's text modes."""

from __future__ import annotations

import pytest
from webshop_data import REAL, write

from stepreward.envs.webshop import make, pages
from stepreward.envs.webshop.pages import State


@pytest.fixture
def shop_in(tmp_path, monkeypatch):
    """Returns a function that makes an environment of the hand-made shop, reset to the goal "red" and "small" with a known limit."""
    monkeypatch.setattr("stepreward.envs.webshop.goals._limit", lambda price, draw: (40.0, ", and price lower than 40.00 dollars"))
    folder = write(tmp_path)

    def made(observation="text", **settings):
        environment = make("spa", data=folder, held_out=1, observation=observation, max_steps=50, **settings)()
        goal = next(number for number, goal in enumerate(environment._shop.goals) if goal.options == (("color", "red"), ("size", "small")))
        environment.reset(options={"goal": goal})
        return environment

    return made


def _walk(environment, *actions):
    for action in actions:
        observation, reward, terminated, _, info = environment.step(action)
    return observation["text"], reward, terminated, info


_GOAL = "Find me hand made mugs with color: red, and size: small, and price lower than 40.00 dollars"
_ITEM = (
    f"Instruction: [SEP] {_GOAL} [SEP] Back to Search [SEP] < Prev [SEP] color [SEP] red [SEP] sky | blue [SEP] size [SEP] small"
    " [SEP] large [SEP] Blue Clay Mug [SEP] Price: $12.5 [SEP] Rating: N.A. [SEP] Description [SEP] Features [SEP] Reviews"
    " [SEP] Buy Now"
)


def test_home(shop_in):
    environment = shop_in()
    assert environment._text() == f"WebShop [SEP] Instruction: [SEP] {_GOAL} [SEP] Search"
    text, reward, terminated, info = _walk(environment, "click[search]")  # shown as a button, but does nothing
    assert (reward, terminated, info["executed"], info["admissible"]) == (0.0, False, False, ("search[<your query>]",))


def test_results_and_their_pages(shop_in):
    environment = shop_in()
    text, _, _, info = _walk(environment, "search[clay]")
    head = f"Instruction: [SEP] {_GOAL} [SEP] Back to Search [SEP] "
    tag = environment._shop.by_asin["B00000000B"].price_tag
    assert tag == "$20.0 to $30.0"
    assert text == (
        f"{head}Page 1 (Total results: 3) [SEP] B00000000C [SEP] Clay Mug Rack [SEP] $100.0 [SEP] "
        f"B00000000B [SEP] Clay Mug with Lid [SEP] {tag} [SEP] B00000000A [SEP] Blue Clay Mug [SEP] $12.5"
    )
    assert info["admissible"] == ("click[back to search]", "click[b00000000c]", "click[b00000000b]", "click[b00000000a]")
    text, *_ = _walk(environment, "search[plain cup]")  # any page accepts a search
    assert text.startswith(f"{head}Page 1 (Total results: 23) [SEP] Next > [SEP] B000000100 [SEP] Plain Cup 0 [SEP] $10.0")
    text, *_ = _walk(environment, "click[next >]")
    assert text.startswith(f"{head}Page 2 (Total results: 23) [SEP] < Prev [SEP] Next > [SEP] B000000110")
    text, _, _, info = _walk(environment, "click[next >]")
    assert text.startswith(f"{head}Page 3 (Total results: 23) [SEP] < Prev [SEP] B000000120")
    assert info["admissible"][:2] == ("click[back to search]", "click[< prev]")
    text, *_ = _walk(environment, "click[next >]")  # there is no such button, so nothing happens
    assert "Page 3" in text
    text, *_ = _walk(environment, "click[< prev]")
    assert "Page 2" in text
    text, *_ = _walk(environment, "search[nothing like it exists]")
    assert text == f"{head}Page 1 (Total results: 0)"


@pytest.mark.parametrize(("page_size", "pages_in_all"), [(23, 1), (24, 1), (22, 2), (1, 23)])
def test_an_exactly_full_last_page_has_no_next(shop_in, page_size, pages_in_all):
    environment = shop_in(page_size=page_size)
    _, _, _, info = _walk(environment, "search[plain cup]")  # 23 hits
    for page in range(1, pages_in_all + 1):
        assert environment.snapshot().state.page == page
        assert ("click[next >]" in info["admissible"]) == (page < pages_in_all)
        assert ("click[< prev]" in info["admissible"]) == (page > 1)
        assert len([name for name in info["admissible"] if name.startswith("click[b0")]) == min(page_size, 23 - page_size * (page - 1))
        _, _, _, info = _walk(environment, "click[next >]")
        assert info["executed"] == (page < pages_in_all)


def test_prev_from_an_item_leads_to_the_page_that_it_was_on(shop_in):
    environment = shop_in()
    before, *_ = _walk(environment, "search[plain cup]", "click[next >]")
    assert "Page 2 (Total results: 23)" in before
    _walk(environment, "click[b000000110]")
    assert environment.snapshot().state == State("item", "plain cup", 2, "B000000110", visited=("B000000110",))
    assert _walk(environment, "click[reviews]", "click[< prev]", "click[< prev]")[0] == before
    assert environment.snapshot().state == State("results", "plain cup", 2, visited=("B000000110",))
    assert "Page 1 (" in _walk(environment, "click[< prev]")[0]


def test_a_product_is_visited_once(shop_in):
    environment = shop_in()
    _walk(environment, "search[clay]", "click[b00000000a]", "click[< prev]", "click[b00000000b]", "click[< prev]", "click[b00000000a]")
    assert environment.snapshot().state.visited == ("B00000000A", "B00000000B")


def test_the_item_page_and_its_prev_button(shop_in):
    environment = shop_in()
    text, _, _, info = _walk(environment, "search[clay]", "click[B00000000A]")
    assert text == _ITEM
    assert info["admissible"] == tuple(
        f"click[{name}]" for name in (
            "back to search", "< prev", "description", "features", "reviews", "buy now", "red", "sky | blue", "small", "large"
        )
    )  # fmt: skip
    head = f"Instruction: [SEP] {_GOAL} [SEP] Back to Search [SEP] < Prev"
    assert _walk(environment, "click[features]")[0] == f"{head} [SEP] Dishwasher safe [SEP] Holds 12 oz"
    assert _walk(environment, "click[< prev]")[0] == _ITEM
    assert _walk(environment, "click[Description]")[0] == f"{head} [SEP] A mug for tea."
    text, _, _, info = _walk(environment, "click[red]")  # options are only on the item's page
    assert not info["executed"]
    assert _walk(environment, "click[< prev]", "click[reviews]")[0] == f"{head} [SEP] No reviews found"
    assert "Page 1 (Total results: 3)" in _walk(environment, "click[< prev]", "click[< prev]")[0]


def test_an_empty_description_is_no_string(shop_in):
    text, *_ = _walk(shop_in(), "search[rack]", "click[b00000000c]", "click[description]")
    assert text == f"Instruction: [SEP] {_GOAL} [SEP] Back to Search [SEP] < Prev"


def test_white_space_between_tags():
    nodes = [("text", ""), ("text", " \n "), ("text", "  "), ("text", " a\n b "), ("text", "\xa0")]
    assert pages.shown(nodes) == [("text", " "), ("text", " a\n b "), ("text", "\xa0")]
    assert pages.plain(pages.shown(nodes)) == " [SEP] a\n b [SEP] "


def test_options_stay_chosen_until_the_results(shop_in):
    environment = shop_in()
    _walk(environment, "search[clay]", "click[b00000000a]", "click[red]", "click[large]", "click[small]")
    assert environment.snapshot().state.options == (("color", "red"), ("size", "small"))
    _walk(environment, "click[description]", "click[< prev]")
    assert environment.snapshot().state.options == (("color", "red"), ("size", "small"))
    _walk(environment, "click[< prev]")
    assert environment.snapshot().state == State("results", "clay", 1, visited=("B00000000A",))
    _walk(environment, "click[b00000000a]", "click[red]", "click[small]")
    text, reward, terminated, info = _walk(environment, "click[buy now]")
    assert (reward, terminated, info["won"], info["score"], info["admissible"]) == (1.0, True, True, 1.0, ())
    assert text == (
        "Thank you for shopping with us! [SEP] Your code: [SEP] None [SEP] (Paste it in your MTurk interface.) [SEP] Purchased"
        ' [SEP] asin [SEP] B00000000A [SEP] options [SEP] {"color": "red", "size": "small"} [SEP] attrs [SEP] None [SEP] category'
        " [SEP] None [SEP] query [SEP] None [SEP] product category [SEP] None [SEP] Target [SEP] asin [SEP] options [SEP] attrs"
        " [SEP] price upper [SEP] instuction text [SEP] category [SEP] product category [SEP] query [SEP] Goal [SEP] None [SEP]"
        " Reward [SEP] Your score (min 0.0, max 1.0) [SEP] 1.0 [SEP] Reward Details [SEP] None"
    )


def test_back_to_search_clears_the_state(shop_in):
    environment = shop_in()
    _walk(environment, "search[clay]", "click[b00000000a]", "click[red]", "click[back to search]")
    assert environment.snapshot().state == State()


def test_a_search_clears_options_but_not_visits(shop_in):
    environment = shop_in()
    _walk(environment, "search[clay]", "click[b00000000a]", "click[red]", "search[cup]")
    assert environment.snapshot().state == State("results", "cup", 1, visited=("B00000000A",))


def test_the_rich_text(shop_in):
    environment = shop_in("text_rich")
    assert environment._text() == f"WebShop\nInstruction: \n{_GOAL}\n[button] Search [button_]\n"
    _walk(environment, "search[clay]", "click[b00000000a]", "click[sky | blue]")
    assert environment._text() == (
        f"You have clicked sky | blue.\nInstruction:\n{_GOAL}\n[button] Back to Search [button_]\n[button] < Prev [button_]\n"
        "color\n  [button] red [button_]\n  [clicked button] sky | blue [clicked button_]\nsize\n  [button] small [button_]\n"
        "  [button] large [button_]\nBlue Clay Mug\nPrice: $12.5\nRating: N.A.\n[button] Description [button_]\n"
        "[button] Features [button_]\n[button] Reviews [button_]\n[button] Buy Now [button_]\n"
    )
    text, *_ = _walk(environment, "click[< prev]")
    assert text.endswith(
        "Page 1 (Total results: 3)\n\n[button] B00000000C [button_]\nClay Mug Rack\n$100.0\n\n[button] B00000000B [button_]\n"
        "Clay Mug with Lid\n$20.0 to $30.0\n\n[clicked button] B00000000A [clicked button_]\nBlue Clay Mug\n$12.5\n"
    )


def test_the_attributes_page_is_shown_on_demand(shop_in):
    text, _, _, info = _walk(shop_in(show_attributes=True), "search[clay]", "click[b00000000a]", "click[attributes]")
    assert text.endswith("< Prev [SEP] dishwasher safe [SEP] hand made [SEP] garden [SEP] mugs [SEP] Home › Kitchen › Mugs")


@pytest.mark.parametrize(
    ("action", "read"),
    [
        ("search[Red Mug]", ("search", "red mug")),
        ("click[Buy Now] please", ("click", "buy now")),
        ("click[a] b]", ("click", "a] b")),
        ("click[mug [large]]", None),  # the last bracket opens the argument, and the text before it is not an action
        ("search[]", None), ("Search[mug]", None), ("buy[mug]", None), ("click", None), ("", None), (None, None), (7, None),
    ],
)  # fmt: skip
def test_how_actions_are_read(action, read):
    assert pages.parse(action) == read


def test_a_value_of_two_options_belongs_to_the_last():
    class Both:
        options = {"top": ("small",), "bottom": ("small",)}

    state = pages.clicked(State("item", "x", 1, "B1"), "small", Both)
    assert state.options == (("bottom", "small"),)


@pytest.mark.skipif(not REAL.is_dir(), reason="the benchmark's data is not here")
def test_a_walk_through_the_real_shop():
    environment = make("spa", data=str(REAL))()
    wanted = "Find me butt lifting, light weight women's shorts with high waist, tummy control with color: black, and size: 3x-large"
    text = environment.reset(options={"goal": 1})[0]["text"]
    assert text.startswith(f"WebShop [SEP] Instruction: [SEP] {wanted}") and text.endswith(" dollars [SEP] Search")
    text, *_ = _walk(environment, "search[high waist yoga shorts butt lifting]")
    assert " [SEP] Back to Search [SEP] Page 1 (Total results: 50) [SEP] Next > [SEP] B09QCP4579 [SEP] " in text
    text, _, _, info = _walk(environment, "click[b09qcp4579]")
    assert text.endswith(" [SEP] Rating: N.A. [SEP] Description [SEP] Features [SEP] Reviews [SEP] Buy Now")
    assert {"click[black]", "click[3x-large]"} <= set(info["admissible"])
    _, reward, _, info = _walk(environment, "click[black]", "click[3x-large]", "click[buy now]")
    assert reward == info["score"] == 1.0 and info["won"]
