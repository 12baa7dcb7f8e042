"""Seeded rooms: reproducible, solvable, within the filter, and never in both splits."""

import hashlib
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stepreward.envs.sokoban import PRESETS, core, generate, settings, solve
from stepreward.envs.sokoban.generate import SPLITS, canonical, room_for, split_of

SEED_7 = "######\n#___##\n#__X_#\n#_O_P#\n#__###\n######"


def test_a_seed_always_gives_the_same_room():
    assert core.to_text(*room_for(settings("tiny"), 7)) == SEED_7


# Digests of the first rooms of a split. They must never change, because all published numbers depend on the generator.
DIGESTS = {
    ("tiny", "train"): "5412521a1e435b82", ("tiny", "held_out"): "a64f5e33804e93fa",
    ("istar", "train"): "f7d5fab7dc79e4d2", ("istar", "held_out"): "43f506c29770bb81",
    ("ragen_large", "train"): "98a673737ee6710e", ("ragen_large", "held_out"): "e95e357bb8cece05",
    ("large", "train"): "16737087b4bcaeb0", ("large", "held_out"): "11447dfc7e28646e",
}  # fmt: skip
ROOMS = {"tiny": 40, "istar": 40, "ragen_large": 10, "large": 2}


@pytest.mark.parametrize(("preset", "split"), DIGESTS)
def test_the_rooms_of_the_presets_never_change(preset, split):
    texts = [core.to_text(*room_for(settings(preset), seed, split)) for seed in range(ROOMS[preset])]
    assert hashlib.sha256("\n\n".join(texts).encode()).hexdigest()[:16] == DIGESTS[preset, split]


def test_rooms_do_not_depend_on_the_hash_seed():
    script = (
        "from stepreward.envs.sokoban import core, settings\n"
        "from stepreward.envs.sokoban.generate import room_for\n"
        "for name in ('tiny', 'ragen_large'):\n"
        "    for seed in range(20):\n"
        "        print(core.to_text(*room_for(settings(name), seed, 'held_out')))\n"
    )
    root = Path(__file__).parent.parent
    outputs = [
        subprocess.run(
            [sys.executable, "-c", script],
            cwd=root,
            env={**os.environ, "PYTHONHASHSEED": value, "PYTHONIOENCODING": "utf-8"},
            capture_output=True,
            check=True,
        ).stdout
        for value in ("0", "4242")
    ]
    assert outputs[0] == outputs[1]
    assert outputs[0].count(b"\n") == 20 * (6 + 8)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(("preset", "count"), [("tiny", 150), ("istar", 150), ("ragen_large", 20)])
def test_every_room_is_solvable_and_matches_its_settings(preset, count, split):
    chosen = settings(preset)
    for seed in range(count):
        room, state = room_for(chosen, seed, split)
        length = solve.distance(room, state)
        assert max(chosen.min_moves, 1) <= length <= (chosen.max_moves or math.inf) and length < math.inf
        assert (room.height, room.width, len(state.boxes)) == (chosen.height, chosen.width, chosen.boxes)
        assert len(room.targets) == chosen.boxes
        assert room.targets.isdisjoint(state.boxes)
        assert split_of(room, state) == split


def test_large_rooms_have_their_boxes():
    room, state = room_for(settings("large"), 0)
    assert (room.height, room.width, len(state.boxes)) == (10, 10, 4)
    actions = solve.solve(room, state)
    for action in actions:
        state = core.step(room, state, action).state
    assert core.is_solved(room, state)


def symmetries(text):
    rows = text.split("\n")
    for _ in range(4):
        rows = ["".join(column) for column in zip(*rows[::-1], strict=True)]
        yield "\n".join(rows)
        yield "\n".join(row[::-1] for row in rows)


def test_splits_share_no_room_not_even_turned_or_mirrored():
    rooms = {split: {core.to_text(*room_for(settings("tiny"), seed, split)) for seed in range(300)} for split in SPLITS}
    turned = {form for text in rooms["train"] for form in symmetries(text)}
    assert len(turned) > len(rooms["train"])
    assert turned.isdisjoint(rooms["held_out"])


def test_symmetric_rooms_have_one_canonical_form():
    for seed in range(30):
        room, state = room_for(settings("ragen_large"), seed)
        forms = {canonical(*core.from_text(form)) for form in symmetries(core.to_text(room, state))}
        assert forms == {canonical(room, state)}


def test_seeds_and_splits_give_different_rooms():
    texts = [core.to_text(*room_for(settings("tiny"), seed)) for seed in range(50)]
    assert len(set(texts)) > 40


@pytest.mark.parametrize(("cells", "drawn"), [(4, False), (5, True)])
def test_a_floor_must_hold_the_player_every_box_and_every_target(monkeypatch, cells, drawn):
    floor = frozenset((15, 16, 17, 18, 27)[:cells])
    monkeypatch.setattr(generate, "_dig", lambda height, width, draws: floor)
    played = []
    monkeypatch.setattr(generate, "_reverse_play", lambda *arguments: played.append(arguments))
    assert generate.draw_room(settings("large", boxes=2), generate._Draws(0, 0)) is None
    assert bool(played) == drawn


def test_an_impossible_filter_is_an_error():
    with pytest.raises(ValueError, match="none of 20 rooms of 6x6 .* min_moves=200 and max_moves=None; widen min_moves"):
        room_for(settings("tiny", min_moves=200, max_moves=None, attempts=20), 0)


@pytest.mark.parametrize(("seed", "split", "message"), [(-1, "train", "seed=-1"), (0, "test", "train, held_out")])
def test_bad_seed_or_split(seed, split, message):
    with pytest.raises(ValueError, match=message):
        room_for(settings("tiny"), seed, split)


def test_unknown_presets_and_settings_are_listed():
    with pytest.raises(ValueError, match="unknown Sokoban preset 'huge'; the presets are " + ", ".join(PRESETS)):
        settings("huge")
    with pytest.raises(ValueError, match="unknown Sokoban setting boxs; the settings are height, width, boxes"):
        settings("tiny", boxs=2)


@pytest.mark.parametrize(
    "bad",
    [{"height": 3}, {"boxes": 0}, {"boxes": 8}, {"max_steps": 0}, {"max_moves": 3}, {"observation": "sound"},
     {"width": 6.0}, {"attempts": True}],
)  # fmt: skip
def test_settings_out_of_range_are_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        settings("tiny", **bad)
