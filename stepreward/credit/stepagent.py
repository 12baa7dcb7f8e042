"""StepAgent and reward phasing: a discriminator that tells the expert's steps from the policy's gives the reward of each step."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from stepreward.batch import Batch
from stepreward.credit.actor_critic import ActorCritic
from stepreward.credit.base import Metrics, check_at_least, check_choice, check_share, register, step_mask, token_count
from stepreward.credit.outcome import outcome_reward
from stepreward.credit.schedules import Linear, Schedule
from stepreward.envs.protocol import EXPERT
from stepreward.kernels import discriminator_loss, discriminator_reward
from stepreward.kernels.discrimination import REWARDS
from stepreward.kernels.inputs import select

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class _Discriminated(ActorCritic):
    """The base of methods whose step reward is a discriminator's. D = σ(f) is its probability that the expert took the step.

    Signals: `discriminator_logit` float32 `[E, S]`, f; those of `ActorCritic`. The loss of the discriminator reads `from_expert` bool
    `[E]`.

    Attributes:
      form: the reward by the logit (`kernels.discriminator_reward`): "gail" is −log(1 − D), "airl" is f, "log" is log D.
      baseline: "critic"; or "group", which needs no critic: return-to-go minus that of the others of the group at the same step.
    """

    capabilities: ClassVar[frozenset[str]] = frozenset({EXPERT})

    form: str = "gail"
    baseline: str = "critic"

    def __post_init__(self):
        super().__post_init__()
        check_choice(self, "form", REWARDS)

    @property
    def requires(self) -> frozenset[str]:
        return super().requires | {"discriminator_logit"}

    @property
    def losses(self) -> dict:
        return {"discriminator": self.discriminator_loss}

    def discriminator_loss(self, output_ExS: Array, batch: Batch) -> tuple[Array, Metrics]:
        """Binary cross-entropy over the steps with action tokens; `batch` has the expert's episodes and the policy's."""
        sampled_ExS = step_mask(batch) & (token_count(batch) > 0)
        return discriminator_loss(output_ExS, batch.signals["from_expert"], sampled_ExS)

    def expert_reward(self, batch: Batch) -> Array:
        """float32 `[E, S]`: the discriminator's reward, 0 on steps that do not count."""
        mask_ExS = step_mask(batch)
        return select(mask_ExS, discriminator_reward(select(mask_ExS, batch.signals["discriminator_logit"]), self.form))


@register("stepagent")
@dataclasses.dataclass(frozen=True)
class StepAgent(_Discriminated):
    """StepAgent's inverse reinforcement learning: r_t = w·r_D(s_t, a_t), and w_R·R more at the last step; then PPO over steps.

    The paper also has an implicit reward, a preference loss of single steps, which is another method.

    No public code was found, and only the structure of the method is verified: a discriminator of expert and agent, whose output is the
    step reward of PPO. The form of the reward, and that the outcome is no part of it, are assumptions.

    Attributes:
      weight: w ≥ 0.
      outcome_weight: w_R ≥ 0; 0 leaves the environment's outcome out.

    Raises:
      ValueError: at construction, on an invalid value of an option.

    Source: StepAgent (arXiv 2411.03817).
    """

    name: ClassVar[str] = "stepagent"

    weight: float = 1.0
    outcome_weight: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, 0, "weight", "outcome_weight")

    def reward_of_steps(self, batch: Batch) -> Array:
        """r_t = w·r_D, and w_R·R more at the last step."""
        return self.weight * self.expert_reward(batch) + self.outcome_weight * outcome_reward(batch)


@register("reward_phasing")
@dataclasses.dataclass(frozen=True)
class RewardPhasing(_Discriminated):
    """Task phasing by rewards: r_t = r_env + b·r_D, where b falls from 1 to 0; then PPO over steps.

    In the end the reward is the environment's alone. b is the coefficient `phase`, which may follow any schedule:
    `success(1, 0, 0.2, 0.8)` lowers it as the success rises. A run uses the variant "paper", in which b falls over 100 iterations. The
    paper lowers b by 0.1 for each 100 episodes as long as the performance holds; its tasks are much smaller than a language model's, so
    the number of iterations here is an assumption.

    Attributes:
      phase: b in [0, 1].
      fade_iterations: iterations until b is 0, short for the schedule `linear(phase, 0, fade_iterations)`; 0 keeps b constant. A schedule
        of `phase` in `schedules` takes its place.
      reward: r_env: "outcome" gives the outcome at the last step, "env" the environment's reward at each step.

    Raises:
      ValueError: at construction, on an invalid value of an option.

    Source: Task Phasing (arXiv 2210.10999). Its release trains the reward by GAIL or AIRL: `form`.
    """

    name: ClassVar[str] = "reward_phasing"
    recommended: ClassVar[str] = "paper"
    variants: ClassVar = {"paper": {"fade_iterations": 100}}

    phase: float = 1.0
    fade_iterations: int = 0
    reward: str = "outcome"

    def __post_init__(self):
        super().__post_init__()
        check_share(self, "phase")
        check_at_least(self, 0, "fade_iterations")

    @property
    def default_schedules(self) -> dict[str, Schedule]:
        return {"phase": Linear(self.phase, 0.0, self.fade_iterations)} if self.fade_iterations else {}

    def reward_of_steps(self, batch: Batch) -> Array:
        """r_t = r_env + b·r_D."""
        return super().reward_of_steps(batch) + jnp.asarray(self.phase, jnp.float32) * self.expert_reward(batch)
