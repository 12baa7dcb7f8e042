"""The folder of a run: who may begin one there, and what comes with a supervised policy of another run."""

from __future__ import annotations

import json
import re
import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path

from stepreward import processes
from stepreward.checkpoint import Checkpoints, check_folder_name, find_folder, holds_checkpoints, opened
from stepreward.config import config_difference, leaves, load_config, save_config
from stepreward.errors import UserError
from stepreward.metrics import MetricsWriter, write_atomically
from stepreward.report import drop_episodes, write_episodes
from stepreward.training import decisions
from stepreward.training.locks import LOCK_FILE, FolderLock
from stepreward.training.outputs import StageOutput

# Keys that may differ when a workdir is resumed, whatever has begun: they decide no output, or only how far the run goes.
RESUMABLE_CHANGES = decisions.FREE
# What a process that is killed while it writes leaves behind: every writer of a workdir begins its temporary names so.
_LEFTOVER = re.compile(r"\.(config\.json|metrics\.jsonl|evaluation\.json|report\.html|identity|tokenizer|demonstrations|exploration)\..+")
_IDENTITY = ".identity"
_OWNER = "run.json"  # in checkpoint.folder


class Workdir:
    """The folder of a run, open for writing. All processes of a job call the same methods; the writer alone writes.

    Args:
      c: the config of the run, which is saved in the folder or compared with the one there.
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
        """Lets another run use the folder; safe to call twice."""
        release(self._locks)

    @property
    def begun(self) -> set[str]:
        """The stages that have begun here."""
        return processes.on_writer(lambda: begun(self.path))

    def mark_begun(self, stage: str) -> None:
        """Notes that a stage has begun: from now on the config may not change in what decides it."""
        processes.on_writer(lambda: mark_begun(self.path, [stage]))

    def output(self, stage: str, borrowed_from: str = "") -> StageOutput:
        """What a finished stage left here, or in the workdir that it is borrowed from."""
        return StageOutput(self.path, stage, borrowed_from)

    def checkpoints(self) -> Checkpoints:
        """The run's checkpoints, which all processes write together."""
        return Checkpoints(self.path, keep=self._c.checkpoint.keep, folder=self._c.checkpoint.folder)

    def open_metrics(self, resumed_tick: int | None) -> MetricsWriter | None:
        """Opens metrics.jsonl and drops what lies behind a checkpoint, recorded episodes included; None but in the writer.

        Args:
          resumed_tick: tick of the checkpoint that the run resumes from; None for a run that starts at its beginning.
        """
        if not processes.is_writer():
            return None
        drop_episodes(self.path, after=resumed_tick or 0)
        return MetricsWriter(self.path, resumed_tick)

    def write_episodes(self, tick: int, iteration: int, episodes: list[dict]) -> None:
        """Keeps recorded episodes for the report."""
        if processes.is_writer():
            write_episodes(self.path, tick, iteration, episodes)

    def write_json(self, name: str, value) -> None:
        """Writes a JSON file, whole or not at all."""
        text = json.dumps(value, indent=2) + "\n"
        processes.on_writer(lambda: write_atomically(self.path / name, text))


def borrow_words(c, workdir: Path) -> None:
    """Tokenizer and demonstrations come with a supervised policy that another run made."""
    if not c.stages.sft:
        return
    for name in ("demonstrations",) if c.model.path else ("tokenizer", "demonstrations"):
        source, target = Path(c.stages.sft) / name, workdir / name
        if not source.is_dir():
            raise UserError(f"stages.sft={c.stages.sft!r} holds no {name}: give the workdir of a run whose stage sft is finished.")
        if not target.exists():
            temporary = target.with_name(f".{name}.copy")
            shutil.copytree(source, temporary)
            temporary.rename(target)


def claim(c, workdir: Path) -> list[FolderLock]:
    """Writes the config into a new workdir, or checks that the one there is the same; takes the locks of what the run writes into.

    Returns:
      The locks, which the caller releases when the run ends.

    Raises:
      UserError: the workdir or checkpoint.folder belongs to another run, is in use, or cannot be written. A folder that is not this
        run's is left as it was.
    """
    _check(c, workdir)
    locks: list[FolderLock] = []
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        locks.append(FolderLock(workdir))
        _check(c, workdir)  # again: another process may have been faster
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
    """Raises a UserError when this config cannot begin or resume a run in this workdir; writes nothing."""
    path, elsewhere = workdir / "config.json", c.checkpoint.folder
    if re.match(r"\w+:/", str(workdir)):
        raise UserError(
            f"workdir {str(workdir)!r}: a workdir is a folder of this machine; its checkpoints alone may go to a bucket "
            "(--config.checkpoint.folder=gs://BUCKET/FOLDER)."
        )
    check_folder_name(workdir, "workdir")
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"workdir {str(workdir)!r} is a file: give a folder.")
    if path.exists():
        old = load_config(path)
        found = {line.split(":")[0]: line for line in config_difference(old, c)}
        moved = [key for key in decisions.PATHS if leaves(old).get(key) and leaves(c).get(key)]  # their content is compared on resuming
        found = {key: line for key, line in found.items() if key not in moved}
        made = {"sft"} if (workdir / "demonstrations").exists() else set()  # they are the beginning of it
        done = begun(workdir) | made
        found = [line for key, line in found.items() if any(_forbids(stage, key) for stage in done)]
        if found:
            raise UserError(
                f"workdir {str(workdir)!r} holds a run with another config ({'; '.join(found[:3])}"
                f"{'; …' if len(found) > 3 else ''}): give another --workdir, or the same config to resume it."
            )
    elif workdir.is_dir() and any(not _begins(p.name) for p in workdir.iterdir()):
        raise UserError(f"workdir {str(workdir)!r} is not empty and holds no run: give another --workdir.")
    if elsewhere and not begun(workdir) and holds_checkpoints(elsewhere):
        raise UserError(
            f"checkpoint.folder={elsewhere!r} holds the checkpoints of a run, and workdir {str(workdir)!r} is new: give another "
            "folder, or the workdir of that run."
        )
    if elsewhere:
        _check_checkpoints(elsewhere, workdir)


def _begins(name: str) -> bool:
    """Whether a file is one that a start leaves which was killed before it had written the config."""
    return name in (LOCK_FILE, _IDENTITY) or _LEFTOVER.fullmatch(name) is not None


def _forbids(stage: str, key: str) -> bool:
    """Whether a key may not change once a stage has begun."""
    if key == "checkpoint.folder":  # what is there would be left behind
        return True
    if key in decisions.BORROWED_FOR:
        return decisions.covers(stage, key) or stage == decisions.BORROWED_FOR[key]
    return decisions.covers(stage, key) and key not in RESUMABLE_CHANGES


def _remove_leftovers(workdir: Path) -> None:
    """Removes what a killed process was writing; under the lock nobody is."""
    found = [path for path in workdir.iterdir() if _LEFTOVER.fullmatch(path.name)]
    for name in ("stages", "exploration", "episodes"):
        found += [path for path in (workdir / name).iterdir() if path.name.startswith(".")] if (workdir / name).is_dir() else []
    for path in found:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _check_checkpoints(folder: str, workdir: Path) -> None:
    """Raises a UserError when `checkpoint.folder` is another workdir's."""
    place = find_folder(folder)
    local = "://" not in folder
    if local and place.name == "checkpoints" and place.parent != workdir.resolve() and (place.parent / "config.json").exists():
        raise UserError(f"checkpoint.folder={folder!r} belongs to the workdir {str(place.parent)!r}: give another folder.")
    text = opened(folder, lambda: (place / _OWNER).read_text() if (place / _OWNER).exists() else "")
    found = json.loads(text) if text.strip() else {}  # empty: killed while it was written
    other, mine = found.get("workdir", ""), _read_identity(workdir)
    copied = other and Path(other) != workdir.resolve() and _read_identity(Path(other)) == mine  # else this one was moved
    if found and (found.get("run") != mine or copied):
        raise UserError(
            f"checkpoint.folder={folder!r} belongs to the workdir {other!r}: two workdirs cannot share one; give another folder."
        )


def _own_checkpoints(folder: str, workdir: Path) -> list[FolderLock]:
    """Makes `checkpoint.folder` this workdir's: locks it where it is a local folder, and notes there whose it is."""
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
    """What tells this workdir from others, wherever it is moved."""
    found = _read_identity(workdir)
    if found is None:
        found = uuid.uuid4().hex
        write_atomically(workdir / _IDENTITY, found + "\n")
    return found


def _read_identity(workdir: Path) -> str | None:
    path = workdir / _IDENTITY
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None


def check_not_lost(workdir: Path, c, begun: set[str]) -> None:
    """Raises a UserError when a run without a checkpoint has come further than a kill explains: its metrics would be dropped.

    A stage begins only when the checkpoint at the end of the one before is on disk.
    """
    if begun - {"sft"}:
        place = c.checkpoint.folder or str(workdir / "checkpoints")
        raise UserError(
            f"workdir {str(workdir)!r} has begun {', '.join(s for s in decisions.STAGES if s in begun)}, but there is no checkpoint in "
            f"{place!r}: put the checkpoints back, or give a new --workdir, with --config.stages.sft={str(workdir)!r} for this one's "
            "supervised policy."
        )


def find(workdir: Path) -> None:
    """Raises a UserError when this process does not see the workdir that process 0 has claimed."""
    if not (workdir / "config.json").is_file():
        raise UserError(
            f"process {processes.index()} does not see the workdir {str(workdir)!r} of process 0: give one on a file system that all share."
        )


def begun(workdir: Path) -> set[str]:
    """The stages that a workdir has begun."""
    path = Path(workdir) / "stages" / "begun.json"
    return set(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else set()


def mark_begun(workdir: Path, stages: Iterable[str]) -> None:
    """Notes that stages have begun: from now on the workdir's config may not change in what decides them."""
    found = begun(workdir)
    if set(stages) <= found:
        return
    path = Path(workdir) / "stages" / "begun.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(sorted(found | set(stages))) + "\n")
