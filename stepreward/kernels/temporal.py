"""Advantages that accumulate over time: generalized advantage estimation over tokens, over steps, and over both.

All functions take `[B, T]` arrays of any dtype, with time along the last axis, and return float32. Masked entries are removed from
the stream: the entries before and after them become neighbours, and none of their values is read, discounts included. A discount of
0 marks the end of an episode, so several episodes may share a row.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from stepreward.kernels.inputs import as_bool, as_float32, select

Array = jax.Array


@jax.jit  # compiles once per shape, also when called outside jit, although the loop body is a closure
def linear_recurrence(b_BxT: Array, c_BxT: Array) -> Array:
    """Solves y_t = b_t + c_t · y_{t+1} backwards in time, with y_T = 0, in O(log T) parallel steps.

    Args:
      b_BxT, c_BxT: `[B, T]`.

    Returns:
      y, float32 `[B, T]`.
    """
    chex.assert_rank([b_BxT, c_BxT], 2)
    chex.assert_equal_shape([b_BxT, c_BxT])
    b_BxT, c_BxT = as_float32(b_BxT), as_float32(c_BxT)
    length = b_BxT.shape[1]

    # Doubling: after k rounds, (b, c)_t is the composition of the maps of t ... t + 2^k - 1. A loop compiles in a
    # fraction of the time of `associative_scan`, which unrolls every level.
    def double(k, maps):
        b_BxT, c_BxT = maps
        index = jnp.arange(length) + 2**k
        inside, index = index < length, jnp.minimum(index, length - 1)
        b_later = jnp.where(inside, b_BxT[:, index], 0.0)
        c_later = jnp.where(inside, c_BxT[:, index], 1.0)
        return b_BxT + c_BxT * b_later, c_BxT * c_later

    rounds = max(length - 1, 0).bit_length()
    return jax.lax.fori_loop(0, rounds, double, (b_BxT, c_BxT))[0]


def return_to_go(reward_BxT: Array, mask_BxT: Array, discount: float | Array = 1.0) -> Array:
    """Discounted sum of the rewards from t on: G_t = r_t + γ_t · G_{t'}, with t' the next True entry; 0 where the mask is False.

    Args:
      reward_BxT: `[B, T]`.
      mask_BxT: bool `[B, T]`.
      discount: γ, a scalar or `[B, T]`; 0 at the last entry of an episode.
    """
    chex.assert_rank([reward_BxT, mask_BxT], 2)
    chex.assert_equal_shape([reward_BxT, mask_BxT])
    mask_BxT = as_bool(mask_BxT)
    later_BxT = linear_recurrence(select(mask_BxT, reward_BxT), _carried(mask_BxT, discount, 1.0))
    return jnp.where(mask_BxT, later_BxT, 0.0)


def generalized_advantage_estimation(
    reward_BxT: Array, value_BxT: Array, mask_BxT: Array, discount: float | Array, trace: float
) -> tuple[Array, Array]:
    """Generalized advantage estimation over the True entries of a stream.

    δ_t = r_t + γ_t · V_{t'} − V_t,  A_t = δ_t + γ_t · λ · A_{t'}

    with t' the next True entry, and V_{t'} = A_{t'} = 0 past the end.

    γ = λ = 1 gives return-to-go − value; λ = 0 gives the one-step temporal difference. At token level, the mask skips the tokens of
    observations; at step level, `[B, T]` is `[E, S]`, with one entry per step (StepPO).

    Args:
      reward_BxT: `[B, T]`, the reward after the action of entry t.
      value_BxT: `[B, T]`, V of the state before the action of entry t.
      mask_BxT: bool `[B, T]`.
      discount: γ, a scalar or `[B, T]`; 0 at the last entry of an episode (needed only if the row continues after it).
      trace: λ.

    Returns:
      `(advantage, returns)`, each float32 `[B, T]`, 0 where the mask is False; returns = advantage + value, the critic's target.

    Source: Schulman et al. 2015 (arXiv 1506.02438), equation 16; for steps StepPO (arXiv 2604.18401).
    """
    chex.assert_rank([reward_BxT, value_BxT, mask_BxT], 2)
    chex.assert_equal_shape([reward_BxT, value_BxT, mask_BxT])
    mask_BxT = as_bool(mask_BxT)
    reward_BxT, value_BxT = select(mask_BxT, reward_BxT), select(mask_BxT, value_BxT)
    discount_BxT = _carried(mask_BxT, discount, 0.0)
    # V of the next True entry: y_t = V_t if True else y_{t+1}, read one place later.
    carried_BxT = linear_recurrence(value_BxT, jnp.where(mask_BxT, 0.0, 1.0))
    next_value_BxT = jnp.pad(carried_BxT[:, 1:], ((0, 0), (0, 1)))
    delta_BxT = jnp.where(mask_BxT, reward_BxT + discount_BxT * next_value_BxT - value_BxT, 0.0)
    advantage_BxT = linear_recurrence(delta_BxT, _carried(mask_BxT, discount_BxT * trace, 1.0))
    advantage_BxT = jnp.where(mask_BxT, advantage_BxT, 0.0)
    return advantage_BxT, jnp.where(mask_BxT, advantage_BxT + value_BxT, 0.0)


def bi_level_generalized_advantage_estimation(
    reward_BxT: Array,
    value_BxT: Array,
    mask_BxT: Array,
    step_end_BxT: Array,
    *,
    step_discount: float | Array = 0.95,
    token_discount: float = 1.0,
    trace: float = 1.0,
) -> tuple[Array, Array]:
    """Advantage estimation over steps, followed by one over the tokens of each step, with the steps' returns as rewards.

    1. Over the last tokens of the steps, with γ = `step_discount`: returns G_s.
    2. Within each step, with γ = `token_discount`: the reward is G_s at the step's last token and 0 before it.

    The caller gives the ends of steps. Public code infers them from non-zero rewards, which merges a step of reward 0 with the
    next one.

    Args:
      reward_BxT: `[B, T]`, the reward of each step at its last token; other entries are ignored.
      value_BxT: `[B, T]`, V before each token.
      mask_BxT: bool `[B, T]`, action tokens.
      step_end_BxT: bool `[B, T]`, True at the last action token of each step.
      step_discount: γ between steps, a scalar or `[B, T]` (0 at an episode's end).
      token_discount: γ between the tokens of a step.
      trace: λ, at both levels.

    Returns:
      `(advantage, returns)`, each float32 `[B, T]`, 0 where the mask is False.

    Source: bi-level GAE of RAGEN and VAGEN (arXiv 2504.20073), with explicit ends of steps.
    """
    chex.assert_rank([reward_BxT, value_BxT, mask_BxT, step_end_BxT], 2)
    chex.assert_equal_shape([reward_BxT, value_BxT, mask_BxT, step_end_BxT])
    mask_BxT = as_bool(mask_BxT)
    end_BxT = as_bool(step_end_BxT) & mask_BxT
    _, step_return_BxT = generalized_advantage_estimation(reward_BxT, value_BxT, end_BxT, step_discount, trace)
    within_BxT = jnp.where(end_BxT, 0.0, token_discount)
    return generalized_advantage_estimation(step_return_BxT, value_BxT, mask_BxT, within_BxT, trace)


def _carried(mask_BxT: Array, factor: float | Array, under_mask: float) -> Array:
    """Returns float32 `[B, T]`: `factor` (a scalar or `[B, T]`) at the True entries, and `under_mask` elsewhere."""
    return jnp.where(mask_BxT, jnp.broadcast_to(as_float32(factor), mask_BxT.shape), under_mask)
