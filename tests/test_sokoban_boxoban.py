"""Boxoban levels, read from files that the tests write."""

import pytest

from stepreward.envs.sokoban import boxoban, core, make
from stepreward.envs.sokoban.generate import split_of

LEVEL = ["##########", "#@ $   . #", "#  $  .  #", "# * #    #", "#   ######"] + ["##########"] * 5


def write(path, *levels):
    path.write_text("".join(f"; {number}\n" + "\n".join(rows) + "\n\n" for number, rows in enumerate(levels)))


def variants():
    """Yields levels that differ in the player's position, one for every free cell."""
    empty = [row.replace("@", " ") for row in LEVEL]
    for row, line in enumerate(empty):
        for column, symbol in enumerate(line):
            if symbol in " .":
                player = "@" if symbol == " " else "+"
                yield empty[:row] + [line[:column] + player + line[column + 1 :]] + empty[row + 1 :]


def test_every_symbol_is_read(tmp_path):
    rows = ["##########", "#+$ *  $.#"] + ["##########"] * 8
    write(tmp_path / "000.txt", rows)
    ((room, state),) = boxoban.parse(tmp_path / "000.txt")
    assert core.to_text(room, state).split("\n")[:2] == ["##########", "#SX_√__XO#"]


def test_content_splits_the_levels_and_seeds_wrap_around(tmp_path):
    levels = list(variants())
    write(tmp_path / "000.txt", *levels[:10])
    write(tmp_path / "001.txt", *levels[10:])
    loaded = boxoban.load(str(tmp_path))
    train, held_out = loaded.rooms["train"], loaded.rooms["held_out"]
    assert len(train) + len(held_out) == len(levels)
    assert train and held_out
    assert {split_of(*room) for room in train} == {"train"}
    assert {split_of(*room) for room in held_out} == {"held_out"}
    assert loaded.room_for(len(train) + 1, "train") == train[1]


def test_the_environment_plays_boxoban_levels(tmp_path):
    write(tmp_path / "000.txt", *variants())
    environment = make("large", data=str(tmp_path / "000.txt"))()
    texts = [environment.reset(seed=seed)[0]["text"] for seed in (0, 1, 0)]
    assert texts[0] == texts[2] != texts[1]
    plan = environment.expert()
    for action in plan:
        _, _, terminated, _, info = environment.step(action)
    assert terminated and info["won"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "000.txt: the file has no levels"),
        ("####\n", "000.txt, line 1: this row comes before the first header"),
        (";\n####\n", "000.txt, line 1: the header has no level number"),
        ("; 0\n\n; 1\n####\n", "000.txt, level 0, line 1: the level has no rows"),
        ("; 4\n#####\n#@?.#\n#####\n", r"000.txt, level 4, line 3, column 2: unknown symbol '\?'"),
        ("; 4\n#####\n#@$ #\n#####\n", "000.txt, level 4, line 1: the room has players: 1, boxes: 1, targets: 0"),
        ("; 4\n#####\n#@$.#\n####\n", "000.txt, level 4, line 1: row 2 has 4 symbols"),
        ("; 4\n#####\n#@$. \n#####\n", "000.txt, level 4, line 1: row 1, column 4: the outer wall has a gap"),
        ("; 4\n#####\n#@* #\n#####\n", "000.txt, level 4, line 1: the level is already solved"),
    ],
)
def test_a_malformed_file_is_named(tmp_path, text, message):
    (tmp_path / "000.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        make("large", data=str(tmp_path))()


def test_a_byte_order_mark_is_ignored(tmp_path):
    rows = next(iter(variants()))
    write(tmp_path / "000.txt", rows)
    (tmp_path / "marked.txt").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "000.txt").read_bytes())
    assert boxoban.parse(tmp_path / "marked.txt") == boxoban.parse(tmp_path / "000.txt")


def test_a_binary_file_is_named(tmp_path):
    (tmp_path / "000.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="000.txt: not a text file"):
        boxoban.load(str(tmp_path))


def test_a_missing_file_is_an_error(tmp_path):
    for path in (tmp_path, tmp_path / "absent.txt"):
        with pytest.raises(FileNotFoundError, match="no Boxoban levels at"):
            boxoban.load(str(path))


def test_an_empty_split_or_a_bad_seed_is_named(tmp_path):
    level = next(rows for rows in variants() if split_of(*boxoban_room(tmp_path, rows)) == "train")
    write(tmp_path / "one.txt", level)
    levels = boxoban.load(str(tmp_path / "one.txt"))
    with pytest.raises(ValueError, match="no level belongs to the held_out split"):
        levels.room_for(0, "held_out")
    with pytest.raises(ValueError, match="seed=-1"):
        levels.room_for(-1)
    with pytest.raises(ValueError, match="the splits are train, held_out"):
        levels.room_for(0, "test")


def boxoban_room(folder, rows):
    write(folder / "probe.txt", rows)
    return boxoban.parse(folder / "probe.txt")[0]
