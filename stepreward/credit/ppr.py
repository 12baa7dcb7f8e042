"""PPR: a judge's score of each step, centred together with the outcome (ReNorm), and generalized advantage estimation."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from stepreward.batch import Batch
from stepreward.credit.actor_critic import ActorCritic
from stepreward.credit.base import Credit, check_choice, last_step, register, step_mask
from stepreward.kernels import masked_mean
from stepreward.kernels.inputs import select

Array = jax.Array


@register("ppr")
@dataclasses.dataclass(frozen=True)
class PPR(ActorCritic):
    """Principle process reward with ReNorm: r_t = (p_t − ½) + (R − ½) = p_t + R − 1, and the outcome R at the last step.

    p_t in [0, 1] is the signal `process_score` `[E, S]`, a judge's score of the step. R must lie in [0, 1] too, as success does
    (`credit.outcome=success`); for R in {0, 1} a step's reward is positive only in a success and negative only in a failure. Advantages
    come from a critic by generalized advantage estimation (γ and λ are not stated), or from the group.

    ReNorm is not potential-based shaping: with p = 0.8 a success earns 1.6 over two steps and 3.2 over four. It pays for long successes
    and for short failures.

    A score that is not finite, because the judge failed on that step, counts as ½, the centre of the scale: r_t = R − ½.
    `scores_unknown` is the share of such steps.

    Attributes:
      final: the last step: "outcome" gives it R alone, "renorm" treats it as every other step. The paper's treatment is not verified; its
        authors' earlier code leaves the last turn to the outcome.
      baseline: "critic", the paper's; or "group", which needs no critic: return-to-go minus that of the others of the group at the same
        step, an ended episode counting as 0.

    Raises:
      ValueError: at construction, on an invalid value of an option.

    Source: PPR (arXiv 2509.25598).
    """

    name: ClassVar[str] = "ppr"

    final: str = "outcome"
    baseline: str = "critic"

    def __post_init__(self):
        super().__post_init__()
        check_choice(self, "final", ("outcome", "renorm"))

    @property
    def requires(self) -> frozenset[str]:
        return super().requires | {"process_score"}

    def reward_of_steps(self, batch: Batch) -> Array:
        """r_t = p_t + R − 1; with `final="outcome"` R at the last step."""
        mask_ExS, score_ExS = step_mask(batch), batch.signals["process_score"]
        score_ExS = jnp.where(jnp.isfinite(score_ExS), score_ExS.astype(jnp.float32), 0.5)
        outcome_ExS = select(mask_ExS, jnp.broadcast_to(batch.outcome[:, None], mask_ExS.shape))
        reward_ExS = jnp.where(mask_ExS, score_ExS + outcome_ExS - 1.0, 0.0)
        return jnp.where(last_step(mask_ExS), outcome_ExS, reward_ExS) if self.final == "outcome" else reward_ExS

    def assign(self, batch: Batch) -> Credit:
        credit = super().assign(batch)
        mask_ExS, score_ExS = step_mask(batch), batch.signals["process_score"]
        known_ExS = mask_ExS & jnp.isfinite(score_ExS)
        metrics = {"score_mean": masked_mean(score_ExS, known_ExS), "scores_unknown": masked_mean(~known_ExS, mask_ExS)}
        return credit.replace(metrics=credit.metrics | metrics)
