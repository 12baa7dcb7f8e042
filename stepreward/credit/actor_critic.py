"""Methods whose step rewards reach earlier actions through a critic (PPO), or through the group's returns-to-go.

`ActorCritic` turns any step reward `[E, S]` into advantages; a method that only has another reward overrides `reward_of_steps`.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from stepreward.batch import Batch
from stepreward.credit.base import (
    Credit,
    Method,
    Metrics,
    check_choice,
    first_token,
    register,
    step_mask,
    step_mean,
    step_sum,
    to_tokens,
    token_mask,
)
from stepreward.credit.outcome import advantage_metrics, counted_episodes, outcome_metrics, outcome_reward
from stepreward.kernels import (
    explained_variance,
    generalized_advantage_estimation,
    kl_k1,
    leave_one_out_return_to_go,
    masked_mean,
    masked_std,
    masked_whiten,
    return_to_go,
    token_stream,
)

Array = jax.Array

_CHOICES = {
    "level": ("step", "token"),
    "observation": ("skip", "decay"),
    "baseline": ("critic", "group"),
    "reward": ("outcome", "env"),
}


@dataclasses.dataclass(frozen=True)
class ActorCritic(Method):
    """Generalized advantage estimation of a step reward, at the level of steps or of tokens.

    The signal `value[r, l]` is the critic's V *before* token `[r, l]`, aligned as log-probs are. An episode that the step limit
    stopped is treated as ended: nothing is bootstrapped beyond its last step.

    Attributes:
      discount: γ in [0, 1].
      trace: λ in [0, 1].
      whiten: shift and scale the advantages to zero mean and unit variance over the batch.
      kl_in_reward: subtract c · (log π − log π_initial) of every token (k1) from the reward; c is the signal `kl_coef` (a scalar
        that the run adapts), `log_prob_initial` the policy that RL started from, and π the signal `log_prob_policy`, or the policy
        of the rollout where there is none.
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
        for field in ("discount", "trace"):
            if not 0.0 <= getattr(self, field) <= 1.0:
                raise ValueError(f"{field} of '{self.name}' must lie in [0, 1], not {getattr(self, field)!r}")

    @property
    def has_critic(self) -> bool:
        return self.baseline == "critic"

    @property
    def needs_group(self) -> bool:
        """True where the group is the baseline."""
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
        """bool `[R, L]`: where the critic is read, and so where it is trained."""
        return first_token(batch) if self.level == "step" else token_mask(batch)

    def assign(self, batch: Batch) -> Credit:
        reward_ExS = self.reward_of_steps(batch)
        penalty_RxL, metrics = self._penalty(batch)
        advantage = self._by_steps if self.level == "step" else self._by_tokens
        advantage_RxL, step_advantage_ExS, returns_RxL = advantage(reward_ExS, penalty_RxL, batch)
        mask_ExS = step_mask(batch)
        outcome_size = jnp.where(counted_episodes(batch), jnp.abs(batch.outcome), 0.0).sum()
        metrics |= {
            **outcome_metrics(batch),
            **advantage_metrics(advantage_RxL, batch),
            "step_reward_mean": masked_mean(reward_ExS, mask_ExS),
            "step_reward_std": masked_std(reward_ExS, mask_ExS, ddof=1),
            "shaped_to_outcome": jnp.abs(reward_ExS).sum() / jnp.maximum(outcome_size, 1e-8),
        }
        if self.has_critic:
            value_RxL = batch.signals["value"].astype(jnp.float32)
            metrics["explained_variance"] = explained_variance(value_RxL, returns_RxL, self.value_mask(batch))
        return Credit(advantage_RxL, reward_ExS, step_advantage_ExS, returns_RxL, metrics)

    def _penalty(self, batch: Batch) -> tuple[Array | None, Metrics]:
        """`[R, L]`: c times the log-ratio to the initial policy, 0 off the counted tokens."""
        if not self.kl_in_reward:
            return None, {}
        policy_RxL = batch.signals.get("log_prob_policy", batch.log_prob_old)
        kl_RxL = kl_k1(policy_RxL.astype(jnp.float32), batch.signals["log_prob_initial"].astype(jnp.float32))
        kl_RxL = jnp.where(token_mask(batch), kl_RxL, 0.0)
        episodes = jnp.maximum(counted_episodes(batch).sum(), 1)
        coefficient = jnp.asarray(batch.signals["kl_coef"], jnp.float32)
        return coefficient * kl_RxL, {"kl_initial": kl_RxL.sum() / episodes, "kl_coef": coefficient}

    def _by_steps(self, reward_ExS, penalty_RxL, batch: Batch):
        mask_ExS = step_mask(batch)
        if penalty_RxL is not None:
            reward_ExS = reward_ExS - step_sum(penalty_RxL, batch)
        if self.has_critic:
            value_ExS = step_sum(jnp.where(first_token(batch), batch.signals["value"].astype(jnp.float32), 0.0), batch)
            advantage_ExS, returns_ExS = generalized_advantage_estimation(reward_ExS, value_ExS, mask_ExS, self.discount, self.trace)
            returns_RxL = to_tokens(returns_ExS, batch)
        else:
            returns_ExS, returns_RxL = return_to_go(reward_ExS, mask_ExS, self.discount), None
            advantage_ExS = leave_one_out_return_to_go(returns_ExS, batch.group_id, mask_ExS, counted_episodes(batch))
        if self.whiten:
            advantage_ExS = masked_whiten(advantage_ExS, mask_ExS)
        return to_tokens(advantage_ExS, batch), advantage_ExS, returns_RxL

    def _by_tokens(self, reward_ExS, penalty_RxL, batch: Batch):
        shape = batch.tokens.shape
        stream = token_stream(batch.step_id, token_mask(batch), batch.max_steps)
        reward_1xN = jnp.where(stream.step_end, stream.take(to_tokens(reward_ExS, batch)), 0.0)
        if penalty_RxL is not None:
            reward_1xN = reward_1xN - stream.take(penalty_RxL)
        value_1xN = stream.take(batch.signals["value"].astype(jnp.float32))
        discount_1xN = jnp.full(stream.mask.shape, self.discount, jnp.float32)
        if self.observation == "decay":
            discount_1xN = discount_1xN * (self.discount * self.trace) ** self._observed_before_next(stream, shape)
        discount_1xN = jnp.where(stream.episode_end, 0.0, discount_1xN)
        advantage_1xN, returns_1xN = generalized_advantage_estimation(reward_1xN, value_1xN, stream.mask, discount_1xN, self.trace)
        if self.whiten:
            advantage_1xN = masked_whiten(advantage_1xN, stream.mask)
        advantage_RxL = stream.put(advantage_1xN, shape)
        return advantage_RxL, step_mean(advantage_RxL, batch), stream.put(returns_1xN, shape)

    @staticmethod
    def _observed_before_next(stream, shape) -> Array:
        """`[1, N]`: how many tokens that nobody sampled lie between an action token and the next one of its episode.

        In TRL's recursion value and reward of these g tokens are 0 but still decay: A_t = r_t − V_t + (γλ)^g · γ · (V_{t'} +
        λ·A_{t'}), which is the usual step with the discount γ·(γλ)^g. Where the next step has a row of its own, they are the
        tokens of its prompt.
        """
        rows, length = shape
        row_1xN, column_1xN = (stream.take(x) for x in jnp.indices((rows, length)))
        later = lambda x_1xN: jnp.pad(x_1xN[:, 1:], ((0, 0), (0, 1)))
        same_row = later(row_1xN) == row_1xN
        return jnp.where(same_row, later(column_1xN) - column_1xN - 1, later(column_1xN)).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class _OutcomeCritic(ActorCritic):
    """A critic on the environment's own signal.

    Attributes:
      reward: "outcome" gives the outcome at the last step, "env" the environment's reward at each step.
    """

    reward: str = "outcome"


@register("ppo")
@dataclasses.dataclass(frozen=True)
class PPO(_OutcomeCritic):
    """Generalized advantage estimation over the action tokens of each episode, a step's reward at its last token.

    Attributes:
      observation: "skip" passes over the tokens of observations; "decay" lets them shrink what comes later, as TRL does.
    """

    name: ClassVar[str] = "ppo"
    level: ClassVar[str] = "token"

    observation: str = "skip"


@register("step_ppo")
@dataclasses.dataclass(frozen=True)
class StepPPO(_OutcomeCritic):
    """Generalized advantage estimation with one transition a step: V at its first token, whitened over steps.

    `returns` holds the step's return at each of its tokens; train the critic at the first one (`value_mask`).

    Source: StepPO (arXiv 2604.18401).
    """

    name: ClassVar[str] = "step_ppo"
    level: ClassVar[str] = "step"
