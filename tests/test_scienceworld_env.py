"""The ScienceWorld environment: its tasks and texts, and, where Java is installed, episodes in the simulator."""

import json
import shutil
import sys

import pytest

from stepreward.envs.protocol import Environment, replay_prefix
from stepreward.envs.scienceworld import TASK_NAMES, make, settings, texts
from stepreward.envs.scienceworld.simulator import Simulator
from stepreward.envs.scienceworld.tasks import Task, split_tasks, variations
from stepreward.rollout.checked import checked
from stepreward.rollout.environments import EnvironmentFailure
from stepreward.rollout.pools import make_pool

COUNTS = dict.fromkeys(TASK_NAMES, 30)
FIND = ("find-living-thing",)


@pytest.fixture(scope="module")
def environment():
    pytest.importorskip("scienceworld", reason="needs: pip install 'stepreward[scienceworld]'")
    if shutil.which("java") is None:
        pytest.skip("needs Java: apt-get install default-jre-headless")
    made = make("spa", tasks=FIND, turn_reward=True)()
    yield made
    made.close()


# Splits.


def test_the_splits_are_the_benchmarks():
    assert [variations(30, part) for part in ("train", "dev", "test")] == [range(14), range(14, 21), range(21, 30)]
    assert [len(variations(10, part)) for part in ("train", "dev", "test")] == [4, 2, 4]
    found = split_tasks(settings("istar"), COUNTS)
    assert (len(found["train"]), len(found["held_out"])) == (30 * 14, 30 * 9)
    found = split_tasks(settings("istar", tasks=("boil",), held_out_tasks=("melt",), held_out="dev"), COUNTS)
    assert {task.name for task in found["train"]} == {"boil"}
    assert sorted(found["held_out"]) == [Task("melt", number) for number in range(14, 21)]


def test_a_file_of_tasks_replaces_the_splits(tmp_path):
    file = tmp_path / "tasks.json"
    file.write_text(json.dumps({"train": [[0, 3], [22, 1]], "test": [[9, 29]]}))
    found = split_tasks(settings("istar", data=file), COUNTS)
    assert sorted(found["train"]) == [Task("boil", 3), Task("melt", 1)] and found["held_out"] == (Task("freeze", 29),)
    for content, match in (
        ("[", "not a JSON file"),
        ("[]", 'no list "train"'),
        ('{"train": [[0, 3]]}', 'no list "test"'),
        ('{"train": [[0, 30]], "test": [[0, 1]]}', r"\[0, 30\] in 'train' is no"),
        ('{"train": [[30, 1]], "test": [[0, 1]]}', r"\[30, 1\] in 'train' is no"),
    ):
        file.write_text(content)
        with pytest.raises(ValueError, match=match):
            split_tasks(settings("istar", data=file), COUNTS)
    with pytest.raises(FileNotFoundError, match="set data to an existing file"):
        split_tasks(settings("istar", data=tmp_path / "none.json"), COUNTS)


def test_bad_settings_are_one_clear_error():
    for wrong, match in (
        ({"tasks": ("boils",)}, "'boils'; the tasks are boil, change-the-state"),
        ({"tasks": "boil"}, "give a tuple of tasks"),
        ({"held_out_tasks": ("x",)}, "held_out_tasks"),
        ({"held_out": "train"}, "test, dev"),
        ({"simplifications": "openDoor"}, "openDoors"),
        ({"data": "x.json", "tasks": ("boil",)}, "give it with tasks="),
        ({"reward": "won"}, "score, success"),
        ({"short_expert": 1}, "True or False"),
    ):
        with pytest.raises(ValueError, match=match):
            make("istar", **wrong)


# Texts.


def test_lists_have_one_order():
    text = "This room is called the hall. In it, you see: \n\tthe agent\n\ta picture\n\ta table. On the table is: a jar (containing x, a), a cup.\nYou also see:\n\tA door to b\n\tA door to a"
    assert texts.ordered(text) == (
        "This room is called the hall. In it, you see: \n\ta picture\n\ta table. On the table is: a cup, a jar (containing x, a).\n\tthe agent\n"
        "You also see:\n\tA door to a\n\tA door to b"
    )
    lamps = "On it is: a lamp, which is off, a bulb, which is on."
    assert texts.ordered(lamps) == "On it is: a bulb, which is on, a lamp, which is off."
    for plain in ("The door is now open.", "", "You see: nothing.", "a: b"):
        assert texts.ordered(plain) == plain
    assert texts.key("a, b\nc") == texts.key("c\nb, a") != texts.key("a\nb, c")
    cups = [f"a cup (containing {one}), a bowl (containing {two})" for one, two in (("water", "nothing"), ("nothing", "water"))]
    assert texts.key(cups[0]) != texts.key(cups[1])


def test_a_question_is_ordered_and_numbered_anew():
    asked = f"{texts.AMBIGUOUS}: Please enter the number:\n0:\tpour b\n1:\tpour a\n"
    assert texts.question(asked) == (f"{texts.AMBIGUOUS}: Please enter the number:\n0:\tpour a\n1:\tpour b", {"0": "1", "1": "0"})
    assert texts.question("0:\tno question") == ("0:\tno question", {})


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("No known action matches that input.", True),
        ("The door is already open.", True),
        ("You can't move something into itself.", True),
        ("It's not clear how to get there from here.", True),
        ("You move to the kitchen.", False),
        ("The cupboard is now open.", False),
        ("This room is called the hall. In it, you see: \n\ta door that is already open", False),
        ("", False),
    ],
)
def test_what_the_simulator_refuses(text, refused):
    assert texts.refused(text) is refused


def test_the_short_form():
    text = "This room is called the hallway. In it, you see: \n\ta picture\n\ta substance called air\n\tthe agent\nYou also see:\n\tA door to the kitchen (that is open)"
    assert texts.short(text) == "hallway: a picture, doors: kitchen"
    assert texts.short("In your inventory, you see:\n\tan orange") == "have: an orange"


# What is missing.


def test_without_the_package_or_java_one_line_says_how_to_install_it(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "scienceworld", None)
        with pytest.raises(ValueError, match=r"'scienceworld', which is not installed; run pip install .*\[scienceworld\]"):
            make("tiny")()
    pytest.importorskip("scienceworld")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="needs Java.* apt-get install -y default-jre-headless"):
        Simulator(256)


# Episodes.


def test_the_names_and_splits_are_those_of_the_simulator(environment):
    counts = environment._simulator.counts()
    assert tuple(counts) == TASK_NAMES and sum(counts.values()) == 7207
    assert [sum(len(variations(count, part)) for count in counts.values()) for part in ("train", "dev", "test")] == [3592, 1796, 1819]
    server = environment._simulator._server
    for name in ("find-non-living-thing", "power-component"):
        server.load(name, 0, "", False)
        for part, listed in (
            ("train", server.getVariationsTrain()),
            ("dev", server.getVariationsDev()),
            ("test", server.getVariationsTest()),
        ):
            assert list(listed) == list(variations(counts[name], part))


def test_an_expert_wins_and_the_rewards_sum_to_the_score_since_the_reset(environment):
    assert isinstance(environment, Environment)
    observation, info = environment.reset(seed=0)
    assert info["score"] == 8.0 and not info["won"] and info["task"].startswith("Your task is to find a(n) living thing.")
    assert " is called the " in observation["text"]
    plan = environment.expert()
    rewards, turns, keys = [], [], []
    for number, action in enumerate(plan):
        assert environment.expert() == plan[number:]
        _, reward, terminated, truncated, info = environment.step(action)
        rewards.append(reward)
        turns.append(info["turn_reward"])
        keys.append(info["state_key"])
    assert (info["won"], info["score"], terminated, truncated) == (True, 100.0, True, False)
    assert sum(rewards) == pytest.approx(0.92) and turns == rewards
    with pytest.raises(RuntimeError, match="call reset"):
        environment.step("wait")
    assert replay_prefix(environment, plan[:-1], seed=0)[1]["state_key"] == keys[-2]


@pytest.mark.parametrize("action", [None, "", "dance", "\udcff", "go to moon", "x" * 2000, 7])
def test_what_is_not_understood_changes_nothing(environment, action):
    _, info = environment.reset(seed=1)
    _, reward, terminated, _, after = environment.step(action)
    assert (reward, terminated, after["executed"], after["events"]) == (0.0, False, False, ("error",))
    assert after["state_key"] == info["state_key"]


def test_turns_are_limited_though_looking_takes_no_time(environment):
    environment.reset(seed=1)
    results = [environment.step("look around") for _ in range(environment.settings.max_steps)]
    assert [result[3] for result in results] == [False] * 29 + [True]
    assert all(result[4]["executed"] and result[4]["events"] == () for result in results)


def test_a_wrong_focus_ends_the_episode_with_the_least_score(environment):
    environment.reset(seed=1)
    _, reward, terminated, _, info = environment.step("focus on air")
    assert (terminated, info["score"], info["won"], reward) == (True, -100.0, False, pytest.approx(-1.08))


def test_the_expert_of_an_episode_that_left_the_path_is_none(environment):
    environment.reset(seed=2)
    environment.step("wait1")
    assert environment.expert() is None
    for arguments, match in (({"seed": -1}, "seed=-1"), ({"seed": 0, "options": {"split": "dev"}}, "train, held_out")):
        with pytest.raises(ValueError, match=match):
            environment.reset(**arguments)


def test_another_process_plays_the_same_episode(environment):
    """The simulator's lists come in another order in each process; numbers of a question mean the same action."""
    other = make("spa", tasks=("grow-plant",), admissible="valid")()
    again = make("spa", tasks=("grow-plant",))()
    try:
        observation, info = other.reset(seed=3)
        assert again.reset(seed=3)[0] == observation
        for number in range(12):
            listed = info["admissible"]
            action = listed[(number * 37) % len(listed)]
            observation, *rest, info = other.step(action)
            observation_, *rest_, info_ = again.step(action)
            assert (observation, rest, info["state_key"]) == (observation_, rest_, info_["state_key"])
            if rest[1]:
                break
    finally:
        other.close()
        again.close()
        assert other._simulator._package._gateway.java_process.poll() is not None


def test_a_java_process_that_died_raises_at_the_next_step_and_a_new_environment_plays(environment):
    """A pool counts it as a failure of one call, and makes a new environment (tests/test_process_pool.py)."""
    with make_pool("inline", checked(make("tiny"))) as pool:
        pool.call(0, "reset", seed=0)
        pool.call(0, "_simulator")._package._gateway.java_process.kill()
        with pytest.raises(EnvironmentFailure, match="Py4J"):
            pool.call(0, "step", "wait1")
        assert pool.call(0, "reset", seed=0)[1]["score"] == 8.0 and pool.failures == 1
