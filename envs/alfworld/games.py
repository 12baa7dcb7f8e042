"""The games of an ALFWorld environment: official folders, packed files, or generated ones.

* Official layout (json_2.1.1, from `alfworld-download`): `<data>/<split>/<task>/<trial>/game.tw-pddl` beside
  `traj_data.json`, with the splits train, valid_seen and valid_unseen; `data` may also be the parent folder of json_2.1.1.
  Like the benchmark's own loader, it skips trials with "movable" or "Sliced" in their path, and unsolvable games.
* Packed: `<data>/<split>.jsonl.xz`, one JSON object a line with `game` (the official path), `solvable`, `task_type`,
  `grammar`, `pddl_problem`, `domain_sha1` and optionally `gt_traj`. The file `<data>/domain_<first 8 characters of
  domain_sha1>.pddl` holds the domain.

The games of a split are sorted by path. "train" is train; "held_out" is valid_seen, or the split in settings.held_out.
"""

from __future__ import annotations

import functools
import hashlib
import json
import lzma
import zlib
from pathlib import Path
from typing import NamedTuple

from stepreward.envs.alfworld.presets import Settings

_HOW = "download the games with `alfworld-download`, or set data=None to play generated ones"


class Game(NamedTuple):
    """One game: its name, PDDL domain and problem, grammar text, and the actions of a recorded solution, if any."""

    name: str
    domain: str
    problem: str
    grammar: str
    recorded: tuple[str, ...] | None = None


class Folder:
    """The trials of one split in the official layout. It reads a game only when the game is played."""

    def __init__(self, root: Path, split: str, task_types: tuple[str, ...], missing: str):
        self._files, absent = [], []
        for trajectory in sorted((root / split).glob("*/*/traj_data.json")):
            folder = trajectory.parent
            if "movable" in str(folder.relative_to(root)) or "Sliced" in str(folder.relative_to(root)):
                continue
            if _parsed(trajectory).get("task_type") not in task_types:
                continue
            file = folder / "game.tw-pddl"
            if not file.exists():
                absent.append(folder)
            elif _parsed(file, "solvable")["solvable"]:
                self._files.append(file)
        if absent and missing == "error":
            raise FileNotFoundError(
                f"{absent[0]} has no game.tw-pddl ({len(absent)} such trials in {split}): the download is incomplete; "
                "run `alfworld-download` again, or set missing='skip' to play without them"
            )
        if not self._files:
            raise FileNotFoundError(
                f"{root / split} has no solvable <task>/<trial>/game.tw-pddl of the types {', '.join(task_types)}; "
                "download the games again, or change task_types"
            )
        self._root = root

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Game:
        file = self._files[index]
        game = _parsed(file, "pddl_domain", "pddl_problem", "grammar")
        walkthrough = game.get("walkthrough")
        return Game(
            file.parent.relative_to(self._root).as_posix(),
            game["pddl_domain"],
            game["pddl_problem"],
            game["grammar"],
            tuple(walkthrough) if walkthrough else None,
        )


class Packed:
    """The games of one packed file. It keeps each one compressed in memory, in about 12 kB."""

    def __init__(self, file: Path, task_types: tuple[str, ...]):
        self._domains: dict[str, str] = {}
        self._lines = []
        try:
            with lzma.open(file, "rt", encoding="utf-8") as lines:
                for line in lines:
                    record = json.loads(line)
                    if not record["solvable"] or record["task_type"] not in task_types:
                        continue
                    if "movable" in record["game"] or "Sliced" in record["game"]:
                        continue
                    self._domains.setdefault(record["domain_sha1"], "")
                    kept = {key: record.get(key) for key in ("game", "domain_sha1", "grammar", "pddl_problem", "gt_traj")}
                    self._lines.append((record["game"], zlib.compress(json.dumps(kept).encode(), 1)))
        except (lzma.LZMAError, EOFError) as error:
            raise ValueError(f"{file} is damaged or incomplete ({error}); download it again") from None
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{file} is not a packed file of games: {error!r} in line {len(self._lines) + 1} or later; download it again"
            ) from None
        if not self._lines:
            raise ValueError(f"{file} has no solvable game of the types {', '.join(task_types)}; change task_types")
        self._lines.sort(key=lambda line: line[0])
        for sha1 in self._domains:
            self._domains[sha1] = _domain(file.parent / f"domain_{sha1[:8]}.pddl", sha1)

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> Game:
        name, line = self._lines[index]
        record = json.loads(zlib.decompress(line))
        turns = record["gt_traj"]
        recorded = tuple(turn["value"].strip() for turn in turns if turn["from"] == "gpt") if turns else None
        return Game(name, self._domains[record["domain_sha1"]], record["pddl_problem"], record["grammar"], recorded)


def load(settings: Settings, split: str) -> Folder | Packed:
    """Returns the games of `split` ("train" or "held_out") in settings.data. A process reads each split once.

    Raises FileNotFoundError for a missing file and ValueError for a damaged one; both say what to do.
    """
    if split not in ("train", "held_out"):
        raise ValueError(f'unknown split {split!r}: give "train" or "held_out"')
    official = "train" if split == "train" else settings.held_out
    return _load(settings.data, official, settings.task_types, settings.missing)


def check(settings: Settings) -> None:
    """Raises FileNotFoundError unless settings.data is a folder with the train or the held-out split in one of the layouts.

    A missing split raises only when it is played, so a folder with only held-out games suffices for evaluation.
    """
    try:
        _source(settings.data, settings.held_out)
    except FileNotFoundError:
        _source(settings.data, "train")


@functools.lru_cache(8)
def _load(data: str, split: str, task_types: tuple[str, ...], missing: str) -> Folder | Packed:
    source = _source(data, split)
    return Packed(source, task_types) if source.suffix == ".xz" else Folder(source.parent, split, task_types, missing)


def _source(data: str, split: str) -> Path:
    root = Path(data).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"data={data!r} is not a folder: {_HOW}")
    for candidate in (root / f"{split}.jsonl.xz", root / split, root / "json_2.1.1" / split):
        if candidate.exists():
            return candidate
    raise FileNotFoundError(
        f"{root} has neither {split}/<task>/<trial>/game.tw-pddl (also searched in json_2.1.1/) nor {split}.jsonl.xz: {_HOW}"
    )


def _parsed(file: Path, *keys: str) -> dict:
    try:
        data = json.loads(file.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is damaged or incomplete ({error}); download it again") from None
    absent = [key for key in keys if not isinstance(data, dict) or key not in data]
    if absent:
        raise ValueError(f"{file} lacks {', '.join(absent)}; download it again, from json_2.1.1 or later")
    return data


def _domain(file: Path, sha1: str) -> str:
    if not file.exists():
        raise FileNotFoundError(f"{file} is missing; the games in its folder need this PDDL domain")
    data = file.read_bytes()
    if hashlib.sha1(data).hexdigest() != sha1:
        raise ValueError(f"{file} is not the PDDL domain of the games in its folder: its SHA-1 is not {sha1}; download it again")
    return data.decode("utf-8")
