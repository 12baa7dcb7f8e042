"""Model presets: tiny shapes for training from scratch on a CPU, whose vocabulary is the tokenizer's, and published shapes.

The tiny vision presets are Qwen2.5-VL at toy size: a tower, M-RoPE, and biases on queries, keys and values. They do not resize
images; 16 × 16 pixels become one embedding.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from stepreward.errors import did_you_mean
from stepreward.models.decoder import DecoderConfig
from stepreward.models.rotary import RopeScaling
from stepreward.models.tokenizer import PLACEHOLDER_ID
from stepreward.models.vision import VisionConfig


def _tiny(layers: int, width: int, heads: int, mlp: int) -> DecoderConfig:
    return DecoderConfig(
        vocab_size=0, num_layers=layers, embed_dim=width, num_heads=heads, num_kv_heads=heads, head_dim=width // heads, mlp_dim=mlp
    )


def _tiny_vision(decoder: DecoderConfig, tower: VisionConfig) -> DecoderConfig:
    time, side = decoder.head_dim // 8, 3 * decoder.head_dim // 16  # 1/4, 3/8 and 3/8 of the channel pairs, as published
    return dataclasses.replace(decoder, qkv_bias=True, mrope_sections=(time, side, side), vision=tower)


def _tower(depth: int, width: int, heads: int, mlp: int, out: int, patch: int) -> VisionConfig:
    """A tower whose last layer attends to the whole image and whose other layers attend within windows of 2 × 2 embeddings."""
    return VisionConfig(
        depth,
        width,
        heads,
        mlp,
        out,
        full_attention_layers=(depth - 1,),
        patch_size=patch,
        merge=16 // patch,
        temporal_patch=1,
        window_size=32,
        image_token_id=PLACEHOLDER_ID,
    )


def _qwen25(layers: int, width: int, heads: int, kv_heads: int, head_dim: int, mlp: int, vocab: int, tied: bool) -> DecoderConfig:
    return DecoderConfig(
        vocab, layers, width, heads, kv_heads, head_dim, mlp, rope_theta=1e6, qkv_bias=True, tie_embeddings=tied, scan_layers=True
    )


def _llama(layers: int, width: int, heads: int, mlp: int, factor: float, tied: bool) -> DecoderConfig:
    return DecoderConfig(
        128_256,
        layers,
        width,
        heads,
        8,
        128,
        mlp,
        rope_theta=5e5,
        rope_scaling=RopeScaling(factor=factor),
        tie_embeddings=tied,
        norm_eps=1e-5,
        scan_layers=True,
    )


TINY = {
    "tiny-micro": _tiny(1, 16, 2, 32),  # tests
    "tiny-0.1m": _tiny(2, 64, 2, 128),
    "tiny-0.5m": _tiny(3, 128, 4, 256),
    "tiny-2m": _tiny(6, 192, 6, 384),
    "tiny-vision-micro": _tiny_vision(_tiny(1, 16, 1, 32), _tower(2, 8, 1, 16, 16, patch=8)),  # tests
    "tiny-vision": _tiny_vision(_tiny(2, 64, 2, 128), _tower(1, 64, 2, 128, 64, patch=16)),
}
PUBLISHED = {
    "qwen2.5-0.5b": _qwen25(24, 896, 14, 2, 64, 4864, 151_936, True),
    "qwen2.5-1.5b": _qwen25(28, 1536, 12, 2, 128, 8960, 151_936, True),
    "qwen2.5-7b": _qwen25(28, 3584, 28, 4, 128, 18_944, 152_064, False),
    "llama3.2-3b": _llama(28, 3072, 24, 8192, 32.0, True),
    "llama3.1-8b": _llama(32, 4096, 32, 14_336, 8.0, False),
}
PUBLISHED["smollm2-135m"] = DecoderConfig(
    49_152, 30, 576, 9, 3, 64, 1536, rope_theta=1e5, tie_embeddings=True, norm_eps=1e-5, scan_layers=True
)
_VISION = VisionConfig(depth=32, embed_dim=1280, num_heads=16, mlp_dim=3420, out_dim=3584, full_attention_layers=(7, 15, 23, 31))
PUBLISHED["qwen2.5-vl-7b"] = dataclasses.replace(PUBLISHED["qwen2.5-7b"], mrope_sections=(16, 24, 24), vision=_VISION)
PRESETS = TINY | PUBLISHED
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def decoder_config(
    preset: str,
    *,
    vocab_size: int | None = None,
    compute_dtype: str = "float32",
    param_dtype: str = "float32",
    remat: str = "none",
    **changes,
) -> DecoderConfig:
    """The config of a model preset.

    Args:
      preset: a key of `PRESETS`.
      vocab_size: vocabulary size of a tiny preset's tokenizer; ignored for a published preset, which has its own.
      compute_dtype, param_dtype: keys of `DTYPES`.
      remat: see `DecoderConfig`.
      **changes: further fields of `DecoderConfig`.

    Raises:
      ValueError: if the preset or a dtype is unknown.
    """
    check_known("model.preset", preset, PRESETS)
    shape = PRESETS[preset]
    if preset in TINY:
        changes["vocab_size"] = vocab_size
    return dataclasses.replace(shape, compute_dtype=dtype(compute_dtype), param_dtype=dtype(param_dtype, "param"), remat=remat, **changes)


def dtype(name: str, of: str = "compute"):
    """Returns a dtype by its name in the config, a key of `DTYPES`."""
    check_known(f"model.{of}_dtype", name, DTYPES)
    return DTYPES[name]


def check_known(key: str, name: str, known) -> None:
    """Raises ValueError if the value of a config key is not one of the known names."""
    if name not in known:
        raise ValueError(f"{key}={name!r} is unknown{did_you_mean(name, known)}; choose one of {', '.join(known)}.")
