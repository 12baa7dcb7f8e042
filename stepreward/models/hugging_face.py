"""Loads the decoder's parameters from a Hugging Face model folder.

    hub = read_config(folder := find_folder("Qwen/Qwen2.5-1.5B-Instruct"))
    config = hub.decoder(compute_dtype=jnp.bfloat16)
    params = load_params(folder, config, mesh=mesh)

Each process reads only the slices that its devices hold, one tensor at a time. Axes are permuted and types converted on the
device. No file is unpickled, no code from a model folder runs, and the network is used only if the caller allows a download.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from stepreward.models.decoder import DecoderConfig, abstract_params
from stepreward.models.gguf_file import gguf_folder, is_gguf, open_checkpoint
from stepreward.models.hugging_face_config import HubConfig, read_config  # re-exported
from stepreward.models.hugging_face_tensors import (
    DECODER_TENSORS,
    NOT_PARAMETERS,
    Checkpoint,
    Layout,
    Parameter,
    Rule,
    match,
)
from stepreward.parallel import parameter_sharding

_DOWNLOADED = ["*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer.model"]
_COMPARED_BYTES = 64 * 2**20


def find_folder(name, *, allow_download: bool = False, revision: str | None = None) -> Path:
    """Finds the folder of a model: a local path, or the folder of a Hugging Face Hub model `owner/name` in the hub's local cache.

    Args:
      name: a folder, a GGUF file, `pip:NAME` for the GGUF file of an installed package, or the name of a model on the hub.
      allow_download: downloads a model that the cache lacks (configuration, tokenizer and safetensors only).
      revision: branch, tag or commit of the hub's repository.

    Raises:
      FileNotFoundError: if there is no such folder and no such model, or the download fails.
      UserError, ValueError: if a GGUF file cannot be read, see `gguf_file.gguf_folder`.
    """
    if is_gguf(name):
        return gguf_folder(name)
    if Path(name).is_dir():
        return Path(name)
    text = os.fspath(name)
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", text):
        raise FileNotFoundError(f"no model folder {text!r}")
    import huggingface_hub  # takes half a second to import, and only hub names need it

    try:
        return Path(
            huggingface_hub.snapshot_download(text, revision=revision, allow_patterns=_DOWNLOADED, local_files_only=not allow_download)
        )
    except Exception as error:  # the library raises its own errors, those of requests and those of the system
        reason = "it is not in the hub's local cache; download it first, or allow the download"
        if allow_download:
            reason = f"the download failed ({type(error).__name__}: {' '.join(str(error).split())})"
        raise FileNotFoundError(f"no model folder {text!r}, and no hub model of that name: {reason}.") from None


def load_params(
    folder_or_name,
    config: DecoderConfig,
    *,
    mesh: Mesh | None = None,
    dtype=None,
    allow_download: bool = False,
    revision: str | None = None,
) -> nnx.State:
    """Loads the decoder's parameters onto their devices.

    Args:
      folder_or_name: see `find_folder`.
      config: the decoder's config, as returned by `read_config(folder).decoder(…)`; its vocabulary size is the checkpoint's.
      mesh: the mesh that `parallel.parameter_sharding` spreads the parameters over; None uses the config's mesh, or the default
        device if it has none.
      dtype: dtype of the parameters; None keeps the dtype that `decoder.build` gives them.
      allow_download, revision: see `find_folder`.

    Returns:
      Parameters with the structure, shapes and dtypes of `decoder.build(config, …)[1]`, without adapters.

    Raises:
      FileNotFoundError: if there is no such model, it has no safetensors, or its index names a missing file.
      ValueError: if a file is damaged; if a tensor is missing, has the wrong shape or belongs to no parameter; or if a head that
        should be tied differs from the embedding.
    """
    checkpoint = open_checkpoint(find_folder(folder_or_name, allow_download=allow_download, revision=revision))
    abstract = abstract_params(dataclasses.replace(config, lora=None))
    found = match(abstract, rules_of(config))
    used = check(checkpoint, found)
    ignored = {"lm_head.weight"} if config.tie_embeddings else set()
    left = sorted(set(checkpoint.shapes) - used - ignored)
    left = [n for n in left if not NOT_PARAMETERS.search(n) and not (_is_text_part(config) and n.startswith("visual."))]
    if left:
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        raise ValueError(
            f"{str(checkpoint.folder)!r} holds tensors that the model in its config.json does not have: {left[0]}{more}; check that "
            "config.json and the safetensors files come from the same model."
        )
    if config.tie_embeddings:
        _check_tied(checkpoint)
    return fill(checkpoint, abstract, found, mesh=mesh or config.mesh, dtype=dtype)


def rules_of(config: DecoderConfig) -> tuple[Rule, ...]:
    """The rules that map each parameter of a decoder to its tensor, including those of the vision tower if it has one."""
    if getattr(config, "vision", None) is None:
        return DECODER_TENSORS
    from stepreward.models.vision import VISION_TENSORS

    return DECODER_TENSORS + tuple(Rule(*row) for row in VISION_TENSORS)


def load_tree(checkpoint: Checkpoint, abstract, rules: Iterable[Rule], *, mesh: Mesh | None = None, dtype=None) -> Any:
    """Loads any tree of parameters (such as a vision tower's) with its own table of rules. Other tensors are ignored.

    Args:
      checkpoint: the folder's tensors.
      abstract: a tree of shapes and dtypes.
      rules: the tensor of each leaf.
      mesh, dtype: see `load_params`.

    Raises:
      ValueError: if a tensor is missing or has the wrong shape, or a leaf has no rule.
    """
    found = match(abstract, rules)
    check(checkpoint, found)
    return fill(checkpoint, abstract, found, mesh=mesh, dtype=dtype)


def check(checkpoint: Checkpoint, found: list[Parameter]) -> set[str]:
    """Returns the names of the tensors of all parameters; raises ValueError if one is missing or has the wrong shape or type."""
    for parameter in found:
        for name in parameter.names:
            checkpoint.layout(parameter, name)
    return {name for parameter in found for name in parameter.names}


def fill(checkpoint: Checkpoint, abstract, found: list[Parameter], *, mesh: Mesh | None, dtype) -> Any:
    """Reads every tensor onto its devices, and returns a tree like `abstract`.

    The host holds this process's part of one tensor, and briefly of two, because the runtime frees the previous one later.
    """
    leaves, structure = jax.tree.flatten(abstract)
    if mesh is None:
        shardings = [SingleDeviceSharding(jax.config.jax_default_device or jax.local_devices()[0])] * len(leaves)
    else:
        shardings = jax.tree.leaves(parameter_sharding(abstract, mesh))
    arrays = []
    for leaf, parameter, sharding in zip(leaves, found, shardings, strict=True):
        target = jnp.dtype(dtype or leaf.dtype)
        array = _zeros(leaf.shape, target, sharding) if parameter.stacked else None
        for layer, name in enumerate(parameter.names):
            array = _place(array, layer, checkpoint, name, checkpoint.layout(parameter, name), target, sharding)
        arrays.append(array)
    return jax.tree.unflatten(structure, arrays)


def _place(stack: jax.Array | None, layer: int, checkpoint: Checkpoint, name: str, layout: Layout, dtype, sharding) -> jax.Array:
    """Reads a tensor into its layer of the stack, which is donated; without a stack, returns the tensor itself."""
    raw = _read(checkpoint, name, layout, _file_sharding(sharding, layout, stack is not None))
    settings = (layout.order, layout.ours, dtype.name, sharding)
    array = _convert(*settings)(raw) if stack is None else _insert(*settings)(stack, raw, layer)
    # Waiting keeps one tensor in flight; without it the host would queue slices faster than the devices copy them.
    return array.block_until_ready()


def _read(checkpoint: Checkpoint, name: str, layout: Layout, sharding) -> jax.Array:
    """A tensor in the file's type and axis order, each part on its device. Each process reads a part only once."""
    parts: dict[tuple, np.ndarray] = {}

    def part(index):
        key = tuple(s.indices(size)[:2] for s, size in zip(index, layout.fine))
        if key not in parts:
            parts[key] = layout.read(functools.partial(checkpoint.read, name), index)
        return parts[key]

    return jax.make_array_from_callback(layout.fine, sharding, part, dtype=checkpoint.dtypes[name])


def _file_sharding(sharding, layout: Layout, stacked: bool):
    """The sharding of the file's axes that matches ours, so that permuting axes moves no data between devices."""
    if not isinstance(sharding, NamedSharding):
        return sharding
    spec = tuple(sharding.spec)[int(stacked) :]
    spec += (None,) * (len(layout.ours) - len(spec))
    return NamedSharding(sharding.mesh, PartitionSpec(*layout.fine_spec(spec)))


@functools.cache
def _convert(order, shape, dtype, sharding):
    return jax.jit(lambda raw: raw.transpose(order).reshape(shape).astype(dtype), out_shardings=sharding)


@functools.cache
def _insert(order, shape, dtype, sharding):
    """Writes a layer into the stack, in place."""

    def insert(stack, raw, layer):
        return jax.lax.dynamic_update_index_in_dim(stack, raw.transpose(order).reshape(shape).astype(dtype), layer, 0)

    return jax.jit(insert, donate_argnums=0, out_shardings=sharding)


def _zeros(shape, dtype, sharding) -> jax.Array:
    return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)()


def _is_text_part(config: DecoderConfig) -> bool:
    """Whether this is the text part of a vision-language model, without its tower."""
    return getattr(config, "mrope_sections", None) is not None and config.vision is None


def _check_tied(checkpoint: Checkpoint) -> None:
    """Checks that a head stored in a tied checkpoint repeats the embedding; a different head would be dropped silently."""
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    if head not in checkpoint.shapes:
        return
    rows, width = checkpoint.shapes[embedding]
    block = max(1, _COMPARED_BYTES // (4 * width))
    boxes = [(slice(start, min(rows, start + block)), slice(0, width)) for start in range(0, rows, block)]
    same = checkpoint.shapes[head] == (rows, width) and all(
        np.array_equal(checkpoint.read(head, box), checkpoint.read(embedding, box)) for box in boxes
    )
    if not same:
        raise ValueError(
            f"{str(checkpoint.folder)!r}: config.json ties the head to the embedding, but lm_head.weight differs from the "
            "embedding; set tie_word_embeddings to false in config.json."
        )


__all__ = ["HubConfig", "check", "fill", "find_folder", "load_params", "load_tree", "read_config", "rules_of"]
