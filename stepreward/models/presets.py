"""Model shapes by name. The tiny ones are for training from scratch on a CPU; their vocabulary is the tokenizer's."""

from __future__ import annotations

import dataclasses
import difflib

import jax.numpy as jnp

from stepreward.models.decoder import DecoderConfig


def _tiny(layers: int, width: int, heads: int, mlp: int) -> DecoderConfig:
    return DecoderConfig(
        vocab_size=0, num_layers=layers, embed_dim=width, num_heads=heads, num_kv_heads=heads, head_dim=width // heads, mlp_dim=mlp
    )


PRESETS = {
    "tiny-micro": _tiny(1, 16, 2, 32),  # tests
    "tiny-0.1m": _tiny(2, 64, 2, 128),
    "tiny-0.5m": _tiny(3, 128, 4, 256),
    "tiny-2m": _tiny(6, 192, 6, 384),
}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def decoder_config(preset: str, *, vocab_size: int, compute_dtype: str = "float32", remat: bool = False) -> DecoderConfig:
    """The shape of a model preset with a vocabulary of `vocab_size` tokens.

    Raises:
      ValueError: unknown preset or dtype; what exists is listed.
    """
    for name, known, label in ((preset, PRESETS, "model.preset"), (compute_dtype, DTYPES, "model.compute_dtype")):
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise ValueError(f"{label}={name!r} is unknown{hint}; there are: {', '.join(known)}.")
    shape = PRESETS[preset]
    return dataclasses.replace(shape, vocab_size=vocab_size, compute_dtype=DTYPES[compute_dtype], remat=remat)
