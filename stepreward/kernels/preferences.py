"""Losses on preferences and labels of whole episodes: DPO, DPO with imitation, cross-entropy of an implicit reward."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from stepreward.kernels.inputs import as_bool, as_float32, select, where_known
from stepreward.kernels.masked import group_sum

Array = jax.Array


def dpo(margin: Array) -> Array:
    """Direct preference optimisation loss of each pair: −log σ(margin), float32, elementwise over any shape.

    The gradient is −σ(−margin), which approaches −1 for badly wrong pairs. A NaN (of a pair to be masked later) has gradient 0.

    Args:
      margin: β·[log π/π_ref of the chosen − log π/π_ref of the rejected].

    Source: Rafailov et al. 2023 (arXiv 2305.18290), equation 7.
    """
    return where_known(lambda m: jax.nn.softplus(-m), margin)


def dpo_with_sft(margin: Array, log_prob_chosen: Array, sft_coefficient: float = 1.0) -> Array:
    """DPO plus imitation of the chosen response: −log σ(margin) − sft_coefficient · log π(chosen), elementwise.

    Args:
      margin: as in `dpo`.
      log_prob_chosen: log-probability of the whole chosen response, in nats, the shape of `margin`.
      sft_coefficient: weight of the second term.

    Returns:
      float32, the shape of `margin`.

    Source: IPR (arXiv 2406.11176), equation 9.
    """
    chex.assert_equal_shape([margin, log_prob_chosen])
    return dpo(margin) - sft_coefficient * as_float32(log_prob_chosen)


def preference_pairs(success_E: Array, group_id_E: Array, mask_E: Array) -> Array:
    """Returns bool `[E, E]`: True at `[i, j]` if i succeeded, j failed, both are in the mask, and they share a group.

    It is meant for small batches and tests; `dpo_pairs` and `paired_winners` need no array of this size.
    """
    winner_E, loser_E = _labels(success_E, group_id_E, mask_E)
    return winner_E[:, None] & loser_E[None, :] & (group_id_E[:, None] == group_id_E[None, :])


def paired_winners(success_E: Array, group_id_E: Array, mask_E: Array) -> Array:
    """Returns bool `[E]`: True for a successful episode in the mask if an episode of its group in the mask failed."""
    winner_E, loser_E = _labels(success_E, group_id_E, mask_E)
    episodes = len(winner_E)
    failed_G = group_sum(loser_E, group_id_E, loser_E, episodes)
    return winner_E & (failed_G[jnp.where(winner_E, group_id_E, 0)] > 0) if episodes else winner_E


def dpo_pairs(score_E: Array, success_E: Array, group_id_E: Array, mask_E: Array) -> tuple[Array, dict[str, Array]]:
    """DPO over every success × failure pair of every group, averaged over all pairs of the batch.

    L = (1/P) Σ_g Σ_{i ∈ winners(g)} Σ_{j ∈ losers(g)} −log σ(S_i − S_j)
    ∂L/∂S_i = −(1/P) Σ_j σ(S_j − S_i),  ∂L/∂S_j = +(1/P) Σ_i σ(S_j − S_i)

    Without pairs (P = 0), loss and gradient are exactly 0. Pairs are formed only within groups: memory is O(E), and time is
    O(E · size of the largest group).

    Args:
      score_E: `[E]`, the score S of each episode, including β.
      success_E: bool `[E]`.
      group_id_E: int32 `[E]` in `[0, E)`.
      mask_E: bool `[E]`; episodes with False are in no pair.

    Returns:
      `(loss, metrics)`: `pairs` (P), `pair_accuracy` (share of pairs with S_i > S_j, where a tie counts half; 0 without
      pairs) and `pair_margin` (mean of S_i − S_j).

    Source: iStar (arXiv 2509.19199), equation 2; the choice of pairs follows its public release.
    """
    chex.assert_rank(score_E, 1)
    winner_E, loser_E = _labels(success_E, group_id_E, mask_E)
    group_id_E = jnp.where(winner_E | loser_E, group_id_E, -1)
    score_E = select(group_id_E >= 0, score_E)
    # Sort by group, so that the partners of an episode are at most the size of the largest group away.
    order_E = jnp.argsort(group_id_E, stable=True)
    loss, found = _pairs(score_E[order_E], winner_E[order_E], group_id_E[order_E])
    pairs = found["pairs"]
    metrics = {name: value if name == "pairs" else value / jnp.maximum(pairs, 1.0) for name, value in found.items()}
    return loss / jnp.maximum(pairs, 1.0), jax.lax.stop_gradient(metrics)


@jax.custom_jvp
def _pairs(score_E: Array, winner_E: Array, group_E: Array) -> tuple[Array, dict[str, Array]]:
    """Returns the sums over all pairs of −log σ(S_winner − S_loser) and of the metrics.

    Args:
      score_E: float32 `[E]`, sorted by group.
      winner_E: bool `[E]`.
      group_E: int32 `[E]`, sorted; −1 for episodes in no group.
    """
    return _over_pairs(score_E, winner_E, group_E)[0]


@_pairs.defjvp
def _pairs_jvp(primals, tangents):
    """The derivative in closed form, because reverse mode cannot differentiate a loop whose number of rounds is data."""
    result, slope_E = _over_pairs(*primals)
    no_change = jax.tree.map(jnp.zeros_like, result[1])
    return result, ((slope_E * tangents[0]).sum(), no_change)


def _over_pairs(score_E: Array, winner_E: Array, group_E: Array):
    """Returns the result of `_pairs`, and the derivative of its sum, float32 `[E]`.

    Round k compares each episode with the one k places later.
    """
    episodes = len(score_E)
    if not episodes:
        zero = jnp.float32(0)
        return (zero, {"pairs": zero, "pair_accuracy": zero, "pair_margin": zero}), score_E
    place_E = jnp.arange(episodes)
    size_E = group_sum(jnp.ones(episodes), jnp.where(group_E < 0, 0, group_E), group_E >= 0, episodes)
    rounds = size_E.max().astype(jnp.int32)

    def meet(k, carry):
        loss, pairs, accuracy, margins, slope_E = carry
        other_E = jnp.minimum(place_E + k, episodes - 1)
        differ_E = (group_E >= 0) & (group_E == group_E[other_E]) & (winner_E != winner_E[other_E])
        differ_E &= place_E + k < episodes
        sign_E = jnp.where(winner_E, 1.0, -1.0)
        margin_E = jnp.where(differ_E, sign_E * (score_E - score_E[other_E]), 0.0)
        share = lambda x_E: jnp.where(differ_E, x_E, 0.0)
        pull_E = share(-sign_E * jax.nn.sigmoid(-margin_E))
        return (
            loss + share(jax.nn.softplus(-margin_E)).sum(),
            pairs + differ_E.sum().astype(jnp.float32),
            accuracy + share((margin_E > 0) + 0.5 * (margin_E == 0)).sum(),
            margins + margin_E.sum(),
            (slope_E + pull_E).at[other_E].add(-pull_E),
        )

    zero = jnp.float32(0)
    start = (zero, zero, zero, zero, jnp.zeros_like(score_E))
    loss, pairs, accuracy, margins, slope_E = jax.lax.fori_loop(1, rounds, meet, start)
    return (loss, {"pairs": pairs, "pair_accuracy": accuracy, "pair_margin": margins}), slope_E


def _labels(success_E: Array, group_id_E: Array, mask_E: Array) -> tuple[Array, Array]:
    """Returns the winners and the losers among the episodes in the mask, bool `[E]` each."""
    chex.assert_rank([success_E, group_id_E, mask_E], 1)
    chex.assert_equal_shape([success_E, group_id_E, mask_E])
    success_E, mask_E = as_bool(success_E), as_bool(mask_E)
    return success_E & mask_E, ~success_E & mask_E


def implicit_reward_cross_entropy(score_E: Array, success_E: Array, mask_E: Array) -> tuple[Array, dict[str, Array]]:
    """Binary cross-entropy of an implicit reward: mean of −y·log σ(S) − (1 − y)·log σ(−S) over the episodes in the mask.

    Args:
      score_E: `[E]`, S = β·Σ log π/π_ref of the episode's action tokens.
      success_E: bool `[E]`, the label y.
      mask_E: bool `[E]`.

    Returns:
      `(loss, metrics)`; `label_accuracy` is the share of episodes for which S > 0 agrees with the label.

    Source: PRIME (arXiv 2502.01456), equation 5.
    """
    chex.assert_rank([score_E, success_E, mask_E], 1)
    chex.assert_equal_shape([score_E, success_E, mask_E])
    success_E, mask_E = as_bool(success_E), as_bool(mask_E)
    score_E = select(mask_E, score_E)
    count = jnp.maximum(mask_E.sum(), 1).astype(jnp.float32)
    loss_E = jnp.where(mask_E, jax.nn.softplus(jnp.where(success_E, -score_E, score_E)), 0.0)
    agrees_E = mask_E & ((score_E > 0) == success_E)
    return loss_E.sum() / count, {"label_accuracy": agrees_E.sum() / count}
