"""Redistribution of an episode's outcome over its steps: losses to fit a model, and rewards derived from it.

Arrays are `[E, S]`, of any dtype, with `mask_ExS` bool (values where it is False are ignored) and `outcome_E` `[E]`. Everything is
computed in float32. Losses are means over the episodes with at least one step in the mask; an empty batch has loss 0.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from stepreward.kernels.inputs import as_bool, as_float32, select

Array = jax.Array

RESIDUALS = ("none", "last", "uniform")


def contribution_sum_loss(contribution_ExS: Array, outcome_E: Array, mask_ExS: Array) -> Array:
    """Squared error of the sum of per-step contributions: mean over episodes of (Σ_t ĉ_t − R)².

    The derivative with respect to each contribution of an episode is 2·(Σ ĉ − R) / episodes, the same for all its steps; differences
    between steps come from the model alone.

    Args:
      contribution_ExS: `[E, S]`.
      outcome_E: `[E]`.
      mask_ExS: bool `[E, S]`.

    Returns:
      float32 scalar.

    Source: SPA-RL (arXiv 2505.20732), progress estimator.
    """
    return bag_sum_loss(contribution_ExS, _at_last(outcome_E, mask_ExS), mask_ExS, bag_size=0)


def bag_sum_loss(contribution_ExS: Array, reward_ExS: Array, mask_ExS: Array, *, bag_size: int) -> Array:
    """Squared error of the sum over each bag of consecutive steps: mean over bags of (Σ_bag ĉ − Σ_bag r)².

    Bag b of an episode consists of its steps b·k … b·k + k − 1. Positions define the bags, never non-zero rewards. With one bag per
    episode, this is `contribution_sum_loss`.

    Args:
      contribution_ExS: `[E, S]`.
      reward_ExS: `[E, S]`, the rewards; only their sums over bags matter.
      mask_ExS: bool `[E, S]`.
      bag_size: k ≥ 0 steps, static; 0 makes the whole episode one bag.

    Returns:
      float32 scalar.

    Raises:
      ValueError: a negative `bag_size`.

    Source: reinforcement learning from bagged rewards (arXiv 2402.03771), equation 4, as a mean over bags. The public code divides
    by the number of steps instead, which gives half the loss for bags of two steps.
    """
    chex.assert_rank([contribution_ExS, reward_ExS, mask_ExS], 2)
    chex.assert_equal_shape([contribution_ExS, reward_ExS, mask_ExS])
    if bag_size < 0:
        raise ValueError(f"bag_size must be at least 0, not {bag_size}")
    mask_ExS = as_bool(mask_ExS)
    episodes, steps = mask_ExS.shape
    size = min(bag_size, steps) or max(steps, 1)
    error_ExS = select(mask_ExS, contribution_ExS) - select(mask_ExS, reward_ExS)
    bags = lambda x_ExS: jnp.pad(x_ExS, ((0, 0), (0, -steps % size))).reshape(episodes, -(-steps // size), size)
    counted_ExB = bags(mask_ExS).any(axis=2)
    return (bags(error_ExS).sum(axis=2) ** 2).sum() / jnp.maximum(counted_ExB.sum(), 1)


def return_prediction_loss(prediction_ExS: Array, outcome_E: Array, mask_ExS: Array, *, every_step: float = 0.5) -> Array:
    """Squared error of the return predicted from each prefix: mean over episodes of (g_T − R)² + w · mean_t (g_t − R)².

    Args:
      prediction_ExS: `[E, S]`, g_t: the return predicted after step t.
      outcome_E: `[E]`.
      mask_ExS: bool `[E, S]`.
      every_step: w ≥ 0, weight of the predictions at every step ("continuous prediction").

    Source: RUDDER (arXiv 1806.07857), main and auxiliary loss.
    """
    chex.assert_rank([prediction_ExS, mask_ExS], 2)
    mask_ExS = as_bool(mask_ExS)
    error_ExS = jnp.where(mask_ExS, as_float32(prediction_ExS) - as_float32(outcome_E)[:, None], 0.0) ** 2
    steps_E = mask_ExS.sum(axis=1)
    final_E = jnp.where(_last(mask_ExS), error_ExS, 0.0).sum(axis=1)
    each_E = error_ExS.sum(axis=1) / jnp.maximum(steps_E, 1)
    return (final_E + every_step * each_E).sum() / jnp.maximum((steps_E > 0).sum(), 1)


def potential_differences(potential_ExS: Array, mask_ExS: Array, before_ExS: Array | None = None) -> Array:
    """Rewards that telescope to the last potential: r_t = p_t − p_{t−1} with p_{−1} = 0; 0 where the mask is False.

    p_t is the potential after step t. If p is a predicted return, this is RUDDER's redistribution; if p is a progress in [0, 1], it
    is ProgRM's reward; if p is the value of the state that a step or a segment leads to, and `before_ExS` that of the state it starts from,
    it is the advantage of VinePPO, SPO and trees.

    Args:
      potential_ExS: `[E, S]`.
      mask_ExS: bool `[E, S]`; without `before_ExS`, the True entries must be the first ones of their row.
      before_ExS: `[E, S]`, the potential before step t, r_t = p_t − before_t; None takes p_{t−1}.

    Source: RUDDER (arXiv 1806.07857); ProgRM (arXiv 2505.18121); VinePPO (arXiv 2410.01679), equation of the advantage.
    """
    chex.assert_rank([potential_ExS, mask_ExS], 2)
    chex.assert_equal_shape([potential_ExS, mask_ExS])
    mask_ExS = as_bool(mask_ExS)
    potential_ExS = select(mask_ExS, potential_ExS)
    if before_ExS is None:
        before_ExS = jnp.pad(potential_ExS[:, :-1], ((0, 0), (1, 0)))
    return jnp.where(mask_ExS, potential_ExS - select(mask_ExS, before_ExS), 0.0)


def spread_residual(reward_ExS: Array, outcome_E: Array, mask_ExS: Array, how: str = "uniform") -> Array:
    """Adds the residual R − Σ r to the steps' rewards, so that they sum to the outcome: Σ_t r'_t = R.

    "uniform": r'_t = r_t + (R − Σ r) / T. "last": adds all of it to the last step. "none": r' = r.

    Args:
      reward_ExS: `[E, S]`.
      outcome_E: `[E]`.
      mask_ExS: bool `[E, S]`.
      how: one of `RESIDUALS`.

    Returns:
      float32 `[E, S]`, 0 where the mask is False.

    Raises:
      ValueError: an unknown `how`.

    Source: RUDDER (arXiv 1806.07857), "residual"; rewards with the same return have the same optimal policies.
    """
    chex.assert_rank([reward_ExS, mask_ExS], 2)
    chex.assert_equal_shape([reward_ExS, mask_ExS])
    if how not in RESIDUALS:
        raise ValueError(f"the residual must be one of {RESIDUALS}, not {how!r}")
    mask_ExS = as_bool(mask_ExS)
    reward_ExS = select(mask_ExS, reward_ExS)
    if how == "none":
        return reward_ExS
    residual_E = select(mask_ExS.any(axis=1), outcome_E) - reward_ExS.sum(axis=1)
    if how == "last":
        return reward_ExS + jnp.where(_last(mask_ExS), residual_E[:, None], 0.0)
    share_E = residual_E / jnp.maximum(mask_ExS.sum(axis=1), 1)
    return jnp.where(mask_ExS, reward_ExS + share_E[:, None], 0.0)


def steps_to_go(mask_ExS: Array) -> Array:
    """Returns float32 `[E, S]`: T − t − 1, the number of steps in the mask after step t (from 0); 0 where the mask is False.

    The public release of SPA-RL multiplies the reward of step t by this number, which loses the reward of the last step.
    """
    chex.assert_rank(mask_ExS, 2)
    mask_ExS = as_bool(mask_ExS)
    later_ExS = jnp.cumsum(mask_ExS[:, ::-1], axis=1)[:, ::-1]
    return jnp.where(mask_ExS, later_ExS - 1, 0).astype(jnp.float32)


def _last(mask_ExS: Array) -> Array:
    """Returns bool `[E, S]`, True at the last True step of each episode."""
    return as_bool(mask_ExS) & (steps_to_go(mask_ExS) == 0)


def _at_last(outcome_E: Array, mask_ExS: Array) -> Array:
    return select(_last(mask_ExS), jnp.broadcast_to(as_float32(outcome_E)[:, None], mask_ExS.shape))
