"""Checkpoints: everything that the next step depends on, written asynchronously by Orbax.

A checkpoint holds one pytree of arrays (parameters, optimizer states, PRNG key data, replayed batches) and one JSON object (the
counters: phase, iteration, environment steps). Arrays are stored under their path in the tree, so that a checkpoint can be
read without the code that wrote it.
"""

from __future__ import annotations

import importlib.util
import logging
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np

from stepreward.envs.extras import install_command

_FOLDER = "checkpoints"


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
        if read_only and not _asked(folder, place.is_dir):
            raise FileNotFoundError(
                f"checkpoint.folder={folder!r} holds no checkpoints." if folder
                else f"{str(workdir)!r} holds no checkpoints: is it the workdir of a run?"
            )  # fmt: skip
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=not read_only, read_only=read_only)
        handlers = {"arrays": ocp.PyTreeCheckpointHandler(), "counters": ocp.JsonCheckpointHandler()}
        self._manager = _asked(folder, lambda: ocp.CheckpointManager(place, options=options, item_handlers=handlers))

    def steps(self) -> list[int]:
        """The finished checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, tree: Any, counters: dict) -> None:
        """Starts writing a checkpoint; returns once the arrays are copied."""
        args = self._ocp.args.Composite(
            arrays=self._ocp.args.PyTreeSave(_flatten(tree)), counters=self._ocp.args.JsonSave(counters)
        )
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
        step = step if step is not None else (self.steps() or [None])[-1]
        if step is None or step not in self.steps():
            there = ", ".join(map(str, self.steps())) or "none"
            raise FileNotFoundError(f"no checkpoint {'' if step is None else step} in {self._manager.directory}; there: {there}")
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
      ValueError: a URL of another kind, or gcsfs is not installed.
    """
    from etils import epath

    scheme = re.match(r"(\w+):/", folder)
    if not scheme:
        return Path(folder).expanduser().resolve()
    if not re.match(r"gs://[^/]", folder):
        raise ValueError(f"checkpoint.folder={folder!r}: give a local folder, or gs://BUCKET/FOLDER.")
    if importlib.util.find_spec("gcsfs") is None:
        raise ValueError(f"checkpoint.folder={folder!r} needs the package gcsfs: {install_command('gcs')}.")
    return epath.Path(folder)


def holds_checkpoints(folder: str) -> bool:
    """Whether a `checkpoint.folder` holds checkpoints already.

    Raises:
      ValueError: as `find_folder`, or the folder cannot be opened.
    """
    place = find_folder(folder)
    return _asked(folder, lambda: place.is_dir() and any(path.name.isdigit() for path in place.iterdir()))


def _asked(folder: str, ask):
    """What `ask()` says; of a bucket it can fail in the ways of several packages (no bucket, no credentials, no network)."""
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
