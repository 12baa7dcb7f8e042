"""VirtualHome's text: parsing and writing actions, prompts, settings. Nothing here needs the simulator."""

import pickle
import string

import numpy as np
import pytest

from stepreward.envs.virtualhome import make, prompts, settings
from stepreward.envs.virtualhome.actions import FORMS, Command, Named, read, read_line, write
from stepreward.envs.virtualhome.game import Game, Position
from stepreward.envs.virtualhome.goals import Goal

KNOWN = {"plate", "washing_machine", "table", "on_board", "back_door"}


def test_all_42_forms_are_distinguished():
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


class TwoSinks:
    """The part of a scene that resolves names: two sinks, plates, what the agent holds and what it is close to."""

    ids, agent = {"sink": (41, 42), "plate": (7, 8), "lamp": (9,)}, 1

    def __init__(self, held=(), edges=()):
        self._held, self._edges = held, set(edges)

    def held(self, state):
        return list(self._held)

    def targets(self, state, number, relation):
        return sorted(end for start, name, end in self._edges if (start, name) == (number, relation))

    def has_edge(self, state, start, relation, end):
        return (start, relation, end) in self._edges


def meant(name, number=None, from_hand=False, memory=None, last=None, **scene):
    game = Game(TwoSinks(**scene), Goal(()))
    return game.instance(Position(None, memory or {}, last), Named(name, number), from_hand)


def test_a_named_instance_is_meant_whatever_else_is_near():
    here = {"memory": {"sink": 41}, "last": 41, "edges": ((1, "CLOSE", 41), (41, "CLOSE", 41)), "held": (41,)}
    assert meant("sink", 42, **here) == meant("sink", 42, from_hand=True, **here) == 42
    assert meant("sink", 43, **here) is meant("sink", 7, **here) is meant("lamp", 8) is meant("moon", 1) is meant("moon") is None
    assert meant("lamp", 9) == meant("lamp") == 9
    assert read("walk to sink (42).", TwoSinks.ids) == Command("WALK", (Named("sink", 42),))


def test_which_instance_a_bare_name_means():
    near_42, held_8 = ((1, "CLOSE", 42),), (8,)
    assert meant("plate", held=held_8, from_hand=True, memory={"plate": 7}) == 8  # an object is put down from the hand
    assert meant("plate", held=held_8, memory={"plate": 7}) == 7  # the hand matters only for objects taken from it
    assert meant("plate", held=(8, 7), from_hand=True, memory={"plate": 7}) == 7  # of two held ones, the last one referred to
    assert meant("plate", held=(8, 7), from_hand=True) == 8  # else the one in the right hand
    assert meant("sink", memory={"sink": 41}, edges=near_42) == 41  # the last one referred to takes precedence over a closer one
    assert (
        meant("sink", edges=(*near_42, (9, "CLOSE", 41)), last=9) == 42
    )  # close to the agent takes precedence over close to the last object
    assert meant("sink", edges=((9, "CLOSE", 42),), last=9) == 42
    assert meant("sink", edges=((42, "INSIDE", 9),), last=9) == 42
    assert meant("sink", edges=((9, "CLOSE", 42), (41, "INSIDE", 9)), last=9) == 41  # the lowest number of several
    assert {Game(TwoSinks(), Goal(()), seed).instance(Position(None, {}), Named("sink")) for seed in range(9)} == {41, 42}


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
    assert "put {object} on {place}" in istar.first({"text": "", "task": "x"})  # without a list of actions, it shows the forms
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
