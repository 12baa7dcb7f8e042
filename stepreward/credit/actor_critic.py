"""Methods whose step rewards reach earlier actions through a critic (PPO), or through the group's returns-to-go.

`ActorCritic` computes advantages from any step reward `[E, S]`; a method with a reward of its own overrides `reward_of_steps`.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from stepreward.batch import Batch
from stepreward.credit import ablations, pieces
from stepreward.credit.base import Credit, Method, check_choice, check_share, first_token, register, step_mask, step_sum, token_mask
from stepreward.credit.outcome import outcome_reward
from stepreward.kernels import explained_variance

Array = jax.Array

_BASELINE = {"critic": pieces.estimate_by_critic, "group": pieces.estimate_by_group}
_CHOICES = {
    "level": ("step", "token"),
    "observation": tuple(ablations.OBSERVATION),
    "baseline": tuple(_BASELINE),
    "reward": ("outcome", "env"),
}


@dataclasses.dataclass(frozen=True)
class ActorCritic(Method):
    """Generalized advantage estimation of a step reward, at the level of steps or of tokens.

    The signal `value[r, l]` is the critic's V *before* token `[r, l]`, aligned as log-probabilities are. An episode that the step limit
    stopped counts as ended: its last step does not bootstrap.

    Attributes:
      discount: γ in [0, 1].
      trace: λ in [0, 1].
      whiten: shift and scale the advantages to zero mean and unit variance over the batch.
      kl_in_reward: subtract c · (log π − log π_initial) of every token (k1) from the reward. c is the signal `kl_coef` (a scalar
        that the run adapts), log π_initial the signal `log_prob_initial`, the policy at the start of reinforcement learning, and log π
        the signal `log_prob_policy`, or `log_prob_old` in a batch without it.
    """

    level: ClassVar[str] = "step"
    observation: ClassVar[str] = "skip"
    baseline: ClassVar[str] = "critic"
    reward: ClassVar[str] = "outcome"

    discount: float = 1.0
    trace: float = 1.0
    whiten: bool = True
    kl_in_reward: bool = False

    def __post_init__(self):
        for field, choices in _CHOICES.items():
            check_choice(self, field, choices)
        if self.baseline == "group" and self.level != "step":
            raise ValueError(f"baseline='group' of '{self.name}' compares steps: set level='step'")
        check_share(self, "discount", "trace")

    @property
    def has_critic(self) -> bool:
        return self.baseline == "critic"

    @property
    def needs_group(self) -> bool:
        """True if the group is the baseline."""
        return self.baseline == "group"

    @property
    def requires(self) -> frozenset[str]:
        needed = {"value"} if self.has_critic else set()
        return frozenset(needed | ({"log_prob_initial", "kl_coef"} if self.kl_in_reward else set()))

    def reward_of_steps(self, batch: Batch) -> Array:
        """float32 `[E, S]`: the reward of each step, 0 on steps that do not count."""
        if self.reward == "outcome":
            return outcome_reward(batch)
        return jnp.where(step_mask(batch), batch.env_reward.astype(jnp.float32), 0.0)

    def value_mask(self, batch: Batch) -> Array:
        """bool `[R, L]`: the tokens at which the critic is read, and therefore trained."""
        return first_token(batch) if self.level == "step" else token_mask(batch)

    def assign(self, batch: Batch) -> Credit:
        reward_ExS = self.reward_of_steps(batch)
        penalty_RxL, kl_metrics = pieces.kl_penalty(batch) if self.kl_in_reward else (None, {})
        estimate = self._by_steps if self.level == "step" else self._by_tokens
        advantage_RxL, step_advantage_ExS, returns_RxL = estimate(reward_ExS, penalty_RxL, batch)
        metrics = kl_metrics | pieces.common_metrics(advantage_RxL, reward_ExS, batch)
        if self.has_critic:
            value_RxL = batch.signals["value"].astype(jnp.float32)
            metrics["explained_variance"] = explained_variance(value_RxL, returns_RxL, self.value_mask(batch))
        return Credit(advantage_RxL, reward_ExS, step_advantage_ExS, returns_RxL, metrics)

    def _by_steps(self, reward_ExS: Array, penalty_RxL: Array | None, batch: Batch) -> pieces.Estimate:
        if penalty_RxL is not None:
            reward_ExS = reward_ExS - step_sum(penalty_RxL, batch)
        estimate = _BASELINE[self.baseline]
        return estimate(reward_ExS, batch, discount=self.discount, trace=self.trace, whiten=self.whiten)

    def _by_tokens(self, reward_ExS: Array, penalty_RxL: Array | None, batch: Batch) -> pieces.Estimate:
        options = dict(discount=self.discount, trace=self.trace, whiten=self.whiten)
        return pieces.estimate_by_tokens(reward_ExS, penalty_RxL, batch, **options, discounts=ablations.OBSERVATION[self.observation])


@dataclasses.dataclass(frozen=True)
class _OutcomeCritic(ActorCritic):
    """The base of methods with a critic whose reward is the environment's.

    Attributes:
      reward: "outcome" gives the outcome at the last step, "env" the environment's reward at each step.
    """

    reward: str = "outcome"


@register("ppo")
@dataclasses.dataclass(frozen=True)
class PPO(_OutcomeCritic):
    """Generalized advantage estimation over the action tokens of each episode, a step's reward at its last token.

    Attributes:
      observation: "skip" skips the tokens of observations; with "decay" they discount later rewards, as in TRL.
    """

    name: ClassVar[str] = "ppo"
    level: ClassVar[str] = "token"

    observation: str = "skip"


@register("starpo_s")
@dataclasses.dataclass(frozen=True)
class StarPOS(PPO):
    """StarPO-S: PPO with γ = λ = 1 on the groups whose outcomes differ most (`Filter`, "top_share").

    The paper's clip range, entropy bonus and penalty are keys of the config: see docs/methods.md.

    Source: RAGEN (arXiv 2504.20073).
    """

    name: ClassVar[str] = "starpo_s"
    filter: ClassVar[str] = "top_share"


@register("step_ppo")
@dataclasses.dataclass(frozen=True)
class StepPPO(_OutcomeCritic):
    """Generalized advantage estimation with one transition a step: V at its first token, whitened over steps.

    `returns` holds the step's return at each of its tokens; train the critic at the first one (`value_mask`).

    Source: StepPO (arXiv 2604.18401).
    """

    name: ClassVar[str] = "step_ppo"
    level: ClassVar[str] = "step"
