"""Temporal phasing: the expert plays the first steps of each episode, and hands over to the policy earlier and earlier."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from stepreward.batch import Batch
from stepreward.credit.actor_critic import PPO
from stepreward.credit.base import Credit, check_at_least, check_choice, check_share, make, register
from stepreward.credit.outcome import EPISODE_ADVANTAGES
from stepreward.credit.schedules import Linear, Schedule, Standing
from stepreward.envs.protocol import EXPERT


@register("temporal_phasing")
@dataclasses.dataclass(frozen=True)
class TemporalPhasing(PPO):
    """Task phasing in time: the expert takes the first steps, the policy the rest; the expert's share falls from 1 to 0.

    The strategy `handover` plays the episodes. The advantage is that of another method, which sees the policy's steps alone: the expert's
    steps have no action tokens. In the end the policy plays whole episodes.

    `share` may follow any schedule: `success(1, 0, 0.2, 0.8)` lowers it as the success of the training episodes rises, which the expert
    helps with. A run uses the variant "paper", in which it falls over 100 iterations. How fast the paper moves the hand-over on a
    language model's tasks is not known: that number is an assumption.

    Attributes:
      share: the expert's share of its own path, in [0, 1]; the policy takes at least the last step.
      fade_iterations: iterations until the share is 0, short for the schedule `linear(share, 0, fade_iterations)`; 0 keeps it constant. A
        schedule of `share` in `schedules` takes its place.
      learner: the method of the advantage: "ppo", whose options the others are; or an outcome method by its name, which reads none of
        them and needs no critic. The episodes of a group have the same hand-over, so they can be compared.

    Raises:
      ValueError: at construction, on an invalid value of an option.

    Source: Task Phasing (arXiv 2210.10999).
    """

    name: ClassVar[str] = "temporal_phasing"
    strategy: ClassVar[str] = "handover"
    capabilities: ClassVar[frozenset[str]] = frozenset({EXPERT})
    recommended: ClassVar[str] = "paper"
    variants: ClassVar = {"paper": {"fade_iterations": 100}}

    share: float = 1.0
    fade_iterations: int = 0
    learner: str = "ppo"

    def __post_init__(self):
        super().__post_init__()
        check_choice(self, "learner", ("ppo", *EPISODE_ADVANTAGES))
        check_share(self, "share")
        check_at_least(self, 0, "fade_iterations")
        if self.kl_in_reward and self.learner != "ppo":
            raise ValueError(f"kl_in_reward of '{self.name}' changes the rewards of PPO: set learner='ppo', or policy.kl_reward_coef=0")

    @property
    def default_schedules(self) -> dict[str, Schedule]:
        return {"share": Linear(self.share, 0.0, self.fade_iterations)} if self.fade_iterations else {}

    def scheduled_strategy_options(self, standing: Standing) -> dict[str, Any]:
        schedule = self.coefficients.get("share")
        return {"share": self.share if schedule is None else float(schedule(standing))}

    @property
    def has_critic(self) -> bool:
        return self.learner == "ppo"

    @property
    def needs_group(self) -> bool:
        """True if the advantage is that of a method which compares the episodes of a group."""
        return not self.has_critic and make(self.learner).needs_group

    def assign(self, batch: Batch) -> Credit:
        return super().assign(batch) if self.has_critic else make(self.learner).assign(batch)
