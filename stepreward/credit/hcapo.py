"""HCAPO: the return of a step is scaled by how likely its action is for the policy that knows how the episode ended."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from stepreward.batch import Batch
from stepreward.credit.base import (
    Credit,
    Method,
    check_at_least,
    check_choice,
    check_share,
    last_step,
    per_step,
    register,
    step_mask,
    step_mean,
    to_tokens,
    token_count,
)
from stepreward.credit.outcome import counted_episodes
from stepreward.credit.pieces import common_metrics
from stepreward.credit.units import StepUnits
from stepreward.kernels import group_normalise, grpo, masked_mean, steps_to_go
from stepreward.kernels.inputs import select

Array = jax.Array


@register("hcapo")
@dataclasses.dataclass(frozen=True)
class HCAPO(Method):
    """Hindsight credit: A(a_t) = z(R) + ω·(Q_t − μ) / σ.

    h_t = exp(mean over the tokens of a_t of log π(· | s_t, the final state) / T), T the temperature
    ρ_t = clip(h_t / mean of h over the steps of the episode, low, high)
    Q_t = ρ_t·γ^{T_i − t}·R; the exponent is 0 at the last step

    z(R) is taken over the episodes of the group, and μ and σ over all steps of the group. In a successful episode the second term counts
    as 0 where it is negative. Signal: `log_prob_hindsight` `[R, L]`, the log-probability of the answer under the policy whose prompt also
    shows how the episode ended. A step whose log-probability is not finite (NaN: no hindsight), or without a token, has ρ = 1 and does not
    enter the episode's mean.

    ρ compares the actions of one episode with each other, and not the same action with and without hindsight. With R = 0 all steps of
    an episode have the same Q.

    Attributes:
      omega: ω ≥ 0; 0 leaves z(R).
      discount: γ in [0, 1].
      temperature: T > 0.
      clip_low, clip_high: the range of ρ.
      smooth: replace Q_t by ½·Q_t + ½·Q_{t+1}; the last step keeps its Q.
      scope: μ and σ over all steps of the "group", or over its steps at the same "index". The paper's equation 8 says "at step t",
        its section 5.2 and algorithm 1 all steps.
      positive: in a success, a negative second term counts as 0.
      ddof: of both standard deviations, 0 or 1; the paper does not state it.
      eps: added to the standard deviations.

    Raises:
      ValueError: at construction, on a value out of range.

    Source: HCAPO (arXiv 2603.08754); written after transcribed equations, since no official code was found.
    """

    name: ClassVar[str] = "hcapo"
    requires: ClassVar[frozenset[str]] = frozenset({"log_prob_hindsight"})
    needs_group: ClassVar[bool] = True

    omega: float = 1.0
    discount: float = 0.95
    temperature: float = 5.0
    clip_low: float = 0.8
    clip_high: float = 1.2
    smooth: bool = False
    scope: str = "group"
    positive: bool = True
    ddof: int = 0
    eps: float = 1e-6

    def __post_init__(self):
        check_choice(self, "scope", ("group", "index"))
        check_choice(self, "ddof", (0, 1))
        check_share(self, "discount")
        check_at_least(self, 0, "omega", "clip_low", "eps")
        if not self.temperature > 0:
            raise ValueError(f"temperature of '{self.name}' must be positive, not {self.temperature!r}")
        if not self.clip_high >= self.clip_low:
            raise ValueError(f"clip_high of '{self.name}' must be at least clip_low={self.clip_low!r}, not {self.clip_high!r}")

    def assign(self, batch: Batch) -> Credit:
        mask_ExS, mask_E = step_mask(batch), counted_episodes(batch)
        ratio_ExS, known_ExS = self._ratio(batch)
        reward_ExS = ratio_ExS * self.discount ** steps_to_go(mask_ExS) * per_step(batch.outcome.astype(jnp.float32), batch)
        if self.smooth:
            later_ExS = jnp.pad(reward_ExS[:, 1:], ((0, 0), (0, 1)))
            reward_ExS = jnp.where(last_step(mask_ExS), reward_ExS, 0.5 * (reward_ExS + later_ExS))

        units = StepUnits(batch)
        group_ExS = units.group_id if self.scope == "group" else units.group_and_index
        options = dict(num_groups=mask_ExS.size, scale="std", ddof=self.ddof, eps=self.eps)
        micro_ExS = group_normalise(reward_ExS, group_ExS, mask_ExS, **options)
        if self.positive:
            micro_ExS = jnp.where(batch.success[:, None], jnp.maximum(micro_ExS, 0.0), micro_ExS)
        macro_E = grpo(batch.outcome, batch.group_id, mask_E, ddof=self.ddof, eps=self.eps)
        advantage_ExS = per_step(macro_E, batch) + self.omega * micro_ExS

        advantage_RxL = to_tokens(advantage_ExS, batch)
        clipped_ExS = (ratio_ExS <= self.clip_low) | (ratio_ExS >= self.clip_high)
        metrics = common_metrics(advantage_RxL, reward_ExS, batch)
        metrics |= {"hindsight_clipped": masked_mean(clipped_ExS, known_ExS), "hindsight_unknown": masked_mean(~known_ExS, mask_ExS)}
        return Credit(advantage_RxL, reward_ExS, advantage_ExS, None, metrics)

    def _ratio(self, batch: Batch) -> tuple[Array, Array]:
        """`[E, S]` each: ρ, 1 where there is no hindsight; and where there is."""
        mean_ExS = step_mean(batch.signals["log_prob_hindsight"], batch)
        known_ExS = step_mask(batch) & jnp.isfinite(mean_ExS) & (token_count(batch) > 0)
        # Measured from the largest of the episode, which leaves the ratio as it is, so that no exponential is 0 / 0.
        scaled_ExS = select(known_ExS, mean_ExS) / self.temperature
        largest_E = jnp.max(jnp.where(known_ExS, scaled_ExS, -jnp.inf), axis=1, keepdims=True)
        likelihood_ExS = jnp.where(known_ExS, jnp.exp(scaled_ExS - jnp.where(jnp.isfinite(largest_E), largest_E, 0.0)), 0.0)
        mean_Ex1 = likelihood_ExS.sum(axis=1, keepdims=True) / jnp.maximum(known_ExS.sum(axis=1, keepdims=True), 1)
        ratio_ExS = likelihood_ExS / jnp.where(mean_Ex1 > 0, mean_Ex1, 1.0)
        return jnp.where(known_ExS, jnp.clip(ratio_ExS, self.clip_low, self.clip_high), 1.0), known_ExS
