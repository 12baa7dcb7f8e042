"""The embedded world: its tasks, the recognised acts of an utterance, and the partner's reactions."""

import hashlib
import subprocess
import sys
from collections import Counter

import pytest

from stepreward.envs.sotopia import partner
from stepreward.envs.sotopia.scenarios import SCENARIOS, Task, describe, split_of, task_for, topic_words
from stepreward.envs.sotopia.speech import NOTHING, hear

LADDER = ("90", "85", "80", "75", "70", "65", "60", "55", "50", "45", "40")
BIKE = Task("bike", "Ada", "Ben", LADDER, (0, 1, 2), concern=1, mood="warm", limit=40, voice=0)
FILM = Task("film", "Ada", "Ben", ("drama", "horror", "comedy", "western", "musical", "cartoon"), (2, 0, 1), 0, "brisk", 30, 1)


def say(task, state, *words):
    for text in words:
        state, lines = partner.respond(task, state, hear(text, task))
    return state, [name for name, _ in lines]


def test_tasks_are_seeded_and_splits_share_none():
    assert task_for(5) == task_for(5) != task_for(6)
    train = {describe(task_for(seed)) for seed in range(400)}
    held_out = {describe(task_for(seed, "held_out")) for seed in range(400)}
    assert len(train) > 395 and not train & held_out
    assert all(split_of(task_for(seed, split)) == split for seed in range(50) for split in ("train", "held_out"))
    assert set(Counter(task_for(seed).scenario for seed in range(400))) == set(SCENARIOS) and len(SCENARIOS) == 12


@pytest.mark.parametrize(("split", "digest"), [("train", "ff8fa46edafbfd62"), ("held_out", "e51952ec25423b79")])
def test_the_tasks_of_the_seeds_never_change(split, digest):
    tasks = "\n".join(str(tuple(task_for(seed, split))) for seed in range(60))
    assert hashlib.sha256(tasks.encode()).hexdigest()[:16] == digest


def test_the_descriptions_of_the_scenarios_never_change():
    words = "\n".join(str(tuple(SCENARIOS[name])) for name in sorted(SCENARIOS))
    assert hashlib.sha256(words.encode()).hexdigest()[:16] == "a166b8c9329dcfa9"
    assert {name for name, scenario in SCENARIOS.items() if scenario.money} == {"bike", "car", "salary", "loan", "rent", "donation"}


def test_tasks_do_not_depend_on_the_hash_seed(root):
    code = "from stepreward.envs.sotopia.scenarios import *; print([task_for(s, 'held_out') for s in range(20)])"
    told = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=root,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(root)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert told == {f"{[task_for(seed, 'held_out') for seed in range(20)]}\n"}


def test_the_partners_side_is_hidden():
    for seed in range(100):
        task = task_for(seed)
        changed = task._replace(concern=(task.concern + 1) % 3, mood="x", limit=1, voice=9)
        assert describe(task) == describe(changed) and describe(task, "short") == describe(changed, "short")


@pytest.mark.parametrize("arguments", [(-1,), (0, "test")])
def test_bad_seeds_and_splits(arguments):
    with pytest.raises(ValueError, match="seed=-1|unknown split 'test'; the splits are train, held_out"):
        task_for(*arguments)


@pytest.mark.parametrize(
    "text, heard",
    [
        ("offer 85", {"offer": (90, "85")}),
        ("How about $70, could you do that?", {"offer": (60, "70")}),
        ("I cannot do 40, but 62.5 would be fine", {"offer": (45, "62.5"), "refuse": True}),
        ("it has 7 gears and is from 2019", {}),
        ("ask why", {"ask": True}),
        ("What matters most to you here?", {"ask": True}),
        ("reason lock", {"reason": 1}),
        ("It comes with a strong lock, so nobody will steal it.", {"reason": 1}),
        ("Hello there! Thank you for coming.", {"greet": True, "thank": True}),
        ("concede", {"relative": "concede"}),
        ("Let us meet in the middle.", {"relative": "halfway"}),
        ("offer", {"relative": "best"}),
        ("agree", {"agree": True}),
        ("That sounds good, I accept.", {"agree": True}),
        ("No problem, it's a deal", {"agree": True}),
        ("No deal.", {"refuse": True}),
        ("I don’t accept", {"refuse": True}),
        ("I agree that it is old", {}),
        ("I must be rid of it by Friday", {"secret": True}),
        ("Take it or you will regret it", {"threat": True}),
        ("You are a greedy liar", {"insult": True}),
        ("left the conversation", {"leave": True}),
        ("Goodbye.", {"leave": True}),
        ("the weather is grey", {}),
    ],
)
def test_recognised_acts(text, heard):
    assert hear(text, BIKE)._asdict() == {**NOTHING._asdict(), **heard}


def test_any_value_is_accepted_as_an_utterance():
    for text in (None, "", " \n", 7, "\x00" * 5000, "$" * 9, "1" * 400, "9e999", "😀", ["offer 85"]):
        assert hear(text, BIKE) == NOTHING
    assert hear("perhaps the horror or the comedy", FILM).offer == (60, "comedy")


def test_every_short_form_and_topic_is_heard_in_every_scenario():
    for seed in range(200):
        task = task_for(seed)
        for index, word in zip(task.topics, topic_words(task)):
            assert hear(f"reason {word}", task) == NOTHING._replace(reason=index)
        for worth, label in zip(task.worth, task.ladder):
            assert hear(f"offer {label}", task) == NOTHING._replace(offer=(worth, label))
            assert hear(f"How about {label}?", task).offer == (worth, label)


def test_the_argument_that_fits_moves_the_partner():
    start = partner.opening(BIKE)
    assert say(BIKE, start, "ask why") == (start._replace(asked=1), ["concern"])
    assert say(BIKE, start, "reason lock") == (start._replace(limit=70, argued=(1,)), ["convinced"])
    assert say(BIKE, start, "reason brakes") == (start._replace(limit=42, argued=(0,)), ["unmoved"])
    assert say(BIKE, start, "reason lock", "reason lock")[0].patience == start.patience - 1


def test_courtesy_counts_twice_and_rudeness_costs():
    start = partner.opening(BIKE)
    assert say(BIKE, start, "hello", "thanks", "thank you so much")[0].limit == 40 + 8 + 8
    state, lines = say(BIKE, start, "or else!")
    assert (state.limit, state.patience, state.threats, lines) == (25, 5, 1, ["threats"])
    assert say(BIKE, start, *["you idiot"] * 4)[0].ended == "walked"


def test_the_secret_is_used_against_the_player():
    state, lines = say(BIKE, partner.opening(BIKE), "tell secret", "I am moving abroad")
    assert (state.limit, state.secret, lines) == (20, True, ["secret"])


def test_bargaining():
    start = partner.opening(BIKE)  # the limit of 40 hundredths is a price of 60; the partner's first offer is 40
    state, lines = say(BIKE, start, "offer 90")
    assert (state.ask, task_label(BIKE, state), state.patience, lines) == (100, "45", 6, ["counter"])  # too far: less patience
    state, _ = say(BIKE, state, "concede", "concede")
    assert (state.ask, task_label(BIKE, state), state.patience) == (80, "50", 5)
    assert say(BIKE, state, "offer 85")[0].raised == 1
    deal, lines = say(BIKE, state, "agree")
    assert (deal.deal, deal.ended, lines) == (20, "deal", ["deal"])
    deal, _ = say(BIKE, state, "offer 60")
    assert (deal.deal, deal.ended) == (40, "deal")
    assert say(BIKE, state, "halfway")[0].deal is None  # halfway between 80 and 20 is 50
    assert say(BIKE, start, "offer 40")[0].deal == 0


def test_a_refusal_is_answered_unless_another_act_is():
    start = partner.opening(BIKE)
    assert say(BIKE, start, "No deal.") == (start, ["refused"])
    assert say(BIKE, start, "No deal. Have you thought of the lock?")[1] == ["convinced"]
    assert say(BIKE, start, "No deal, but thank you.")[1] == ["courtesy"]


def task_label(task, state):
    return task.ladder[state.standing]


def test_a_touchy_partner_does_not_move_without_courtesy():
    task = BIKE._replace(mood="touchy")
    rude, polite = (say(task, partner.opening(task), *words) for words in (("offer 80",), ("thank", "offer 80")))
    assert task_label(task, rude[0]) == "40" and task_label(task, polite[0]) == "50"


def test_every_line_can_be_spoken():
    for name in partner.LINES:
        words = {"label": "45", "asked": "80", "word": "lock", "voiced": "what matters"}
        for style in ("short", "full"):
            for voice in range(3):
                assert partner.speak(BIKE._replace(voice=voice), [(name, words)], style)
