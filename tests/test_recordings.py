"""Explored episodes, written in parts and read back."""

import dataclasses
import math
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stepreward.data.recordings import begin_recording, read_recordings, write_part
from stepreward.rollout.episode import Episode, Step, Task
from stepreward.rollout.recording import from_recording, to_recording

METADATA = {"tokenizer": "ab12", "policy": {"seed": 1}, "temperature": 0.7, "size": (6, 6)}


def make_episode(index, steps=3):
    rng = np.random.default_rng(index)
    episode = Episode(Task(2**32 - 1 - index, "held_out" if index % 2 else "train", index // 2), success=index % 2 == 0)
    for step in range(steps):
        prompt = rng.integers(-(2**31), 2**31, rng.integers(0, 9)).astype(np.int32)
        tokens = rng.integers(0, 2**31, rng.integers(0, 5)).astype(np.int32)
        log_prob = rng.integers(0, 2**32, len(tokens), dtype=np.uint32).view(np.float32)  # any bits, NaN among them
        entropy = rng.normal(size=len(tokens)).astype(np.float32)
        action = [None, "", "up"][step % 3]
        distance = [math.nan, math.inf, rng.normal()][step % 3]
        text = f'#{step}\n@é\ud800\0"'
        told = {"events": [("new_state", "recovered"), (), ("error",)][step % 3], "turn_reward": rng.normal(), "automaton_state": step - 1}
        episode.steps.append(
            Step(prompt, tokens, log_prob, entropy, text, f"<a>{step}", action, -0.1 * step, step % 2 == 1, f"k{step}", distance, **told)
        )
    episode.reference, episode.final_automaton_state = [None, "", "Pari\ud800s"][index % 3], index
    return episode


def make_recordings(count, first=0):
    return [to_recording(make_episode(index)) for index in range(first, first + count)]


def bits(value):
    """Nested plain values that are equal exactly when every type, text and bit is."""
    if dataclasses.is_dataclass(value):
        return {field.name: bits(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, list):
        return [bits(item) for item in value]
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape, value.tobytes()
    return type(value), np.float64(value).tobytes() if isinstance(value, float) else value


def fill(path, parts=3, per_part=2):
    """A finished folder; returns its episodes."""
    begin_recording(path, METADATA, parts)
    written = [make_recordings(per_part, per_part * index) for index in range(parts)]
    for index, recordings in enumerate(written):
        write_part(path, index, recordings)
    return sum(written, [])


@pytest.mark.parametrize(
    "episode",
    [
        make_episode(0, steps=7),
        make_episode(1, steps=1),
        Episode(Task(0, "", 0)),
        Episode(Task(-1, "train", 3), truncated=True, failure="", final_observation="é", final_distance=math.inf),
        dataclasses.replace(make_episode(2), failure='EnvironmentFailure: "x"\n', final_distance=-0.0),
    ],
    ids=["steps", "one step", "no steps", "failed at reset", "failed"],
)
def test_an_episode_comes_back_bit_for_bit(tmp_path, episode):
    begin_recording(tmp_path / "r", {}, 1)
    write_part(tmp_path / "r", 0, [to_recording(episode)])
    (found,), _ = read_recordings(tmp_path / "r")
    assert bits(found) == bits(to_recording(episode))
    assert bits(from_recording(found)) == bits(episode) == bits(from_recording(to_recording(episode)))


def test_what_is_read_can_be_changed(tmp_path):
    fill(tmp_path / "r", parts=1)
    found = read_recordings(tmp_path / "r")[0][0]
    arrays = [found.rewards, found.executed, found.distances, *found.prompt_tokens, *found.action_tokens]
    assert all(array.flags.writeable for array in [*arrays, *found.log_prob, *found.entropy])


def test_parts_come_back_in_order(tmp_path):
    path = tmp_path / "deep" / "er"
    written = fill(path, parts=12)
    recordings, metadata = read_recordings(path)
    assert bits(recordings) == bits(written) and metadata == {**METADATA, "size": [6, 6]}
    assert [p.name for p in path.parent.iterdir()] == ["er"]
    assert sorted(p.name for p in path.iterdir()) == ["metadata.json", *(f"part-{index:05d}" for index in range(12))]


def test_a_part_is_a_tfds_dataset(tmp_path):
    import tensorflow_datasets as tfds

    written = fill(tmp_path / "r", parts=1)
    source = tfds.builder_from_directory(tmp_path / "r" / "part-00000").as_data_source(split="episodes")
    assert len(source) == 2 and source[1]["rewards"].tolist() == written[1].rewards.tolist()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("when", ["while reading the episodes", "while writing"])
def test_an_interrupted_exploration_goes_on_where_it_stopped(tmp_path, monkeypatch, error, when):
    def source():
        yield from make_recordings(1, 2)
        raise error

    def broken(self):
        yield 0, self._records[0]
        raise error

    path = tmp_path / "r"
    assert begin_recording(path, METADATA, 3) == 0
    write_part(path, 0, make_recordings(2))
    with monkeypatch.context() as patch, pytest.raises(error):
        if when == "while writing":
            from stepreward.data.builder import Recordings

            patch.setattr(Recordings, "_generate_examples", broken)
        write_part(path, 1, make_recordings(2, 2) if when == "while writing" else source())
    assert sorted(p.name for p in path.iterdir()) == ["metadata.json", "part-00000"]

    # A process that was killed leaves its temporary folder behind.
    shutil.copytree(path / "part-00000", path / ".part-00001.x7d" / "recordings" / "1.0.0")
    with pytest.raises(ValueError, match="is unfinished: it holds 1 of 3 parts; finish it with --stage=explore in that workdir"):
        read_recordings(path)
    assert begin_recording(path, METADATA, 3) == 1
    write_part(path, 1, make_recordings(2, 2))
    assert begin_recording(path, METADATA, 3) == 2
    write_part(path, 2, make_recordings(2, 4))
    assert begin_recording(path, METADATA, 3) == 3
    assert bits(read_recordings(path)[0]) == bits(make_recordings(6))


def test_only_leading_parts_count(tmp_path):
    fill(tmp_path / "r")
    shutil.rmtree(tmp_path / "r" / "part-00001")
    assert begin_recording(tmp_path / "r", METADATA, 3) == 1


def test_a_folder_is_begun_whole_or_not_at_all(tmp_path, monkeypatch):
    def broken(self, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", broken)
    with pytest.raises(KeyboardInterrupt):
        begin_recording(tmp_path / "r", METADATA, 3)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "metadata, parts, words",
    [
        ({**METADATA, "tokenizer": "cd34"}, 3, "made with tokenizer = 'ab12', but this run has tokenizer = 'cd34'; "),
        ({**METADATA, "policy": {"seed": 2}}, 3, "made with policy.seed = 1, but this run has policy.seed = 2; "),
        ({"tokenizer": "ab12"}, 3, "made with policy.seed = 1, but this run has no key policy.seed; "),
        ({**METADATA, "boxes": 2}, 3, "has no 'boxes', which must be 2; "),
        (METADATA, 4, "made with parts = 3, but this run has parts = 4; "),
    ],
)
def test_another_run_s_folder_is_not_gone_on_with(tmp_path, metadata, parts, words):
    begin_recording(tmp_path / "r", METADATA, 3)
    with pytest.raises(ValueError, match=f"these recorded episodes (were )?{re.escape(words)}write them again"):
        begin_recording(tmp_path / "r", metadata, parts)
    assert begin_recording(tmp_path / "r", METADATA, 3) == 0


def test_what_cannot_be_begun(tmp_path):
    with pytest.raises(ValueError, match="the metadata of recorded episodes must be plain JSON values"):
        begin_recording(tmp_path / "r", {"x": object()}, 3)
    with pytest.raises(ValueError, match="parts must be at least 1; got 0"):
        begin_recording(tmp_path / "r", {}, 0)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written(tmp_path):
    written = fill(tmp_path / "r", parts=2)
    with pytest.raises(ValueError, match="part-00001' already exists"):
        write_part(tmp_path / "r", 1, make_recordings(1))
    for outside in (-1, 2):
        with pytest.raises(ValueError, match=f"has parts 0 to 1; got part {outside}"):
            write_part(tmp_path / "r", outside, make_recordings(1))
    assert bits(read_recordings(tmp_path / "r")[0]) == bits(written)
    begin_recording(tmp_path / "s", {}, 1)
    with pytest.raises(ValueError, match="no episodes to write to .*part-00000"):
        write_part(tmp_path / "s", 0, [])
    assert [p.name for p in (tmp_path / "s").iterdir()] == ["metadata.json"]


@pytest.mark.parametrize(
    "change, words",
    [
        ({"split": 3}, "recording 1: split must be a str; got int"),
        ({"outputs": ["a", None, "b"]}, "recording 1: outputs must hold str; got NoneType"),
        ({"reference": 3}, "recording 1: reference must be a str; got int"),
        ({"events": [()]}, "recording 1: events has 1 items for 3 observations"),
        ({"events": [(), ("won",), ()]}, "recording 1: events must hold the names new_state, error, recovered; got 'won'"),
        ({"turn_rewards": np.zeros(3, np.float32)}, r"recording 1: turn_rewards must be a one-dimensional array of float64; got float32"),
        ({"actions": ["up"]}, "recording 1: actions has 1 items for 3 observations"),
        ({"rewards": np.zeros(3, np.float32)}, r"recording 1: rewards must be a one-dimensional array of float64; got float32 \[3\]"),
        ({"distances": [0.0, 0.0, 0.0]}, "recording 1: distances must be a one-dimensional array of float64; got list"),
        ({"entropy": [np.zeros(9, np.float32)] * 3}, "recording 1: entropy and action_tokens have different lengths"),
    ],
)
def test_a_field_of_the_wrong_type_or_length_is_named(tmp_path, change, words):
    good, bad = make_recordings(2)
    begin_recording(tmp_path / "r", {}, 1)
    with pytest.raises(ValueError, match=words):
        write_part(tmp_path / "r", 0, [good, dataclasses.replace(bad, **change)])
    assert begin_recording(tmp_path / "r", {}, 1) == 0


def test_reading_names_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match="no recordings folder"):
        read_recordings(tmp_path / "r")
    for function in (read_recordings, lambda path: begin_recording(path, {}, 1), lambda path: write_part(path, 0, [])):
        with pytest.raises(ValueError, match="is not a folder of recordings: it holds no metadata.json"):
            function(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "empty", "missing", "changed", "metadata", "count"])
def test_damage_of_a_part_is_one_clear_error(tmp_path, damage):
    fill(tmp_path / "r")
    part = tmp_path / "r" / "part-00001"
    (data,) = part.glob("*.array_record*")
    header = part / "metadata.json"
    content = data.read_bytes()
    if damage == "missing":
        data.unlink()
    elif damage == "metadata":
        header.unlink()
    elif damage == "count":
        header.write_text(header.read_text().replace('"count": 2', '"count": 3'))
    else:
        data.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "changed": b"?" * len(content)}[damage])
    words = "the recorded episodes in .*part-00001' are damaged .*; delete the folder and the parts after it, and finish it with"
    with pytest.raises(ValueError, match=words):
        read_recordings(tmp_path / "r")


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"parts": 3}'])
def test_damage_of_the_metadata_is_one_clear_error(tmp_path, content):
    fill(tmp_path / "r")
    (tmp_path / "r" / "metadata.json").write_text(content)
    for function in (read_recordings, lambda path: begin_recording(path, METADATA, 3)):
        with pytest.raises(ValueError, match="the recorded episodes in .* are damaged .*; delete the folder and write them again"):
            function(tmp_path / "r")


def test_neither_network_nor_output(tmp_path, monkeypatch, capfd):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was tried")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    fill(tmp_path / "r")
    read_recordings(tmp_path / "r")
    assert capfd.readouterr() == ("", "")


def test_tensorflow_and_jax_are_not_imported(tmp_path):
    fill(tmp_path / "r", parts=1)
    script = (
        "import sys; from stepreward.data.recordings import *\n"
        "assert 'tensorflow_datasets' not in sys.modules\n"
        f"path, copy = {str(tmp_path / 'r')!r}, {str(tmp_path / 's')!r}\n"
        "begin_recording(copy, {}, 1)\n"
        "write_part(copy, 0, read_recordings(path)[0])\n"
        "assert len(read_recordings(copy)[0]) == 2\n"
        "print([name for name in ('tensorflow', 'torch', 'jax', 'stepreward.rollout') if name in sys.modules])\n"
    )
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")
