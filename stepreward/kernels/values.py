"""The critic's loss, a group's return-to-go as a baseline, and the coefficient of a KL penalty.

Arrays may have any dtype; results are float32.
"""

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
      value_RxL: `[R, L]`, the current V.
      value_old_RxL: `[R, L]`, V at the time when the advantages were computed.
      returns_RxL: `[R, L]`, the targets G; no gradient flows into them.
      mask_RxL: bool `[R, L]`: the action tokens, or the first one of each step for a step-level critic.
      clip: ε; None for no clipping.
      denominator: number of True entries of the whole mini-batch, if these rows are only a part of it; None counts those of these
        rows.

    Returns:
      `(loss, metrics)`. `value_clip_fraction` and `value_error` (mean (V − G)²) are sums over the True entries divided by the
      denominator, so those of micro-batches add up to the means of the mini-batch.

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
    """1 − Var(G − V) / Var(G) over the True entries: 1 is perfect, 0 is as good as a constant. Returns 0 if G is constant."""
    chex.assert_equal_shape([value, returns, mask])
    value, returns = select(mask, value), select(mask, returns)
    total = masked_var(returns, mask, ddof=0)
    return jnp.where(total > 0, 1.0 - masked_var(returns - value, mask, ddof=0) / jnp.where(total > 0, total, 1.0), 0.0)


def leave_one_out_return_to_go(return_ExS: Array, group_id_E: Array, mask_ExS: Array, mask_E: Array) -> Array:
    """Return-to-go minus the mean return-to-go of the *other* episodes of the group at the same step.

    A_{i,t} = G_{i,t} − mean_{j≠i} G_{j,t}, with G = 0 for episodes that have ended. The baseline does not depend on the
    episode's own actions, so it is unbiased even if the number of steps depends on the policy. (Centring each step before summing
    would be biased.)

    Args:
      return_ExS: `[E, S]`, returns-to-go.
      group_id_E: int32 `[E]` in `[0, E)`.
      mask_ExS: bool `[E, S]`, the steps to use.
      mask_E: bool `[E]`, the episodes to use.

    Returns:
      float32 `[E, S]`; 0 where the mask is False, and for the only episode of a group.
    """
    chex.assert_rank([return_ExS, mask_ExS], 2)
    chex.assert_rank([group_id_E, mask_E], 1)
    return_ExS, mask_ExS = select(mask_ExS, return_ExS), as_bool(mask_ExS)
    column = lambda x_E: group_normalise(x_E, group_id_E, mask_E, num_groups=x_E.shape[0], scale="leave_one_out")
    return jnp.where(mask_ExS, jax.vmap(column, in_axes=1, out_axes=1)(return_ExS), 0.0)


def adaptive_kl_coefficient(coefficient: float, kl: float, *, target: float, horizon: float, episodes: int) -> float:
    """Returns the next coefficient of a KL penalty: c · (1 + clip(KL / target − 1, −0.2, 0.2) · episodes / horizon).

    All arguments and the result are Python numbers.

    Args:
      coefficient: c ≥ 0.
      kl: mean over episodes of Σ (log π − log π_ref) over an episode's action tokens; NaN (no measurement) keeps c.
      target: the target KL, > 0.
      horizon: number of episodes over which the coefficient changes by at most 20 %, > 0.
      episodes: number of episodes in the estimate.

    Raises:
      ValueError: `target` or `horizon` is not positive.

    Source: Ziegler et al. 2019 (arXiv 1909.08593), section 2.2; TRL's `AdaptiveKLController`.
    """
    if target <= 0 or horizon <= 0:
        raise ValueError(f"target and horizon must be positive, not {target} and {horizon}")
    if math.isnan(kl):
        return coefficient
    return coefficient * (1.0 + min(max(kl / target - 1.0, -0.2), 0.2) * episodes / horizon)
