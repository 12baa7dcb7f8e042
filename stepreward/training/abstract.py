"""A run made of shapes: its models without weights, and how much memory they take, on machines that need not be there."""

from __future__ import annotations

import math
from types import SimpleNamespace

import jax

from stepreward import parallel
from stepreward.models import decoder, presets
from stepreward.rollout.checked import checked
from stepreward.rollout.pools import make_pool
from stepreward.training import backbones, setup

# How the published folder of Qwen2.5-VL cuts pictures; small ones are enlarged to 252 × 252 pixels, as the paper shows them.
_PROCESSOR = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2, "min_pixels": 252 * 252, "max_pixels": 12_845_056}


def abstract_parts(c, mesh, vocabulary: int, *, reads_images: bool = True) -> setup.Parts:
    """The parts of a run of shapes: no environment, no tokenizer, no weights.

    Args:
      mesh: a mesh of devices, or a `jax.sharding.AbstractMesh`.
      vocabulary: of a tiny preset, whose tokenizer is not made here.
      reads_images: whether the environment is asked for the size of its pictures, which programs depend on.
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
        None, None, chat, mesh, graphdef, config, collector, setup.make_method(c), setup.make_policy_loss(c), [], abstract=True
    )


def without_folders(c):
    """The config with its published models' shapes taken from their presets, so that no folder is needed."""
    c = c.copy_and_resolve_references()
    for group in (c.model, c.prm):
        if group.preset in presets.PRESETS:
            group.path = ""
    return c


def bytes_per_device(tree, seen: set[int] | None = None) -> float:
    """Of a tree of shapes with shardings; a leaf counts once for each set `seen`."""
    return sum(size for size, _ in _leaf_bytes(tree, set() if seen is None else seen))


def update_bytes(params) -> float:
    """What an update of these parameters takes of a device besides them and their optimizer, as the TPU compiler reserves it.

    Over float32 weights it is 14 bytes a parameter: two sums of gradients in float32, the new weights, and a copy in bfloat16 that the
    passes read. Over bfloat16 weights it is 9. Both were fitted to the compiled updates in docs/tpu.md.
    """
    return sum(size / width * (14 if width >= 4 else 9) for size, width in _leaf_bytes(params, set()))


def _leaf_bytes(tree, seen: set[int]):
    """Bytes a device, and bytes of one number, of every leaf that was not seen before."""
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.ShapeDtypeStruct) and id(leaf) not in seen:
            seen.add(id(leaf))
            shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
            yield math.prod(shape) * leaf.dtype.itemsize, leaf.dtype.itemsize
