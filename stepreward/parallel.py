"""The device mesh and the sharding of arrays on it, by tables from logical axes to mesh axes.

The mesh has the axes `data`, `fsdp` and `tensor`. Rows of tokens are split over `data` and `fsdp`. An axis of a parameter is split
over the mesh axes that the table gives for it if its size divides evenly, and replicated otherwise. With several processes, devices
are ordered by process, so that the rows of each process are one block.

There are two tables. In training, a weight is split over `fsdp` along the model width and gathered layer by layer. In decoding, a
pass has one token a row; a weight is split along the axes that are not contracted with the residual stream, it is not gathered, and
the rows are sent to it.
"""

from __future__ import annotations

import math
import os

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from stepreward import processes

# On import, because it must come before the first use of a device.
if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "") or jax.config.jax_num_cpu_devices > 1:
    processes.share_cpu()

MESH_AXES = ("data", "fsdp", "tensor")

# Logical axis -> mesh axes. "vocab" is split over the most devices, because a row of hidden states is smaller than a slice of the
# vocabulary head. In logits, the axis of rows is "vocab_rows".
TRAINING = {
    "rows": ("data", "fsdp"), "vocab_rows": ("data",), "embed": ("fsdp",), "attention_out": ("fsdp",), "mlp_out": ("fsdp",),
    "heads": ("tensor",), "kv_heads": ("tensor",), "head_dim": (), "mlp": ("tensor",), "vocab": ("fsdp", "tensor"),
}  # fmt: skip
DECODING = TRAINING | {"embed": (), "mlp_out": (), "head_dim": ("fsdp",), "mlp": ("fsdp", "tensor")}

# Last name in a parameter's path -> logical axes of its inputs and of its outputs. Stacked layers have one more axis in front. An
# adapter's A has the axes of the inputs and the rank, its B the rank and the axes of the outputs.
PARAMETER_AXES = {
    "embedding": (("vocab",), (None,)),
    "head": ((None,), ("vocab",)),
    "query": (("embed",), ("heads", "head_dim")),
    "key": (("embed",), ("kv_heads", "head_dim")),
    "value": (("embed",), ("kv_heads", "head_dim")),
    "output": (("heads", None), ("attention_out",)),
    "query_bias": ((), ("heads", "head_dim")),
    "key_bias": ((), ("kv_heads", "head_dim")),
    "value_bias": ((), ("kv_heads", "head_dim")),
    "gate": (("embed",), ("mlp",)),
    "up": (("embed",), ("mlp",)),
    "down": (("mlp",), ("mlp_out",)),
    # Only in a vision tower; its other matrices have the names above.
    "patch_embedding": ((None,), ("mlp_out",)),
    "qkv": (("embed",), (None, "heads", "head_dim")),
    "qkv_bias": ((), (None, "heads", "head_dim")),
}


def make_mesh(data: int = 1, fsdp: int = 1, tensor: int = 1, devices=None) -> Mesh:
    """Makes a mesh of `data × fsdp × tensor` devices; `data=-1` chooses `data` so that all devices are used.

    Args:
      data, fsdp, tensor: sizes of the axes.
      devices: the devices to use; None uses all devices of the job.

    Raises:
      ValueError: if there are too few devices, they do not divide evenly, or `processes.check_blocks` refuses the mesh.
    """
    devices = sorted(jax.devices(), key=lambda device: device.process_index) if devices is None else devices
    if data == -1:
        if len(devices) % (fsdp * tensor):
            raise ValueError(f"the number of devices, {len(devices)}, is not a multiple of mesh.fsdp × mesh.tensor = {fsdp * tensor}.")
        data = len(devices) // (fsdp * tensor)
    shape = (data, fsdp, tensor)
    if min(shape) < 1 or math.prod(shape) > len(devices):
        raise ValueError(
            f"a mesh of {data} × {fsdp} × {tensor} (data, fsdp, tensor) needs {math.prod(shape)} devices, but there are {len(devices)}."
        )
    taken = np.array(devices[: math.prod(shape)]).reshape(shape)
    if processes.count() > 1:
        processes.check_blocks(np.vectorize(lambda device: device.process_index)(taken), processes.count())
    return Mesh(taken, MESH_AXES)


def row_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of arrays whose first axis is rows of tokens."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def hosts(mesh: Mesh) -> int:
    """The number of processes whose devices are in a mesh."""
    return len({device.process_index for device in mesh.devices.flat})


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of arrays that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def parameter_sharding(tree, mesh: Mesh, table: dict[str, tuple[str, ...]] = TRAINING):
    """The sharding of every leaf of a tree of parameters, or of optimizer state, whose leaves have the same names."""

    def rule(path, leaf):
        names = [str(p.key) for p in path if hasattr(p, "key")]
        axes = next((found for name in reversed(names) if (found := _axes(name)) is not None), ())
        missing = np.ndim(leaf) - len(axes)
        if not axes or missing not in (0, 1):
            return replicated(mesh)
        return named(mesh, (None,) * missing + axes, leaf.shape, table)

    return jax.tree_util.tree_map_with_path(rule, tree)


def _axes(name: str) -> tuple[str | None, ...] | None:
    adapted, part = name[:-7], name[-7:]
    if part in ("_lora_a", "_lora_b") and adapted in PARAMETER_AXES:
        inputs, outputs = PARAMETER_AXES[adapted]
        return (*inputs, None) if part == "_lora_a" else (None, *outputs)
    return sum(PARAMETER_AXES[name], ()) if name in PARAMETER_AXES else None


def named(mesh: Mesh, axes, shape, table: dict[str, tuple[str, ...]] = TRAINING) -> NamedSharding:
    """The sharding of an array whose axes have these logical names; None means that the axis is not split."""
    split = [None if axis is None else _split(mesh, table[axis], size) for axis, size in zip(axes, shape)]
    while split and split[-1] is None:
        split.pop()
    return NamedSharding(mesh, PartitionSpec(*split))


def _split(mesh: Mesh, mesh_axes: tuple[str, ...], size: int):
    """The mesh axes to split over, as many as divide the size. Mesh axes of size 1 are omitted, and a tuple of one axis becomes that
    axis, so that equal layouts have equal specs and jit does not compile again."""
    kept = [axis for axis in mesh_axes if mesh.shape[axis] > 1]
    while kept and size % math.prod(mesh.shape[axis] for axis in kept):
        kept.pop()
    return (tuple(kept) if len(kept) > 1 else kept[0]) if kept else None


def constrain(x: jax.Array, mesh: Mesh | None, *axes: str | None, table: dict[str, tuple[str, ...]] = TRAINING) -> jax.Array:
    """Inside jit, constrains the sharding of an activation with these logical axes; unnamed axes are not split."""
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, named(mesh, axes, x.shape, table))


def place_parameters(tree, mesh: Mesh):
    """Places parameters or optimizer state on the mesh, sharded for training."""
    return place(tree, parameter_sharding(tree, mesh))


# --- Arrays, or only their shapes ---


def is_abstract(tree) -> bool:
    """Whether a tree holds shapes (`jax.ShapeDtypeStruct`) instead of arrays."""
    return any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(tree))


def place(tree, sharding):
    """Shards host arrays, which every process holds whole, or device arrays. Abstract trees get the shardings without any data.

    Args:
      tree: arrays or shapes.
      sharding: one sharding for all leaves, or a tree of shardings.
    """
    one = isinstance(sharding, NamedSharding)
    if is_abstract(tree):
        sharding = jax.tree.map(lambda _: sharding, tree) if one else sharding
        return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, sharding)
    if processes.count() == 1:
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda x: processes.place(x, sharding), tree) if one else jax.tree.map(processes.place, tree, sharding)


def copy(tree):
    """Copies every array; for abstract trees, creates distinct shape objects."""
    one = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) if is_abstract(x) else jnp.copy(x)
    return jax.tree.map(one, tree)


def compute(function, *trees, mesh: Mesh | None):
    """Returns the parameters `function(*trees)`. For abstract trees it returns their shapes, sharded over the mesh like parameters."""
    if not is_abstract(trees):
        return function(*trees)
    shapes = jax.eval_shape(function, *trees)
    return shapes if mesh is None else place_parameters(shapes, mesh)


def check_rows(mesh: Mesh, **rows: int) -> None:
    """Raises ValueError if a number of rows does not divide evenly over the mesh; the message names its config key."""
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    for name, count in rows.items():
        if count % parts:
            raise ValueError(
                f"{name.replace('__', '.')}={count} must be a multiple of mesh.data × mesh.fsdp = {parts}, such as {-(-count // parts) * parts}."
            )
