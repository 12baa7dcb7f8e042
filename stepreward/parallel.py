"""Device mesh and where arrays live on it: one table from logical axes to mesh axes.

The mesh has the axes `data`, `fsdp` and `tensor`. Rows of tokens are split over `data` and `fsdp`; a parameter's axis named in
the table is split over those mesh axes where its size divides, and is copied otherwise. With several processes the devices stand
in the order of their processes, so that the rows of each are one block.

Two tables: in training a weight is split over `fsdp` along the width and gathered layer by layer; in decoding, where a pass is
one token a row, it is split along what it does not contract with the residual stream, stays where it is, and the rows travel.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from stepreward import processes

MESH_AXES = ("data", "fsdp", "tensor")

# Logical axis -> mesh axes. "vocab" is split widest: a row of hidden states is smaller than a slice of the vocabulary's head.
# Beside it, in logits, rows are "vocab_rows".
TRAINING = {
    "rows": ("data", "fsdp"), "vocab_rows": ("data",), "embed": ("fsdp",), "attention_out": ("fsdp",), "mlp_out": ("fsdp",),
    "heads": ("tensor",), "kv_heads": ("tensor",), "head_dim": (), "mlp": ("tensor",), "vocab": ("fsdp", "tensor"),
}  # fmt: skip
DECODING = TRAINING | {"embed": (), "mlp_out": (), "head_dim": ("fsdp",), "mlp": ("fsdp", "tensor")}

# Last name in a parameter's path -> logical axes of its inputs and of its outputs. Stacked layers have one axis more in front;
# an adapter's A has the inputs and the rank, its B the rank and the outputs.
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
    # Of a vision tower only; its other matrices bear the names above.
    "patch_embedding": ((None,), ("mlp_out",)),
    "qkv": (("embed",), (None, "heads", "head_dim")),
    "qkv_bias": ((), (None, "heads", "head_dim")),
}


def make_mesh(data: int = 1, fsdp: int = 1, tensor: int = 1, devices=None) -> Mesh:
    """A mesh of `data × fsdp × tensor` devices; `data=-1` takes all that the others leave.

    Args:
      devices: to take them from; None: those of this machine.

    Raises:
      ValueError: there are not that many devices, or they do not divide, also not among processes.
    """
    devices = sorted(jax.devices(), key=lambda device: device.process_index) if devices is None else devices
    if data == -1:
        if len(devices) % (fsdp * tensor):
            raise ValueError(f"{len(devices)} devices do not divide by mesh.fsdp × mesh.tensor = {fsdp * tensor}.")
        data = len(devices) // (fsdp * tensor)
    shape = (data, fsdp, tensor)
    if min(shape) < 1 or math.prod(shape) > len(devices):
        raise ValueError(
            f"a mesh of {data} × {fsdp} × {tensor} (data, fsdp, tensor) needs {math.prod(shape)} devices; {len(devices)} are there."
        )
    taken = np.array(devices[: math.prod(shape)]).reshape(shape)
    if processes.count() > 1:
        processes.check_blocks(np.vectorize(lambda device: device.process_index)(taken), processes.count())
    return Mesh(taken, MESH_AXES)


def row_sharding(mesh: Mesh) -> NamedSharding:
    """Arrays whose first axis is rows of tokens."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    """Arrays that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def parameter_sharding(tree, mesh: Mesh, table: dict[str, tuple[str, ...]] = TRAINING):
    """The sharding of every leaf of a tree of parameters (or of optimizer state, whose leaves bear the same names)."""

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
    """The sharding of an array whose axes have these logical names (None: whole)."""
    split = [None if axis is None else _split(mesh, table[axis], size) for axis, size in zip(axes, shape)]
    while split and split[-1] is None:
        split.pop()
    return NamedSharding(mesh, PartitionSpec(*split))


def _split(mesh: Mesh, mesh_axes: tuple[str, ...], size: int):
    """The mesh axes to split over: those that divide. One of a single device is left out, and a tuple of one is its member: jit
    gives every layout one name only if each has one name."""
    kept = [axis for axis in mesh_axes if mesh.shape[axis] > 1]
    while kept and size % math.prod(mesh.shape[axis] for axis in kept):
        kept.pop()
    return (tuple(kept) if len(kept) > 1 else kept[0]) if kept else None


def constrain(x: jax.Array, mesh: Mesh | None, *axes: str | None, table: dict[str, tuple[str, ...]] = TRAINING) -> jax.Array:
    """Inside jit: says where an activation with these logical axes lies; axes that are not named are whole."""
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, named(mesh, axes, x.shape, table))


def place_parameters(tree, mesh: Mesh):
    """Puts parameters or optimizer state on the mesh, laid out for training."""
    return place(tree, parameter_sharding(tree, mesh))


# --- Arrays, or only their shapes ---


def is_abstract(tree) -> bool:
    """Whether a tree is of shapes, `jax.ShapeDtypeStruct`, instead of arrays."""
    return any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(tree))


def place(tree, sharding):
    """Lays arrays out: those of the host, which every process holds whole, or those of devices. Shapes become those of arrays that
    lie so.

    Args:
      sharding: one for all, or a tree of them.
    """
    one = isinstance(sharding, NamedSharding)
    if is_abstract(tree):
        sharding = jax.tree.map(lambda _: sharding, tree) if one else sharding
        return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, sharding)
    if processes.count() == 1:
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda x: processes.place(x, sharding), tree) if one else jax.tree.map(processes.place, tree, sharding)


def copy(tree):
    """Every array once more; of shapes, others that stand for arrays of their own."""
    one = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) if is_abstract(x) else jnp.copy(x)
    return jax.tree.map(one, tree)


def compute(function, *trees, mesh: Mesh | None):
    """`function(*trees)`, compiled, with parameters as its result, laid out as such on the mesh; of shapes, their shapes."""
    if not is_abstract(trees):
        return function(*trees)
    shapes = jax.eval_shape(function, *trees)
    return shapes if mesh is None else place_parameters(shapes, mesh)


def check_rows(mesh: Mesh, **rows: int) -> None:
    """Raises ValueError when a number of rows does not divide over the mesh, naming its config key."""
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    for name, count in rows.items():
        if count % parts:
            raise ValueError(
                f"{name.replace('__', '.')}={count} must be a multiple of mesh.data × mesh.fsdp = {parts}: give {-(-count // parts) * parts}."
            )
