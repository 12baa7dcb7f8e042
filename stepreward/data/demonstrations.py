"""Demonstrations: episodes of a solver or of a run, written to disk once and read back for training.

They are stored as a TFDS dataset in `array_record` format, which Grain and TFDS can also read. Its `metadata.json` says which
environment made them. Neither writing nor reading imports TensorFlow or uses the network.
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
from stepreward.envs.protocol import EVENT_NAMES, Prompt, expert_answer
from stepreward.text import cleaned

_WHAT = "demonstrations"


@dataclasses.dataclass(frozen=True)
class Demonstration:
    """One episode.

    Attributes:
      task: identifies the task of the environment, such as its state key or its seed.
      split: the environment's split that contains the task, "train" or "held_out".
      observations: the environment's text before each action, and optionally after the last one.
      actions: the actions, in the form that the environment's `step` takes.
      views: for each observation, the other fields that a prompt sees (`stepreward.envs.protocol.prompt_view` without text and image),
        plain JSON values; empty if no observation has any.
      events: for each action, the names of its events (`stepreward.envs.protocol.EVENT_NAMES`); empty if they are not known.
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
    events: list[tuple[str, ...]] = dataclasses.field(default_factory=list)

    def view(self, index: int) -> dict[str, Any]:
        """Observation `index` as a prompt sees it, without images."""
        return {"text": self.observations[index], **(self.views[index] if self.views else {})}

    def answer(self, prompt: Prompt, index: int) -> str:
        """What the expert writes to take action `index`, in the form of a prompt."""
        events = self.events[: index + 1] or [()] * (index + 1)
        return expert_answer(prompt, self.actions[index], events)


def write_demonstrations(path: str | os.PathLike, records: Iterable[Demonstration], metadata: Mapping[str, Any]) -> None:
    """Writes episodes and their metadata as the folder `path`, completely or not at all.

    Args:
      path: a folder that does not exist yet; its parents are created.
      records: the episodes, at least one; their order is kept.
      metadata: what produced the episodes, such as the environment's settings and the number of tasks; plain JSON values.

    Raises:
      ValueError: if the folder exists, there are no records, a field has the wrong type, or the metadata is not JSON.
    """
    path = Path(path)
    if path.exists():
        raise ValueError(f"{str(path)!r} already exists; delete it or give another folder")
    rows = [_checked(index, record) for index, record in enumerate(records)]
    if not rows:
        raise ValueError(f"no demonstrations to write to {str(path)!r}")
    header = {"stepreward": __version__, "count": len(rows), "metadata": plain(metadata, _WHAT)}
    write_dataset(path, rows, header, "Demonstrations")


def read_demonstrations(path: str | os.PathLike) -> tuple[list[Demonstration], dict[str, Any]]:
    """Reads a folder that `write_demonstrations` wrote.

    Returns:
      The episodes in the order written, and the metadata, whose tuples come back as lists.

    Raises:
      FileNotFoundError: if there is no such folder.
      ValueError: if the folder holds no demonstrations, or they are damaged.
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
    """Checks that the metadata of a dataset is what the run expects.

    Only the keys of `expected` are compared. Nested keys are joined with dots, and a tuple equals the list of its items.

    Args:
      found, expected: the metadata of the dataset and of the run.
      what: what the dataset holds, for the message.
      whole: whether a key that only `found` has is also an error.

    Raises:
      ValueError: if a key is missing or differs; the message names the first one and both values.
    """
    found, expected = flatten(plain(found, what)), flatten(plain(expected, what))
    for key, value in expected.items():
        if key not in found:
            raise ValueError(f"the metadata of these {what} has no {key!r}, which must be {value!r}; write them again")
        if found[key] != value:
            raise ValueError(
                f"these {what} were made with {key} = {found[key]!r}, but this run has {key} = {value!r}; "
                "write them again or change the config"
            )
    for key in found if whole else ():
        if key not in expected:
            raise ValueError(
                f"these {what} were made with {key} = {found[key]!r}, but this run has no key {key}; write them again or change the config"
            )


def _checked(index: int, record: Demonstration) -> dict[str, Any]:
    """Converts a record to a dict of the stored types; raises ValueError naming a field of the wrong type."""
    row = cleaned(dataclasses.asdict(record))  # demonstrations may also come from a user's own files
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
    if row["events"] and len(row["events"]) != len(row["actions"]):
        raise ValueError(f"demonstration {index}: events of {len(row['events'])} actions, but it has {len(row['actions'])}")
    for name in sorted({name for names in row["events"] for name in names} - set(EVENT_NAMES)):
        raise ValueError(f"demonstration {index}: {name!r} is not one of the events {', '.join(EVENT_NAMES)}")
    views = [json.dumps(plain(view, f"the views of demonstration {index}"), sort_keys=True) for view in row["views"]]
    events = [" ".join(names) for names in row["events"]]
    return {**row, "views": views, "events": events, "success": bool(row["success"]), "outcome": float(row["outcome"])}


def _record(row: dict[str, Any]) -> Demonstration:
    return Demonstration(
        task=row["task"].decode(),
        split=row["split"].decode(),
        observations=[text.decode() for text in row["observations"]],
        actions=[text.decode() for text in row["actions"]],
        success=bool(row["success"]),
        outcome=float(row["outcome"]),
        views=[json.loads(text) for text in row["views"]],
        events=[tuple(text.decode().split()) for text in row.get("events", ())],  # earlier versions did not store them
    )
