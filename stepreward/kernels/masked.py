"""Statistics of masked arrays, over all entries or over the units of each group.

Masked values, NaN included, affect neither results nor gradients. Degrees of freedom, eps, the weight of a unit and the result for
a singleton are always arguments, because published code disagrees on each of them.

Means and deviations are computed relative to a member of the group, the one nearest to a first estimate of the mean. So values far
from zero that differ only in their last bits keep their differences, equal values deviate by exactly 0, and one outlier does not
round away the others. All results are float32, whatever the input dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from stepreward.kernels.inputs import as_bool, as_float32, select

Array = jax.Array

SINGLETON = ("zero", "raw")
_PARTS = 128  # parts of the largest magnitude: see `_Scope.total`


class _Scope(NamedTuple):
    """Reductions over the units that are compared with each other.

    Attributes:
      sum, least, largest: map an array to its reductions, at every unit or in a shape that broadcasts.
    """

    sum: Callable[[Array], Array]
    least: Callable[[Array], Array]
    largest: Callable[[Array], Array]

    def total(self, x: Array) -> Array:
        """Returns Σ x without losing small terms beside a large one.

        In float32, a running sum of 10⁶ is a multiple of 1/16, so adding small terms to it rounds each of them. This method splits
        each term into a whole multiple of a part of the largest term, and a remainder. The multiples add up exactly, and the
        remainders are small.
        """
        size = jax.lax.stop_gradient(self.largest(jnp.abs(x)))
        part = jnp.where(size > 0, size, 1.0) / _PARTS
        whole = jax.lax.stop_gradient(jnp.round(x / part))
        return part * self.sum(whole) + self.sum(x - whole * part)


class _Moments(NamedTuple):
    """Deviations, mean and total weight, in shapes that broadcast to that of the units."""

    deviation: Array
    mean: Array
    n: Array


def _everything(axis: int | None) -> _Scope:
    return _Scope(
        lambda x: x.sum(axis, keepdims=True),
        lambda x: x.min(axis, keepdims=True, initial=jnp.inf),
        lambda x: x.max(axis, keepdims=True, initial=-jnp.inf),
    )


def _each_group(group_id: Array, num_groups: int) -> _Scope:
    """Reduces over each group. Units with the id `num_groups` belong to no group and get 0 (or an infinity)."""
    ids = group_id.reshape(-1)
    over = lambda reduce: lambda x: reduce(x.reshape(-1), ids, num_segments=num_groups + 1)[group_id]
    return _Scope(over(jax.ops.segment_sum), over(jax.ops.segment_min), over(jax.ops.segment_max))


def _moments(x: Array, mask: Array, weight: Array, scope: _Scope) -> _Moments:
    """Returns the mean over the units with positive weight, and the deviation of every True unit from it.

    Args:
      x: float32, 0 under the mask.
      mask: bool.
      weight: float32 ≥ 0, 0 under the mask.
    """
    counted = weight > 0
    n = scope.sum(weight)
    safe_n = jnp.where(n > 0, n, 1.0)
    fixed = jax.lax.stop_gradient(x)
    distance = jnp.where(counted, jnp.abs(fixed - scope.sum(weight * fixed) / safe_n), jnp.inf)
    origin = scope.largest(jnp.where(counted & (distance == scope.least(distance)), fixed, -jnp.inf))
    origin = jnp.where(jnp.isfinite(origin), origin, 0.0)
    offset = jnp.where(mask, x - origin, 0.0)
    offset_mean = scope.total(weight * offset) / safe_n
    return _Moments(jnp.where(mask, offset - offset_mean, 0.0), origin + offset_mean, n)


@partial(jax.jit, static_argnums=2)  # compiles once per shape, also when called outside jit
def _masked_moments(x: Array, mask: Array, axis: int | None = None) -> _Moments:
    chex.assert_equal_shape([x, mask])
    mask = as_bool(mask)
    return _moments(select(mask, x), mask, as_float32(mask), _everything(axis))


def _safe_sqrt(x: Array) -> Array:
    """Returns √x, with gradient 0 instead of infinity at x = 0."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


def masked_mean(x: Array, mask: Array, axis: int | None = None) -> Array:
    """Mean over the True entries: Σ m·x / Σ m, or 0 if there are none. The mean of equal values is exactly that value.

    Args:
      x: array of any shape and dtype.
      mask: bool, the shape of `x`.
      axis: the axis to reduce; None reduces all axes.

    Returns:
      float32.
    """
    mean = _masked_moments(x, mask, axis).mean
    return mean.reshape(()) if axis is None else mean.squeeze(axis)


def masked_var(x: Array, mask: Array, *, ddof: int) -> Array:
    """Variance over the True entries: Σ m·(x − mean)² / max(Σ m − ddof, 1). Returns a float32 scalar."""
    deviation, _, n = _masked_moments(x, mask)
    return _variance(deviation, n.reshape(()), ddof)


def _variance(deviation: Array, n: Array, ddof: int) -> Array:
    return (deviation**2).sum() / jnp.maximum(n - ddof, 1)


def masked_std(x: Array, mask: Array, *, ddof: int) -> Array:
    """Square root of `masked_var`, with gradient 0 at zero variance. Returns a float32 scalar."""
    return _safe_sqrt(masked_var(x, mask, ddof=ddof))


def masked_whiten(x: Array, mask: Array, *, ddof: int = 1, eps: float = 1e-8) -> Array:
    """Shifts and scales the True entries to zero mean and unit variance: (x − mean) / √(var + eps); 0 elsewhere.

    Equal entries get exactly 0.

    Args:
      x: array of any shape and dtype.
      mask: bool, the shape of `x`.
      ddof: 1 divides the squared deviations by n − 1, 0 by n.
      eps: added to the variance.

    Returns:
      float32, the shape of `x`.

    Source: `masked_whiten` of PPO implementations (ddof 1, eps 1e-8).
    """
    deviation, _, n = _masked_moments(x, mask)
    return deviation * jax.lax.rsqrt(_variance(deviation, n.reshape(()), ddof) + eps)


def weighted_whiten(x: Array, weight: Array, *, ddof: int = 1, eps: float = 1e-8) -> Array:
    """`masked_whiten` of an array with `weight[i]` copies of each `x[i]`: (x − mean) / √(var + eps); 0 where the weight is 0.

    Args:
      x: array of any shape and dtype; values with weight 0 are ignored.
      weight: weight of each value, ≥ 0, the shape of `x`.
      ddof: 1 divides the squared deviations by Σ weight − 1, 0 by Σ weight.
      eps: added to the variance.

    Returns:
      float32, the shape of `x`.
    """
    chex.assert_equal_shape([x, weight])
    weight = as_float32(weight)
    mask = weight > 0
    deviation, _, n = _moments(select(mask, x), mask, weight, _everything(None))
    variance = (weight * deviation**2).sum() / jnp.maximum(n.reshape(()) - ddof, 1)
    return deviation * jax.lax.rsqrt(variance + eps)


def group_sum(x: Array, group_id: Array, mask: Array, num_groups: int) -> Array:
    """Sums the True entries of each group; `x`, `group_id` and `mask` have the same shape. Returns float32 `[num_groups]`."""
    chex.assert_equal_shape([x, group_id, mask])
    ids = jnp.where(as_bool(mask), group_id, num_groups).reshape(-1)
    return jax.ops.segment_sum(select(mask, x).reshape(-1), ids, num_segments=num_groups + 1)[:num_groups]


def group_statistics(
    x: Array, group_id: Array, mask: Array, *, num_groups: int, ddof: int, weight: Array | None = None
) -> tuple[Array, Array, Array]:
    """Mean, standard deviation and total weight of the group of each unit.

    mean = Σ w·x / n, std = √(Σ w·(x − mean)² / (n − ddof)), n = Σ w, over the units of the group.

    Args:
      x: array of any shape and dtype, with one entry per unit (episodes `[E]`, steps `[E, S]`, tokens `[R, L]`).
      group_id: int32 in `[0, num_groups)`, the shape of `x`; ignored where the mask is False.
      mask: bool, the shape of `x`; units with False belong to no group.
      num_groups: static upper bound on the number of groups.
      ddof: 1 for the sample estimate, 0 for the population.
      weight: weight of each unit, ≥ 0, the shape of `x`; None weights every unit by 1. To count each episode once, set the weight to
        1 on its first step and 0 elsewhere, or to 1 / (number of its units).

    Returns:
      `(mean, std, n)`, each float32 with the shape of `x`, and 0 where the mask is False; std is 0 where n ≤ ddof. The mean is
      rounded, so x − mean is inexact; `group_normalise` computes exact deviations.
    """
    (_, mean, n), std = _group_moments(x, group_id, mask, num_groups, ddof, weight)
    return mean, std, n


@partial(jax.jit, static_argnums=(3, 4))
def _group_moments(x, group_id, mask, num_groups: int, ddof: int, weight) -> tuple[_Moments, Array]:
    """Returns the moments and std of each unit's group, in the shape of `x`."""
    chex.assert_equal_shape([x, group_id, mask])
    mask = as_bool(mask)
    weight = as_float32(mask) if weight is None else select(mask, weight)
    scope = _each_group(jnp.where(mask, group_id, num_groups), num_groups)
    deviation, mean, n = _moments(select(mask, x), mask, weight, scope)
    square = scope.sum(weight * deviation**2)
    std = _safe_sqrt(jnp.where(n > ddof, square / jnp.where(n > ddof, n - ddof, 1.0), 0.0))
    return _Moments(deviation, jnp.where(mask, mean, 0.0), n), std


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
    """Compares each unit with its group.

    d = x − mean_group.
    "none": d.
    "std": d / (std_group + eps).
    "leave_one_out": n / (n − 1) · d, which for unit weights is x minus the mean of the *others*.

    Args:
      x, group_id, mask, num_groups, weight: as in `group_statistics`.
      scale: "none", "std" or "leave_one_out".
      ddof: the std divides by n − ddof; used only by "std".
      eps: added to the std; used only by "std".
      singleton: result for the units of a group with n ≤ 1: "zero", or "raw" for x itself (as in verl).

    Returns:
      float32 array with the shape of `x`: 0 where the mask is False, and exactly 0 for equal values (except raw singletons). With
      "std", a group whose units with positive weight are all equal gets 0 everywhere.

    Raises:
      ValueError: an unknown `scale` or `singleton`.
    """
    if scale not in ("none", "std", "leave_one_out"):
        raise ValueError(f"scale must be 'none', 'std' or 'leave_one_out', not {scale!r}")
    if singleton not in SINGLETON:
        raise ValueError(f"singleton must be one of {SINGLETON}, not {singleton!r}")
    (deviation, _, n), std = _group_moments(x, group_id, mask, num_groups, ddof, weight)
    if scale == "std":
        # If the std is 0, units with positive weight deviate by exactly 0. Units with weight 0 must not be divided by eps alone.
        deviation = jnp.where(std > 0, deviation / jnp.where(std > 0, std + eps, 1.0), 0.0)
    elif scale == "leave_one_out":
        deviation = deviation * n / jnp.maximum(n - 1, 1)
    # n is a sum of fractional weights, so comparing it with 1 needs a tolerance.
    return select(mask, jnp.where(n > 1.5, deviation, select(mask, x) if singleton == "raw" else 0.0))
