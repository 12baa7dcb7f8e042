"""Demonstrations: episodes written once, by a solver or from a run, and read back to train on.

They are stored as a TFDS dataset in `array_record` format, which Grain and TFDS read too, with `metadata.json` beside
it that tells which environment made them. Neither writing nor reading imports TensorFlow or touches the network.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from stepreward import __version__

_METADATA = "metadata.json"


@dataclasses.dataclass(frozen=True)
class Demonstration:
    """One episode.

    Attributes:
      task: which task of the environment this is, such as its state key or its seed.
      split: the environment's split that the task is from, "train" or "held_out".
      observations: the text that the environment showed before each action, and after the last one if it was kept.
      actions: the actions taken, as the environment takes them.
      success: whether the task was solved.
      outcome: the return of the episode; stored as float32.
    """

    task: str
    split: str
    observations: list[str]
    actions: list[str]
    success: bool
    outcome: float


def write_demonstrations(
    path: str | os.PathLike, records: Iterable[Demonstration], metadata: Mapping[str, Any]
) -> None:
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
    header = {"stepreward": __version__, "count": len(rows), "metadata": _plain(metadata)}

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        folder = _write_dataset(temporary, rows)
        (folder / _METADATA).write_text(json.dumps(header, indent=2) + "\n", encoding="utf-8")
        folder.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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
    if not (path / _METADATA).is_file():
        raise ValueError(f"{str(path)!r} is not a folder of demonstrations: it holds no {_METADATA}")
    try:
        header = json.loads((path / _METADATA).read_text(encoding="utf-8"))
        count, metadata = header["count"], header["metadata"]
        records = _read_dataset(path)
    except Exception as error:  # damage shows in as many ways as there are layers below
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"the demonstrations in {str(path)!r} are damaged ({type(error).__name__}: {reason}); "
            "delete the folder and write them again"
        ) from error
    if len(records) != count:
        raise ValueError(
            f"the demonstrations in {str(path)!r} are damaged ({len(records)} of {count} episodes); "
            "delete the folder and write them again"
        )
    return records, metadata


def check_metadata(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raises ValueError when the metadata of a dataset is not what the run expects.

    Only the keys of `expected` are compared; nested keys are named with dots, and a tuple equals the list of its items.

    Raises:
      ValueError: the first key that is missing or differs, with both values.
    """
    found, expected = _flatten(_plain(found)), _flatten(_plain(expected))
    for key, value in expected.items():
        if key not in found:
            raise ValueError(f"these demonstrations do not say {key!r}, which must be {value!r}; write them again")
        if found[key] != value:
            raise ValueError(
                f"these demonstrations were made with {key} = {found[key]!r}, but this run has {key} = {value!r}; "
                "write them again or change the config"
            )


def _checked(index: int, record: Demonstration) -> dict[str, Any]:
    """The record as a dict of the stored types; ValueError names the field that is of another type."""
    row = dataclasses.asdict(record)
    for name in ("task", "split"):
        if not isinstance(row[name], str):
            raise ValueError(f"demonstration {index}: {name} must be a str; got {type(row[name]).__name__}")
    for name in ("observations", "actions"):
        if not isinstance(row[name], (list, tuple)):
            raise ValueError(f"demonstration {index}: {name} must be a list; got {type(row[name]).__name__}")
        for item in row[name]:
            if not isinstance(item, str):
                raise ValueError(f"demonstration {index}: {name} must hold str; got {type(item).__name__}")
    return {**row, "success": bool(row["success"]), "outcome": float(row["outcome"])}


def _write_dataset(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """Writes the rows below `folder` and returns the folder of the dataset itself."""
    with _silent():
        import tensorflow_datasets as tfds

        from stepreward.data.builder import Demonstrations

        builder = Demonstrations(data_dir=str(folder), file_format="array_record", records=rows)
        builder.download_and_prepare(
            download_dir=str(folder / "downloads"),
            download_config=tfds.download.DownloadConfig(try_download_gcs=False, compute_stats="skip"),
        )
    return Path(builder.data_dir)


def _read_dataset(path: Path) -> list[Demonstration]:
    with _silent():
        import tensorflow_datasets as tfds

        from stepreward.data.builder import SPLIT

        source = tfds.builder_from_directory(str(path)).as_data_source(split=SPLIT)
        return [
            Demonstration(
                task=row["task"].decode(),
                split=row["split"].decode(),
                observations=[text.decode() for text in row["observations"]],
                actions=[text.decode() for text in row["actions"]],
                success=bool(row["success"]),
                outcome=float(row["outcome"]),
            )
            for row in source
        ]


@contextlib.contextmanager
def _silent():
    """TFDS prints progress bars and greetings on both streams; the job's own display is the one to see."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _plain(metadata: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return json.loads(json.dumps(dict(metadata)))
    except (TypeError, ValueError) as error:
        raise ValueError(f"the metadata of demonstrations must be plain JSON values: {error}") from None


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            found.update(_flatten(value, f"{prefix}{name}."))
        else:
            found[f"{prefix}{name}"] = value
    return found
