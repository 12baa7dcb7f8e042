"""Device mesh and where arrays live on it: one table from logical axes to mesh axes.

The mesh has the axes `data`, `fsdp` and `tensor`. Rows of tokens are split over `data` and `fsdp`; a parameter's axis named in
`RULES` is split over that mesh axis where its size divides, and is copied otherwise.
"""

from __future__ import annotations

import math

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "tensor")

# Logical axis -> mesh axis.
RULES = {"embed": "fsdp", "heads": "tensor", "kv_heads": "tensor", "mlp": "tensor", "vocab": "tensor", "head_dim": None}

# Last name in a parameter's path -> its logical axes.
PARAMETER_AXES = {
    "embedding": ("vocab", "embed"),
    "head": ("embed", "vocab"),
    "query": ("embed", "heads", "head_dim"),
    "key": ("embed", "kv_heads", "head_dim"),
    "value": ("embed", "kv_heads", "head_dim"),
    "output": ("heads", "head_dim", "embed"),
    "query_bias": ("heads", "head_dim"),
    "key_bias": ("kv_heads", "head_dim"),
    "value_bias": ("kv_heads", "head_dim"),
    "gate": ("embed", "mlp"),
    "up": ("embed", "mlp"),
    "down": ("mlp", "embed"),
}


def make_mesh(data: int = 1, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """A mesh of `data × fsdp × tensor` devices; `data=-1` takes all that the others leave.

    Raises:
      ValueError: there are not that many devices, or they do not divide.
    """
    devices = jax.devices()
    if data == -1:
        if len(devices) % (fsdp * tensor):
            raise ValueError(f"{len(devices)} devices do not divide by mesh.fsdp × mesh.tensor = {fsdp * tensor}.")
        data = len(devices) // (fsdp * tensor)
    shape = (data, fsdp, tensor)
    if min(shape) < 1 or math.prod(shape) > len(devices):
        raise ValueError(f"a mesh of {data} × {fsdp} × {tensor} (data, fsdp, tensor) needs {math.prod(shape)} devices; "
                         f"{len(devices)} are there.")
    return Mesh(np.array(devices[: math.prod(shape)]).reshape(shape), MESH_AXES)


def row_sharding(mesh: Mesh) -> NamedSharding:
    """Arrays whose first axis is rows of tokens."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    """Arrays that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def parameter_sharding(tree, mesh: Mesh):
    """The sharding of every leaf of a tree of parameters (or of optimizer state, whose leaves bear the same names)."""

    def rule(path, leaf):
        names = [str(p.key) for p in path if hasattr(p, "key")]
        axes = next((PARAMETER_AXES[n] for n in reversed(names) if n in PARAMETER_AXES), ())
        if len(axes) != np.ndim(leaf):
            return replicated(mesh)
        split = [RULES[a] if _divides(mesh, RULES[a], size) else None for a, size in zip(axes, leaf.shape)]
        while split and split[-1] is None:
            split.pop()
        return NamedSharding(mesh, PartitionSpec(*split))

    return jax.tree_util.tree_map_with_path(rule, tree)


def _divides(mesh: Mesh, axis: str | None, size: int) -> bool:
    """An axis of one device is left out: jit gives every layout one name only if each has one name."""
    return axis is not None and mesh.shape[axis] > 1 and size % mesh.shape[axis] == 0


def place_parameters(tree, mesh: Mesh):
    """Puts parameters or optimizer state on the mesh."""
    return jax.device_put(tree, parameter_sharding(tree, mesh))


def check_rows(mesh: Mesh, **rows: int) -> None:
    """Raises ValueError when a number of rows does not divide over the mesh, naming its config key."""
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    for name, count in rows.items():
        if count % parts:
            raise ValueError(f"{name.replace('__', '.')}={count} must be a multiple of mesh.data × mesh.fsdp = {parts}.")
