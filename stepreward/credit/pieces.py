"""The pieces that the papers' methods are composed of: pure functions of arrays, each one formula or one step of a method.

`credit/ablations.py` holds what takes the place of a piece in a control, an ablation or a public release.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from stepreward.batch import Batch
from stepreward.credit.base import Metrics, first_token, per_step, step_mask, step_mean, step_sum, to_tokens, token_mask
from stepreward.credit.outcome import advantage_metrics, counted_episodes, episode_advantage, outcome_metrics
from stepreward.credit.units import StepUnits, Units
from stepreward.kernels import (
    dpo_pairs,
    generalized_advantage_estimation,
    group_normalise,
    group_statistics,
    implicit_reward_cross_entropy,
    kl_k1,
    kl_k3,
    leave_one_out_return_to_go,
    masked_mean,
    masked_std,
    masked_whiten,
    negative_log_likelihood,
    paired_winners,
    return_to_go,
    token_stream,
)

Array = jax.Array


# --- Rewards implicit in a language model (iStar, PRIME) ---


def log_ratio(log_prob_RxL: Array, reference_RxL: Array, batch: Batch) -> Array:
    """float32 `[R, L]`: log π − log π_reference at the counted action tokens, 0 elsewhere."""
    difference_RxL = log_prob_RxL.astype(jnp.float32) - reference_RxL.astype(jnp.float32)
    return jnp.where(token_mask(batch), difference_RxL, 0.0)


def implicit_rewards(log_ratio_RxL: Array, beta: float, units: Units) -> Array:
    """The reward of each unit: β·Σ over its tokens of the log-ratio."""
    return beta * units.from_tokens(log_ratio_RxL)


def trajectory_scores(log_ratio_RxL: Array, beta: float, batch: Batch) -> Array:
    """float32 `[E]`: the score of each episode, the sum of the implicit rewards of its steps."""
    return beta * step_sum(log_ratio_RxL, batch).sum(axis=1)


def pair_loss(score_E: Array, batch: Batch) -> tuple[Array, Metrics]:
    """DPO over the pairs of a success and a failure within a group: mean of −log σ(score⁺ − score⁻)."""
    return dpo_pairs(score_E, batch.success, batch.group_id, counted_episodes(batch))


def state_pair_loss(score_ExS: Array, batch: Batch) -> tuple[Array, Metrics]:
    """DPO over the pairs of steps that were taken from one state of a group: mean of −log σ(score⁺ − score⁻).

    The winner of a pair is a step of a successful episode, the loser one of a failed episode. Steps of one state share their `anchor_id`;
    a step with −1 is in no pair.

    Args:
      score_ExS: `[E, S]`, the score of each step.
    """
    anchor_ExS, mask_ExS = batch.signals["anchor_id"], step_mask(batch)
    won_ExS = jnp.broadcast_to(batch.success[:, None], mask_ExS.shape)
    flat = lambda x_ExS: x_ExS.reshape(-1)
    return dpo_pairs(flat(score_ExS), flat(won_ExS), dense_ids(flat(anchor_ExS)), flat(mask_ExS & (anchor_ExS >= 0)))


def dense_ids(id_N: Array) -> Array:
    """int32 `[N]`: ids numbered 0, 1, 2 … in ascending order, equal ids alike, so that each is below N."""
    order_N = jnp.argsort(id_N)
    sorted_N = id_N[order_N]
    number_N = jnp.cumsum(jnp.pad(sorted_N[1:] != sorted_N[:-1], (1, 0)))
    return jnp.zeros(id_N.shape, jnp.int32).at[order_N].set(number_N.astype(jnp.int32))


def label_loss(score_E: Array, batch: Batch) -> tuple[Array, Metrics]:
    """Cross-entropy of σ(score) with the success label; the metrics hold those of `pair_loss` too."""
    _, pairs = pair_loss(score_E, batch)
    loss, labels = implicit_reward_cross_entropy(score_E, batch.success, counted_episodes(batch))
    return loss, {**pairs, **labels}


def winners_negative_log_likelihood(log_prob_RxL: Array, batch: Batch) -> Array:
    """Mean negative log-likelihood per action token of the successful episodes that are in a pair."""
    winner_E = paired_winners(batch.success, batch.group_id, counted_episodes(batch))
    won_RxL = token_mask(batch) & (to_tokens(per_step(winner_E, batch), batch) > 0)
    return negative_log_likelihood(log_prob_RxL, won_RxL)


def compare_within_groups(reward: Array, units: Units, *, scale: str, eps: float, weight: Array | None, singleton: str) -> Array:
    """Deviation of each unit from the mean of its group, scaled as `kernels.group_normalise` says."""
    groups = units.batch.num_episodes
    options = dict(num_groups=groups, scale=scale, eps=eps, weight=weight, singleton=singleton)
    return group_normalise(reward, units.group_id, units.mask, **options)


def compare_episodes(batch: Batch, *, scale: str, counted: str, eps: float, singleton: str) -> Array:
    """`[E, S]`: (R_i − mean) / F of its episode at each counted step, F the standard deviation plus eps (`scale="std"`) or 1 ("none").

    Mean and standard deviation are over the "episodes" of the group, or with `counted="steps"` an episode counts once a step.
    """
    if counted == "episodes":
        advantage_E = episode_advantage(batch, {"none": "dr_grpo", "std": "grpo"}[scale], eps=eps, singleton=singleton)
        return per_step(advantage_E, batch)
    outcome_ExS = jnp.broadcast_to(batch.outcome[:, None], batch.step_mask.shape)
    return compare_within_groups(outcome_ExS, StepUnits(batch), scale=scale, eps=eps, weight=None, singleton=singleton)


def episodes_count_once(units: Units) -> Array:
    """The weight of each unit: 1 / (the number of units of its episode)."""
    share_E = 1.0 / jnp.maximum(units.count.sum(axis=1), 1)
    return units.from_steps(per_step(share_E, units.batch))


class Merged(NamedTuple):
    """The advantage of tokens, the part of it that comes from process rewards, and returns or None: each `[R, L]`."""

    advantage: Array
    process: Array
    returns: Array | None


def merge_advantages(episode_RxL: Array, process: Array, alpha: float | Array, units: Units) -> Merged:
    """A = A^E + α·A^S: each source has become an advantage by itself (iStar)."""
    process_RxL = alpha * units.to_tokens(process)
    return Merged(episode_RxL + process_RxL, process_RxL, None)


def merge_rewards(episode_RxL: Array, process: Array, alpha: float | Array, units: Units) -> Merged:
    """Both centred sources are rewards of one stream: returns-to-go are added, and whitened over the action tokens (PRIME)."""
    total_RxL, process_RxL, _ = merge_advantages(episode_RxL, units.return_to_go(process), alpha, units)
    return Merged(masked_whiten(total_RxL, token_mask(units.batch)), process_RxL, total_RxL)


def process_metrics(step_reward_ExS: Array, log_ratio_RxL: Array, episode_RxL: Array, merged: Merged, batch: Batch) -> Metrics:
    """Scalars about implicit rewards: their size, their share in the advantage, and the distance of the two models."""
    mask_ExS, mask_RxL = step_mask(batch), token_mask(batch)
    group_ExS = StepUnits(batch).group_id
    _, group_std_ExS, _ = group_statistics(step_reward_ExS, group_ExS, mask_ExS, num_groups=batch.num_episodes, ddof=1)
    episode_size, process_size = jnp.abs(episode_RxL).sum(), jnp.abs(merged.process).sum()
    return {
        **common_metrics(merged.advantage, step_reward_ExS, batch),
        "step_reward_group_std": masked_mean(group_std_ExS, mask_ExS),
        "step_reward_max": jnp.max(jnp.abs(step_reward_ExS), initial=0.0),
        "process_share": process_size / jnp.maximum(episode_size + process_size, 1e-8),
        # The tokens were sampled from the old policy, so these estimate KL(old ‖ prm) when the reference is "old".
        "prm_kl_k1": masked_mean(-log_ratio_RxL, mask_RxL),
        "prm_kl_k3": masked_mean(kl_k3(jnp.zeros_like(log_ratio_RxL), log_ratio_RxL), mask_RxL),
    }


# --- Step rewards that reach earlier actions (PPO, SPA-RL, RUDDER, ProgRM) ---


def kl_penalty(batch: Batch) -> tuple[Array, Metrics]:
    """`[R, L]`: c · (log π − log π_initial) at the counted action tokens, 0 elsewhere; and its metrics."""
    policy_RxL = batch.signals.get("log_prob_policy", batch.log_prob_old)
    kl_RxL = kl_k1(policy_RxL.astype(jnp.float32), batch.signals["log_prob_initial"].astype(jnp.float32))
    kl_RxL = jnp.where(token_mask(batch), kl_RxL, 0.0)
    episodes = jnp.maximum(counted_episodes(batch).sum(), 1)
    coefficient = jnp.asarray(batch.signals["kl_coef"], jnp.float32)
    return coefficient * kl_RxL, {"kl_initial": kl_RxL.sum() / episodes, "kl_coef": coefficient}


class Estimate(NamedTuple):
    """Advantages `[R, L]`, advantages of steps `[E, S]`, and the critic's target `[R, L]` or None."""

    advantage: Array
    step_advantage: Array
    returns: Array | None


def estimate_by_critic(reward_ExS: Array, batch: Batch, *, discount: float, trace: float, whiten: bool) -> Estimate:
    """Generalized advantage estimation with one transition a step; V is the critic's before the first token of the step."""
    mask_ExS = step_mask(batch)
    value_ExS = step_sum(jnp.where(first_token(batch), batch.signals["value"].astype(jnp.float32), 0.0), batch)
    advantage_ExS, returns_ExS = generalized_advantage_estimation(reward_ExS, value_ExS, mask_ExS, discount, trace)
    returns_RxL = to_tokens(returns_ExS, batch)
    advantage_ExS = masked_whiten(advantage_ExS, mask_ExS) if whiten else advantage_ExS
    return Estimate(to_tokens(advantage_ExS, batch), advantage_ExS, returns_RxL)


def estimate_by_group(reward_ExS: Array, batch: Batch, *, discount: float, trace: float, whiten: bool) -> Estimate:
    """Return-to-go minus that of the others of the group at the same step; without a critic, `trace` is not read."""
    mask_ExS = step_mask(batch)
    returns_ExS = return_to_go(reward_ExS, mask_ExS, discount)
    advantage_ExS = leave_one_out_return_to_go(returns_ExS, batch.group_id, mask_ExS, counted_episodes(batch))
    advantage_ExS = masked_whiten(advantage_ExS, mask_ExS) if whiten else advantage_ExS
    return Estimate(to_tokens(advantage_ExS, batch), advantage_ExS, None)


def estimate_by_tokens(
    reward_ExS: Array, penalty_RxL: Array | None, batch: Batch, *, discount: float, trace: float, whiten: bool, discounts
) -> Estimate:
    """Generalized advantage estimation over the action tokens of each episode, the reward of a step at its last token.

    Args:
      penalty_RxL: subtracted from the reward of each token, or None.
      discounts: `(stream, shape, discount, trace) -> [1, N]`, the discount from each action token to the next one.
    """
    shape = batch.tokens.shape
    stream = token_stream(batch.step_id, token_mask(batch), batch.max_steps)
    reward_1xN = jnp.where(stream.step_end, stream.take(to_tokens(reward_ExS, batch)), 0.0)
    if penalty_RxL is not None:
        reward_1xN = reward_1xN - stream.take(penalty_RxL)
    value_1xN = stream.take(batch.signals["value"].astype(jnp.float32))
    discount_1xN = jnp.where(stream.episode_end, 0.0, discounts(stream, shape, discount, trace))
    advantage_1xN, returns_1xN = generalized_advantage_estimation(reward_1xN, value_1xN, stream.mask, discount_1xN, trace)
    advantage_1xN = masked_whiten(advantage_1xN, stream.mask) if whiten else advantage_1xN
    advantage_RxL = stream.put(advantage_1xN, shape)
    return Estimate(advantage_RxL, step_mean(advantage_RxL, batch), stream.put(returns_1xN, shape))


def constant_discounts(stream, shape: tuple[int, int], discount: float, trace: float) -> Array:
    """`[1, N]`: γ from each action token to the next one; the tokens of observations between them are skipped."""
    return jnp.full(stream.mask.shape, discount, jnp.float32)


def grounding(executed_ExS: Array, mask_ExS: Array) -> Array:
    """float32 `[E, S]`: g_t of SPA-RL, 1 where the action was parsed and ran."""
    return jnp.where(mask_ExS & executed_ExS, 1.0, 0.0)


# --- Metrics ---


def reward_metrics(advantage_RxL: Array, step_reward_ExS: Array, batch: Batch) -> Metrics:
    """Scalars: those of outcomes and advantages, and the size of the step rewards."""
    mask_ExS = step_mask(batch)
    return {
        **outcome_metrics(batch),
        **advantage_metrics(advantage_RxL, batch),
        "step_reward_mean": masked_mean(step_reward_ExS, mask_ExS),
        "step_reward_std": masked_std(step_reward_ExS, mask_ExS, ddof=1),
    }


def common_metrics(advantage_RxL: Array, step_reward_ExS: Array, batch: Batch) -> Metrics:
    """`reward_metrics`, and the size of the step rewards beside that of the outcomes, of methods whose rewards are not the outcome."""
    outcome_size = jnp.where(counted_episodes(batch), jnp.abs(batch.outcome), 0.0).sum()
    shaped = jnp.abs(step_reward_ExS).sum() / jnp.maximum(outcome_size, 1e-8)
    return reward_metrics(advantage_RxL, step_reward_ExS, batch) | {"shaped_to_outcome": shaped}
