"""A run made of shapes: models without weights, and the memory that they would need on devices that this machine need not have."""

from __future__ import annotations

import math
from types import SimpleNamespace

import jax

from stepreward import parallel
from stepreward.models import decoder, presets
from stepreward.rollout.checked import checked
from stepreward.rollout.pools import make_pool
from stepreward.training import backbones, preferring, setup

# The image processor's settings in the published folder of Qwen2.5-VL, except that small images are enlarged to 252 × 252 pixels.
_PROCESSOR = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2, "min_pixels": 252 * 252, "max_pixels": 12_845_056}


def abstract_parts(c, mesh, vocabulary: int, *, reads_images: bool = True) -> setup.Parts:
    """Returns the parts of a run made of shapes: without environments, tokenizer and weights.

    Args:
      mesh: a mesh of devices, or a `jax.sharding.AbstractMesh`.
      vocabulary: vocabulary size of a tiny preset, which has no tokenizer yet.
      reads_images: whether to reset environments to find the size of their pictures, on which programs depend.
    """
    backbones.check(c)
    parallel.check_rows(mesh, rollout__max_rows=c.rollout.max_rows, train__chunk_rows=c.train.chunk_rows)
    config = backbones.model_config(c, mesh, vocabulary)
    chat = SimpleNamespace(codec=SimpleNamespace(pad_id=0, vocab_size=config.vocab_size), stop_ids=(0,))
    reader = None
    if reads_images and config.vision is not None:
        with make_pool("inline", checked(setup.environment_factory(c)[0])) as pool:
            reader = setup.image_reader(config, _PROCESSOR, pool, c.rollout.max_image_tokens, c.rollout.max_prompt_tokens)
    collector = SimpleNamespace(reader=reader)
    graphdef = decoder.graph(config)
    return setup.Parts(
        None,
        None,
        chat,
        mesh,
        graphdef,
        config,
        collector,
        setup.make_method(c),
        setup.make_policy_loss(c),
        [],
        preferring.make_preference(c),
        abstract=True,
    )


def without_folders(c):
    """Returns the config without model paths for published presets, whose shapes are known without the folders."""
    c = c.copy_and_resolve_references()
    for group in (c.model, c.prm):
        if group.preset in presets.PRESETS:
            group.path = ""
    return c


def bytes_per_device(tree, seen: set[int] | None = None) -> float:
    """Returns the bytes that a tree of shapes with shardings takes on each device.

    Args:
      seen: ids of leaves that were counted before; they are not counted again, and new ones are added.
    """
    return sum(size for size, _ in _leaf_bytes(tree, set() if seen is None else seen))


def update_bytes(params) -> float:
    """Estimates the bytes per device that the TPU compiler reserves for an update, besides parameters and optimizer.

    Float32 weights need 14 bytes per parameter: two float32 sums of gradients, the new weights, and a bfloat16 copy for the passes.
    Bfloat16 weights need 9. Both numbers were fitted to the compiled updates in docs/tpu.md.
    """
    return sum(size / width * (14 if width >= 4 else 9) for size, width in _leaf_bytes(params, set()))


def _leaf_bytes(tree, seen: set[int]):
    """Yields the bytes per device and the bytes per element of every leaf that is not in `seen`."""
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.ShapeDtypeStruct) and id(leaf) not in seen:
            seen.add(id(leaf))
            shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
            yield math.prod(shape) * leaf.dtype.itemsize, leaf.dtype.itemsize
