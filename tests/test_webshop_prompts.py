"""WebShop's prompts: what they show, and which answers they accept."""

from __future__ import annotations

import re

import pytest

from stepreward.envs.protocol import Prompt, prompt_view
from stepreward.envs.webshop import make, prompts
from stepreward.envs.webshop.instruction import read_instruction


def _views(preset, turns=4, seed=500):
    """The expert's actions and what a prompt sees before each."""
    environment = make(preset)()
    observation, info = environment.reset(seed=seed)
    views, actions = [], environment.expert()[:turns]
    for action in actions:
        views.append(prompt_view(observation, info))
        observation, _, _, _, info = environment.step(action)
    return views, actions


def test_names():
    for name in ("compact", "istar", "spa"):
        assert isinstance(prompts(name), Prompt)
    with pytest.raises(ValueError, match="the prompts are compact, istar, spa"):
        prompts("react")


@pytest.mark.parametrize("name", ["compact", "istar", "spa"])
def test_answers_are_read_back(name):
    prompt = prompts(name)
    for action in ("search[red clay mug, 12 oz]", "click[b001]", "click[< prev]", "click[sky | blue]", "click[size: a/b]"):
        assert prompt.parse(prompt.answer(action)) == action
    for text in ("", "   ", "no action", None, 7, "<action></action>", "Action:"):
        assert prompt.parse(text) is None


def test_instructions_are_read_by_their_wording():
    assert read_instruction(
        "Find me tea tree, non slip mugs with lid with color: sky | blue, and size: 8 oz, and price lower than 40.00 dollars"
    ) == ("tea tree, non slip mugs with lid", ("color: sky | blue", "size: 8 oz"), "40")
    assert read_instruction("i want a mug with a lid") == ("i want a mug with a lid", (), None)


def test_the_compact_page():
    environment = make("tiny")()
    text = environment.reset(options={"goal": 0})[0]["text"]
    asked = "day comfort hiking boots | color: white | size: small | < $100"
    assert text == f"{asked}\nsearch"
    text = environment.step("search[day comfort hiking boots]")[0]["text"]
    head, page, *lines = text.split("\n")
    assert (head, page, len(lines)) == (asked, "results 1/4", 5)
    assert all(re.fullmatch(rf"{place} [a-z ]+ \$\d+( to \$\d+)?", line) for place, line in enumerate(lines, 1))
    found = environment.step("search[kelda elastic waist day comfort drawstring hiking boots]")[0]["text"].split("\n")
    (place,) = [line.split()[0] for line in found[2:] if " kelda elastic waist day comfort drawstring" in line]
    text = environment.step(f"click[{place}]")[0]["text"]
    item = f"{asked}\nitem kelda elastic waist day comfort drawstring hiking boots $58 to $70\n"
    assert text == f"{item}color? black, white, red\nsize? small, medium, large"
    assert environment.step("click[white]")[0]["text"] == f"{item}color: white\nsize? small, medium, large"
    assert environment.step("click[features]")[0]["text"].startswith(f"{asked}\nfeatures\nmade by kelda. ")
    assert environment.step("click[< prev]")[0]["text"] == f"{item}color: white\nsize? small, medium, large"
    environment.step("click[small]")
    assert environment.step("click[buy now]")[0]["text"] == f"{asked}\ndone 1.00"


def test_the_compact_form_names_products_by_their_place():
    by_place, by_id = make("tiny")(), make("tiny", observation="text")()
    for seed in range(20):
        _, info = by_place.reset(seed=seed)
        by_id.reset(seed=seed)
        for action, site in zip(by_place.expert(), by_id.expert(), strict=True):
            assert site == action or (re.fullmatch(r"click\[[1-5]\]", action) and re.fullmatch(r"click\[b\d{3}\]", site))
            assert action in info["admissible"] or action.startswith("search[")
            *_, info = by_place.step(action)
            *_, there = by_id.step(site)
            assert info["executed"] and info["state_key"] == there["state_key"]
        assert info["won"] and there["won"]
    by_place.reset(seed=0)
    by_place.step("search[boots]")
    assert by_place.step("click[6]")[4]["executed"] is False and by_place.step("click[b001x]")[4]["executed"] is False


def test_compact_messages_are_short_and_need_no_history():
    environment, prompt = make("tiny")(), prompts("compact")
    for seed in range(100):
        observation, info = environment.reset(seed=seed)
        for action in environment.expert():
            message = prompt.window(prompt_view(observation, info), [])
            assert message == prompt.first(observation) == prompt.later(observation)
            assert len(message.split()) <= 100 and len(prompt.answer(action)) <= 60
            observation, _, _, _, info = environment.step(action)
    assert prompt.parse(" Click[Red]\n") == "click[red]" and prompt.parse("click[red] now") is None


def test_the_istar_message():
    (home, results, item, *_), actions = _views("istar")
    prompt = prompts("istar")
    first = prompt.window(home, [])
    assert f"Your task: {home['task']}" in first and "The page now: 'Search'\n" in first
    assert "[\n'search[<your query>]',\n]" in first and "last turns" not in first
    assert first == prompt.first(home)
    assert results["text"].startswith("'Back to Search' [SEP] 'Page 1 (Total results: 50)' [SEP] 'Next >' [SEP] 'B")
    told = [(home, prompt.answer(actions[0])), (results, prompt.answer(actions[1])), (item, "what?")]
    message = prompt.window(item, told)
    assert "Your last turns, oldest first (2):" in message and actions[0] not in message
    assert f"Your action: {actions[1]}\n" in message and "Your action: what?" in message
    assert "'click[buy now]',\n" in message and message.endswith("between <action> and </action>.")
    assert f"'{item['task']}'" not in message


def test_the_istar_page_of_a_whole_text_is_stripped_too():
    (_, whole, *_), _ = _views("spa")
    (_, stripped, *_), _ = _views("istar")
    assert whole["text"].startswith("Instruction: [SEP] Find me")
    assert prompts("istar").later(whole) == prompts("istar").later(stripped)


def test_a_long_istar_message_drops_its_history():
    prompt = prompts("istar")
    view = {"text": "'x'", "task": "t", "admissible": ("click[x]",)}
    room = 13_000 - len(prompt.window(view, [({"text": ""}, "<think></think><action>click[x]</action>")]))
    fits = [({"text": "y" * room}, "<think></think><action>click[x]</action>")]
    long = [({"text": "y" * (room + 1)}, "<think></think><action>click[x]</action>")]
    assert len(prompt.window(view, fits)) == 13_000
    assert prompt.window(view, long) == prompt.first(view)


def test_what_istar_counts_as_an_answer():
    prompt = prompts("istar")
    assert prompt.parse("<think>a</think><action> Click[Buy Now] </action>") == "click[buy now]"
    assert prompt.parse("<action>click[red]</action>") is None
    assert prompt.parse("<think>\u4f60</think><action>click[red]</action>") is None
    loose = type(prompt)(require_think=False)
    assert loose.parse("\u4f60<action>click[red]</action>") == "click[red]"


def test_the_spa_messages():
    (home, results, *_), actions = _views("spa")
    prompt = prompts("spa")
    first = prompt.first(home)
    assert first.count("Thought:") == 1 and first.endswith(
        f"Observation:\nWebShop [SEP] Instruction: [SEP] {home['task']} [SEP] Search\n\nPossible actions: search[<your query>]"
    )
    assert prompt.later(results).startswith("Observation:\nInstruction: [SEP] ")
    window = prompt.window(results, [(home, prompt.answer(actions[0]))])
    assert f"\nAction: {actions[0]}\n\nObservation:\nInstruction:" in window
    assert prompt.parse("Thought: so\nAction: click[Red]\nmore") == "click[Red]"
