"""Demonstrations: episodes written once, by a solver or from a run, and read back to train on.

They are stored as a TFDS dataset in `array_record` format, which Grain and TFDS read too, with `metadata.json` beside
it that tells which environment made them. Neither writing nor reading imports TensorFlow or touches the network.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from stepreward import __version__
from stepreward.data.storage import METADATA, damaged, flatten, plain, read_dataset, read_header, write_dataset
from stepreward.text import cleaned

_WHAT = "demonstrations"


@dataclasses.dataclass(frozen=True)
class Demonstration:
    """One episode.

    Attributes:
      task: which task of the environment this is, such as its state key or its seed.
      split: the environment's split that the task is from, "train" or "held_out".
      observations: the text that the environment showed before each action, and after the last one if it was kept.
      actions: the actions taken, as the environment takes them.
      views: of each observation, what else a prompt saw (`stepreward.envs.protocol.prompt_view` without text and image), plain JSON
        values; empty where that is nothing at all.
      success: whether the task was solved.
      outcome: the return of the episode; stored as float32.
    """

    task: str
    split: str
    observations: list[str]
    actions: list[str]
    success: bool
    outcome: float
    views: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def view(self, index: int) -> dict[str, Any]:
        """Observation `index` as a prompt sees it, but for images."""
        return {"text": self.observations[index], **(self.views[index] if self.views else {})}


def write_demonstrations(path: str | os.PathLike, records: Iterable[Demonstration], metadata: Mapping[str, Any]) -> None:
    """Writes episodes and their metadata as the folder `path`, whole or not at all.

    Args:
      path: a folder that does not exist yet; its parents are made.
      records: the episodes, at least one; their order is kept.
      metadata: what made them, such as the environment's settings and the number of tasks; plain JSON values.

    Raises:
      ValueError: the folder exists, there are no records, a field has the wrong type, or the metadata is not JSON.
    """
    path = Path(path)
    if path.exists():
        raise ValueError(f"{str(path)!r} already exists; delete it or name another folder")
    rows = [_checked(index, record) for index, record in enumerate(records)]
    if not rows:
        raise ValueError(f"no demonstrations to write to {str(path)!r}")
    header = {"stepreward": __version__, "count": len(rows), "metadata": plain(metadata, _WHAT)}
    write_dataset(path, rows, header, "Demonstrations")


def read_demonstrations(path: str | os.PathLike) -> tuple[list[Demonstration], dict[str, Any]]:
    """Reads what `write_demonstrations` wrote.

    Returns:
      The episodes in the order written, and the metadata; tuples in it come back as lists.

    Raises:
      FileNotFoundError: there is no such folder.
      ValueError: the folder holds no demonstrations, or they are damaged.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"no demonstrations folder {str(path)!r}")
    if not (path / METADATA).is_file():
        raise ValueError(f"{str(path)!r} is not a folder of demonstrations: it holds no {METADATA}")
    try:
        header = read_header(path)
        count, metadata = header["count"], header["metadata"]
        records = [_record(row) for row in read_dataset(path)]
    except Exception as error:
        raise damaged(_WHAT, path, error) from error
    if len(records) != count:
        raise damaged(_WHAT, path, f"{len(records)} of {count} episodes")
    return records, metadata


def check_metadata(found: Mapping[str, Any], expected: Mapping[str, Any], what: str = _WHAT, whole: bool = False) -> None:
    """Raises ValueError when the metadata of a dataset is not what the run expects.

    Only the keys of `expected` are compared; nested keys are named with dots, and a tuple equals the list of its items.

    Args:
      found, expected: the metadata of the dataset and of the run.
      what: what the dataset holds, as the message names it.
      whole: a key that only `found` has is an error too.

    Raises:
      ValueError: the first key that is missing or differs, with both values.
    """
    found, expected = flatten(plain(found, what)), flatten(plain(expected, what))
    for key, value in expected.items():
        if key not in found:
            raise ValueError(f"these {what} do not say {key!r}, which must be {value!r}; write them again")
        if found[key] != value:
            raise ValueError(
                f"these {what} were made with {key} = {found[key]!r}, but this run has {key} = {value!r}; "
                "write them again or change the config"
            )
    for key in found if whole else ():
        if key not in expected:
            raise ValueError(
                f"these {what} were made with {key} = {found[key]!r}, but this run has no {key}; write them again or change the config"
            )


def _checked(index: int, record: Demonstration) -> dict[str, Any]:
    """The record as a dict of the stored types; ValueError names the field that is of another type."""
    row = cleaned(dataclasses.asdict(record))  # demonstrations may also come from files of one's own
    for name in ("task", "split"):
        if not isinstance(row[name], str):
            raise ValueError(f"demonstration {index}: {name} must be a str; got {type(row[name]).__name__}")
    for name in ("observations", "actions"):
        if not isinstance(row[name], (list, tuple)):
            raise ValueError(f"demonstration {index}: {name} must be a list; got {type(row[name]).__name__}")
        for item in row[name]:
            if not isinstance(item, str):
                raise ValueError(f"demonstration {index}: {name} must hold str; got {type(item).__name__}")
    if row["views"] and len(row["views"]) != len(row["observations"]):
        raise ValueError(f"demonstration {index}: {len(row['views'])} views for {len(row['observations'])} observations")
    views = [json.dumps(plain(view, f"the views of demonstration {index}"), sort_keys=True) for view in row["views"]]
    return {**row, "views": views, "success": bool(row["success"]), "outcome": float(row["outcome"])}


def _record(row: dict[str, Any]) -> Demonstration:
    return Demonstration(
        task=row["task"].decode(),
        split=row["split"].decode(),
        observations=[text.decode() for text in row["observations"]],
        actions=[text.decode() for text in row["actions"]],
        success=bool(row["success"]),
        outcome=float(row["outcome"]),
        views=[json.loads(text) for text in row["views"]],
    )
