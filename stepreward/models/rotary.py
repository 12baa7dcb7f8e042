"""Rotary position embedding, with the frequency scaling of Llama 3.1."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """The frequency scaling of Llama 3.1, with L the original context length in tokens.

    Wavelengths above L / low_frequency_factor are multiplied by `factor`, those below L / high_frequency_factor are unchanged, and
    frequencies between are interpolated.
    """

    factor: float = 8.0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_length: int = 8192


def rotary_angles(
    positions: Array, head_dim: int, theta: float, scaling: RopeScaling | None, mrope_sections: tuple[int, int, int] | None = None
) -> tuple[Array, Array]:
    """Returns cos and sin, fp32 `[B, T, head_dim / 2]`, of position · θ^(−2i/head_dim).

    Args:
      positions: int `[B, T]`, or `[3, B, T]` with the time, row and column of each token (M-RoPE). Channel pair i is then rotated by
        the position of the section that contains i. If the three positions agree, as they do for text, the result is that of `[B, T]`.
      head_dim: H, the head width.
      theta: θ, the base of the frequencies.
      scaling: the frequency scaling of Llama 3.1, or None.
      mrope_sections: how many of the head_dim / 2 pairs belong to time, row and column, such as (16, 24, 24).

    Raises:
      ValueError: if positions are `[3, B, T]` and the sections are missing or do not add up to head_dim / 2.
    """
    frequency = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if scaling is not None:
        wavelength = 2 * math.pi / frequency
        ratio = scaling.original_length / wavelength
        smooth = (ratio - scaling.low_frequency_factor) / (scaling.high_frequency_factor - scaling.low_frequency_factor)
        smooth = np.clip(smooth, 0.0, 1.0)
        frequency = (1 - smooth) * frequency / scaling.factor + smooth * frequency
    angle = positions[..., None].astype(jnp.float32) * jnp.asarray(frequency, jnp.float32)
    if positions.ndim == 3:
        if mrope_sections is None or sum(mrope_sections) * 2 != head_dim:
            raise ValueError(f"mrope_sections={mrope_sections} must add up to head_dim / 2 = {head_dim // 2} to place images.")
        ends = np.cumsum(mrope_sections)
        parts = zip(angle, ends, mrope_sections)
        angle = jnp.concatenate([of_axis[..., end - size : end] for of_axis, end, size in parts], axis=-1)
    return jnp.cos(angle), jnp.sin(angle)


def apply_rotary(x_BxNxTxH: Array, angles: tuple[Array, Array]) -> Array:
    """Rotates channels i and i + H/2 as a pair (the Hugging Face layout) by the angle of the token's position."""
    cos, sin = (a[:, None] for a in angles)
    first, second = jnp.split(x_BxNxTxH.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BxNxTxH.dtype)
