"""Copies a run's metrics to TensorBoard, Weights & Biases or Trackio, whichever the config key `tracker` names.

    python launch/train.py --config=configs/istar_sokoban.py --config.tracker=tensorboard

Every line of `metrics.jsonl` becomes one point. Its x axis is the number of environment steps or, before the first of them, the tick. All calls
of the tracker are made in a thread of their own, so the run never waits for it until the end. If a call fails, one warning says so, and the tracker
is off until the next start. `WORKDIR/tracker.json` names the tracker's run and the last tick that it has: a resumed run continues there, sends
what is missing, and sends nothing twice.

Nothing leaves the machine unless the user's environment asks for it: wandb is offline without WANDB_MODE, and Trackio is local without
TRACKIO_SPACE_ID or TRACKIO_SERVER_URL.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import queue
import threading
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from stepreward.envs.extras import install_command
from stepreward.errors import UserError, did_you_mean
from stepreward.metrics import is_number, write_atomically
from stepreward.secrecy import public

STATE_FILE = "tracker.json"
PROJECT = "stepreward"  # of wandb and Trackio, unless WANDB_PROJECT or TRACKIO_PROJECT names another
CLOSE_S = 30.0  # seconds that the end of a run waits for its tracker

_log = logging.getLogger(__name__)


class Client(Protocol):
    """A tracker's run. Its methods are called in one thread."""

    def log(self, record: Mapping[str, Any], step: int) -> None:
        """Adds a point; `record` has numbers and strings."""

    def close(self) -> None:
        """Finishes the run."""


class TensorBoard:
    """Event files in `WORKDIR/tensorboard/`, written by tensorboardX."""

    def __init__(self, workdir: Path, run: str, config: Mapping[str, Any], new: bool):
        from tensorboardX import SummaryWriter

        folder = workdir / "tensorboard"
        stale = new and folder.is_dir() and any(folder.iterdir())  # TensorBoard then discards the points of the run that was here before
        suffix = f".{uuid.uuid4().hex[:8]}"  # a file that a start in the same second has written is kept
        self._writer = SummaryWriter(str(folder), purge_step=0 if stale else None, filename_suffix=suffix)
        if new:
            text = json.dumps(dict(config), indent=2, default=str)
            self._writer.add_text("config", "\n".join(f"    {line}" for line in text.splitlines()), 0)

    def log(self, record: Mapping[str, Any], step: int) -> None:
        for name, value in record.items():
            if is_number(value):
                self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """A run of Weights & Biases, offline in `WORKDIR/wandb/` unless WANDB_MODE says otherwise."""

    def __init__(self, workdir: Path, run: str, config: Mapping[str, Any], new: bool):
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=run,
            name=workdir.resolve().name,
            dir=str(workdir),
            mode=os.environ.get("WANDB_MODE", "offline"),
            resume="allow",
            config=dict(config),
            # The console belongs to the run's display. Sources and diffs of the user's repository stay here.
            settings=wandb.Settings(console="off", silent=True, disable_git=True, disable_code=True),
        )

    def log(self, record: Mapping[str, Any], step: int) -> None:
        self._run.log(dict(record), step=step)

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """A run of Trackio, in the SQLite database of this machine's user (TRACKIO_DIR moves it)."""

    def __init__(self, workdir: Path, run: str, config: Mapping[str, Any], new: bool):
        import trackio

        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=f"{workdir.resolve().name}-{run}",
            resume="allow",
            config=dict(config),
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, record: Mapping[str, Any], step: int) -> None:
        self._run.log(dict(record), step=step)

    def close(self) -> None:
        self._run.finish()


# The client of each tracker, and the module that it imports; the extra of setup.py has the tracker's name.
CLIENTS: dict[str, tuple[type[Client], str]] = {
    "tensorboard": (TensorBoard, "tensorboardX"),
    "wandb": (Wandb, "wandb"),
    "trackio": (Trackio, "trackio"),
}
NAMES = ("none", *CLIENTS)


def check(name: str) -> None:
    """Raises a UserError if there is no tracker of this name, or its package is not installed."""
    if name not in NAMES:
        raise UserError(f"tracker={name!r} is not one of {', '.join(NAMES)}{did_you_mean(str(name), NAMES)}.")
    if name != "none" and importlib.util.find_spec(CLIENTS[name][1]) is None:
        raise UserError(f"tracker={name} needs the package {CLIENTS[name][1]}, which is not installed; run {install_command(name)}.")


def step_of(record: Mapping[str, Any]) -> int:
    """Returns a record's place on the x axis: its environment steps or, before the first of them, its tick."""
    return int(record.get("env_steps") or record["tick"])


class Tracker:
    """Sends the lines of a run's metrics to a tracker, in a thread of its own.

    Args:
      name: a key of `CLIENTS`.
      workdir: the run's folder, which exists.
      config: the run's config, by dotted key.
      resume: whether the run continues; a run that starts at its beginning gets a new run of the tracker.
    """

    def __init__(self, name: str, workdir: str | os.PathLike, config: Mapping[str, Any], resume: bool):
        self._name, self._workdir, self._config = name, Path(workdir), public(config)
        self._state = self._read() if resume else {}
        self._new, self._warned = "run" not in self._state, False
        self._state = {"run": uuid.uuid4().hex[:8], "tick": -1} | self._state
        self._lines: queue.SimpleQueue[Mapping[str, Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def write(self, record: Mapping[str, Any]) -> None:
        """Sends a line unless the tracker has it; returns at once and never raises."""
        self._lines.put(record)

    def close(self) -> None:
        """Waits at most `CLOSE_S` seconds for lines that are still to be sent. It may be called twice."""
        if self._thread.is_alive():
            self._lines.put(None)
            self._thread.join(CLOSE_S)
            if self._thread.is_alive():
                self._warn(f"did not finish within {CLOSE_S:.0f} s")

    def _work(self) -> None:
        try:
            client = CLIENTS[self._name][0](self._workdir, self._state["run"], self._config, self._new)
            while (record := self._lines.get()) is not None:
                if record["tick"] > self._state["tick"]:
                    client.log({name: v for name, v in record.items() if is_number(v) or isinstance(v, str)}, step_of(record))
                    self._state["tick"] = record["tick"]
                    self._keep()
            client.close()
        except Exception as error:  # of a library, the network or the disk: the run goes on
            self._warn(f"failed ({type(error).__name__}: {' '.join(str(error).split())[:200]})")

    def _warn(self, what: str) -> None:
        if self._warned:  # a tracker that was given up may fail later
            return
        self._warned = True
        _log.warning(
            "tracker=%s %s and is off from here on; metrics.jsonl has every line, and the next start of this run sends what is missing",
            self._name,
            what,
        )

    def _read(self) -> dict[str, Any]:
        """What is known of an earlier run of this tracker; nothing if the file is missing or damaged."""
        try:
            found = json.loads((self._workdir / STATE_FILE).read_text(encoding="utf-8"))[self._name]
            return {"run": str(found["run"]), "tick": int(found["tick"])}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def _keep(self) -> None:
        path = self._workdir / STATE_FILE
        try:
            others = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            others = {}
        write_atomically(path, json.dumps((others if isinstance(others, dict) else {}) | {self._name: self._state}) + "\n")
