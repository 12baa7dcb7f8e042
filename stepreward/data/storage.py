"""Shared by the datasets of this package: writes TFDS folders completely or not at all, and their `metadata.json`.

Neither writing nor reading imports TensorFlow or uses the network.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

METADATA = "metadata.json"


def write_dataset(path: Path, rows: list[dict[str, Any]], header: Mapping[str, Any], builder: str) -> None:
    """Writes the rows and their header as the folder `path`, completely or not at all.

    Args:
      path: a folder that does not exist yet; its parents are created.
      rows: dicts of the builder's features; their order is kept.
      header: the contents of `metadata.json`; plain JSON values.
      builder: the name of a class in `builder.py`.
    """
    with scratch(path) as temporary:
        with _silent():
            import tensorflow_datasets as tfds

            from stepreward.data import builder as builders

            made = getattr(builders, builder)(data_dir=str(temporary), file_format="array_record", records=rows)
            made.download_and_prepare(
                download_dir=str(temporary / "downloads"),
                download_config=tfds.download.DownloadConfig(try_download_gcs=False, compute_stats="skip"),
            )
        folder = Path(made.data_dir)
        write_header(folder, header)
        folder.rename(path)


def read_dataset(path: Path) -> list[dict[str, Any]]:
    """Reads the rows that `write_dataset` wrote, in order: text as bytes, tensors as NumPy arrays."""
    with _silent():
        import tensorflow_datasets as tfds

        from stepreward.data.builder import SPLIT

        return list(tfds.builder_from_directory(str(path)).as_data_source(split=SPLIT))


def write_header(folder: Path, header: Mapping[str, Any]) -> None:
    """Writes `metadata.json` into a folder."""
    (folder / METADATA).write_text(json.dumps(header, indent=2) + "\n", encoding="utf-8")


def read_header(folder: Path) -> dict[str, Any]:
    """Reads the header that `write_header` wrote."""
    return json.loads((folder / METADATA).read_text(encoding="utf-8"))


@contextlib.contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """Yields a temporary folder in the parent of `path`, and removes it at the end; move results out of it to keep them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def damaged(what: str, path: Path, reason: Exception | str, remedy: str = "and write them again") -> ValueError:
    """Makes the error for a dataset that cannot be read; a damaged file can make any of several libraries raise."""
    if isinstance(reason, Exception):
        reason = f"{type(reason).__name__}: {' '.join(str(reason).split())[:200]}"
    return ValueError(f"the {what} in {str(path)!r} are damaged ({reason}); delete the folder {remedy}")


def plain(metadata: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The metadata after a round trip through JSON; raises ValueError if it holds anything but plain JSON values."""
    try:
        return json.loads(json.dumps(dict(metadata)))
    except (TypeError, ValueError) as error:
        raise ValueError(f"the metadata of {what} must be plain JSON values: {error}") from None


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested dicts, `{"a": {"b": 1}}` to `{"a.b": 1}`."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            found.update(flatten(value, f"{prefix}{name}."))
        else:
            found[f"{prefix}{name}"] = value
    return found


@contextlib.contextmanager
def _silent():
    """Silences TFDS, which prints progress bars and messages to both streams over the job's own display.

    Its first log message installs a root handler that writes to the current, redirected stream. The handler is removed afterwards,
    because otherwise every later warning of the run would be lost.
    """
    before = list(logging.root.handlers)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        for handler in [handler for handler in logging.root.handlers if handler not in before]:
            logging.root.removeHandler(handler)
