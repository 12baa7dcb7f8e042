"""Checkpoints: everything that the next step depends on, written asynchronously by Orbax.

A checkpoint holds one pytree of arrays (parameters, optimizer states, PRNG key data, replayed batches) and one JSON object with the
counters (phase, iteration, environment steps). Arrays are stored under their path in the tree, so that a checkpoint can be read
without the code that wrote it.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
import unicodedata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from stepreward.envs.extras import install_command

_FOLDER = "checkpoints"
_LONGEST_NAME, _LONGEST_PATH = 255, 3500  # bytes; file systems allow 255 and 4096, and the files inside have longer paths


class Checkpoints:
    """The checkpoints of one workdir.

    Args:
      workdir: folder of the run; checkpoints are in `workdir/checkpoints/<step>/`.
      keep: how many of the latest checkpoints to keep.
      read_only: for evaluation; nothing is created or deleted.
      folder: if not empty, checkpoints are in `folder/<step>/` instead, see `find_folder`.

    Raises:
      FileNotFoundError: if `read_only` is set and there is no folder of checkpoints.
      ValueError: if the folder cannot be opened, or a package that it needs is not installed.
    """

    def __init__(self, workdir: str | Path, keep: int = 2, read_only: bool = False, folder: str = ""):
        import orbax.checkpoint as ocp  # takes most of a second to import

        logging.getLogger("absl").setLevel(logging.ERROR)
        self._ocp = ocp
        place = find_folder(folder) if folder else Path(workdir).resolve() / _FOLDER
        if not folder:
            check_folder_name(workdir, "workdir", read_only)
        if read_only and not opened(folder, place.is_dir):
            raise FileNotFoundError(
                f"checkpoint.folder={folder!r} holds no checkpoints."
                if folder
                else f"{str(workdir)!r} holds no checkpoints: check that it is the workdir of a run."
            )
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=not read_only, read_only=read_only)
        handlers = {"arrays": ocp.PyTreeCheckpointHandler(), "counters": ocp.JsonCheckpointHandler()}
        self._manager = opened(folder, lambda: ocp.CheckpointManager(place, options=options, item_handlers=handlers))

    def steps(self) -> list[int]:
        """The steps of the finished checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, tree: Any, counters: dict) -> None:
        """Starts writing a checkpoint, and returns as soon as the arrays are copied."""
        args = self._ocp.args.Composite(arrays=self._ocp.args.PyTreeSave(_flatten(tree)), counters=self._ocp.args.JsonSave(counters))
        self._manager.save(step, args=args)

    def restore(self, template: Any, step: int | None = None) -> tuple[int, Any, dict]:
        """Reads a checkpoint (by default the latest) into the structure, dtypes and shardings of `template`.

        The template may have only some of the saved arrays; the others are not read.

        Returns:
          The step, the tree and the counters.

        Raises:
          FileNotFoundError: if there is no such checkpoint.
          ValueError: if the checkpoint lacks an array of the template, or has one with another shape; the first one is named.
        """
        step = self.find(step)
        flat = _flatten(template)
        self._check(step, flat)
        restored = self._read(step, flat)
        paths = jax.tree_util.tree_flatten_with_path(template)[0]
        leaves = [restored["arrays"][_name(path)] for path, _ in paths]
        leaves = [np.asarray(x) if isinstance(old, np.ndarray) else x for x, (_, old) in zip(leaves, paths)]
        return step, jax.tree.unflatten(jax.tree.structure(template), leaves), restored["counters"]

    def counters(self, step: int | None = None) -> dict | None:
        """The counters of a checkpoint (by default the latest), or None if there is no checkpoint."""
        step = step if step is not None else (self.steps() or [None])[-1]
        if step is None:
            return None
        args = self._ocp.args.Composite(counters=self._ocp.args.JsonRestore())
        return self._manager.restore(step, args=args)["counters"]

    def arrays(self, step: int | None = None) -> dict[str, np.ndarray]:
        """Every array of a checkpoint (by default the latest) on the host, by its path in the tree.

        Raises:
          FileNotFoundError: if there is no such checkpoint.
        """
        step = self.find(step)
        names = dict(self._manager.item_metadata(step)["arrays"].items())
        arguments = {name: self._ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
        wanted = self._ocp.args.Composite(arrays=self._ocp.args.PyTreeRestore(restore_args=arguments))
        found = self._manager.restore(step, args=wanted)["arrays"]
        return {name: np.asarray(value) for name, value in found.items()}

    def names(self, step: int | None = None) -> tuple[str, ...]:
        """The paths of all arrays of a checkpoint (by default the latest).

        Raises:
          FileNotFoundError: if there is no such checkpoint.
          ValueError: if it is damaged.
        """
        step = self.find(step)
        try:
            return tuple(name for name, _ in self._manager.item_metadata(step)["arrays"].items())
        except Exception as error:  # a damaged file can make any of several libraries raise
            raise self._damaged(step, error) from error

    def find(self, step: int | None = None) -> int:
        """Returns `step`, or the latest step if it is None.

        Raises:
          FileNotFoundError: if there is no such checkpoint; the message lists the existing ones.
        """
        step = step if step is not None else (self.steps() or [None])[-1]
        if step is None or step not in self.steps():
            there = ", ".join(map(str, self.steps())) or "none"
            raise FileNotFoundError(f"no checkpoint{'' if step is None else f' {step}'} in {self._manager.directory}; existing: {there}")
        return step

    def wait(self) -> None:
        """Waits until all saved checkpoints are on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits until all saved checkpoints are on disk, and releases the threads."""
        self._manager.wait_until_finished()
        self._manager.close()

    def _check(self, step: int, flat: dict) -> None:
        try:
            found = dict(self._manager.item_metadata(step)["arrays"].items())
        except Exception as error:  # a damaged file can make any of several libraries raise
            raise self._damaged(step, error) from error
        for name, array in flat.items():
            if name not in found:
                raise ValueError(f"checkpoint {step} has no array {name!r}: it was written with another config.")
            if tuple(found[name].shape) != tuple(array.shape):
                raise ValueError(
                    f"checkpoint {step}: array {name!r} has shape {tuple(found[name].shape)}, but the config needs "
                    f"{tuple(array.shape)}: it was written with another model or batch size."
                )

    def _read(self, step: int, flat: dict):
        abstract = jax.tree.map(_abstract, flat)
        restore_args = self._ocp.checkpoint_utils.construct_restore_args(abstract)
        arrays = self._ocp.args.PyTreeRestore(abstract, restore_args=restore_args, partial_restore=True)
        args = self._ocp.args.Composite(arrays=arrays, counters=self._ocp.args.JsonRestore())
        try:
            return self._manager.restore(step, args=args)
        except Exception as error:
            raise self._damaged(step, error) from error

    def _damaged(self, step: int, error: Exception) -> ValueError:
        reason = " ".join(str(error).split())[:200]
        return ValueError(
            f"checkpoint {step} in {self._manager.directory} cannot be read ({type(error).__name__}: {reason}); delete its folder to "
            "continue from the previous one."
        )


def saved_counters(workdir: str | Path, folder: str = "") -> dict:
    """The counters of a workdir's latest checkpoint, read by this process alone and without its arrays.

    Args:
      workdir, folder: as in `Checkpoints`.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: the folder or the file cannot be read.
    """
    place = find_folder(folder) if folder else Path(workdir).resolve() / _FOLDER
    steps = opened(folder, lambda: sorted(int(p.name) for p in place.iterdir() if p.name.isdigit()) if place.is_dir() else [])
    if not steps:
        raise FileNotFoundError(f"no checkpoint in {place}")
    return json.loads(opened(folder, (place / str(steps[-1]) / "counters" / "metadata").read_text))


def find_folder(folder: str):
    """The path of `checkpoint.folder`: a local folder, or a folder in a Google Cloud Storage bucket (`gs://BUCKET/FOLDER`).

    Raises:
      ValueError: if it is a URL of another kind, gcsfs is not installed, or `check_folder_name` refuses the name.
    """
    from etils import epath

    scheme = re.match(r"(\w+):/", folder)
    if not scheme:
        try:
            place = Path(folder).expanduser().resolve()
        except RuntimeError:
            raise ValueError(f"checkpoint.folder={folder!r}: there is no user of that name; give the whole path.") from None
        check_folder_name(place, "checkpoint.folder")
        return place
    if not re.match(r"gs://[^/]", folder):
        raise ValueError(f"checkpoint.folder={folder!r} must be a local folder, or gs://BUCKET/FOLDER.")
    if importlib.util.find_spec("gcsfs") is None:
        raise ValueError(f"checkpoint.folder={folder!r} needs the package gcsfs: {install_command('gcs')}.")
    return epath.Path(folder)


def check_folder_name(path: str | Path, what: str, read_only: bool = False) -> None:
    """Checks that Orbax and TFDS take the path of a folder literally.

    Both look for files with glob patterns that begin with the folder's whole path, so a folder `[1]` would find no files and `a*` the
    files of another run, and they read `gs:` as the beginning of a URL. Spaces, quotes and other characters that are special only in
    a shell are allowed.

    Args:
      path: the folder; its parents are checked too.
      what: what the folder is, for the error message.
      read_only: allows names that can be read, although not written.

    Raises:
      ValueError: if the path contains such a character, or is too long for a file system.
    """
    text, given, real = str(path), Path(path).absolute(), Path(path).resolve()
    whole, parts = f"{given}{real}", (*given.parts, *real.parts)
    refused = ("\\", "**") if read_only else ("\\", "*", "?", "[")
    pattern = next((mark for mark in refused if mark in whole), None)
    control = None if read_only else next((c for c in whole if unicodedata.category(c) in ("Cc", "Cs")), None)
    url = next((part for part in parts if part.endswith(":")), None)
    if pattern or control:
        kind = "which is read as a pattern of file names" if pattern else "a control character or a byte that is not UTF-8"
        odd, where = pattern or control, "" if (pattern or control) in text else f" is {str(real)!r}, which"
        raise ValueError(f"{what} {text!r}{where} contains {odd!r}, {kind}: give a folder with another name.")
    if text.startswith("~") and not read_only:
        raise ValueError(f"{what} {text!r}: the shell did not expand the ~; give the whole path.")
    if url:
        raise ValueError(f"{what} {text!r} contains {url!r}, which is read as the beginning of a URL: give a folder with another name.")
    if len(os.fsencode(real)) > _LONGEST_PATH or max(len(os.fsencode(part)) for part in parts) > _LONGEST_NAME:
        raise ValueError(f"{what} {text[:60]!r}… is too long: a name may have {_LONGEST_NAME} bytes and the whole path {_LONGEST_PATH}.")


def holds_checkpoints(folder: str) -> bool:
    """Whether a `checkpoint.folder` already holds checkpoints.

    Raises:
      ValueError: if `find_folder` refuses it, or it cannot be opened.
    """
    place = find_folder(folder)
    return opened(folder, lambda: place.is_dir() and any(path.name.isdigit() for path in place.iterdir()))


def opened(folder: str, ask):
    """Returns `ask()`, and turns its errors into a ValueError if `folder` is in a bucket.

    Raises:
      ValueError: if `folder` is in a bucket and the call fails. Several packages raise their own errors for a missing bucket, missing
        credentials or no network.
    """
    if "://" not in folder:
        return ask()
    try:
        return ask()
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"checkpoint.folder={folder!r} cannot be opened ({type(error).__name__}: {reason}).") from error


def _name(path) -> str:
    return "/".join(str(getattr(p, "key", getattr(p, "name", getattr(p, "idx", p)))) for p in path) or "value"


def _flatten(tree) -> dict[str, Any]:
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def _abstract(leaf):
    if isinstance(leaf, np.ndarray):
        return leaf
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
