"""VirtualHome's words: actions read and written, prompts, settings. Nothing here needs the simulator."""

import pickle
import string

import numpy as np
import pytest

from stepreward.envs.virtualhome import make, prompts, settings
from stepreward.envs.virtualhome.actions import FORMS, Command, Named, read, read_line, write

KNOWN = {"plate", "washing_machine", "table", "on_board", "back_door"}


def test_there_are_the_42_forms_and_all_are_told_apart():
    assert len(FORMS) == 42 == len(set(FORMS.values()))
    for verb, form in FORMS.items():
        for number in (None, 7):
            objects = (Named("washing_machine", number), Named("table"))[: form.count("{}")]
            text = write(verb, objects)
            assert read(text, KNOWN) == Command(verb, objects), text


@pytest.mark.parametrize(
    "text, verb, objects",
    [
        ("  Walk to the_nothing ", None, None),
        ("Walk  TO washing_machine.", "WALK", (Named("washing_machine"),)),
        ("put plate on table (12)", "PUTBACK", (Named("plate"), Named("table", 12))),
        ("put on plate", "PUTON", (Named("plate"),)),
        ("put back plate", "PUTOBJBACK", (Named("plate"),)),
        ("put on board on table", "PUTBACK", (Named("on_board"), Named("table"))),
        ("put plate on on board", "PUTBACK", (Named("plate"), Named("on_board"))),
        ("stand up", "STANDUP", ()),
        ("stand up plate", None, None),
        ("put plate", None, None),
        ("put plate on", None, None),
        ("grab plate (99999999999999)", None, None),
        ("", None, None),
        (None, None, None),
        (7, None, None),
        ("walk to plate " * 100, None, None),
    ],
)
def test_reading(text, verb, objects):
    assert read(text, KNOWN) == (None if verb is None else Command(verb, objects))


def test_reading_never_raises():
    generator = np.random.default_rng(0)
    letters = string.printable + "é√（）１"
    for _ in range(300):
        text = "".join(letters[index] for index in generator.integers(len(letters), size=20))
        for prefix in ("", "put ", "walk to "):
            read(prefix + text, KNOWN)


def test_lines_of_programs():
    assert read_line("[PUTBACK] <plate> (1.1000) <table> (123)\n") == ("PUTBACK", (Named("plate", 1000), Named("table", 123)))
    assert read_line("[Sleep]") == ("SLEEP", ())
    for line in ("[FLY] <plate> (1)", "[WALK]", "[WALK] <a> (1) <b> (2)", "walk to plate", "[WALK] <a> (x)"):
        with pytest.raises(ValueError, match="VirtualHome program|takes"):
            read_line(line)


VIEW = {"text": "kitchen. near table, plate.", "task": "Drink (Take a cup)", "admissible": ("grab plate", "walk to bedroom")}


@pytest.mark.parametrize("name", ["compact", "istar", "spa"])
def test_prompts_carry_task_and_observation_and_read_their_own_answers(name):
    prompt = prompts(name)
    for verb, form in FORMS.items():
        action = write(verb, (Named("washing_machine", 3), Named("table"))[: form.count("{}")])
        assert prompt.parse(prompt.answer(action)) == action
    for text in (None, 3, "", "  \n", "<action>", "Action:"):
        prompt.parse(text)
    assert prompt.parse("") is prompt.parse(None) is None
    first, later = prompt.first(VIEW), prompt.later(VIEW)
    assert VIEW["text"] in first and VIEW["task"] in first and VIEW["text"] in later and VIEW["task"] not in later
    window = prompt.window(VIEW, [({**VIEW, "text": "bedroom."}, prompt.answer("walk to kitchen"))])
    assert VIEW["text"] in window and VIEW["task"] in window and "walk to kitchen" in window
    assert prompt.window(VIEW, []).endswith(later)


def test_forms_of_the_prompts():
    assert prompts("compact").first(VIEW) == "task: Drink (Take a cup)\nkitchen. near table, plate."
    assert prompts("compact").window(VIEW, [(VIEW, "grab plate")]).split("\n")[1] == "done: grab plate"
    istar = prompts("istar")
    assert "['grab plate', 'walk to bedroom']" in istar.later(VIEW)
    assert istar.parse("<action>grab plate</action>") is None  # no thoughts
    spa = prompts("spa").first(VIEW)
    assert "17. put {object} on {place}" not in spa and "13. put {object} on {place}" in spa and "42. wake up" in spa
    assert "The task is Drink (Take a cup).\nObservation: kitchen." in spa
    assert "put {object} on {place}" in istar.first({"text": "", "task": "x"})  # no list of actions: the forms
    with pytest.raises(ValueError, match="compact, istar, spa"):
        prompts("none")


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"max_steps": 0}, "max_steps=0"),
        ({"colour": 1}, "colour.*the settings are max_steps"),
        ({"goal": "x"}, "graph, annotated"),
        ({"data": 3}, "give a path"),
        ({"titles": "Drink"}, "tuple of titles"),
        ({"gold_memory": 1}, "True or False"),
        ({"success_reward": "1"}, "give a number"),
        ({"goal": "annotated", "data": "x"}, "leave `data` out"),
        ({"graphs": "x"}, "give `data` too"),
    ],
)
def test_bad_settings_are_named(overrides, message):
    with pytest.raises(ValueError, match=message):
        settings("istar", **overrides)
    with pytest.raises(ValueError, match="tiny, istar, spa"):
        make("huge")


def test_factories_are_picklable():
    factory = make("spa", max_steps=7, titles=["Drink"])
    assert pickle.loads(pickle.dumps(factory)).args == factory.args
    assert factory.args[0].max_steps == 7 and factory.args[0].titles == ("Drink",)
