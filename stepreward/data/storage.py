"""What the datasets of this package share: TFDS folders written whole or not at all, and their `metadata.json`.

Neither writing nor reading imports TensorFlow or touches the network.
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
    """Writes the rows and their header as the folder `path`, whole or not at all.

    Args:
      path: a folder that does not exist yet; its parents are made.
      rows: dicts of the builder's features; their order is kept.
      header: what `metadata.json` holds; plain JSON values.
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
    """The rows that `write_dataset` wrote, in order: text as bytes, tensors as NumPy arrays."""
    with _silent():
        import tensorflow_datasets as tfds

        from stepreward.data.builder import SPLIT

        return list(tfds.builder_from_directory(str(path)).as_data_source(split=SPLIT))


def write_header(folder: Path, header: Mapping[str, Any]) -> None:
    """Writes `metadata.json` into a folder."""
    (folder / METADATA).write_text(json.dumps(header, indent=2) + "\n", encoding="utf-8")


def read_header(folder: Path) -> dict[str, Any]:
    """What `write_header` wrote."""
    return json.loads((folder / METADATA).read_text(encoding="utf-8"))


@contextlib.contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`, removed at the end; what was renamed out of it stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def damaged(what: str, path: Path, reason: Exception | str, remedy: str = "and write them again") -> ValueError:
    """The error of a dataset that cannot be read; damage shows in as many ways as there are layers below."""
    if isinstance(reason, Exception):
        reason = f"{type(reason).__name__}: {' '.join(str(reason).split())[:200]}"
    return ValueError(f"the {what} in {str(path)!r} are damaged ({reason}); delete the folder {remedy}")


def plain(metadata: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The metadata as it comes back from JSON; ValueError where it holds something else."""
    try:
        return json.loads(json.dumps(dict(metadata)))
    except (TypeError, ValueError) as error:
        raise ValueError(f"the metadata of {what} must be plain JSON values: {error}") from None


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, `{"a": {"b": 1}}` as `{"a.b": 1}`."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            found.update(flatten(value, f"{prefix}{name}."))
        else:
            found[f"{prefix}{name}"] = value
    return found


@contextlib.contextmanager
def _silent():
    """TFDS prints progress bars and greetings on both streams; the job's own display is the one to see.

    What it logs for the first time installs a handler that writes to the stream of the moment: left there, it would swallow every
    warning of the run.
    """
    before = list(logging.root.handlers)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        for handler in [handler for handler in logging.root.handlers if handler not in before]:
            logging.root.removeHandler(handler)
