"""RMSNorm, the normalisation of the decoder and the vision tower."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

Array = jax.Array


class RMSNorm(nnx.Module):
    """y = x / sqrt(mean(x²) + ε) · scale, computed in fp32."""

    def __init__(self, width: int, eps: float, dtype=jnp.float32):
        self.scale = nnx.Param(jnp.ones((width,), dtype))
        self.eps = eps

    def __call__(self, x: Array) -> Array:
        x32 = x.astype(jnp.float32)
        variance = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
        return (x32 * jax.lax.rsqrt(variance + self.eps) * self.scale[...].astype(jnp.float32)).astype(x.dtype)
