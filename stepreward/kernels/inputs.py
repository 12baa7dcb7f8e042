"""Input conversion shared by all kernels: numbers become float32, masks become bool, and masked values are replaced.

Kernels compute in float32 for any input dtype (bfloat16, float16, integers, bool), because bfloat16 is too coarse for the sums and
differences in a loss. Masked values are replaced before any computation, because 0 · NaN is NaN in a gradient.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

Array = jax.Array


def as_float32(x: Array) -> Array:
    """Converts an array to float32; gradients have the dtype of `x`."""
    return jnp.asarray(x, jnp.float32)


def as_bool(mask: Array) -> Array:
    """Converts a mask to bool; every nonzero number is True."""
    return jnp.asarray(mask, bool)


def select(mask: Array, x: Array) -> Array:
    """Returns `x` in float32 where the mask is True, and 0 elsewhere. Masked entries affect neither values nor gradients."""
    return jnp.where(as_bool(mask), as_float32(x), 0.0)


def where_known(function: Callable[[Array], Array], x: Array) -> Array:
    """Applies `function` elementwise; where `x` is NaN, the result is NaN and the gradient is 0.

    Kernels without a mask need it: their caller masks the result, which removes a NaN from the value but not from the
    gradient.
    """
    x = as_float32(x)
    known = ~jnp.isnan(x)
    return jnp.where(known, function(jnp.where(known, x, 0.0)), jnp.nan)
