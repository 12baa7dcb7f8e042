"""The VirtualHome environment, on a small home in the official layout."""

import importlib
import json
import random

import numpy as np
import pytest

pytest.importorskip("virtualhome_eval", reason="needs: pip install --no-deps virtualhome-eval")

from virtualhome_home import PROGRAMS, graph, write_home

from stepreward.envs.protocol import Environment, replay_prefix
from stepreward.envs.virtualhome import make, tasks
from stepreward.envs.virtualhome.env import task_lists
from stepreward.envs.virtualhome.game import Game
from stepreward.envs.virtualhome.goals import Fact, Goal, from_annotation, from_graphs, from_revision
from stepreward.envs.virtualhome.simulator import INSTALL, Scene, simulator


@pytest.fixture
def home(tmp_path):
    return write_home(tmp_path)


@pytest.fixture
def start(home):
    """Makes an environment in the task of clearing the table, whichever split the task is in."""

    def made(preset="spa", **settings):
        environment = make(preset, data=home, **{"titles": ("Clear the table",), **settings})()
        split = "train" if environment.num_tasks("train") else "held_out"
        return environment, environment.reset(seed=0, options={"split": split})

    return made


def test_an_episode_by_hand(start):
    environment, (observation, info) = start(gold_memory=False)
    assert isinstance(environment, Environment)
    assert observation == {"text": "You see nothing near."}
    assert info["task"] == "Clear the table (Take the plate)"
    # Goal: the agent in the kitchen and not in the bedroom, the plate held and no longer on the table.
    assert (info["won"], info["score"], info["executed"], environment.distance()) == (False, 0.0, True, 4.0)

    observation, reward, won, truncated, info = environment.step("grab plate")
    assert (observation["text"], reward, won, truncated, info["executed"]) == ("Nothing happens.", 0.0, False, False, False)

    observation, reward, _, _, info = environment.step("Walk to table.")
    assert observation["text"] == "table is CLEAN."
    assert (info["score"], info["executed"], reward, environment.distance()) == (0.5, True, 0.0, 2.0)

    observation, reward, won, truncated, info = environment.step("grab plate (11)")
    assert observation["text"].endswith("You have plate.")
    assert (reward, won, truncated, info["won"], info["score"]) == (1.0, True, False, True, 1.0)
    with pytest.raises(RuntimeError, match="call reset"):
        environment.step("sleep")


def test_texts_without_an_action_change_nothing(start):
    environment, (_, info) = start()
    for text in (
        None,
        "",
        "dance",
        "walk to moon",
        "walk to plate (12)",
        "put plate on table",
        "open table",
        "grab character",
        5,
        "é" * 999,
    ):
        observation, reward, won, _, after = environment.step(text)
        assert (observation["text"], reward, won, after["executed"]) == ("Nothing happens.", 0.0, False, False)
        assert after["state_key"] == info["state_key"]


def test_observations(start):
    environment, _ = start(show_room=True)
    assert environment.step("walk to lamp")[0]["text"] == "You are in the bedroom. lamp is OFF and PLUGGED_IN."
    environment.step("walk to cupboard")
    assert (
        environment.step("find cupboard")[0]["text"] == "You are in the kitchen. cupboard is CLOSED."
    )  # the cup is inside the closed cupboard
    assert environment.step("open cupboard")[0]["text"] == "You are in the kitchen. cupboard is OPEN, cup is DIRTY."
    assert environment.step("grab cup")[0]["text"] == "You are in the kitchen. cupboard is OPEN, cup is DIRTY. You have cup."
    short, (first, _) = start("tiny")
    assert first["text"] == "bedroom."
    assert short.step("walk to chair")[0]["text"].endswith("near chair.")
    assert "sitting" in short.step("sit on chair")[0]["text"]


def test_which_instance_a_name_means():
    scene = Scene(graph())
    games = [Game(scene, Goal(()), seed) for seed in range(20)]
    game, at = games[0], games[0].start()
    drawn = {each.take(at, "find chair").memory["chair"] for each in games}
    assert drawn == {14, 20}  # nothing is near, so the seed decides
    assert game.take(at, "find chair").memory == game.take(at, "find chair").memory
    table = game.take(at, "walk to table")
    assert game.take(table, "find chair").memory["chair"] == 14  # close to the table, the object of the last action
    by_lamp = game.take(game.take(at, "walk to chair (20)"), "walk to table")
    assert game.take(by_lamp, "walk to chair").memory["chair"] == 20  # the instance of the earlier action
    assert game.take(by_lamp, "walk to chair (14)").memory["chair"] == 14
    assert game.take(game.start({"chair": 20}), "walk to chair").memory["chair"] == 20
    assert game.take(at, "walk to chair (10)") is None
    assert game.say(by_lamp, "SIT", (14,)) == "sit on chair (14)" and game.say(by_lamp, "SIT", (20,)) == "sit on chair"


def test_snapshot_replay_and_state_keys(start):
    environment, (_, first) = start()
    before = environment.snapshot()
    keys = [environment.step(action)[4]["state_key"] for action in ("walk to cupboard", "open cupboard", "close cupboard")]
    assert len({first["state_key"], *keys}) == 3 and keys[0] == keys[2]  # closing it again restores the state
    environment.restore(before)
    assert environment.step("walk to cupboard")[4]["state_key"] == keys[0]
    split = "train" if environment.num_tasks("train") else "held_out"
    other, _ = start()
    _, info = replay_prefix(other, ["walk to cupboard", "open cupboard"], seed=0, options={"split": split})
    assert info["state_key"] == keys[1]


def test_the_expert_reaches_the_goal_also_after_detours(start):
    environment, _ = start()
    assert environment.expert() == ["walk to table", "grab plate"]
    environment.step("walk to table")
    assert environment.expert() == ["grab plate"]
    environment.step("walk to lamp")
    for action in environment.expert():
        _, _, won, _, info = environment.step(action)
    assert won and info["won"]


def test_the_expert_needs_the_turns_that_are_left(start):
    environment, _ = start(max_steps=3)
    environment.step("sleep")
    assert environment.expert() == ["walk to table", "grab plate"]  # exactly the two remaining turns
    environment.step("sleep")
    assert environment.expert() is None
    environment.restore(environment.snapshot()._replace(steps=1))
    assert environment.expert() == ["walk to table", "grab plate"]


def test_rewards_and_steps_of_the_presets(start):
    environment, _ = start("istar")
    rewards = [environment.step(action)[1] for action in ("walk to table", "grab plate")]
    assert rewards == [0.0, 10.0]
    environment, _ = start("spa", progress_reward=0.5)
    assert [environment.step(action)[1] for action in ("walk to table", "walk to lamp", "walk to table")] == [0.25, -0.25, 0.25]
    environment, _ = start("spa", max_steps=2)
    assert [environment.step("sleep")[2:4] for _ in range(2)] == [(False, False), (False, True)]
    assert [make(name)().settings.max_steps for name in ("tiny", "istar", "spa")] == [12, 40, 40]


@pytest.mark.parametrize("listed", ["changes", "all"])
def test_admissible_actions_are_executed_and_lead_the_expert(start, listed):
    environment, (_, info) = start("tiny", admissible=listed)
    assert environment.expert()[0] in info["admissible"]
    generator = np.random.default_rng(0)
    for _ in range(4):
        here = environment.snapshot()
        for action in info["admissible"]:
            environment.restore(here)
            assert environment.step(action)[4]["executed"], action
        environment.restore(here)
        _, _, won, truncated, info = environment.step(info["admissible"][generator.integers(len(info["admissible"]))])
        if won or truncated:
            break


def test_goals():
    first, final = PROGRAMS["file1_1"][3:]
    facts = from_graphs(first, final).facts
    assert set(facts) == {
        Fact("edge", 3, "INSIDE", 1),
        Fact("no edge", 3, "INSIDE", 2),
        Fact("edge", 3, "HOLDS_RH", 11),
        Fact("no edge", 11, "ON", 10),
    }
    assert from_graphs(first, graph(states={21: ["ON"]})).facts == (Fact("states", 21, states=frozenset({"ON"})),)
    revision = {
        "nodes": [{"id": 21, "states": ["ON"]}],
        "revised_nodes": [
            {"from_id": 11, "relation_type": "ON", "to_id": 10},
            {"from_id": 3, "relation_type": "CLOSE", "to_id": 10},
        ],
        "revised_add_edges": [],
    }
    assert set(from_revision(revision).facts) == {Fact("states", 21, states=frozenset({"ON"})), Fact("no edge", 11, "ON", 10)}
    for bad in ({}, {"nodes": 3}, {**revision, "nodes": [{}]}):
        with pytest.raises(ValueError, match="revised_graph"):
            from_revision(bad)


def test_actions_of_annotated_goals_count_in_their_order():
    note = {"actions": ["GRAB", "WASH|RINSE"], "goal": [{"id": 12, "class_name": "cupboard", "state": "CLOSED"}]}
    scene, goal = Scene(graph()), from_annotation(note)
    game = Game(scene, goal)
    at = game.start()
    missing = [game.missing(at)]
    for text in ("walk to plate", "wash plate", "grab plate", "rinse plate"):
        at = game.take(at, text)
        missing.append(game.missing(at))
    assert goal.size == 3 and missing == [2, 2, 2, 1, 0]


def test_splits_are_disjoint_deterministic_and_by_title_where_asked():
    titles = [f"title {index % 9}" for index in range(90)]
    listed = [tasks.Task(str(index), title, "", (), "") for index, title in enumerate(titles)]
    by_task = tasks.split(listed)
    assert {split: len(found) for split, found in by_task.items()} == {"train": 72, "held_out": 18}
    assert not set(by_task["train"]) & set(by_task["held_out"])
    assert by_task == tasks.split(listed[::-1]) and by_task != tasks.split(listed, seed=1)
    assert [task.name for task in by_task["held_out"]][:3] == ["50", "15", "43"]
    by_title = tasks.split(listed, "title")
    assert not {task.title for task in by_title["train"]} & {task.title for task in by_title["held_out"]}
    assert len(by_title["held_out"]) == 20 and len(by_title["train"]) == 70


def test_bad_folders_are_named(tmp_path, home):
    def error(kind, match, **settings):
        task_lists.cache_clear(), tasks.programs.cache_clear(), tasks.load.cache_clear()
        with pytest.raises(kind, match=match):
            make("spa", **settings)()

    error(FileNotFoundError, "no folder of VirtualHome programs", data=str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    error(ValueError, "it needs executable_programs", data=str(tmp_path / "empty"))
    error(ValueError, "no VirtualHome task has the title 'Fly'.*Clear the table, Read in bed", data=home, titles=("Fly",))
    error(ValueError, "no VirtualHome task is left", data=home, min_program=30)
    file = next((tmp_path / "init_and_final_graphs").rglob("file1_1.json"))
    whole = file.read_text()
    for text, match in (
        (whole[:-40], "file1_1.json is not JSON; download it again"),
        ("[]", "file1_1.json is not a VirtualHome graph file; .* init_graph and final_graph"),
        (json.dumps({"init_graph": {"nodes": []}, "final_graph": {}}), "file1_1.json"),
        (json.dumps({"init_graph": graph(), "final_graph": {"nodes": []}}), "file1_1.json"),
        (
            json.dumps({"init_graph": graph(change=lambda edges: [e for e in edges if e[0] != 3]), "final_graph": graph()}),
            "in no room",
        ),
    ):
        file.write_text(text)
        error(ValueError, match, data=home)
    file.unlink()
    error(FileNotFoundError, "has no graphs", data=home)
    program = next((tmp_path / "executable_programs").rglob("file1_1.txt"))
    file.write_text(whole)
    for text in ("", "Title\n", "Title\n\n[FLY] <a> (1.1)\n", "\n[WALK] <a> (1.1)\n"):
        program.write_text(text)
        error(ValueError, "file1_1.txt", data=home)


def test_bad_resets(start):
    environment, _ = start()
    for options, seed, match in (
        ({"room": 1}, 0, "unknown reset option room"),
        ({"split": "test"}, 0, "train, held_out"),
        ({}, -1, "seed"),
    ):
        with pytest.raises(ValueError, match=match):
            environment.reset(seed=seed, options=options)


def test_the_error_of_a_missing_package_says_how_to_install_it(monkeypatch):
    real = importlib.import_module

    def missing(name, *more):
        if name.startswith("virtualhome_eval"):
            raise ModuleNotFoundError(f"No module named {name!r}", name="virtualhome_eval")
        return real(name, *more)

    simulator.cache_clear(), tasks.packaged.cache_clear(), task_lists.cache_clear()
    with monkeypatch.context() as patched:
        patched.setattr(importlib, "import_module", missing)
        with pytest.raises(ValueError) as caught:
            make("tiny")()
        assert INSTALL in str(caught.value) and "--no-deps" in INSTALL
    assert make("tiny")().num_tasks("train") > 0


def test_the_package_does_not_disturb_pythons_generator():
    simulator.cache_clear()
    random.seed(3)
    expected = random.Random(3).random()
    simulator()
    assert random.random() == expected
