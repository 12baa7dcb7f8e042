"""Actions in answers: both forms are read back as written, and no value makes a parser raise."""

import random

import pytest

from stepreward.envs.parsing import TAGS, between, labelled, tag_of, tagged, write_labelled, write_tagged

ACTIONS = ["up", "go to desk 1", "search[red shoes, size 8]", "click[< Prev]", "Öffne die Tür √", "a", "Action", "look: north"]


@pytest.mark.parametrize("action", ACTIONS)
def test_written_answers_are_read_back(action):
    thought = "The desk (1) is near:\n\nfirst go there."
    assert write_tagged("why", "up") == "<think>why</think><action>up</action>"
    assert write_labelled("why", "up") == "Thought: why\nAction: up"
    assert tagged(write_tagged(thought, action)) == action
    assert tagged(write_tagged(thought, action, "answer"), "answer") == action
    assert labelled(write_labelled(thought, action), require_thought=True) == action


@pytest.mark.parametrize(
    ("text", "strict", "free"),
    [
        ("<think>a</think><action> Go North\n</action>", "Go North", "Go North"),
        ("<THINK>a</Think>\n<Action>up</ACTION> then", "up", "up"),
        ("<think>a</think><action>up</action><action>down</action>", "up", "up"),
        ("<action>up</action>", None, "up"),
        ("</think><think><action>up</action>", None, "up"),
        ("<think>a</think><action></action>", "", ""),
        ("<think>a</think>up</action><action>", None, None),
        ("<think>a</think><answer>up</answer>", None, None),
        ("", None, None),
    ],
)
def test_tags(text, strict, free):
    assert tagged(text) == strict and tagged(text, require_think=False) == free


@pytest.mark.parametrize(
    ("text", "strict", "free"),
    [
        ("Thought: I see it.\nAction: go to desk 1", "go to desk 1", "go to desk 1"),
        ("Thought: now. Action: open door \nObservation: it opens", "open door", "open door"),
        ("THOUGHT: a\nACTION:look", "look", "look"),
        ("Action: up\nThought: after", None, "up"),
        ("Thought: a\nAction:\n\n  take key\nAction: drop key", "take key", "take key"),
        ("Thought: no reaction: none", None, None),
        ("Thought: a\nAction: \n", None, None),
        ("Thought: a\nAction: \u00a0", None, None),
        ("up", None, None),
    ],
)
def test_labels(text, strict, free):
    assert labelled(text, require_thought=True) == strict and labelled(text) == free


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ("<planning>First the key.</planning><action>up</action>", "planning"),
        ("<Explore>What is there?</EXPLORE>", "explore"),
        ("<monitor></monitor>", "monitor"),
        ("<reflection>a</reflection> and <reflection>b</reflection>", "reflection"),
        ("<think>plan</think><action>up</action>", None),
        ("<planning>a</planning><monitor>b</monitor>", None),  # one kind of thought in an answer
        ("</planning><planning>", None),
        ("<planning>the answer was cut", None),
        ("planning", None),
        (None, None),
    ],
)
def test_kinds_of_thought(text, tag):
    assert tag_of(text) == tag and (tag is None or tag in TAGS)


def test_no_value_makes_a_parser_raise():
    rng = random.Random(0)
    pieces = ["<think>", "</think>", "<action>", "</action>", "<answer>", "Thought:", "Action:", "\n", " ", "up", "\x00", "\ud800",
              "İ", "ſ", "\u2028", "(", "\\", "%s", "{"]  # fmt: skip
    found = 0
    for _ in range(10_000):
        text = "".join(rng.choice(pieces) for _ in range(rng.randrange(14))) + chr(rng.randrange(0x110000))
        for read in (tagged, labelled, lambda t: tagged(t, "answer", require_think=False), lambda t: between(t, "think")):
            said = read(text)
            assert said is None or said.strip() in text
            found += said is not None
    assert found > 1000
    for value in (None, b"<action>up</action>", 3, ["up"]):
        assert tagged(value) is None and labelled(value) is None and between(value, "action") is None
    long = ("<action>" * 125_000, "action:" + " " * 1_000_000, "</think><think>" * 60_000, "Thought: " * 100_000)
    for text in (*long, "action: " * 2):
        assert tagged(text) is None and labelled(text, require_thought=True) is None
