"""Turn rewards: the environment's measure of partial progress, as returns-to-go, or for the turns before the first result (MT-GRPO)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from stepreward.batch import Batch
from stepreward.credit.base import (
    Credit,
    Method,
    check_at_least,
    check_choice,
    check_share,
    first_step,
    last_step,
    register,
    step_mask,
    to_tokens,
)
from stepreward.credit.host import of_steps, step_array
from stepreward.credit.outcome import counted_episodes, outcome_reward
from stepreward.credit.pieces import common_metrics
from stepreward.credit.units import StepUnits
from stepreward.envs.protocol import TURN_REWARD
from stepreward.kernels import group_normalise, group_statistics, group_sum, grpo, leave_one_out_return_to_go, masked_mean, return_to_go
from stepreward.kernels.inputs import select

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class _TurnRewards(Method):
    """The base of methods that read the turn rewards of the environment."""

    requires: ClassVar[frozenset[str]] = frozenset({"turn_reward"})
    capabilities: ClassVar[frozenset[str]] = frozenset({TURN_REWARD})
    needs_group: ClassVar[bool] = True

    def host_signals(self, batch: Batch, episodes, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {"turn_reward": step_array(of_steps(episodes, lambda step: step.turn_reward), batch)}


@register("turn_return")
@dataclasses.dataclass(frozen=True)
class TurnReturn(_TurnRewards):
    """Return-to-go of turn rewards and outcome minus a baseline of the group: A(a_t) = G_t − b_t, G_t = r_t + γ·G_{t+1}.

    r_t = w·(turn reward of step t), plus the outcome at the last step. The steps are told by their ids, never by non-zero rewards. Signal:
    `turn_reward` float32 `[E, S]` (`host_signals`).

    Attributes:
      discount: γ in [0, 1].
      weight: w ≥ 0, weight of the turn rewards.
      baseline: b_t, over the counted episodes of the group. Public code differs.
        "index": the mean of G_t over the *other* episodes that have a step t; where there is none, the mean of all returns of the other
          episodes. No action of the episode enters b_t, so the advantage is unbiased even if the number of steps depends on the policy.
        "rtg_loo": the mean of G_t over all others, 0 for an episode that has ended; unbiased too.
        "index_mean": the mean of G_t over all episodes that have a step t, this one included.
        "pooled": the mean of all returns of all episodes.
      scale: "std" divides by the standard deviation (ddof 1) of the same returns plus 10⁻⁶; for "index_mean" and "pooled".

    Raises:
      ValueError: at construction, on a value out of range, or a `scale` that the baseline does not have.

    Source: rllm's `env_utils.py` for G_t (γ = 0.95); the default baseline is this library's choice.
    """

    name: ClassVar[str] = "turn_return"

    discount: float = 1.0
    weight: float = 1.0
    baseline: str = "index"
    scale: str = "none"

    def __post_init__(self):
        check_choice(self, "baseline", ("index", "rtg_loo", "index_mean", "pooled"))
        check_choice(self, "scale", ("none", "std"))
        check_share(self, "discount")
        check_at_least(self, 0, "weight")
        if self.scale == "std" and self.baseline not in ("index_mean", "pooled"):
            raise ValueError(f"scale='std' of '{self.name}' goes with baseline='index_mean' or 'pooled', not {self.baseline!r}")

    def assign(self, batch: Batch) -> Credit:
        mask_ExS = step_mask(batch)
        reward_ExS = self.weight * select(mask_ExS, batch.signals["turn_reward"]) + outcome_reward(batch)
        return_ExS = return_to_go(reward_ExS, mask_ExS, self.discount)
        if self.baseline == "rtg_loo":
            advantage_ExS = leave_one_out_return_to_go(return_ExS, batch.group_id, mask_ExS, counted_episodes(batch))
        elif self.baseline == "index":
            advantage_ExS = leave_one_out_by_index(return_ExS, batch)
        else:
            units = StepUnits(batch)
            group_ExS = units.group_and_index if self.baseline == "index_mean" else units.group_id
            advantage_ExS = group_normalise(return_ExS, group_ExS, mask_ExS, num_groups=mask_ExS.size, scale=self.scale)
        advantage_RxL = to_tokens(advantage_ExS, batch)
        return Credit(advantage_RxL, reward_ExS, advantage_ExS, None, common_metrics(advantage_RxL, reward_ExS, batch))


def leave_one_out_by_index(return_ExS: Array, batch: Batch) -> Array:
    """float32 `[E, S]`: G_t minus its mean over the others of the group that have a step t, or over all steps of the others if none has."""
    mask_ExS = step_mask(batch)
    index_ExS, steps = StepUnits(batch).group_and_index, mask_ExS.size
    of_index_ExS = group_normalise(return_ExS, index_ExS, mask_ExS, num_groups=steps, scale="leave_one_out")
    count_ExS = group_statistics(return_ExS, index_ExS, mask_ExS, num_groups=steps, ddof=0)[2]
    # What all others of the group earned, without this episode's own steps.
    of_group = lambda x_E: group_sum(x_E, batch.group_id, counted_episodes(batch), batch.num_episodes)[batch.group_id] - x_E
    total_E, steps_E = of_group(select(mask_ExS, return_ExS).sum(axis=1)), of_group(mask_ExS.sum(axis=1).astype(jnp.float32))
    of_others_Ex1 = jnp.where(steps_E > 0, total_E / jnp.maximum(steps_E, 1.0), 0.0)[:, None]
    pooled_ExS = jnp.where((steps_E > 0)[:, None], return_ExS - of_others_Ex1, 0.0)
    return jnp.where(mask_ExS, jnp.where(count_ExS > 1, of_index_ExS, pooled_ExS), 0.0)


@register("mt_grpo")
@dataclasses.dataclass(frozen=True)
class MTGRPO(_TurnRewards):
    """Turn-level credit: A = β·A_O + c·A_I up to the step that got the first result, and A_O after it.

    A_O = z(R), A_I = z(I) over the episodes of the group, z(x) = (x − mean) / (std + eps) with ddof 1, and I the sum of the episode's turn
    rewards. The paper and its release have two turns, a call of a tool and the answer. Here the first result is what the first executed
    step of an episode got, if a later step could read it. Signal: `turn_reward` float32 `[E, S]` (`host_signals`).

    Attributes:
      turn_weight: c ≥ 0, weight of A_I (the release; 1).
      outcome_weight: β ≥ 0, weight of A_O in the steps up to the first result. The paper has a coefficient here and none on A_I; with both
        weights 1 paper and release agree.
      without_result: what all steps of an episode without a result get: "sum", z(I + R) over the group, as in the release; or "before",
        the advantage of the steps before the first result. The paper does not state it.
      eps: added to the standard deviation.

    Raises:
      ValueError: at construction, on a value out of range.

    Source: MT-GRPO (arXiv 2505.11821) and its public release.
    """

    name: ClassVar[str] = "mt_grpo"

    turn_weight: float = 1.0
    outcome_weight: float = 1.0
    without_result: str = "sum"
    eps: float = 1e-4

    def __post_init__(self):
        check_choice(self, "without_result", ("sum", "before"))
        check_at_least(self, 0, "turn_weight", "outcome_weight", "eps")

    def assign(self, batch: Batch) -> Credit:
        mask_ExS, mask_E = step_mask(batch), counted_episodes(batch)
        turn_ExS = select(mask_ExS, batch.signals["turn_reward"])
        turn_E, outcome_E = turn_ExS.sum(axis=1), select(mask_E, batch.outcome)
        z = lambda x_E: grpo(x_E, batch.group_id, mask_E, eps=self.eps)[:, None]
        before_Ex1 = self.outcome_weight * z(outcome_E) + self.turn_weight * z(turn_E)
        without_Ex1 = z(turn_E + outcome_E) if self.without_result == "sum" else before_Ex1

        first_ExS = first_step(batch.executed & mask_ExS) & ~last_step(mask_ExS)  # the step that got the first result
        found_E = first_ExS.any(axis=1)
        after_ExS = jnp.cumsum(first_ExS, axis=1) - first_ExS > 0
        advantage_ExS = jnp.where(found_E[:, None], jnp.where(after_ExS, z(outcome_E), before_Ex1), without_Ex1)
        advantage_ExS = jnp.where(mask_ExS, advantage_ExS, 0.0)
        advantage_RxL = to_tokens(advantage_ExS, batch)
        reward_ExS = turn_ExS + outcome_reward(batch)
        metrics = common_metrics(advantage_RxL, reward_ExS, batch)
        metrics["episodes_with_result"] = masked_mean(found_E, mask_E)
        return Credit(advantage_RxL, reward_ExS, advantage_ExS, None, metrics)
