"""Runs on disk, read again and again while they are written: which folders are runs, and what is new in each.

A run may have just started, may be written to at this moment, or may be deleted meanwhile. None of this is an error here: what cannot be
read is left out and named in `notices`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stepreward.errors import UserError
from stepreward.metrics import METRICS_FILE
from stepreward.report.episodes import list_episodes, read_episodes
from stepreward.report.page import CONFIG_FILE, read_config

DEPTH = 3  # levels of folders in which runs are looked for
MOST_RUNS = 200
MOST_BYTES = 64 * 2**20  # of a file with episodes or a config
_KEPT_FILES = 64  # of recorded episodes in memory, a run


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's workdir: it has metrics, or the config of a run, which is written first."""
    if (folder / METRICS_FILE).is_file():
        return True
    try:
        config = read_config(folder / CONFIG_FILE) or {}
    except (OSError, ValueError):
        return False
    return {"credit", "train", "environment"} <= set(config)


def find_runs(paths: Sequence[str | os.PathLike]) -> list[Path]:
    """Returns the runs that the paths name, each once, in order: a path is a workdir, or a folder with workdirs at most three levels below.

    Raises:
      UserError: a path is not there, or no run is at or below it; the message names it.
    """
    found: dict[Path, None] = {}
    for given in paths:
        folder = Path(given)
        if not folder.exists():
            raise UserError(f"there is no folder {str(given)!r}: give the workdir of a run, or a folder of runs")
        runs = runs_below(folder) if folder.is_dir() else []
        if not runs:
            raise UserError(
                f"{str(given)!r} holds no run: it has neither {METRICS_FILE} nor the {CONFIG_FILE} of a run, and neither have its folders; "
                "give the workdir of a run, or a folder of runs"
            )
        found |= dict.fromkeys(runs)
    return list(found)


def runs_below(folder: Path, depth: int = DEPTH) -> list[Path]:
    """Returns the folder itself if it is a run, or else the runs below it in alphabetical order; links to folders are not followed."""
    if is_run(folder):
        return [folder.resolve()]
    if not depth:
        return []
    try:
        inside = sorted(
            entry.path for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")
        )
    except OSError:
        return []
    return [run for path in inside for run in runs_below(Path(path), depth - 1)][:MOST_RUNS]


def names_of(folders: Sequence[Path]) -> list[str]:
    """Returns the shortest ends of the paths, of one to four parts, that tell the runs apart."""
    names = []
    for folder in folders:
        ends = ["/".join(folder.parts[-count:]) for count in (1, 2, 3, 4)]
        others = [other for other in folders if other != folder]
        unique = [end for count, end in enumerate(ends, 1) if all("/".join(o.parts[-count:]) != end for o in others)]
        names.append((unique or ends[-1:])[0])
    return names


class RunFiles:
    """The files of one run. `update` reads what is new; the attributes then hold what was read.

    Attributes:
      folder: the workdir.
      config: the run's config, {} if there is none.
      records: lines of `metrics.jsonl`, without an incomplete last line.
      version: int, raised whenever the config or the records changed.
      recorded: a name and a state of each file of recorded episodes, first tick first; compare it to see whether any changed.
      changed_s: time of the last change of the metrics or the config, seconds since 1970.
      gone: whether the folder has been deleted; what was read before is kept.
      notices: sentences on what could not be read.
    """

    def __init__(self, folder: Path):
        self.folder, self.config, self.records, self.version = folder, {}, [], 0
        self.recorded: dict[str, tuple[int, int]] = {}
        self.changed_s, self.gone = 0.0, False
        self._position, self._inode, self._number, self._corrupt = 0, None, 0, []
        self._config_state, self._config_notice = None, ""
        self._episodes: dict[str, tuple[tuple[int, int], dict[str, Any] | str]] = {}

    @property
    def notices(self) -> list[str]:
        found = ["The folder of this run is gone; the page shows what was read before."] if self.gone else []
        found += [self._config_notice] if self._config_notice else []
        if self._corrupt:
            numbers = ", ".join(map(str, self._corrupt[:5])) + (", …" if len(self._corrupt) > 5 else "")
            found.append(f"{METRICS_FILE} has {len(self._corrupt)} corrupt line{'s' * (len(self._corrupt) > 1)}, left out: {numbers}.")
        return found

    def update(self) -> None:
        """Reads what was written since the last call."""
        self.gone = not self.folder.is_dir()
        if self.gone:
            return
        self._read_config()
        try:
            self._read_metrics()
        except OSError:
            pass  # not there yet, or being replaced: the next call sees it
        try:
            self.recorded = {path.name: _state(path) for path in list_episodes(self.folder) if self._inside(path)}
        except OSError:
            pass

    def episodes(self, name: str) -> dict[str, Any]:
        """Returns the content of a file of recorded episodes, see `stepreward.report.episodes`.

        Args:
          name: a key of `recorded`.

        Raises:
          ValueError: the file cannot be read; the message says why.
        """
        state = self.recorded[name]
        if name not in self._episodes or self._episodes[name][0] != state:
            path = self.folder / "episodes" / name
            try:
                if path.stat().st_size > MOST_BYTES:
                    raise ValueError(f"{name} is larger than {MOST_BYTES >> 20} MB.")
                found = read_episodes(path)
            except (OSError, ValueError, RecursionError) as error:
                found = f"{name} cannot be read: {error}"
            self._episodes[name] = state, found
            while len(self._episodes) > _KEPT_FILES:
                del self._episodes[next(iter(self._episodes))]
        found = self._episodes[name][1]
        if isinstance(found, str):
            raise ValueError(found)
        return found

    def _inside(self, path: Path) -> bool:
        """Whether a file is this run's own: a link that leads out of the workdir is not read."""
        return not path.is_symlink() or path.resolve().is_relative_to(self.folder)

    def _read_config(self) -> None:
        path = self.folder / CONFIG_FILE
        try:
            state = _state(path) if self._inside(path) else None
            if state is None or state == self._config_state or state[1] > MOST_BYTES:
                return
            self.config, self._config_notice = read_config(path) or {}, ""
        except FileNotFoundError:
            return
        except (OSError, ValueError, RecursionError) as error:
            self._config_notice = f"{CONFIG_FILE} cannot be read: {error}"
        self._config_state = state
        self.version += 1
        self.changed_s = max(self.changed_s, state[0] / 1e9)

    def _read_metrics(self) -> None:
        path = self.folder / METRICS_FILE
        if not self._inside(path):
            return
        with open(path, "rb") as file:
            found = os.fstat(file.fileno())
            # A resumed run replaces the file by a shorter one, which has another inode.
            if found.st_ino != self._inode or found.st_size < self._position:
                self.records, self._position, self._number, self._corrupt = [], 0, 0, []
                self._inode = found.st_ino
                self.version += 1
            file.seek(self._position)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]  # the last line may be half written
        self.changed_s = max(self.changed_s, found.st_mtime)
        if not whole:
            return
        self._position += len(whole)
        records = list(self.records)  # a new list: others may be reading the old one
        for line in whole.split(b"\n")[:-1]:
            self._number += 1
            try:
                record = json.loads(line) if line.strip() else None
                if record is not None and not isinstance(record, dict):
                    raise ValueError("not an object")
            except (ValueError, RecursionError):
                self._corrupt.append(self._number)
                continue
            if record is not None:
                records.append(record)
        self.records = records
        self.version += 1


def _state(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_mtime_ns, found.st_size
