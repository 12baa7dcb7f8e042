"""ALFWorld's prompts, its two wordings, and the player's memory. Nothing here needs the game packages."""

import pytest

from stepreward.envs.alfworld import PRESETS, prompts, settings
from stepreward.envs.alfworld.explorer import Asked, asked_for
from stepreward.envs.alfworld.grammar import in_words_of, rewrite, without_arrival, wording
from stepreward.envs.alfworld.memory import Memory, room_places, things
from stepreward.envs.protocol import Prompt

ROOM = (
    "You are in the middle of a room. Looking quickly around you, you see a cabinet 2, a cabinet 1, a countertop 1, and a "
    "microwave 1.\n\nYour task is to: heat some mug and put it in cabinet."
)
GO = ("go to cabinet 1", "go to cabinet 2", "go to countertop 1", "go to microwave 1", "help", "inventory", "look")
START = {"text": ROOM, "task": "heat some mug and put it in cabinet.", "admissible": GO}
SEEN = {
    "text": "On the countertop 1, you see a fork 1, and a mug 1.",
    "task": START["task"],
    "admissible": (*GO[:2], "take fork 1 from countertop 1", "take mug 1 from countertop 1", "look"),
}


def test_names():
    for name in ("compact", "istar", "spa"):
        assert isinstance(prompts(name), Prompt)
    with pytest.raises(ValueError, match="compact, istar, spa"):
        prompts("ragen")


def test_compact_window_is_what_the_player_knows():
    compact = prompts("compact")
    assert compact.first(START) == (
        "task heat mug cabinet\nat start\nhold nothing\nleft countertop 1 , microwave 1 , cabinet 1 , cabinet 2\n"
        "goal microwave 1 , cabinet 1 , cabinet 2"
    )
    assert compact.window(SEEN, [(START, "go to countertop 1")]) == (
        "task heat mug cabinet\nat countertop 1\nhold nothing\nfound mug 1 on countertop 1\n"
        "left microwave 1 , cabinet 1 , cabinet 2\ngoal microwave 1 , cabinet 1 , cabinet 2\ndid go to countertop 1\n"
        "see On the countertop 1, you see a fork 1, and a mug 1.\n"
        "can take fork 1 from countertop 1 , take mug 1 from countertop 1"
    )


def test_compact_knows_the_places_from_what_is_admissible_when_the_room_is_out_of_sight():
    shown = prompts("compact").window(SEEN, [(SEEN, "nonsense")])
    assert "left cabinet 1 , cabinet 2" in shown and "did nonsense" in shown and "at start" in shown


def test_compact_accepts_any_history_and_any_task():
    compact = prompts("compact")
    odd = {"text": "", "task": "Warm up my cup, please."}
    assert compact.window(odd, [(odd, ""), (odd, "\n"), (odd, "take"), (odd, "move x")]).startswith("task Warm up my cup")
    assert compact.window({"text": ROOM}, []).startswith("task heat mug cabinet")


@pytest.mark.parametrize("name", ["compact", "istar", "spa"])
@pytest.mark.parametrize("action", ["go to desk 1", "put mug 1 in/on shelf 2", "move mug 1 to shelf 2", "look"])
def test_answers_are_understood(name, action):
    prompt = prompts(name)
    assert prompt.parse(prompt.answer(action)) == action


@pytest.mark.parametrize("name", ["compact", "istar", "spa"])
@pytest.mark.parametrize("text", [None, 3, "", " \n ", "<action></action>", "<think></think><action> </action>", "Action:"])
def test_no_answer_raises(name, text):
    action = prompts(name).parse(text)
    assert action is None or (name == "compact" and isinstance(text, str) and text.strip())


def test_istar_form():
    istar = prompts("istar")
    shown = istar.window(SEEN, [(START, istar.answer("go to countertop 1"))])
    assert "Your task is to: heat some mug and put it in cabinet." in shown
    assert "Action: 'go to countertop 1'" in shown and SEEN["text"] in shown
    assert "so far" not in shown  # an observation without a count
    for taken, words in ((0, ""), (1, "You have taken 1 step so far.\nYour last turn:"), (7, "You have taken 7 steps so far.\nYour")):
        assert words in istar.window({**SEEN, "turn": taken}, [(START, "look")])
    assert "so far" not in istar.first({**START, "turn": 0})
    assert "'take mug 1 from countertop 1'" in shown and "'help'" not in istar.first(START)
    assert "<think>" in shown and "<action>" in shown
    assert istar.parse("<action>look</action>") is None
    assert istar.parse("<think>so</think><action> Go  to\ndesk 1</action>") == "go to desk 1"
    assert type(istar)(require_think=False).parse("<action>look</action>") == "look"


def test_spa_form():
    spa = prompts("spa")
    assert spa.first(START).endswith("Observation: " + ROOM) and "put {thing} in/on {place}" in spa.first(START)
    assert spa.later(SEEN) == "Observation: " + SEEN["text"]
    assert spa.parse("Thought: a mug.\nAction: take mug 1 from countertop 1\nObservation: x") == "take mug 1 from countertop 1"
    told = spa.window(SEEN, [(START, "Thought: hm.\nAction: look")])
    assert told.startswith(spa.first(START)) and told.endswith(spa.later(SEEN)) and "Thought: hm." in told


def test_both_wordings():
    assert in_words_of("put mug 1 in/on desk 1", "new") == "move mug 1 to desk 1"
    assert in_words_of("  Move  mug 1 to desk 1 ", "old") == "put mug 1 in/on desk 1"
    assert in_words_of("put mug 1 on desk 1", "old") == "put mug 1 in/on desk 1"
    assert in_words_of("take mug 1 from desk 1", "old") == "take mug 1 from desk 1"
    old = 'template :: "put {o} in/on {r}"; "You put the {o.name} in/on the {r.name}." "You arrive at {lend.name}. x"'
    assert (wording(old), wording(rewrite(old, "new"))) == ("old", "new")
    assert rewrite(rewrite(old, "new"), "old") == old
    assert without_arrival("You arrive at loc 4. On the desk 1, you see nothing.") == "On the desk 1, you see nothing."
    assert without_arrival("Nothing happens.") == "Nothing happens."


def test_lists_of_things():
    assert things("On the desk 1, you see nothing.") == []
    assert things("On the desk 1, you see a book 1.") == ["book 1"]
    assert things("The safe 1 is open. In it, you see a book 2, a cd 1, and a pen 1.") == ["book 2", "cd 1", "pen 1"]
    assert room_places(ROOM) == ["cabinet 2", "cabinet 1", "countertop 1", "microwave 1"]
    assert room_places("On the desk 1, you see a book 1.") == []


def test_memory():
    memory = Memory(room_places(ROOM))
    assert memory.places == ["countertop 1", "microwave 1", "cabinet 1", "cabinet 2"]
    memory.see("go to cabinet 1", "You arrive at cabinet 1. The cabinet 1 is closed.")
    assert (memory.at, memory.shut, memory.inside) == ("cabinet 1", {"cabinet 1"}, {})
    memory.see("open cabinet 1", "You open the cabinet 1. The cabinet 1 is open. In it, you see a mug 1.")
    assert (memory.shut, memory.inside) == (set(), {"cabinet 1": ["mug 1"]})
    memory.see("take mug 1 from cabinet 1", "You pick up the mug 1 from the cabinet 1.")
    memory.see("go to microwave 1", "You arrive at microwave 1. The microwave 1 is closed.")
    memory.see("heat mug 1 with microwave 1", "You heat the mug 1 using the microwave 1.")
    assert (memory.held, memory.changed, memory.inside) == ("mug 1", {"heat mug 1"}, {"cabinet 1": []})
    memory.see("put mug 1 in/on microwave 1", "Nothing happens.")
    assert memory.refused == {("mug 1", "microwave 1")} and memory.held == "mug 1"
    memory.see("go to microwave 1", "Nothing happens.")
    assert memory.unsure
    memory.see(None, "Nothing happens.")


def test_task_sentences():
    assert asked_for("put a clean plate in microwave.") == Asked("plate", "microwave", "clean", "", False)
    assert asked_for("cool some pan and put it in stoveburner.") == Asked("pan", "stoveburner", "cool", "", False)
    assert asked_for("put some book on desk.") == Asked("book", "desk", "", "", False)
    assert asked_for("put a book in desk.") == Asked("book", "desk", "", "", False)
    assert asked_for("find two cd and put them in safe.") == asked_for("put two cd in safe.") == Asked("cd", "safe", "", "", True)
    assert asked_for("look at cd under the desklamp.") == asked_for("examine the cd with the desklamp.")
    assert asked_for("examine the cd with the desklamp.") == Asked("cd", "", "", "desklamp", False)
    assert asked_for("Please tidy up.") is None


def test_settings():
    assert PRESETS["istar"].max_steps == 50 and PRESETS["istar"].won_reward == 10
    assert PRESETS["spa"].max_steps == 40 and PRESETS["spa"].won_reward == 1
    assert settings("spa", max_steps=7).max_steps == 7
    for wrong in ({"max_steps": 0}, {"held_out": "test"}, {"task_types": ("fly",)}, {"task_types": "look"}, {"expert": "me"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            settings("tiny", **wrong)
    with pytest.raises(ValueError, match="tiny, istar, spa"):
        settings("huge")
    with pytest.raises(ValueError, match="max_receptacles"):
        settings("tiny", receptacles=4)
