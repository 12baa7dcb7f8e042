"""Prompts whose answers say the kind of their thought: what they ask for and accept, and the kinds of demonstrations."""

import importlib

import numpy as np
import pytest

from stepreward.data.demonstrations import Demonstration
from stepreward.envs.parsing import TAGS, tag_of
from stepreward.envs.protocol import Prompt, expert_answer
from stepreward.envs.tags import CompactTags, kind_of
from stepreward.rollout.pools import make_pool
from stepreward.training.demonstrating import make_demonstrations
from stepreward.training.words import make_codec

ENVIRONMENTS = ("sokoban", "alfworld", "scienceworld", "adapters")
ACTION = {"sokoban": "left", "alfworld": "go to desk 1", "scienceworld": "go to kitchen", "adapters": "Open the door"}
VIEW = {"text": "######\n#P_XO#\n######", "task": "Push.", "admissible": ("go to desk 1", "left")}
ORDER = (("new_state",), ("new_state",), ("error",), ("recovered",), ("new_state",), ("new_state", "recovered"), ())


def prompts(environment, name):
    return importlib.import_module(f"stepreward.envs.{environment}.prompts").prompts(name)


def test_the_kinds_of_an_episode():
    kinds = [kind_of(ORDER[: turn + 1]) for turn in range(len(ORDER))]
    assert kinds == ["planning", "explore", "monitor", "reflection", "explore", "explore", "monitor"]
    assert kind_of(()) == "planning"
    assert set(kinds) == set(TAGS)


@pytest.mark.parametrize("environment", ENVIRONMENTS)
@pytest.mark.parametrize("name", ["tags", "compact_tags"])
def test_an_experts_answers_name_their_kind(environment, name):
    prompt, action = prompts(environment, name), ACTION[environment]
    assert isinstance(prompt, Prompt) and prompt.parse(prompt.answer(action)) == action
    for turn in range(len(ORDER)):
        answer = expert_answer(prompt, action, ORDER[: turn + 1])
        assert prompt.parse(answer) == action and tag_of(answer) == kind_of(ORDER[: turn + 1])


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_message_asks_for_the_tags_and_a_compact_one_is_as_without(environment):
    tags, compact, plain = prompts(environment, "tags"), prompts(environment, "compact_tags"), prompts(environment, "compact")
    action = ACTION[environment]
    for shown in (tags.first(VIEW), tags.later(VIEW), tags.window(VIEW, [(VIEW, tags.answer(action))])):
        assert all(f"<{tag}>" in shown for tag in TAGS) and "<action>" in shown and "<think>" not in shown
    assert compact.first(VIEW) == plain.first(VIEW) and compact.later(VIEW) == plain.later(VIEW)
    assert compact.window(VIEW, [(VIEW, compact.answer(action))]) == plain.window(VIEW, [(VIEW, action)])
    assert compact.window(VIEW, [(VIEW, action)]) == plain.window(VIEW, [(VIEW, action)])  # an answer without tags is shown as it was


@pytest.mark.parametrize("environment", ENVIRONMENTS)
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tags", "<action>ACT</action>"),
        ("tags", "<think>a</think><action>ACT</action>"),
        ("tags", "<planning>a</planning><monitor>b</monitor><action>ACT</action>"),
        ("tags", "<planning>a</planning>ACT"),
        ("tags", "<planning>a<action>ACT</action>"),
        ("compact_tags", "ACT"),
        ("compact_tags", "<explore></explore><monitor></monitor>ACT"),
        ("compact_tags", "<explore>ACT"),
        ("compact_tags", "ACT<explore></explore>"),
        ("compact_tags", ""),
        ("compact_tags", None),
        ("tags", 3),
    ],
)
def test_an_answer_without_exactly_one_kind_holds_no_action(environment, name, text):
    text = text.replace("ACT", ACTION[environment]) if isinstance(text, str) else text
    assert prompts(environment, name).parse(text) is None


def test_upper_case_and_text_in_the_tags_are_accepted():
    assert prompts("sokoban", "tags").parse("Hm. <EXPLORE>up or\ndown</Explore> <Action>Up</action>") == "up"
    assert prompts("sokoban", "compact_tags").parse("<Monitor>\nsee\n</MONITOR> UP") == "up"


def test_demonstrations_know_their_events_and_answers():
    from stepreward.envs import sokoban

    with make_pool("inline", sokoban.make("tiny")) as pool:
        records = make_demonstrations(pool, 3, 0)
    for record in records:
        assert record.events == [("new_state",)] * len(record.actions)  # a shortest solution never returns
        kinds = [tag_of(record.answer(prompts("sokoban", "tags"), index)) for index in range(len(record.actions))]
        assert kinds == ["planning", *["explore"] * (len(record.actions) - 1)]
    without = Demonstration("0", "train", ["a", "b"], ["up", "up"], True, 1.0)
    assert [tag_of(without.answer(prompts("sokoban", "tags"), index)) for index in range(2)] == ["planning", "monitor"]
    assert without.answer(prompts("sokoban", "compact"), 1) == "up"


def test_the_tags_are_words_of_a_tiny_tokenizer(tmp_path):
    from stepreward.models.tokenizer import load_tokenizer

    record = Demonstration("0", "train", [VIEW["text"]] * 2, ["left", "up"], True, 1.0, events=[("new_state",)] * 2)
    prompt = prompts("sokoban", "compact_tags")
    make_codec(tmp_path / "symbols", [([record], prompt)])
    codec = load_tokenizer(tmp_path / "symbols")
    for word in CompactTags.words:  # also those that no demonstration shows
        ids = codec.encode(f"{word}left")
        assert len(ids) == 2 and codec.decode(ids) == f"{word}left"
    make_codec(tmp_path / "pieces", [([record] * 4, prompt)], pieces=300)
    codec = load_tokenizer(tmp_path / "pieces")
    assert max(len(codec.encode(word)) for word in CompactTags.words) <= 7 and np.all(codec.encode("<reflection>") >= 0)
