"""Losses on preferences and labels of whole episodes: DPO, DPO with imitation, cross-entropy of an implicit reward."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

Array = jax.Array


def dpo(margin: Array) -> Array:
    """Direct preference optimisation loss of each pair: −log σ(margin), elementwise over any shape.

    Args:
      margin: β·[log π/π_ref of the chosen − log π/π_ref of the rejected].

    Source: Rafailov et al. 2023 (arXiv 2305.18290), equation 7.
    """
    return jax.nn.softplus(-margin)


def dpo_with_sft(margin: Array, log_prob_chosen: Array, sft_coefficient: float = 1.0) -> Array:
    """DPO plus imitation of the chosen response: −log σ(margin) − sft_coefficient · log π(chosen), elementwise.

    Args:
      margin: as in `dpo`.
      log_prob_chosen: log-probability of the whole chosen response, in nats, the shape of `margin`.
      sft_coefficient: weight of the second term.

    Source: IPR (arXiv 2406.11176), equation 9.
    """
    chex.assert_equal_shape([margin, log_prob_chosen])
    return dpo(margin) - sft_coefficient * log_prob_chosen


def preference_pairs(success_E: Array, group_id_E: Array, mask_E: Array) -> Array:
    """bool `[E, E]`: True at `[i, j]` where i succeeded, j failed, and both are counted and of one group."""
    chex.assert_rank([success_E, group_id_E, mask_E], 1)
    chex.assert_equal_shape([success_E, group_id_E, mask_E])
    winner_E, loser_E = success_E & mask_E, ~success_E & mask_E
    return winner_E[:, None] & loser_E[None, :] & (group_id_E[:, None] == group_id_E[None, :])


def dpo_pairs(score_E: Array, success_E: Array, group_id_E: Array, mask_E: Array) -> tuple[Array, dict[str, Array]]:
    """DPO over every success × failure pair of every group, averaged over all pairs of the batch.

    L = (1/P) Σ_g Σ_{i ∈ winners(g)} Σ_{j ∈ losers(g)} −log σ(S_i − S_j)
    ∂L/∂S_i = −(1/P) Σ_j σ(S_j − S_i),  ∂L/∂S_j = +(1/P) Σ_i σ(S_j − S_i)

    With no pair (P = 0) loss and gradient are exactly 0.

    Args:
      score_E: float `[E]`, the score S of each episode, β included.
      success_E: bool `[E]`.
      group_id_E: int32 `[E]`.
      mask_E: bool `[E]`, False episodes are in no pair.

    Returns:
      `(loss, metrics)`: `pairs` (P), `pair_accuracy` (share of pairs with S_i > S_j, a tie counts half; 0 without
      pairs) and `pair_margin` (mean of S_i − S_j).

    Source: iStar (arXiv 2509.19199), equation 2; which pairs are formed is that of its public release.
    """
    chex.assert_rank(score_E, 1)
    pair_ExE = preference_pairs(success_E, group_id_E, mask_E)
    score_E = jnp.where(mask_E, score_E.astype(jnp.float32), 0.0)
    margin_ExE = jnp.where(pair_ExE, score_E[:, None] - score_E[None, :], 0.0)
    pairs = pair_ExE.sum().astype(jnp.float32)
    mean = lambda x_ExE: jnp.where(pair_ExE, x_ExE, 0.0).sum() / jnp.maximum(pairs, 1.0)
    metrics = {
        "pairs": pairs,
        "pair_accuracy": mean((margin_ExE > 0) + 0.5 * (margin_ExE == 0)),
        "pair_margin": mean(margin_ExE),
    }
    return mean(dpo(margin_ExE)), jax.lax.stop_gradient(metrics)


def implicit_reward_cross_entropy(score_E: Array, success_E: Array, mask_E: Array) -> tuple[Array, dict[str, Array]]:
    """Binary cross-entropy of an implicit reward: mean of −y·log σ(S) − (1 − y)·log σ(−S) over the counted episodes.

    Args:
      score_E: float `[E]`, S = β·Σ log π/π_ref of the episode's action tokens.
      success_E: bool `[E]`, the label y.
      mask_E: bool `[E]`.

    Returns:
      `(loss, metrics)`: `label_accuracy`, the share of episodes where S > 0 agrees with the label.

    Source: PRIME (arXiv 2502.01456), equation 5.
    """
    chex.assert_rank([score_E, success_E, mask_E], 1)
    chex.assert_equal_shape([score_E, success_E, mask_E])
    score_E = jnp.where(mask_E, score_E.astype(jnp.float32), 0.0)
    count = jnp.maximum(mask_E.sum(), 1).astype(jnp.float32)
    loss_E = jnp.where(mask_E, jax.nn.softplus(jnp.where(success_E, -score_E, score_E)), 0.0)
    agrees_E = mask_E & ((score_E > 0) == success_E)
    return loss_E.sum() / count, {"label_accuracy": agrees_E.sum() / count}
