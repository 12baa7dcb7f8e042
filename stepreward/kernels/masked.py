"""Statistics of masked arrays: over everything, and over the units of each group.

Values under the mask may be anything, NaN included: they reach neither a result nor a gradient. Degrees of freedom,
eps, what counts as a unit and what a singleton gets are always arguments, because published code disagrees on each of
them.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

Array = jax.Array

SINGLETON = ("zero", "raw")


def _select(mask: Array, x: Array) -> Array:
    return jnp.where(mask, x, jnp.zeros((), x.dtype))


def _safe_sqrt(x: Array) -> Array:
    """√x with gradient 0, not infinity, at x = 0."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


def masked_mean(x: Array, mask: Array, axis: int | None = None) -> Array:
    """Mean over the True entries: Σ m·x / Σ m, and 0 where there is none.

    Args:
      x: float array of any shape.
      mask: bool, the shape of `x`.
      axis: the axis to reduce; None reduces all.
    """
    chex.assert_equal_shape([x, mask])
    return _select(mask, x).sum(axis) / jnp.maximum(mask.sum(axis), 1)


def masked_var(x: Array, mask: Array, *, ddof: int) -> Array:
    """Variance over the True entries: Σ m·(x − mean)² / (Σ m − ddof), and 0 where Σ m ≤ ddof. A scalar."""
    chex.assert_equal_shape([x, mask])
    centred = _select(mask, x - masked_mean(x, mask))
    return (centred**2).sum() / jnp.maximum(mask.sum() - ddof, 1)


def masked_std(x: Array, mask: Array, *, ddof: int) -> Array:
    """Square root of `masked_var`, with gradient 0 at zero variance. A scalar."""
    return _safe_sqrt(masked_var(x, mask, ddof=ddof))


def masked_whiten(x: Array, mask: Array, *, ddof: int = 1, eps: float = 1e-8) -> Array:
    """Shifts and scales the True entries to zero mean and unit variance: (x − mean) / √(var + eps); 0 under the mask.

    Args:
      x: float array of any shape.
      mask: bool, the shape of `x`.
      ddof: 1 divides the squared deviations by n − 1, 0 by n.
      eps: added to the variance.

    Source: `masked_whiten` of PPO implementations (ddof 1, eps 1e-8).
    """
    chex.assert_equal_shape([x, mask])
    scale = jax.lax.rsqrt(masked_var(x, mask, ddof=ddof) + eps)
    # Selected before the product: in the gradient of the scale, 0 · NaN would be NaN.
    return _select(mask, x - masked_mean(x, mask)) * scale


def group_sum(x: Array, group_id: Array, mask: Array, num_groups: int) -> Array:
    """Sums the True entries of each group; `x`, `group_id` and `mask` share any one shape. Returns `[num_groups]`."""
    chex.assert_equal_shape([x, group_id, mask])
    ids = jnp.where(mask, group_id, num_groups).reshape(-1)
    return jax.ops.segment_sum(_select(mask, x).reshape(-1), ids, num_segments=num_groups + 1)[:num_groups]


def group_statistics(
    x: Array, group_id: Array, mask: Array, *, num_groups: int, ddof: int, weight: Array | None = None
) -> tuple[Array, Array, Array]:
    """Mean, standard deviation and number of counted units of each unit's own group.

    mean = Σ w·x / n, std = √(Σ w·(x − mean)² / (n − ddof)), n = Σ w, over the units of the group.

    Args:
      x: float array of any shape: one entry a unit (episodes `[E]`, steps `[E, S]`, tokens `[R, L]`).
      group_id: int32 in `[0, num_groups)`, the shape of `x`.
      mask: bool, the shape of `x`; False units belong to no group.
      num_groups: static upper bound on the number of groups.
      ddof: 1 is the unbiased estimate, 0 the population's.
      weight: how much each unit counts, ≥ 0, the shape of `x`; None counts every unit once. With a weight of 1 on the
        first step of each episode and 0 elsewhere, or with 1 / (units of the episode), an episode counts once.

    Returns:
      `(mean, std, n)`, each of the shape of `x`; std is 0 where n ≤ ddof.
    """
    chex.assert_equal_shape([x, group_id, mask])
    x = _select(mask, x.astype(jnp.float32))
    weight = mask.astype(jnp.float32) if weight is None else _select(mask, weight.astype(jnp.float32))
    counted = mask & (weight > 0)
    n_G = group_sum(weight, group_id, counted, num_groups)
    # Statistics are taken around the group's maximum, so that a group of equal values has a variance of exactly zero:
    # otherwise rounding, divided by a std of the same size, would look like an advantage.
    ids = jnp.where(counted, group_id, num_groups).reshape(-1)
    origin_G = jax.ops.segment_max(x.reshape(-1), ids, num_segments=num_groups + 1)[:num_groups]
    origin_G = jax.lax.stop_gradient(jnp.where(n_G > 0, origin_G, 0.0))
    offset = x - origin_G[group_id]
    offset_mean_G = group_sum(weight * offset, group_id, counted, num_groups) / jnp.where(n_G > 0, n_G, 1.0)
    deviation = offset - offset_mean_G[group_id]
    square_G = group_sum(weight * deviation**2, group_id, counted, num_groups)
    std_G = _safe_sqrt(jnp.where(n_G > ddof, square_G / jnp.where(n_G > ddof, n_G - ddof, 1.0), 0.0))
    return (origin_G + offset_mean_G)[group_id], std_G[group_id], n_G[group_id]


def group_normalise(
    x: Array,
    group_id: Array,
    mask: Array,
    *,
    num_groups: int,
    scale: str,
    ddof: int = 1,
    eps: float = 1e-6,
    weight: Array | None = None,
    singleton: str = "zero",
) -> Array:
    """Compares each unit with the units of its group.

    d = x − mean_group.
    "none": d.
    "std": d / (std_group + eps).
    "leave_one_out": n / (n − 1) · d, which for unit weights is x minus the mean of the *others*.

    Args:
      x, group_id, mask, num_groups, weight: as in `group_statistics`.
      scale: "none", "std" or "leave_one_out".
      ddof: degrees of freedom taken from the std; read by "std" only.
      eps: added to the std; read by "std" only.
      singleton: what the units of a group with n ≤ 1 get: "zero", or "raw", their own x (verl's choice).

    Returns:
      float32 array of the shape of `x`; 0 under the mask, and exactly 0 for equal values (unless a raw singleton). With
      "std" a group whose counted units are all equal gets 0 throughout.

    Raises:
      ValueError: on an unknown `scale` or `singleton`.
    """
    if scale not in ("none", "std", "leave_one_out"):
        raise ValueError(f"scale must be 'none', 'std' or 'leave_one_out', not {scale!r}")
    if singleton not in SINGLETON:
        raise ValueError(f"singleton must be one of {SINGLETON}, not {singleton!r}")
    mean, std, n = group_statistics(x, group_id, mask, num_groups=num_groups, ddof=ddof, weight=weight)
    x = _select(mask, x.astype(jnp.float32))
    deviation = x - mean
    if scale == "std":
        # Equal counted units deviate by exactly 0; uncounted ones must not be divided by eps alone.
        deviation = jnp.where(std > 0, deviation / (std + eps), 0.0)
    elif scale == "leave_one_out":
        deviation = deviation * n / jnp.maximum(n - 1, 1)
    # n sums fractional weights, so "one" needs a tolerance.
    result = jnp.where(n > 1.5, deviation, x if singleton == "raw" else 0.0)
    return _select(mask, result)
