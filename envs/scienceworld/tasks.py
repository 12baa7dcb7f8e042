"""Tasks and their splits: the benchmark's variations, or the lists of a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from stepreward.envs.scienceworld.presets import TASK_NAMES, Settings

SPLITS = ("train", "held_out")


class Task(NamedTuple):
    """A variation of a task."""

    name: str
    variation: int


def variations(count: int, split: str) -> range:
    """Returns the benchmark's variations of a split, "train", "dev" or "test": two quarters, one quarter, and the rest."""
    quarter = count // 4
    return {"train": range(2 * quarter), "dev": range(2 * quarter, 3 * quarter), "test": range(3 * quarter, count)}[split]


def split_tasks(settings: Settings, counts: Mapping[str, int]) -> dict[str, tuple[Task, ...]]:
    """Returns the tasks of each split, in an order that mixes them.

    Args:
      settings: the settings that select tasks.
      counts: the number of variations of each task.

    Raises FileNotFoundError or ValueError that names the file of `settings.data` and what is wrong with it.
    """
    if settings.data is not None:
        return _read(Path(settings.data), counts)
    names = settings.tasks or TASK_NAMES
    chosen = {"train": (names, "train"), "held_out": (settings.held_out_tasks or names, settings.held_out)}
    return {
        split: _mixed([Task(name, number) for name in listed for number in variations(counts[name], part)])
        for split, (listed, part) in chosen.items()
    }


def _mixed(tasks: list[Task]) -> tuple[Task, ...]:
    return tuple(sorted(tasks, key=lambda task: hashlib.sha256(repr(tuple(task)).encode()).hexdigest()))


def _read(file: Path, counts: Mapping[str, int]) -> dict[str, tuple[Task, ...]]:
    try:
        lists = json.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise FileNotFoundError(f"no file of ScienceWorld tasks at {file}; set data to an existing file") from None
    except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise ValueError(f"{file} is not a JSON file ({error})") from None
    found = {}
    for split, name in (("train", "train"), ("held_out", "test")):
        pairs = lists.get(name) if isinstance(lists, dict) else None
        if not isinstance(pairs, list) or not pairs:
            raise ValueError(f'{file}: there is no list "{name}" of [task number, variation]')
        for pair in pairs:
            numbers = isinstance(pair, list) and len(pair) == 2 and all(type(number) is int for number in pair)
            if not numbers or not 0 <= pair[0] < len(TASK_NAMES) or not 0 <= pair[1] < counts[TASK_NAMES[pair[0]]]:
                raise ValueError(f"{file}: {pair!r} in {name!r} is no [task number, variation] of the simulator")
        found[split] = _mixed([Task(TASK_NAMES[task], variation) for task, variation in pairs])
    return found
