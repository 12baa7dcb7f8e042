"""SPA-RL and RBT: the step rewards are an estimator's contributions of each step, whose sum fits the outcome.

SPA fits one sum per episode and adds a grounding signal; RBT fits one sum per bag of steps. The controls and ablations, and what SPA's
public release computes instead, are in `credit/ablations.py`.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from stepreward.batch import Batch
from stepreward.credit import ablations, pieces
from stepreward.credit.actor_critic import ActorCritic
from stepreward.credit.base import Metrics, check_at_least, check_choice, register, step_mask
from stepreward.credit.outcome import others_outcome, outcome_reward
from stepreward.kernels import bag_sum_loss, contribution_sum_loss, return_prediction_loss, spread_residual
from stepreward.kernels.masked import SINGLETON

Array = jax.Array

_ESTIMATED = {"progress": ablations.as_they_are, "shuffled": ablations.shuffled}
CHOICES = {
    "fit": ("episode", "every_step"),
    "step_reward": (*_ESTIMATED, *ablations.OUTCOME_REWARD),
    "step_weight": tuple(ablations.STEP_WEIGHT),
    "residual": ("uniform", "last"),
    "singleton": SINGLETON,
}


@register("spa")
@dataclasses.dataclass(frozen=True)
class SPA(ActorCritic):
    """Stepwise progress attribution: r_t = α·ĉ_t + β·g_t, then generalized advantage estimation with a critic.

    ĉ_t is the signal `progress` `[E, S]`, the estimator's output at the last token of step t, trained so that Σ_t ĉ_t ≈ R:
    L = (Σ_t ĉ_t − R)². g_t is 1 where the action was parsed and ran (`Batch.executed`). Other signals: `value` `[R, L]` with a
    critic; `step_permutation` for "shuffled"; those of `ActorCritic`.

    With β > 0 every executed step is rewarded, so the optimal policy may change; with `enforce_sum` and β = 0 it does not.

    Attributes:
      alpha: α, weight of the progress.
      beta: β, weight of the grounding signal (the release: 0.5).
      fit: what the estimator is trained on: "episode", the loss above; or "every_step", which is not in the paper. With it the
        contributions of the first t steps, for each t, predict by how much the outcome exceeds the mean b of the other episodes of the
        group: L = (Σ_t ĉ_t − (R − b))² + mean_t (Σ_{k≤t} ĉ_k − (R − b))². The best ĉ_t is then E[R | steps to t] − E[R | steps
        before t], the advantage of step t, where the loss of the paper is also 0 for "1 at the step that succeeds". The label is the
        signal `others_outcome` `[E]`.
      step_reward: "progress" is ĉ. Controls that replace it: "shuffled" (ĉ permuted within the episode by `step_permutation`),
        "uniform" (R / T), "terminal" (R at the last step), "leave_one_out" (R minus the mean of the others of the group, at every
        step, as in the release).
      clamp: contributions below 0 count as 0.
      enforce_sum: add R − Σ ĉ to the contributions, so that they sum to R exactly.
      residual: where `enforce_sum` adds it: "uniform" over the steps, or at the "last" step. With "uniform" the reward of an early
        step depends on later actions: the return-to-go of step t contains only (1 − t/T)·R, and the policy gradient is biased
        even with γ = λ = 1. With "last" it is unbiased.
      singleton: with "leave_one_out", what the only episode of a group gets: "zero", or "raw", its own outcome (as in the
        release).
      step_weight: "released" multiplies the reward of step t by T − t − 1, so that the reward of the last step is 0.
      last_grounded: the last step always counts as grounded, as in the release.
      level: the level of the advantage estimation: "step" or "token".
      observation: at level "token", "skip" skips the tokens of observations; with "decay" they discount later rewards (TRL).
      baseline: "critic"; or "group", which needs no critic: return-to-go minus that of the others of the group at the same step.

    Raises:
      ValueError: at construction, on an invalid value of an option.

    Source: SPA-RL (arXiv 2505.20732). The default of every option is the paper's definition; γ, λ are the release's 0.99 and 0.95.
    """

    name: ClassVar[str] = "spa"
    reads_ahead: ClassVar[bool] = True
    recommended: ClassVar[str] = "stable"
    variants: ClassVar = ablations.SPA_VARIANTS

    discount: float = 0.99
    trace: float = 0.95
    alpha: float = 1.0
    beta: float = 0.5
    fit: str = "episode"
    step_reward: str = "progress"
    clamp: bool = False
    enforce_sum: bool = False
    residual: str = "uniform"
    step_weight: str = "none"
    singleton: str = "zero"
    last_grounded: bool = False
    level: str = "step"
    observation: str = "skip"
    baseline: str = "critic"

    def __post_init__(self):
        super().__post_init__()
        for field, choices in CHOICES.items():
            check_choice(self, field, choices)
        check_at_least(self, 0, "alpha", "beta")

    @property
    def has_progress(self) -> bool:
        return self.uses("alpha") and self.step_reward in _ESTIMATED

    @property
    def needs_group(self) -> bool:
        """True if the group is the baseline, or if an outcome is compared with the others of the group."""
        return super().needs_group or self.step_reward == "leave_one_out"

    @property
    def requires(self) -> frozenset[str]:
        needed = super().requires | ({"progress"} if self.has_progress else set())
        return frozenset(needed | ({"step_permutation"} if self.has_progress and self.step_reward == "shuffled" else set()))

    @property
    def losses(self) -> dict:
        return {"estimator": self.progress_loss} if self.has_progress else {}

    def host_signals(self, batch: Batch, episodes, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return ablations.drawn(self.requires, batch, rng)

    @property
    def progress_options(self) -> dict:
        return {"loss": {"episode": "sum of the episode", "every_step": "sum of each prefix"}[self.fit]}

    @property
    def label_signals(self) -> frozenset[str]:
        return frozenset({"others_outcome"} if self.has_progress and self.fit == "every_step" else ())

    def labels(self, batch: Batch, episodes) -> dict[str, np.ndarray]:
        """b of each episode; R − b is RLOO's advantage, so that an episode without others has the label R − b = 0."""
        return {"others_outcome": np.asarray(others_outcome(batch))} if self.label_signals else {}

    def explained_outcome(self, batch: Batch) -> Array:
        return batch.outcome - batch.signals["others_outcome"] if self.label_signals else batch.outcome

    def contributions(self, output_ExS: Array, batch: Batch) -> Array:
        if not self.has_progress:
            return super().contributions(output_ExS, batch)  # raises
        mask_ExS = step_mask(batch)
        output_ExS = jnp.where(mask_ExS, output_ExS.astype(jnp.float32), 0.0)
        return jnp.maximum(output_ExS, 0.0) if self.clamp else output_ExS

    def progress_loss(self, output_ExS: Array, batch: Batch) -> tuple[Array, Metrics]:
        """L = mean over episodes of (Σ_t ĉ_t − R)², or that of `fit="every_step"`. The estimator's outputs are not clamped here: `clamp` applies to rewards only."""
        if not self.has_progress:
            return super().progress_loss(output_ExS, batch)
        mask_ExS, outcome_E = step_mask(batch), self.explained_outcome(batch)
        if self.fit == "episode":
            return contribution_sum_loss(output_ExS, outcome_E, mask_ExS), {}
        sums_ExS = jnp.cumsum(jnp.where(mask_ExS, output_ExS.astype(jnp.float32), 0.0), axis=1)
        return return_prediction_loss(sums_ExS, outcome_E, mask_ExS, every_step=1.0), {}

    def reward_of_steps(self, batch: Batch) -> Array:
        """r_t = α·ĉ_t + β·g_t."""
        mask_ExS, executed_ExS = step_mask(batch), batch.executed
        if self.last_grounded:
            executed_ExS = ablations.with_last_step(executed_ExS, mask_ExS)
        reward_ExS = self.beta * pieces.grounding(executed_ExS, mask_ExS)
        if self.uses("alpha"):
            reward_ExS = reward_ExS + self.alpha * self._progress(batch)
        return jnp.where(mask_ExS, ablations.STEP_WEIGHT[self.step_weight](reward_ExS, batch), 0.0)

    def _progress(self, batch: Batch) -> Array:
        """`[E, S]`: ĉ, or the control that replaces it."""
        if self.step_reward in ablations.OUTCOME_REWARD:
            return ablations.OUTCOME_REWARD[self.step_reward](batch, self.singleton)
        progress_ExS = self.contributions(batch.signals["progress"], batch)
        if self.enforce_sum:
            progress_ExS = spread_residual(progress_ExS, batch.outcome.astype(jnp.float32), step_mask(batch), self.residual)
        return _ESTIMATED[self.step_reward](progress_ExS, batch)


@register("rbt")
@dataclasses.dataclass(frozen=True)
class RBT(SPA):
    """Reward from bags: contributions whose sum over each bag of `bag_size` steps fits the reward observed for the bag.

    L = mean over bags of (Σ_bag ĉ − Σ_bag r)². With one bag per episode and the outcome as its reward, this is SPA without grounding. The
    backbone is the run's language model. In the paper it is a transformer that reads the whole bag in both directions and also predicts the
    next state: a run with `estimator.attention=bidirectional` reads the episode in both directions, and nothing predicts the next state.

    Attributes:
      bag_size: the number of steps in a bag; 0 is the whole episode.
      bag_reward: the rewards that are summed over each bag: the "outcome", at the last step, or "env", the environment's.

    Source: arXiv 2402.03771.
    """

    name: ClassVar[str] = "rbt"
    recommended: ClassVar[str] = ""
    variants: ClassVar = {}

    beta: float = 0.0
    bag_size: int = 0
    bag_reward: str = "outcome"

    def __post_init__(self):
        super().__post_init__()
        check_choice(self, "bag_reward", ("outcome", "env"))
        check_choice(self, "fit", ("episode",))
        check_at_least(self, 0, "bag_size")

    @property
    def progress_options(self) -> dict:
        return {"loss": "sum of each bag", "bag_size": self.bag_size, "bag_reward": self.bag_reward}

    def progress_loss(self, output_ExS: Array, batch: Batch) -> tuple[Array, Metrics]:
        """L = mean over bags of (Σ_bag ĉ − Σ_bag r)²."""
        if not self.has_progress:
            return super().progress_loss(output_ExS, batch)
        reward_ExS = batch.env_reward if self.bag_reward == "env" else outcome_reward(batch)
        return bag_sum_loss(output_ExS, reward_ExS, step_mask(batch), bag_size=self.bag_size), {}
