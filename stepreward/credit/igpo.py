"""IGPO: a step is rewarded for what it adds to the policy's log-probability of the reference answer."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from stepreward.batch import Batch
from stepreward.credit.base import Credit, Method, check_at_least, check_choice, check_share, last_step, register, step_mask, to_tokens
from stepreward.credit.outcome import counted_episodes, outcome_reward
from stepreward.credit.pieces import common_metrics
from stepreward.credit.units import StepUnits
from stepreward.envs.protocol import REFERENCE
from stepreward.kernels import group_normalise, group_statistics, leave_one_out_return_to_go, masked_mean, return_to_go

Array = jax.Array

CHOICES = {"gain": ("log_prob_diff", "prob_diff"), "baseline": ("rtg_loo", "paper"), "normalise": ("separate", "joint")}


@register("igpo")
@dataclasses.dataclass(frozen=True)
class IGPO(Method):
    """Information gain: r_t = s_{t+1} − s_t, and the outcome at the last step; A_t accumulates the rewards from t on.

    s_t is the signal `answer_log_prob` `[E, S]`, the mean log-probability of the reference answer's tokens before step t. The last step of
    an episode has no gain. A gain with an unknown end (NaN, or infinite) counts as 0 and enters no statistic, so an episode without a
    reference answer is trained on its outcome alone.

    "rtg_loo": A_t = G_t − mean of G_t over the other episodes of the group, 0 for one that has ended; G_t = r_t + γ·G_{t+1}
    "paper":   A_t = z(r_t) + γ·A_{t+1}, z(x) = (x − mean) / (√(var + 10⁻⁸) + 10⁻⁶) over the group, ddof 0

    The default differs from the paper: rewards that are centred first and accumulated afterwards bias the gradient where the number of
    steps depends on the policy, up to the wrong sign. `variant="paper"` selects the paper's form. Steps are told by their ids; the release
    takes each non-zero reward for the end of a turn, which merges a turn without gain into the next one.

    Attributes:
      discount: γ in [0, 1].
      gain: "log_prob_diff", s_{t+1} − s_t; or "prob_diff", e^{s_{t+1}} − e^{s_t} (the paper's first version).
      weight: w ≥ 0, weight of the gains beside the outcome.
      baseline: "rtg_loo" or "paper", as above.
      normalise: for "paper": "separate" compares gains with gains, and outcomes with outcomes; "joint" compares all rewards with each other.

    Raises:
      ValueError: at construction, on a value out of range.

    Source: IGPO (arXiv 2510.14967).
    """

    name: ClassVar[str] = "igpo"
    requires: ClassVar[frozenset[str]] = frozenset({"answer_log_prob"})
    capabilities: ClassVar[frozenset[str]] = frozenset({REFERENCE})
    needs_group: ClassVar[bool] = True
    variants: ClassVar = {"paper": {"baseline": "paper"}}

    discount: float = 1.0
    gain: str = "log_prob_diff"
    weight: float = 1.0
    baseline: str = "rtg_loo"
    normalise: str = "separate"

    def __post_init__(self):
        for field, choices in CHOICES.items():
            check_choice(self, field, choices)
        check_share(self, "discount")
        check_at_least(self, 0, "weight")

    def assign(self, batch: Batch) -> Credit:
        mask_ExS, outcome_ExS = step_mask(batch), outcome_reward(batch)
        gain_ExS, known_ExS = information_gain(batch.signals["answer_log_prob"], mask_ExS, self.gain)
        reward_ExS = self.weight * gain_ExS + outcome_ExS
        if self.baseline == "rtg_loo":
            return_ExS = return_to_go(reward_ExS, mask_ExS, self.discount)
            advantage_ExS = leave_one_out_return_to_go(return_ExS, batch.group_id, mask_ExS, counted_episodes(batch))
        else:
            last_ExS = last_step(mask_ExS)
            if self.normalise == "joint":
                normal_ExS = _z(reward_ExS, known_ExS | last_ExS, batch)
            else:
                normal_ExS = self.weight * _z(gain_ExS, known_ExS, batch) + _z(outcome_ExS, last_ExS, batch)
            advantage_ExS = return_to_go(normal_ExS, mask_ExS, self.discount)
        advantage_RxL = to_tokens(advantage_ExS, batch)
        metrics = common_metrics(advantage_RxL, reward_ExS, batch)
        inner_ExS = mask_ExS & ~last_step(mask_ExS)
        metrics |= {"gain_mean": masked_mean(gain_ExS, known_ExS), "gains_unknown": masked_mean(~known_ExS, inner_ExS)}
        return Credit(advantage_RxL, reward_ExS, advantage_ExS, None, metrics)


def information_gain(score_ExS: Array, mask_ExS: Array, how: str = "log_prob_diff") -> tuple[Array, Array]:
    """The gain of each step but the last one of its episode, and where it is known.

    Args:
      score_ExS: `[E, S]`, s_t before each step.
      mask_ExS: bool `[E, S]`; the True entries are the first ones of their row.
      how: "log_prob_diff" or "prob_diff".

    Returns:
      float32 and bool `[E, S]`; the gain is 0 where it is not known.
    """
    score_ExS = score_ExS.astype(jnp.float32)
    score_ExS = jnp.exp(score_ExS) if how == "prob_diff" else score_ExS
    gain_ExS = jnp.pad(score_ExS[:, 1:], ((0, 0), (0, 1))) - score_ExS
    known_ExS = mask_ExS & ~last_step(mask_ExS) & jnp.isfinite(gain_ExS)
    return jnp.where(known_ExS, gain_ExS, 0.0), known_ExS


def _z(reward_ExS: Array, mask_ExS: Array, batch: Batch) -> Array:
    """`[E, S]`: (r − mean) / (√(var + 10⁻⁸) + 10⁻⁶) over the True entries of the group, ddof 0; 0 elsewhere."""
    group_ExS, groups = StepUnits(batch).group_id, batch.num_episodes
    deviation_ExS = group_normalise(reward_ExS, group_ExS, mask_ExS, num_groups=groups, scale="none")
    std_ExS = group_statistics(reward_ExS, group_ExS, mask_ExS, num_groups=groups, ddof=0)[1]
    return deviation_ExS / (jnp.sqrt(std_ExS**2 + 1e-8) + 1e-6)
