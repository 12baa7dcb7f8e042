"""Checkpoints: everything that the next step depends on, written asynchronously by Orbax.

A checkpoint holds one pytree of arrays (parameters, optimizer states, PRNG key data, replayed batches) and one JSON object (the
counters: phase, iteration, environment steps). Arrays are stored under their path in the tree, so that a checkpoint can be
read without the code that wrote it.
"""

from __future__ import annotations

import importlib.util
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
_LONGEST_NAME, _LONGEST_PATH = 255, 3500  # bytes; file systems take 255 and 4096, and there are files below


class Checkpoints:
    """The checkpoints of one workdir.

    Args:
      workdir: they lie in `workdir/checkpoints/<step>/`.
      keep: how many of the latest stay.
      read_only: for evaluation: nothing is created or cleaned up.
      folder: they lie in `folder/<step>/` instead, see `find_folder`; "" for the workdir's own.

    Raises:
      FileNotFoundError: `read_only` and there is no checkpoint.
      ValueError: the folder cannot be opened, or what it needs is not installed.
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
                else f"{str(workdir)!r} holds no checkpoints: is it the workdir of a run?"
            )
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=not read_only, read_only=read_only)
        handlers = {"arrays": ocp.PyTreeCheckpointHandler(), "counters": ocp.JsonCheckpointHandler()}
        self._manager = opened(folder, lambda: ocp.CheckpointManager(place, options=options, item_handlers=handlers))

    def steps(self) -> list[int]:
        """The finished checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, tree: Any, counters: dict) -> None:
        """Starts writing a checkpoint; returns once the arrays are copied."""
        args = self._ocp.args.Composite(arrays=self._ocp.args.PyTreeSave(_flatten(tree)), counters=self._ocp.args.JsonSave(counters))
        self._manager.save(step, args=args)

    def restore(self, template: Any, step: int | None = None) -> tuple[int, Any, dict]:
        """Reads a checkpoint (the latest unless named) into the structure, dtypes and shardings of `template`.

        The template may be a part of what was saved: the rest is not read.

        Returns:
          The step, the tree and the counters.

        Raises:
          FileNotFoundError: no such checkpoint.
          ValueError: the checkpoint holds other arrays than the template asks for; the first difference is named.
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
        """The JSON part of a checkpoint (the latest unless named), or None when there is none."""
        step = step if step is not None else (self.steps() or [None])[-1]
        if step is None:
            return None
        args = self._ocp.args.Composite(counters=self._ocp.args.JsonRestore())
        return self._manager.restore(step, args=args)["counters"]

    def arrays(self, step: int | None = None) -> dict[str, np.ndarray]:
        """Every array of a checkpoint (the latest unless named) on the host, by its path in the tree.

        Raises:
          FileNotFoundError: no such checkpoint.
        """
        step = self.find(step)
        names = dict(self._manager.item_metadata(step)["arrays"].items())
        arguments = {name: self._ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
        wanted = self._ocp.args.Composite(arrays=self._ocp.args.PyTreeRestore(restore_args=arguments))
        found = self._manager.restore(step, args=wanted)["arrays"]
        return {name: np.asarray(value) for name, value in found.items()}

    def find(self, step: int | None = None) -> int:
        """The step itself, or the latest one.

        Raises:
          FileNotFoundError: no such checkpoint; those that are there are listed.
        """
        step = step if step is not None else (self.steps() or [None])[-1]
        if step is None or step not in self.steps():
            there = ", ".join(map(str, self.steps())) or "none"
            raise FileNotFoundError(f"no checkpoint {'' if step is None else step} in {self._manager.directory}; there: {there}")
        return step

    def wait(self) -> None:
        """Returns when what was saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and releases the threads."""
        self._manager.wait_until_finished()
        self._manager.close()

    def _check(self, step: int, flat: dict) -> None:
        try:
            found = dict(self._manager.item_metadata(step)["arrays"].items())
        except Exception as error:  # damage shows in as many ways as there are layers below
            raise self._damaged(step, error) from error
        for name, array in flat.items():
            if name not in found:
                raise ValueError(f"checkpoint {step} has no array {name!r}: it was written with another config.")
            if tuple(found[name].shape) != tuple(array.shape):
                raise ValueError(
                    f"checkpoint {step}: array {name!r} has shape {tuple(found[name].shape)}, the config asks for "
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
            "go on from the one before."
        )


def find_folder(folder: str):
    """The path of `checkpoint.folder`: a local folder, or one of a Google Cloud Storage bucket (`gs://BUCKET/FOLDER`).

    Raises:
      ValueError: a URL of another kind, gcsfs is not installed, or the name is one that `check_folder_name` refuses.
    """
    from etils import epath

    scheme = re.match(r"(\w+):/", folder)
    if not scheme:
        try:
            place = Path(folder).expanduser().resolve()
        except RuntimeError:
            raise ValueError(f"checkpoint.folder={folder!r}: there is no such user; give the whole path.") from None
        check_folder_name(place, "checkpoint.folder")
        return place
    if not re.match(r"gs://[^/]", folder):
        raise ValueError(f"checkpoint.folder={folder!r}: give a local folder, or gs://BUCKET/FOLDER.")
    if importlib.util.find_spec("gcsfs") is None:
        raise ValueError(f"checkpoint.folder={folder!r} needs the package gcsfs: {install_command('gcs')}.")
    return epath.Path(folder)


def check_folder_name(path: str | Path, what: str, read_only: bool = False) -> None:
    """Checks that the folder of checkpoints and datasets has a name that is not read as something else.

    Orbax and TFDS look for their files with patterns that begin with the folder's whole path: `[1]` would find nothing, and `a*` another
    run's files; `gs:` becomes the beginning of a URL. Spaces, quotes and whatever else only a shell reads are allowed.

    Args:
      path: the folder; the folders that it lies in count too.
      what: what it is, as the error names it.
      read_only: allows what can be read, though not written.

    Raises:
      ValueError: the name has such a character, or is too long for a file system.
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
        raise ValueError(f"{what} {text!r}{where} holds {odd!r}, {kind}: give a folder with another name.")
    if text.startswith("~") and not read_only:
        raise ValueError(f"{what} {text!r}: the shell has not replaced the ~; give the whole path.")
    if url:
        raise ValueError(f"{what} {text!r} holds {url!r}, which is read as the beginning of a URL: give a folder with another name.")
    if len(os.fsencode(real)) > _LONGEST_PATH or max(len(os.fsencode(part)) for part in parts) > _LONGEST_NAME:
        raise ValueError(f"{what} {text[:60]!r}… is too long: give at most {_LONGEST_NAME} bytes a name and {_LONGEST_PATH} in all.")


def holds_checkpoints(folder: str) -> bool:
    """Whether a `checkpoint.folder` holds checkpoints already.

    Raises:
      ValueError: as `find_folder`, or the folder cannot be opened.
    """
    place = find_folder(folder)
    return opened(folder, lambda: place.is_dir() and any(path.name.isdigit() for path in place.iterdir()))


def opened(folder: str, ask):
    """Returns `ask()`.

    Raises:
      ValueError: `folder` is a bucket's and the call fails, which it does in the ways of several packages (no bucket, no credentials,
        no network).
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
