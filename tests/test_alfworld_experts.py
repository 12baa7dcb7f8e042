"""ALFWorld's two experts: their actions on literal texts and facts, and agreement with the engine."""

import importlib.util
import math
import random

import pytest

from stepreward.envs import alfworld
from stepreward.envs.alfworld.explorer import Explorer
from stepreward.envs.alfworld.oracle import Goal, goal_of, plan

played = pytest.mark.skipif(importlib.util.find_spec("textworld") is None, reason="the alfworld extra is not installed")

FACTS = [
    ("atlocation", "agent1", "l0"), ("receptacleatlocation", "desk 1", "l1"), ("receptacleatlocation", "safe 1", "l2"),
    ("receptacleatlocation", "sinkbasin 1", "l1"), ("receptacletype", "desk 1", "desktype"),
    ("receptacletype", "safe 1", "safetype"), ("receptacletype", "sinkbasin 1", "sinkbasintype"), ("openable", "safe 1"),
    ("objecttype", "cd 1", "cdtype"), ("objecttype", "cd 2", "cdtype"), ("objecttype", "pen 1", "pentype"),
    ("objecttype", "desklamp 1", "desklamptype"), ("pickupable", "cd 1"), ("pickupable", "cd 2"), ("pickupable", "pen 1"),
    ("cleanable", "pen 1"), ("inreceptacle", "cd 1", "desk 1"), ("inreceptacle", "cd 2", "desk 1"),
    ("inreceptacle", "pen 1", "safe 1"), ("inreceptacle", "desklamp 1", "desk 1"), ("cancontain", "safetype", "cdtype"),
    ("cancontain", "desktype", "pentype"), ("cancontain", "desktype", "cdtype"),
]  # fmt: skip
TAKE_PEN = ["go to safe 1", "open safe 1", "take pen 1 from safe 1"]


def test_plans_on_literal_facts():
    assert plan(FACTS, Goal("pentype", "desktype", "", "", 1)) == [*TAKE_PEN, "go to desk 1", "move pen 1 to desk 1"]
    # The basin and the desk share a location, so one `go to` reaches both, and cleaning costs one action.
    clean = plan(FACTS, Goal("pentype", "desktype", "isclean", "", 1))
    assert clean == [*TAKE_PEN, "go to sinkbasin 1", "clean pen 1 with sinkbasin 1", "move pen 1 to desk 1"]
    two = plan(FACTS, Goal("cdtype", "safetype", "", "", 2))
    assert len(two) == 9 and two[-1] == "move cd 2 to safe 1" and two.count("open safe 1") == 1
    light = plan(FACTS, Goal("pentype", "", "", "desklamptype", 1))
    assert light == [*TAKE_PEN, "go to desk 1", "use desklamp 1"]
    assert plan(FACTS, Goal("mugtype", "desktype", "", "", 1)) is None
    assert plan(FACTS, Goal("pentype", "desktype", "iscool", "", 1)) is None


@pytest.mark.parametrize("order", range(4))
def test_a_plan_does_not_depend_on_the_order_of_facts(order):
    goals = [
        Goal("pentype", "desktype", "isclean", "", 1),
        Goal("cdtype", "safetype", "", "", 2),
        Goal("pentype", "", "", "desklamptype", 1),
    ]
    twice = [*FACTS, ("objecttype", "pen 2", "pentype"), ("inreceptacle", "pen 2", "safe 1")]  # another pen that also satisfies the goal
    shuffled = random.Random(order).sample(twice, len(twice)) if order else twice[::-1]
    for goal in goals:
        assert plan(shuffled, goal) == plan(twice, goal)


def test_an_object_in_the_hand_is_put_down_first():
    held = [fact for fact in FACTS if fact != ("inreceptacle", "cd 1", "desk 1")] + [("holds", "agent1", "cd 1")]
    actions = plan(held, Goal("pentype", "desktype", "", "", 1))
    assert actions == ["go to safe 1", "open safe 1", "move cd 1 to safe 1", "take pen 1 from safe 1", "go to desk 1",
                       "move pen 1 to desk 1"]  # fmt: skip


def test_goals_from_pddl():
    both = "(:goal (and (exists (?r - receptacle) (exists (?o - object) (and (inReceptacle ?o ?r) {} (objectType ?o MugType) "
    both += "(receptacleType ?r DeskType))))))"
    assert goal_of(both.format("")) == Goal("mugtype", "desktype", "", "", 1)
    assert goal_of(both.format("(isHot ?o)")) == Goal("mugtype", "desktype", "ishot", "", 1)
    assert goal_of(both.format("(not (= ?o1 ?o2))")) == Goal("mugtype", "desktype", "", "", 2)
    assert goal_of(both.format("(isSliced ?o)")) is None
    light = "(:goal (and (objectType ?ot DeskLampType) (isToggled ?ot) (objectType ?o CDType) (holds ?a ?o)))"
    assert goal_of(light) == Goal("cdtype", "", "", "desklamptype", 1)
    assert goal_of("(:goal (and))") is None


def test_explorer_on_literal_texts():
    room = "Looking quickly around you, you see a drawer 1, a desk 2, and a desk 1.\n"
    explorer = Explorer("put a cd in drawer.", room)
    turns = [
        ("go to desk 1", "On the desk 1, you see nothing."),
        ("go to desk 2", "Nothing happens."),  # it has the same location as desk 1
        ("examine desk 2", "On the desk 2, you see a pen 1, and a cd 3."),
        ("take cd 3 from desk 2", "You pick up the cd 3 from the desk 2."),
        ("go to drawer 1", "The drawer 1 is closed."),
        ("open drawer 1", "You open the drawer 1. The drawer 1 is open. In it, you see nothing."),
        ("move cd 3 to drawer 1", "You move the cd 3 to the drawer 1."),
    ]
    for action, text in turns:
        assert explorer.act() == action
        explorer.see(action, text)
    with pytest.raises(ValueError, match="templates"):
        Explorer("Please tidy up.", room)


def test_explorer_gives_up_when_there_is_nowhere_left():
    explorer = Explorer("put a cd in desk.", "Looking quickly around you, you see a desk 1.")
    explorer.see("go to desk 1", "On the desk 1, you see nothing.")
    assert explorer.act() is None


@played
@pytest.mark.parametrize("task_type", alfworld.TASK_TYPES)
def test_explorer_solves_generated_games(task_type):
    environment = alfworld.make("tiny", task_types=(task_type,))()
    won = 0
    for seed in range(4):
        environment.reset(seed=seed)
        actions = environment.expert()
        for action in actions or ():
            _, reward, terminated, _, info = environment.step(action)
        if actions:
            assert terminated and reward == 1.0 and info["won"] and info["score"] == 1.0 and environment.distance() == 0
            won += 1
    environment.close()
    assert won >= 3


@played
def test_distance_falls_by_one_along_the_oracle():
    environment = alfworld.make("tiny", task_types=alfworld.TASK_TYPES, expert="oracle")()
    for seed in range(10):
        environment.reset(seed=seed, options={"split": "held_out"})
        actions = environment.expert()
        assert environment.distance() == len(actions)
        for left, action in zip(range(len(actions) - 1, -1, -1), actions, strict=True):
            *_, info = environment.step(action)
            assert info["executed"] and environment.distance() == left
        assert info["won"]
    environment.close()


@played
def test_experts_continue_after_random_play():
    for expert in ("oracle", "explorer"):
        environment = alfworld.make("tiny", max_steps=60, expert=expert)()
        for seed in range(4):
            _, info = environment.reset(seed=seed)
            for step in range(8):
                commands = [one for one in info["admissible"] if one.startswith(("go", "take", "open", "move"))]
                _, _, over, _, info = environment.step(commands[(seed + 7 * step) % len(commands)])
                if over:
                    break
            before = environment.snapshot(), info["state_key"]
            actions = environment.expert() if not over else []
            assert actions is not None and (environment.snapshot() == before[0])
            for action in actions:
                *_, info = environment.step(action)
            assert info["won"]
        environment.close()


@played
def test_the_explorer_needs_the_turns_that_are_left():
    environment = alfworld.make("tiny", max_steps=2)()
    environment.reset(seed=0)
    assert environment.expert() is None
    assert math.isfinite(environment.distance())
    environment.close()


@played
@pytest.mark.parametrize("expert", ["explorer", "oracle"])
def test_an_expert_has_exactly_the_turns_that_are_left(expert):
    environment = alfworld.make("tiny", expert=expert)()
    environment.reset(seed=0)
    needed = len(environment.expert())
    environment.close()
    enough, short = (alfworld.make("tiny", max_steps=needed + 1, expert=expert)() for _ in range(2))
    for played_with, wasted in ((enough, 1), (short, 2)):
        played_with.reset(seed=0)
        for _ in range(wasted):
            played_with.step(None)
    assert len(enough.expert()) == needed and short.expert() is None
    *_, info = [enough.step(action) for action in enough.expert()][-1]
    assert info["won"] and enough.expert() is None
    for made in (enough, short):
        made.close()
