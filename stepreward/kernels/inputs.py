"""What every kernel does with its arrays first: numbers become float32, masks become bool, and masked values are replaced.

Kernels compute in float32 whatever they are given (bfloat16, float16, integers, bool), because sums and differences of bfloat16
numbers lose what a loss is about. Masked values are replaced before anything is computed from them: in a gradient 0 · NaN is NaN.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

Array = jax.Array


def as_float32(x: Array) -> Array:
    """The array in float32; gradients come back in the dtype of `x`."""
    return jnp.asarray(x, jnp.float32)


def as_bool(mask: Array) -> Array:
    """The mask as bool; any number but 0 is True."""
    return jnp.asarray(mask, bool)


def select(mask: Array, x: Array) -> Array:
    """`x` in float32 where the mask is True, and 0 elsewhere; no value or gradient passes the mask."""
    return jnp.where(as_bool(mask), as_float32(x), 0.0)


def where_known(function: Callable[[Array], Array], x: Array) -> Array:
    """`function(x)`, elementwise; where `x` is NaN, NaN with a gradient of 0.

    A kernel without a mask needs it: the mask is applied to its result later, which stops a NaN in the value but not in the
    gradient.
    """
    x = as_float32(x)
    known = ~jnp.isnan(x)
    return jnp.where(known, function(jnp.where(known, x, 0.0)), jnp.nan)
