"""Rewards of steps from the states of an automaton of subgoals, and the distances of these states to acceptance."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from stepreward.kernels.inputs import as_bool, as_float32

Array = jax.Array


def progress_reward(before_ExS: Array, after_ExS: Array, mask_ExS: Array, initial_Q: Array, adapted_Q: Array) -> Array:
    """Rewards a step by the progress that it made in the automaton: r = max(0, max(d_k(q) − d_k(q'), d_0(q) − d_0(q'))).

    A step away from acceptance, by both distances, gets 0.

    Args:
      before_ExS, after_ExS: int `[E, S]`, the states q and q' before and after each step; off the mask, and where they are no state's number
        (negative, or Q and more), the reward is 0.
      mask_ExS: bool `[E, S]`.
      initial_Q, adapted_Q: float `[Q]`, the distances d_0 and d_k of each state.

    Returns:
      float32 `[E, S]`, at least 0.

    Source: Adaptive Reward Design (arXiv 2412.10917), progress reward function.
    """
    before_ExS, after_ExS, known_ExS, distances = _checked(before_ExS, after_ExS, mask_ExS, initial_Q, adapted_Q)
    gains = [distance_Q[before_ExS] - distance_Q[after_ExS] for distance_Q in distances]
    return jnp.where(known_ExS, jnp.maximum(jnp.maximum(*gains), 0.0), 0.0)


def hybrid_reward(
    before_ExS: Array, after_ExS: Array, mask_ExS: Array, initial_Q: Array, adapted_Q: Array, *, eta: Array | float, largest: bool = False
) -> Array:
    """Rewards progress, and penalises staying: r = (1 − η)·progress if q ≠ q', else −η·d_k(q).

    Args:
      before_ExS, after_ExS, mask_ExS, initial_Q, adapted_Q: as for `progress_reward`.
      eta: η, the share of the penalty, in [0, 1].
      largest: the penalty is −η·max(d_k(q), d_0(q)), as in the release. It differs only if adaptation shortens distances.

    Returns:
      float32 `[E, S]`.

    Source: Adaptive Reward Design (arXiv 2412.10917), hybrid reward function.
    """
    progress_ExS = progress_reward(before_ExS, after_ExS, mask_ExS, initial_Q, adapted_Q)
    before_ExS, after_ExS, known_ExS, (initial_Q, adapted_Q) = _checked(before_ExS, after_ExS, mask_ExS, initial_Q, adapted_Q)
    far_Q = jnp.maximum(initial_Q, adapted_Q) if largest else adapted_Q
    reward_ExS = jnp.where(before_ExS != after_ExS, (1.0 - eta) * progress_ExS, -eta * far_Q[before_ExS])
    return jnp.where(known_ExS, reward_ExS, 0.0)


def _checked(before_ExS, after_ExS, mask_ExS, initial_Q, adapted_Q):
    chex.assert_equal_shape([before_ExS, after_ExS, mask_ExS])
    chex.assert_rank([initial_Q, adapted_Q], 1)
    chex.assert_equal_shape([initial_Q, adapted_Q])
    states = len(initial_Q)
    known_ExS = as_bool(mask_ExS)
    for state_ExS in (before_ExS, after_ExS):
        known_ExS &= (state_ExS >= 0) & (state_ExS < states)
    at = lambda state_ExS: jnp.clip(state_ExS, 0, states - 1)
    return at(before_ExS), at(after_ExS), known_ExS, (as_float32(initial_Q), as_float32(adapted_Q))
