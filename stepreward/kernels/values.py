"""The critic's loss, a group's return-to-go as a baseline, and the coefficient of a KL penalty. Arrays of any dtype; float32 results."""

from __future__ import annotations

import math

import chex
import jax
import jax.numpy as jnp

from stepreward.kernels.inputs import as_bool, select
from stepreward.kernels.masked import group_normalise, masked_var

Array = jax.Array


def clipped_value_loss(
    value_RxL: Array,
    value_old_RxL: Array,
    returns_RxL: Array,
    mask_RxL: Array,
    *,
    clip: float | None = 0.2,
    denominator: Array | float | None = None,
) -> tuple[Array, dict[str, Array]]:
    """Squared error of the critic, clipped around its earlier prediction.

    L = ½ · mean(max((V − G)², (clip(V, V_old − ε, V_old + ε) − G)²))

    Args:
      value_RxL: `[R, L]`, V in training.
      value_old_RxL: `[R, L]`, V when the advantages were computed.
      returns_RxL: `[R, L]`, the targets G; no gradient flows into them.
      mask_RxL: bool `[R, L]`: the action tokens, or the first one of each step for a critic of steps.
      clip: ε; None does not clip.
      denominator: number of True entries of the whole mini-batch when these rows are a part of it; None counts these.

    Returns:
      `(loss, metrics)`; metrics `value_clip_fraction` and `value_error` (mean (V − G)²) are means over the True entries, or their
      share of it with a `denominator`.

    Source: PPO implementations (TRL 0.10.1, `vf_coef` left to the caller).
    """
    chex.assert_rank([value_RxL, value_old_RxL, returns_RxL, mask_RxL], 2)
    chex.assert_equal_shape([value_RxL, value_old_RxL, returns_RxL, mask_RxL])
    mask_RxL = as_bool(mask_RxL)
    value, old, target = (select(mask_RxL, x) for x in (value_RxL, value_old_RxL, jax.lax.stop_gradient(returns_RxL)))
    error = (value - target) ** 2
    worst = error
    if clip is not None:
        worst = jnp.maximum(error, (jnp.clip(value, old - clip, old + clip) - target) ** 2)
    count = jnp.maximum(mask_RxL.sum(), 1) if denominator is None else denominator
    mean = lambda x: jnp.where(mask_RxL, x, 0.0).sum() / count
    metrics = {"value_clip_fraction": mean((worst > error).astype(jnp.float32)), "value_error": mean(error)}
    return 0.5 * mean(worst), jax.lax.stop_gradient(metrics)


def explained_variance(value: Array, returns: Array, mask: Array) -> Array:
    """1 − Var(G − V) / Var(G) over the True entries: 1 is perfect, 0 no better than a constant; 0 where G is constant."""
    chex.assert_equal_shape([value, returns, mask])
    value, returns = select(mask, value), select(mask, returns)
    total = masked_var(returns, mask, ddof=0)
    return jnp.where(total > 0, 1.0 - masked_var(returns - value, mask, ddof=0) / jnp.where(total > 0, total, 1.0), 0.0)


def leave_one_out_return_to_go(return_ExS: Array, group_id_E: Array, mask_ExS: Array, mask_E: Array) -> Array:
    """Return-to-go minus the mean return-to-go of the *other* episodes of the group at the same step.

    A_{i,t} = G_{i,t} − mean_{j≠i} G_{j,t}, where an episode that has ended counts with G = 0. The baseline does not depend on the
    episode's own actions, so it is unbiased even when the number of steps depends on the policy (centring per step and summing
    afterwards is not).

    Args:
      return_ExS: `[E, S]` returns-to-go.
      group_id_E: int32 `[E]` in `[0, E)`.
      mask_ExS: bool `[E, S]`, counted steps.
      mask_E: bool `[E]`, counted episodes.

    Returns:
      float32 `[E, S]`; 0 under the mask and for the only episode of a group.
    """
    chex.assert_rank([return_ExS, mask_ExS], 2)
    chex.assert_rank([group_id_E, mask_E], 1)
    return_ExS, mask_ExS = select(mask_ExS, return_ExS), as_bool(mask_ExS)
    column = lambda x_E: group_normalise(x_E, group_id_E, mask_E, num_groups=x_E.shape[0], scale="leave_one_out")
    return jnp.where(mask_ExS, jax.vmap(column, in_axes=1, out_axes=1)(return_ExS), 0.0)


def adaptive_kl_coefficient(coefficient: float, kl: float, *, target: float, horizon: float, episodes: int) -> float:
    """The next coefficient of a KL penalty: c · (1 + clip(KL / target − 1, −0.2, 0.2) · episodes / horizon); host floats.

    Args:
      coefficient: c ≥ 0.
      kl: mean over episodes of Σ over its action tokens of log π − log π_ref; NaN (nothing measured) leaves c as it is.
      target: the KL to hold, > 0.
      horizon: number of episodes over which the coefficient may change by 20 %.
      episodes: how many the estimate comes from.

    Source: Ziegler et al. 2019 (arXiv 1909.08593), section 2.2; TRL's `AdaptiveKLController`.
    """
    if target <= 0 or horizon <= 0:
        raise ValueError(f"target and horizon must be positive, not {target} and {horizon}")
    if math.isnan(kl):
        return coefficient
    return coefficient * (1.0 + min(max(kl / target - 1.0, -0.2), 0.2) * episodes / horizon)
