"""Generated games: reproducible, solvable, and with different rooms in the held-out split."""

import hashlib
import json
import os
import re
import subprocess
import sys

import pytest

pytest.importorskip("textworld")
pytest.importorskip("alfworld")

from stepreward.envs import alfworld
from stepreward.envs.alfworld.generate import generate, write

ALL = alfworld.settings("tiny", task_types=alfworld.TASK_TYPES)
BENCHMARK = alfworld.settings("istar")
_PRINT_DIGEST = """
import hashlib
from stepreward.envs import alfworld
from stepreward.envs.alfworld.generate import generate
ALL = alfworld.settings("tiny", task_types=alfworld.TASK_TYPES)
games = [generate(ALL, seed, split).game for split in ("train", "held_out") for seed in range(30)]
print(hashlib.sha256("".join(game.name + game.problem + game.grammar for game in games).encode()).hexdigest())
"""


def test_games_are_the_same_in_every_process():
    digests = set()
    for hash_seed in ("1", "2"):
        run = [sys.executable, "-c", _PRINT_DIGEST]
        done = subprocess.run(run, env={**os.environ, "PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, check=True)
        digests.add(done.stdout.strip())
    games = [generate(ALL, seed, split).game for split in ("train", "held_out") for seed in range(30)]
    digests.add(hashlib.sha256("".join(game.name + game.problem + game.grammar for game in games).encode()).hexdigest())
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("preset", "split", "digest"),
    [
        ("tiny", "train", "30acd6b424c27c72"), ("tiny", "held_out", "80b6098eb6dbc19d"),
        ("istar", "train", "86c89ea129b48e60"), ("istar", "held_out", "141658d2dbcf8376"),
    ],
)  # fmt: skip
def test_the_games_of_the_presets_never_change(preset, split, digest):
    games = [generate(alfworld.settings(preset), seed, split).game for seed in range(12)]
    told = "\n".join(f"{game.name}\n{game.problem}\n{game.grammar}" for game in games)
    assert hashlib.sha256(told.encode()).hexdigest()[:16] == digest


def test_names_of_a_few_games():
    assert generate(ALL, 0).game.name == "train/pick_clean_then_place_in_recep-SoapBar-CounterTop-407/seed_0"
    assert generate(ALL, 0, "held_out").game.name == "held_out/look_at_obj_in_light-Pillow-DeskLamp-205/seed_0"


def test_all_types_in_many_rooms_and_none_shared():
    train = [generate(BENCHMARK, seed) for seed in range(300)]
    held_out = [generate(BENCHMARK, seed, "held_out") for seed in range(300)]
    for games in (train, held_out):
        assert {game.task_type for game in games} == set(alfworld.TASK_TYPES)
        assert len({game.game.problem for game in games}) == 300
    assert len({game.scene for game in train}) > 60
    assert not {game.scene for game in train} & {game.scene for game in held_out}
    assert all(game.scene % 100 > 6 for game in train) and all(game.scene % 100 <= 6 for game in held_out)


@pytest.mark.parametrize("settings", [ALL, BENCHMARK])
def test_problems_are_consistent(settings):
    for seed in range(60):
        generated = generate(settings, seed)
        text = generated.game.problem.partition("(:goal")[0]
        assert generated.game.problem.count("(") == generated.game.problem.count(")")
        at = dict(re.findall(r"\(receptacleAtLocation (\S+) (\S+)\)", text))
        kinds = dict(re.findall(r"\(receptacleType (\S+) (\S+)\)", text))
        things = dict(re.findall(r"\(objectType (\S+) (\S+)\)", text))
        homes = dict(re.findall(r"\(inReceptacle (\S+) (\S+)\)", text))
        fits = set(re.findall(r"\(canContain (\S+) (\S+)\)", text))
        assert set(homes) == set(things) and set(homes.values()) <= set(at) == set(kinds)
        assert all((kinds[home], things[thing]) in fits for thing, home in homes.items() if not thing.startswith("DeskLamp"))
        assert len(things) <= settings.max_objects
        assert settings.max_receptacles is None or len(at) <= settings.max_receptacles
        goal = generated.params
        count = sum(kind == goal["object_target"] + "Type" for kind in things.values())
        assert count >= (2 if generated.task_type == "pick_two_obj_and_place" else 1)
        wanted = [thing for thing in things if things[thing] == f"{goal['object_target']}Type"]
        assert not any(kinds[homes[thing]] == f"{goal['parent_target']}Type" for thing in wanted)


def test_written_in_the_official_layout(tmp_path):
    generated = generate(ALL, 5)
    file = write(generated, tmp_path)
    assert file.name == "game.tw-pddl" and file.parent.parent.parent == tmp_path / "train"
    game = json.loads(file.read_text())
    assert game["solvable"] is True and game["pddl_problem"] == generated.game.problem
    assert json.loads((file.parent / "traj_data.json").read_text())["task_type"] == generated.task_type


def test_bad_input():
    with pytest.raises(ValueError, match="held_out"):
        generate(ALL, 0, "test")
    with pytest.raises(ValueError, match="at least 0"):
        generate(ALL, -1)
