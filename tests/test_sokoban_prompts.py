"""Sokoban's prompts: what they show, what they accept, and that no text makes them raise."""

import random

import pytest

from stepreward.envs.protocol import Prompt
from stepreward.envs.sokoban import make, prompts
from stepreward.envs.sokoban.core import ACTIONS
from stepreward.envs.sokoban.prompts import IStarPrompt

NAMES = ("compact", "short", "istar", "istar_image", "ragen", "tags", "compact_tags")


def start():
    return make("tiny")().reset(seed=0)[0]


@pytest.mark.parametrize("name", NAMES)
def test_an_experts_answer_is_understood(name):
    prompt = prompts(name)
    assert isinstance(prompt, Prompt)
    for action in ACTIONS:
        assert prompt.parse(prompt.answer(action)) == action


def test_compact_is_the_inside_of_the_board():
    prompt = prompts("compact")
    observation = {"text": "######\n#P_X_#\n#_#__#\n#O___#\n#__###\n######"}
    assert prompt.first(observation) == prompt.later(observation) == "P_X__#__O_____##"
    assert prompt.window(observation, [(observation, "up")]) == "P_X__#__O_____##"


def test_short_has_a_space_before_each_symbol():
    prompt = prompts("short")
    observation = {"text": "######\n#P_X_#\n#_#__#\n#O___#\n#__###\n######"}
    assert prompt.first(observation) == prompt.later(observation) == " P _ X _\n _ # _ _\n O _ _ _\n _ _ # #"
    assert prompt.window(observation, [(observation, "up")]) == prompt.first(observation)


@pytest.mark.parametrize(
    ("name", "text", "action"),
    [
        ("compact", " Up\n", "up"),
        ("short", "left", "left"),
        ("compact", "go up", None),
        ("compact", "", None),
        ("istar", "<think>a wall</think><action>left</action>", "left"),
        ("istar", "<THINK>a</THINK> <Action> move RIGHT </ACTION>", "right"),
        ("istar", "<think>a</think><action>right, then up</action>", "up"),
        ("istar", "<think>a</think><action>up</action><action>down</action>", "up"),
        ("istar", "<think>a</think><action>still</action>", None),
        ("istar", "<action>left</action>", None),
        ("istar", "<think>a</think>left", None),
        ("istar", "<think>a</think><action>left", None),
        ("istar", "<think>a</think></action>left<action>", None),
        ("istar_image", "<think>a</think><action>down</action>", "down"),
        ("ragen", "<think>a</think><answer>Right</answer>", "right"),
        ("ragen", "<answer> down </answer>", "down"),
        ("ragen", "<answer>Right || Up</answer>", None),
        ("ragen", "Right", None),
    ],
)
def test_parse(name, text, action):
    assert prompts(name).parse(text) == action


def test_the_release_executes_an_answer_without_thoughts():
    assert IStarPrompt(require_think=False).parse("<action>left</action>") == "left"


@pytest.mark.parametrize("name", ["istar", "ragen"])
def test_text_prompts_tell_rules_board_and_history(name):
    prompt, now = prompts(name), start()
    before = {"text": now["text"].replace("P", "_")}
    assert now["text"] in prompt.first(now) and "Sokoban" in prompt.first(now)
    assert now["text"] in prompt.later(now) and len(prompt.later(now)) < len(prompt.first(now))
    assert prompt.window(now, []) == prompt.first(now)
    told = prompt.window(now, [(before, "left"), (now, "up")])
    assert told.index(f"{before['text']}\nYour action: left") < told.index("Your action: up") < told.rindex(now["text"])


def test_the_image_prompt_is_constant_with_one_image():
    prompt, now = prompts("istar_image"), start()
    text = prompt.first(now)
    assert text.count("<image>") == 1 and now["text"] not in text
    assert prompt.later(now) == prompt.window(now, [(now, "up")]) == text


def test_no_text_breaks_a_parser_or_the_environment():
    generator = random.Random(0)
    pieces = ["<think>", "</think>", "<action>", "</action>", "<answer>", "</answer>", "up", "Left", "||", " ", "\n",
              "\x00", "\ud800", "\udfff", "İ", "ß", "√", "🙂", "\u202e", "{", "%s", "\\", "'"]  # fmt: skip
    environment = make("tiny", max_steps=20_000)()
    environment.reset(seed=0)
    parsers = [prompts(name) for name in NAMES]
    accepted = 0
    for _ in range(10_000):
        text = "".join(generator.choice(pieces) for _ in range(generator.randrange(12)))
        text += "".join(chr(generator.randrange(0x110000)) for _ in range(generator.randrange(4)))
        for parser in parsers:
            action = parser.parse(text)
            assert action is None or action in ACTIONS
            accepted += action is not None
        _, _, terminated, _, info = environment.step(text)
        assert info["executed"] in (False, True)
        if terminated:
            environment.reset(seed=0)
    assert accepted > 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", ["a" * 1_000_000, "<action>" * 125_000, "</think><think>" * 60_000, "\x00" * 1000])
def test_long_texts_hold_no_action(name, text):
    assert prompts(name).parse(text) is None


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [None, b"up", 3])
def test_a_value_that_is_not_text_holds_no_action(name, value):
    assert prompts(name).parse(value) is None


def test_unknown_prompts_are_listed():
    with pytest.raises(ValueError, match="unknown Sokoban prompt 'verbose'; the prompts are compact, short, istar"):
        prompts("verbose")
