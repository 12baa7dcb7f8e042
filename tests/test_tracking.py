"""Trackers get every line of metrics.jsonl once, whatever happens to the run or to them. Real clients, offline."""

import json
import logging
import sqlite3
import threading

import pytest

from stepreward import tracking
from stepreward.errors import UserError
from stepreward.metrics import MetricsWriter, read_metrics
from stepreward.secrecy import HIDDEN, public
from stepreward.tracking import Tracker, check

LINES = [
    {"tick": 1, "env_steps": 0, "stage": "sft", "sft/loss": 2.0},
    {"tick": 2, "env_steps": 0, "stage": "sft", "sft/loss": 1.0, "prm/loss": None},
    {"tick": 3, "env_steps": 150, "stage": "train", "policy/loss": 0.5},
    {"tick": 4, "env_steps": 310, "stage": "train", "policy/loss": 0.25},
]
POINTS = [(1, "sft/loss", 2.0), (2, "sft/loss", 1.0), (150, "policy/loss", 0.5), (310, "policy/loss", 0.25)]


class Recorder:
    """A tracker that keeps what it gets, by run."""

    runs: dict = {}

    def __init__(self, workdir, run, config, new):
        self.points = self.runs.setdefault(run, [])

    def log(self, record, step):
        self.points.append((step, *((k, v) for k, v in record.items() if "/" in k)))

    def close(self):
        pass


@pytest.fixture
def recorder(monkeypatch):
    monkeypatch.setattr(Recorder, "runs", {})
    monkeypatch.setitem(tracking.CLIENTS, "recorder", (Recorder, "json"))
    return Recorder


def write(folder, name, lines, resume=None, config=()):
    """A run that begins, or resumes from the checkpoint of a tick, and writes lines."""
    with MetricsWriter(folder, resume, Tracker(name, folder, dict(config), resume is not None)) as metrics:
        for line in lines:
            metrics.write(line)


def test_a_resumed_run_sends_nothing_twice_and_what_was_missed(recorder, tmp_path):
    write(tmp_path, "recorder", LINES[:3])
    write(tmp_path, "recorder", LINES[2:], resume=2)  # tick 3 is repeated
    assert list(recorder.runs.values()) == [[(x, (name, y)) for x, name, y in POINTS]]
    (tmp_path / "tracker.json").unlink()
    write(tmp_path, "recorder", [], resume=4)  # chosen late: it gets the lines of the file
    assert len(recorder.runs) == 2 and list(recorder.runs.values())[0] == list(recorder.runs.values())[1]


def test_a_run_that_begins_again_is_another_run_of_the_tracker(recorder, tmp_path):
    for _ in range(2):
        write(tmp_path, "recorder", LINES[:2])
    assert [len(points) for points in recorder.runs.values()] == [2, 2]


def test_a_tracker_that_fails_warns_once_and_gets_the_rest_later(recorder, tmp_path, monkeypatch, caplog):
    def fails(self, record, step):
        if record["tick"] == 3:
            raise ConnectionError("no route\nto host")
        Recorder.log(self, record, step)

    monkeypatch.setitem(tracking.CLIENTS, "recorder", (type("Failing", (Recorder,), {"log": fails}), "json"))
    write(tmp_path, "recorder", LINES)
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert warning.startswith("tracker=recorder failed (ConnectionError: no route to host) and is off")
    assert len(read_metrics(tmp_path)) == 4
    monkeypatch.setitem(tracking.CLIENTS, "recorder", (Recorder, "json"))
    write(tmp_path, "recorder", [], resume=4)
    assert list(recorder.runs.values()) == [[(x, (name, y)) for x, name, y in POINTS]]


def test_a_run_does_not_wait_for_a_tracker_that_hangs(recorder, tmp_path, monkeypatch, caplog):
    answer = threading.Event()
    monkeypatch.setattr(tracking, "CLOSE_S", 0.01)
    monkeypatch.setitem(tracking.CLIENTS, "recorder", (lambda *a: answer.wait() and Recorder(*a), "json"))
    tracker = Tracker("recorder", tmp_path, {}, False)
    with MetricsWriter(tmp_path, None, tracker) as metrics:
        for line in LINES:
            metrics.write(line)
    assert "did not finish" in caplog.text and len(read_metrics(tmp_path)) == 4
    answer.set()
    tracker._thread.join()


def test_a_damaged_state_does_not_end_the_run(recorder, tmp_path):
    for text in ("{", "[]", '{"recorder": 3}'):
        (tmp_path / "tracker.json").write_text(text)
        write(tmp_path, "recorder", LINES[:1], resume=0)
    assert [len(points) for points in recorder.runs.values()] == [1, 1, 1]


def test_an_unknown_or_missing_tracker_is_one_error(monkeypatch):
    with pytest.raises(UserError, match=r"tracker='wandbb' is not one of none, tensorboard, wandb, trackio \(did you mean 'wandb'"):
        check("wandbb")
    monkeypatch.setitem(tracking.CLIENTS, "wandb", (Recorder, "no_such_package"))
    with pytest.raises(UserError, match=r"tracker=wandb needs the package no_such_package.*pip install .*\[wandb\]'"):
        check("wandb")
    check("none")


def test_the_error_comes_before_a_workdir_is_made(micro_config, tmp_path):
    from stepreward.training.train import Runner

    with pytest.raises(UserError, match="tracker='mlflow'"):
        Runner(micro_config({"tracker": "mlflow"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_secrets_do_not_reach_a_tracker():
    told = public(
        {"judge.url": "https://me:pass@host:8000/v1?key=abc", "judge.key_variable": "OPENAI_API_KEY", "environment.options.api_key": "sk-1",
         "environment.options.kwargs": {"token": "t", "depth": 3}, "rollout.max_row_tokens": 9, "model.path": "a/b"}
    )  # fmt: skip
    assert told == {"judge.url": "https://host:8000/v1", "judge.key_variable": "OPENAI_API_KEY", "environment.options.api_key": HIDDEN,
                    "environment.options.kwargs": {"token": HIDDEN, "depth": 3}, "rollout.max_row_tokens": 9, "model.path": "a/b"}  # fmt: skip


# --- The real clients ---


def read_tensorboard(folder):
    from tensorboardX.proto.event_pb2 import Event

    points, texts = [], []
    for path in sorted((folder / "tensorboard").iterdir()):
        data, position = path.read_bytes(), 0
        while position < len(data):
            length = int.from_bytes(data[position : position + 8], "little")
            event = Event.FromString(data[position + 12 : position + 12 + length])
            points += [(event.step, v.tag, v.simple_value) for v in event.summary.value if not v.HasField("tensor")]
            texts += [v.tensor.string_val[0].decode() for v in event.summary.value if v.HasField("tensor")]
            position += 16 + length
    return points, "".join(texts)


def records_of(path):
    """The records of an offline run's file: LevelDB's log format, 7 bytes of header, then blocks of 32 KiB."""
    data, position, found = path.read_bytes(), 7, b""
    while position < len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        found += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # full, last
            yield found
            found = b""


def read_wandb(folder):
    from wandb.proto.wandb_internal_pb2 import Record

    points, config, runs = [], "", set()
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for data in records_of(path):
            record = Record.FromString(data)
            if record.WhichOneof("record_type") == "run":
                runs.add(record.run.run_id)
                config += "".join(f"{item.key}{item.value_json}" for item in record.run.config.update)
            items = {(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in record.history.item}
            points += [(items["_step"], k, v) for k, v in items.items() if not k.startswith("_")]
    assert len(runs) == 1
    return points, config


def read_trackio(folder):
    (database,) = (folder / "trackio").glob("*.db")
    with sqlite3.connect(database) as db:
        rows = db.execute("SELECT step, metrics, run_name FROM metrics ORDER BY id").fetchall()
        config = "".join(str(row) for row in db.execute("SELECT config FROM configs"))
    assert len({run for *_, run in rows}) == 1
    return [(step, k, v) for step, text, _ in rows for k, v in json.loads(text).items()], config


@pytest.mark.parametrize(
    "name, module, read",
    [("tensorboard", "tensorboardX", read_tensorboard), ("wandb", "wandb", read_wandb), ("trackio", "trackio", read_trackio)],
)
def test_a_real_client_has_every_point_once_and_the_config_without_secrets(name, module, read, tmp_path, monkeypatch):
    pytest.importorskip(module)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    if name == "trackio":
        import trackio.sqlite_storage
        import trackio.utils

        for place in (trackio, trackio.utils, trackio.sqlite_storage):
            monkeypatch.setattr(place, "TRACKIO_DIR", tmp_path / "trackio", raising=False)
    config = {"seed": 7, "environment.options.api_key": "sk-secret"}
    write(tmp_path, name, LINES[:3], config=config)
    write(tmp_path, name, LINES[2:], resume=2, config=config)
    points, told = read(tmp_path)
    assert sorted(point for point in points if "/" in point[1]) == sorted(POINTS)
    assert "env_steps" in {tag for _, tag, _ in points}
    assert "seed" in told and HIDDEN in told and "sk-secret" not in told


def test_a_run_sends_its_metrics_as_it_trains(micro_config, tmp_path):
    """Interrupted and resumed, TensorBoard has exactly the lines of metrics.jsonl."""
    pytest.importorskip("tensorboardX")
    from stepreward.training.train import Runner

    class Enough(Exception):
        pass

    def stop(runner, _):
        if runner.counters.iteration == 1:
            raise Enough

    config = micro_config({"tracker": "tensorboard", "train.env_steps": 300, "credit.method": "rloo", "checkpoint.every": 100})
    with pytest.raises(Enough):
        Runner(config, tmp_path / "run", on_tick=stop).run()
    Runner(config, tmp_path / "run").run()
    points, told = read_tensorboard(tmp_path / "run")
    lines = read_metrics(tmp_path / "run")
    expected = [(x["env_steps"] or x["tick"], "rollout/success") for x in lines if "rollout/success" in x]
    assert sorted(point[:2] for point in points if point[1] == "rollout/success") == expected and len(expected) > 1
    assert "rloo" in told
