"""The folder of a run: which runs may begin or resume there, and the files that are copied with another run's supervised policy."""

from __future__ import annotations

import json
import re
import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path

from stepreward import processes, tracking
from stepreward.checkpoint import Checkpoints, check_folder_name, find_folder, holds_checkpoints, opened
from stepreward.config import config_difference, leaves, load_config, save_config
from stepreward.errors import UserError
from stepreward.metrics import MetricsWriter, write_atomically
from stepreward.report import drop_episodes, write_episodes
from stepreward.training import decisions
from stepreward.training.locks import LOCK_FILE, FolderLock
from stepreward.training.outputs import StageOutput

# Keys that may differ whenever a run is resumed: they do not affect its output, or only how long it runs.
RESUMABLE_CHANGES = decisions.FREE
# Temporary files and folders, which a process leaves behind if it is killed while it writes. All writers of a workdir name them so.
_LEFTOVER = re.compile(
    r"\.(config\.json|metrics\.jsonl|evaluation\.json|tracker\.json|report\.html|identity|tokenizer|demonstrations|exploration)\..+"
)
_IDENTITY = ".identity"
_OWNER = "run.json"  # in checkpoint.folder


class Workdir:
    """The folder of a run, open for writing. All processes of a job call the same methods, and only the writer writes.

    Args:
      c: the run's config, which is saved in the folder or compared with the config there.
      path: the folder.

    Attributes:
      path: the folder.

    Raises:
      UserError: the folder or checkpoint.folder belongs to another run, is in use, or cannot be written.
    """

    def __init__(self, c, path: str | Path):
        self.path, self._c, self._locks = Path(path), c, []
        processes.on_writer(lambda: self._locks.extend(claim(c, self.path)))
        try:
            processes.together(lambda: find(self.path))
            processes.on_writer(lambda: borrow_words(c, self.path))
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Releases the locks of the folder; safe to call twice."""
        release(self._locks)

    @property
    def begun(self) -> set[str]:
        """The stages that have begun here."""
        return processes.on_writer(lambda: begun(self.path))

    def mark_begun(self, stage: str) -> None:
        """Records that a stage has begun: the config keys that affect its output may no longer change."""
        processes.on_writer(lambda: mark_begun(self.path, [stage]))

    def output(self, stage: str, borrowed_from: str = "") -> StageOutput:
        """Returns the output of a stage in this workdir, or in the one that it is borrowed from."""
        return StageOutput(self.path, stage, borrowed_from)

    def checkpoints(self) -> Checkpoints:
        """Opens the run's checkpoints, which all processes write together."""
        return Checkpoints(self.path, keep=self._c.checkpoint.keep, folder=self._c.checkpoint.folder)

    def open_metrics(self, resumed_tick: int | None) -> MetricsWriter | None:
        """Opens metrics.jsonl and the tracker, after removing metrics and recorded episodes that are later than the checkpoint.

        Args:
          resumed_tick: tick of the checkpoint that the run resumes from; None for a run that starts from the beginning.

        Returns:
          The writer of metrics; None in every process but the writer.
        """
        if not processes.is_writer():
            return None
        drop_episodes(self.path, after=resumed_tick or 0)
        name, resumes = self._c.tracker, resumed_tick is not None
        tracker = None if name == "none" else tracking.Tracker(name, self.path, leaves(self._c), resumes)
        return MetricsWriter(self.path, resumed_tick, tracker)

    def write_episodes(self, tick: int, iteration: int, episodes: list[dict], tree: dict | None = None) -> None:
        """Writes recorded episodes, and the tree that they are from, for the report."""
        if processes.is_writer():
            write_episodes(self.path, tick, iteration, episodes, tree)

    def write_json(self, name: str, value) -> None:
        """Writes a JSON file atomically."""
        text = json.dumps(value, indent=2) + "\n"
        processes.on_writer(lambda: write_atomically(self.path / name, text))


def borrow_words(c, workdir: Path) -> None:
    """Copies tokenizer and demonstrations from the workdir of the borrowed supervised policy, if `stages.sft` names one.

    Raises:
      UserError: that workdir lacks them.
    """
    if not c.stages.sft:
        return
    for name in ("demonstrations",) if c.model.path else ("tokenizer", "demonstrations"):
        source, target = Path(c.stages.sft) / name, workdir / name
        if not source.is_dir():
            raise UserError(
                f"stages.sft={c.stages.sft!r} has no folder {name}: set it to the workdir of a run whose stage sft is finished."
            )
        if not target.exists():
            temporary = target.with_name(f".{name}.copy")
            shutil.copytree(source, temporary)
            temporary.rename(target)


def claim(c, workdir: Path) -> list[FolderLock]:
    """Locks the folders that the run writes to, and writes the config or checks that the saved one allows resuming with it.

    Returns:
      The locks, which the caller releases when the run ends.

    Raises:
      UserError: the workdir or checkpoint.folder belongs to another run, is in use, or cannot be written. A folder of another run is
        not changed.
    """
    _check(c, workdir)
    locks: list[FolderLock] = []
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        locks.append(FolderLock(workdir))
        _check(c, workdir)  # again, under the lock: another process may have begun a run here
        _remove_leftovers(workdir)
        locks += _own_checkpoints(c.checkpoint.folder, workdir) if c.checkpoint.folder else []
        save_config(c, workdir / "config.json")
    except OSError as error:
        release(locks)
        raise UserError(f"workdir {str(workdir)!r} cannot be written: {error.strerror or error}.") from error
    except BaseException:
        release(locks)
        raise
    return locks


def release(locks: list[FolderLock]) -> None:
    """Releases locks; safe to call twice."""
    for lock in locks:
        lock.release()


def _check(c, workdir: Path) -> None:
    """Raises a UserError if this config cannot begin or resume a run in this workdir; writes nothing."""
    path, elsewhere = workdir / "config.json", c.checkpoint.folder
    if re.match(r"\w+:/", str(workdir)):
        raise UserError(
            f"workdir {str(workdir)!r} is a URL, but a workdir must be a local folder; only its checkpoints may be in a bucket "
            "(--config.checkpoint.folder=gs://BUCKET/FOLDER)."
        )
    check_folder_name(workdir, "workdir")
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"workdir {str(workdir)!r} is a file: give another --workdir.")
    if path.exists():
        old = load_config(path)
        found = {line.split(":")[0]: line for line in config_difference(old, c)}
        moved = [
            key for key in decisions.PATHS if leaves(old).get(key) and leaves(c).get(key)
        ]  # the content at these paths is compared when the run resumes
        found = {key: line for key, line in found.items() if key not in moved}
        made = {"sft"} if (workdir / "demonstrations").exists() else set()  # making demonstrations begins this stage
        done = begun(workdir) | made
        found = [line for key, line in found.items() if any(_forbids(stage, key) for stage in done)]
        if found:
            raise UserError(
                f"workdir {str(workdir)!r} contains a run with another config ({'; '.join(found[:3])}"
                f"{'; …' if len(found) > 3 else ''}): give another --workdir, or the same config to resume it."
            )
    elif workdir.is_dir() and any(not _begins(p.name) for p in workdir.iterdir()):
        raise UserError(f"workdir {str(workdir)!r} is not empty and contains no run: give another --workdir.")
    if elsewhere and not begun(workdir) and holds_checkpoints(elsewhere):
        raise UserError(
            f"checkpoint.folder={elsewhere!r} contains checkpoints, but no run has begun in workdir {str(workdir)!r}: give another "
            "folder, or the workdir of the run that wrote them."
        )
    if elsewhere:
        _check_checkpoints(elsewhere, workdir)


def _begins(name: str) -> bool:
    """Whether a file may be left by a run that was killed before it had written its config."""
    return name in (LOCK_FILE, _IDENTITY) or _LEFTOVER.fullmatch(name) is not None


def _forbids(stage: str, key: str) -> bool:
    """Whether a key may not change once a stage has begun."""
    if key == "checkpoint.folder":  # a change would lose the checkpoints in the old folder
        return True
    if key in decisions.BORROWED_FOR:
        return decisions.covers(stage, key) or stage == decisions.BORROWED_FOR[key]
    return decisions.covers(stage, key) and key not in RESUMABLE_CHANGES


def _remove_leftovers(workdir: Path) -> None:
    """Removes the temporary files of killed processes; the caller holds the lock, so no process is writing."""
    found = [path for path in workdir.iterdir() if _LEFTOVER.fullmatch(path.name)]
    rounds = [f"preference/{path.name}" for path in (workdir / "preference").glob("round-*")]
    for name in ("stages", "exploration", "episodes", "demonstrations", "preference", *rounds):
        found += [path for path in (workdir / name).iterdir() if path.name.startswith(".")] if (workdir / name).is_dir() else []
    for path in found:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _check_checkpoints(folder: str, workdir: Path) -> None:
    """Raises a UserError if `checkpoint.folder` belongs to another workdir."""
    place = find_folder(folder)
    local = "://" not in folder
    if local and place.name == "checkpoints" and place.parent != workdir.resolve() and (place.parent / "config.json").exists():
        raise UserError(f"checkpoint.folder={folder!r} belongs to the workdir {str(place.parent)!r}: give another folder.")
    text = opened(folder, lambda: (place / _OWNER).read_text() if (place / _OWNER).exists() else "")
    found = json.loads(text) if text.strip() else {}  # empty if a process was killed while it wrote the file
    other, mine = found.get("workdir", ""), _read_identity(workdir)
    copied = other and Path(other) != workdir.resolve() and _read_identity(Path(other)) == mine  # otherwise the workdir was moved
    if found and (found.get("run") != mine or copied):
        raise UserError(
            f"checkpoint.folder={folder!r} belongs to the workdir {other!r}, and two workdirs cannot share one: give another folder."
        )


def _own_checkpoints(folder: str, workdir: Path) -> list[FolderLock]:
    """Claims `checkpoint.folder` for this workdir: writes the owner's identity into it, and returns its lock if it is a local folder."""
    place = find_folder(folder)
    opened(folder, lambda: place.mkdir(parents=True, exist_ok=True))
    locks = [] if "://" in folder else [FolderLock(place, "checkpoint.folder")]
    try:
        _check_checkpoints(folder, workdir)
        text = json.dumps({"run": _identity(workdir), "workdir": str(workdir.resolve())}) + "\n"
        opened(folder, lambda: (place / _OWNER).write_text(text))
    except BaseException:
        release(locks)
        raise
    return locks


def _identity(workdir: Path) -> str:
    """Returns the workdir's random identity, which stays the same when the folder is moved."""
    found = _read_identity(workdir)
    if found is None:
        found = uuid.uuid4().hex
        write_atomically(workdir / _IDENTITY, found + "\n")
    return found


def _read_identity(workdir: Path) -> str | None:
    path = workdir / _IDENTITY
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None


def check_not_lost(workdir: Path, c, begun: set[str]) -> None:
    """Raises a UserError if the checkpoints of a run are missing: starting again would delete its metrics.

    A stage after the first begins only when the checkpoint at the end of the previous stage is on disk.

    Args:
      begun: the stages that have begun, in a workdir without a checkpoint.
    """
    if begun - {"sft"}:
        place = c.checkpoint.folder or str(workdir / "checkpoints")
        raise UserError(
            f"workdir {str(workdir)!r} has begun the stages {', '.join(s for s in decisions.STAGES if s in begun)}, but there is no "
            f"checkpoint in {place!r}: put the checkpoints back, or give a new --workdir (with "
            f"--config.stages.sft={str(workdir)!r} to reuse the supervised policy)."
        )


def find(workdir: Path) -> None:
    """Raises a UserError if this process cannot see the workdir that process 0 has claimed."""
    if not (workdir / "config.json").is_file():
        raise UserError(
            f"process {processes.index()} cannot see the workdir {str(workdir)!r} of process 0: give a --workdir on a file system that all "
            "processes share."
        )


def begun(workdir: Path) -> set[str]:
    """Returns the stages that have begun in a workdir."""
    path = Path(workdir) / "stages" / "begun.json"
    return set(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else set()


def mark_begun(workdir: Path, stages: Iterable[str]) -> None:
    """Records that stages have begun: the config keys that affect their output may no longer change."""
    found = begun(workdir)
    if set(stages) <= found:
        return
    path = Path(workdir) / "stages" / "begun.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(sorted(found | set(stages))) + "\n")
