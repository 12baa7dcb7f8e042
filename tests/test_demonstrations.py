"""Demonstrations, written to and read from a TFDS dataset."""

import logging
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stepreward.data.demonstrations import Demonstration, check_metadata, read_demonstrations, write_demonstrations

METADATA = {"environment": "sokoban", "size": [6, 6], "solver": {"seed": 1}}


def episodes(count=5):
    return [
        Demonstration(
            task=f"täsk {index}",
            split="held_out" if index % 2 else "train",
            observations=[f"#{step}\n@é" for step in range(index + 1)],
            actions=["up", ""][: index % 3],
            success=index % 2 == 0,
            outcome=index / 4,
            events=[("new_state", "recovered"), ()][: index % 3],
        )
        for index in range(count)
    ]


def test_round_trip_keeps_every_field_and_the_order(tmp_path):
    path = tmp_path / "deep" / "er"
    write_demonstrations(path, iter(episodes(12)), METADATA)
    records, metadata = read_demonstrations(path)
    assert records == episodes(12) and metadata == METADATA
    assert [p.name for p in path.parent.iterdir()] == ["er"]


def test_one_episode_and_empty_lists(tmp_path):
    empty = Demonstration(task="", split="", observations=[], actions=[], success=True, outcome=-0.5)
    write_demonstrations(tmp_path / "d", [empty], {})
    assert read_demonstrations(tmp_path / "d") == ([empty], {})


def test_array_scalars_become_plain_values(tmp_path):
    record = Demonstration("t", "train", ["o"], ["up"], np.True_, np.float32(0.5))
    write_demonstrations(tmp_path / "d", [record], {})
    (found,), _ = read_demonstrations(tmp_path / "d")
    assert type(found.success) is bool and type(found.outcome) is float and found.outcome == 0.5


def test_the_folder_is_a_tfds_dataset(tmp_path):
    import tensorflow_datasets as tfds

    write_demonstrations(tmp_path / "d", episodes(), METADATA)
    source = tfds.builder_from_directory(tmp_path / "d").as_data_source(split="episodes")
    assert len(source) == 5 and source[3]["task"].decode() == "täsk 3"


def test_events_are_known_for_every_action_and_have_known_names(tmp_path):
    for events, words in (([()], "events of 1 actions, but it has 2"), ([(), ("won",)], "'won' is not one of the events new_state")):
        record = Demonstration("t", "train", ["a", "b"], ["up", "up"], True, 1.0, events=events)
        with pytest.raises(ValueError, match=f"demonstration 0: {words}"):
            write_demonstrations(tmp_path / "d", [record], {})


def test_later_warnings_are_heard(tmp_path, monkeypatch):
    """absl gives the root logger a handler on the stream that it finds, which is thrown away here."""
    monkeypatch.setattr(logging.root, "handlers", [])
    write_demonstrations(tmp_path / "d", episodes(), METADATA)
    read_demonstrations(tmp_path / "d")
    assert logging.root.handlers == []


def test_neither_network_nor_output(tmp_path, monkeypatch, capfd):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was tried")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    write_demonstrations(tmp_path / "d", episodes(), METADATA)
    read_demonstrations(tmp_path / "d")
    assert capfd.readouterr() == ("", "")


def test_tensorflow_is_not_imported(tmp_path):
    script = (
        "import sys; from stepreward.data.demonstrations import *\n"
        "assert 'tensorflow_datasets' not in sys.modules\n"
        f"path = {str(tmp_path / 'd')!r}\n"
        "write_demonstrations(path, [Demonstration('t', 'train', ['o'], ['up'], True, 1.0)], {})\n"
        "read_demonstrations(path)\n"
        "print([name for name in ('tensorflow', 'torch', 'jax') if name in sys.modules])\n"
    )
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_warnings_after_a_write_are_still_seen(tmp_path):
    """What the libraries log while they are kept quiet must not take the process's log away with it."""
    script = (
        "import logging; from stepreward.data.demonstrations import *\n"
        f"path = {str(tmp_path / 'd')!r}\n"
        "from stepreward.data import storage\n"
        "with storage._silent():\n"
        "    logging.warning('quiet')\n"
        "write_demonstrations(path, [Demonstration('t', 'train', ['o'], ['up'], True, 1.0)], {})\n"
        "logging.getLogger('stepreward.anything').warning('a warning of the run')\n"
    )
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True)
    assert "a warning of the run" in done.stderr and "quiet" not in done.stderr


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("when", ["while reading the records", "while writing"])
def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch, error, when):
    def records():
        yield from episodes(3)
        raise error

    def broken(self):
        yield from enumerate(self._records[:2])
        raise error

    source = episodes(3)
    if when == "while writing":
        from stepreward.data.builder import Demonstrations

        monkeypatch.setattr(Demonstrations, "_generate_examples", broken)
    else:
        source = records()
    with pytest.raises(error):
        write_demonstrations(tmp_path / "d", source, METADATA)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_kept(tmp_path):
    write_demonstrations(tmp_path / "d", episodes(2), METADATA)
    with pytest.raises(ValueError, match="already exists"):
        write_demonstrations(tmp_path / "d", episodes(3), METADATA)
    assert len(read_demonstrations(tmp_path / "d")[0]) == 2


@pytest.mark.parametrize(
    "change, words",
    [
        ({"task": 3}, "demonstration 0: task must be a str; got int"),
        ({"actions": ["up", None]}, "demonstration 0: actions must hold str; got NoneType"),
        ({"observations": "text"}, "demonstration 0: observations must be a list; got str"),
    ],
)
def test_a_field_of_the_wrong_type_is_named(tmp_path, change, words):
    record = Demonstration(**{**vars(episodes(1)[0]), **change})
    with pytest.raises(ValueError, match=words):
        write_demonstrations(tmp_path / "d", [record], {})


def test_nothing_to_write_and_metadata_that_is_not_json(tmp_path):
    with pytest.raises(ValueError, match="no demonstrations to write"):
        write_demonstrations(tmp_path / "d", [], METADATA)
    with pytest.raises(ValueError, match="plain JSON values"):
        write_demonstrations(tmp_path / "d", episodes(1), {"x": object()})
    assert list(tmp_path.iterdir()) == []


def test_reading_names_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match="no demonstrations folder"):
        read_demonstrations(tmp_path / "d")
    with pytest.raises(ValueError, match="is not a folder of demonstrations"):
        read_demonstrations(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "empty", "missing", "changed", "metadata", "count"])
def test_damage_is_one_clear_error(tmp_path, damage):
    write_demonstrations(tmp_path / "d", episodes(), METADATA)
    (data,) = (tmp_path / "d").glob("*.array_record*")
    header = tmp_path / "d" / "metadata.json"
    content = data.read_bytes()
    if damage == "missing":
        data.unlink()
    elif damage == "metadata":
        header.write_text("{")
    elif damage == "count":
        header.write_text(header.read_text().replace('"count": 5', '"count": 6'))
    else:
        data.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "changed": b"?" * len(content)}[damage])
    with pytest.raises(ValueError, match="are damaged .*; delete the folder and write them again"):
        read_demonstrations(tmp_path / "d")


def test_check_metadata():
    check_metadata(METADATA, {})
    check_metadata(METADATA, {"size": (6, 6), "solver": {"seed": 1}})
    with pytest.raises(ValueError, match=r"made with solver.seed = 1, but this run has solver.seed = 2"):
        check_metadata(METADATA, {"solver": {"seed": 2}})
    with pytest.raises(ValueError, match="has no 'boxes', which must be 2"):
        check_metadata(METADATA, {"boxes": 2})
