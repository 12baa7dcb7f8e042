"""iStar and PRIME: step rewards implicit in a process reward model (prm), a language model trained on outcomes alone.

The step reward is the log-ratio of two models over the tokens of the step; no annotation of steps is needed. iStar trains the prm with
DPO between successful and failed episodes of a group, PRIME with cross-entropy on the success label. One class composes both from
`credit/pieces.py`. The controls and ablations, and what the public releases compute instead, are in `credit/ablations.py`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from stepreward.batch import Batch
from stepreward.credit import ablations, pieces
from stepreward.credit.base import (
    Credit,
    Method,
    Metrics,
    check_at_least,
    check_choice,
    check_signals,
    per_step,
    register,
    step_mean,
    step_sum,
    to_tokens,
)
from stepreward.credit.gigpo import anchors
from stepreward.credit.outcome import EPISODE_ADVANTAGES, episode_advantage
from stepreward.credit.schedules import PairAccuracy, Schedule
from stepreward.credit.units import UNITS
from stepreward.kernels.masked import SINGLETON

Array = jax.Array

_SCALE = {"zscore": "std", "rloo": "leave_one_out", "centre": "none"}
_OBJECTIVE = {"dpo": pieces.pair_loss, "cross_entropy": pieces.label_loss}  # of the scores of episodes
_STATE_PAIRS = "state_pairs"  # the objective of the scores of steps
_MERGE = {"advantage": pieces.merge_advantages, "reward": pieces.merge_rewards}
_REFERENCE_SIGNAL = {"initial": "log_prob_initial"}
CHOICES = {
    "episode_advantage": EPISODE_ADVANTAGES,
    "granularity": tuple(UNITS),
    "prm_objective": (*_OBJECTIVE, _STATE_PAIRS),
    "trajectory_reduce": tuple(ablations.TRAJECTORY_REDUCE),
    "step_norm": tuple(ablations.STEP_NORM),
    "step_advantage": tuple(_SCALE),
    "baseline": tuple(ablations.BASELINE),
    "merge": tuple(_MERGE),
    "reference": ("old", "initial"),
    "reward_from": ("pre", "post"),
    "step_reward": tuple(ablations.STEP_REWARD),
    "singleton": SINGLETON,
}


@register("istar")
@dataclasses.dataclass(frozen=True)
class IStar(Method):
    """Implicit step rewards: A(a_t) = A^E(τ) + α·A^S(a_t).

    r(a_t) = β·Σ over the tokens of a_t of (log π_prm − log π_reference)                                  (equation 1)
    L_prm = mean over pairs of −log σ(Σ_t r(τ⁺) − Σ_t r(τ⁻)), success × failure within a group            (equation 2)
    A^S(a_t) = (r(a_t) − mean) / std over all steps of all episodes of the group                          (equation 4)

    Step rewards are not accumulated over time. Signals: `log_prob_prm` `[R, L]`; and with the options that name them,
    `log_prob_initial` `[R, L]`, `step_permutation` int32 `[E, S]`.

    Attributes:
      beta: β of the step reward.
      alpha: α, weight of the process reward's advantage; 0 leaves the outcome method.
      episode_advantage: A^E: "rloo", "grpo", "dr_grpo", "reinforce_plus_plus" or "reinforce_plus_plus_baseline".
      granularity: the unit of the process reward: "step", or "token", where each token has its own reward.
      prm_objective: "dpo"; "cross_entropy" of σ(score) with the success label; or "state_pairs", which is not in the paper: DPO between
        two steps that were taken from one state of a group, one in a successful episode and one in a failed one. The loss then reads the
        label `anchor_id` int32 `[E, S]` (`gigpo.anchor_ids`), and scores single steps, so `trajectory_reduce` is not read.
      prm_beta: β in the loss of the prm; None uses `beta`.
      trajectory_reduce: an episode's score in the loss: "sum" of its step rewards, their "mean" over steps, or
        "token_mean".
      nll_coef: coefficient of a second term of the loss: the mean negative log-likelihood per action token, under the prm, of
        the successful episodes that are in a pair.
      step_norm: divides process rewards by their size over the whole batch, before they become advantages: "none"; "maxabs",
        the largest |r|; "std"; or "max_return", the largest |return-to-go of r| (PRIME's release).
      step_norm_floor: added to that size, so that the numerical noise of an untrained prm is not inflated.
      step_advantage: A^S: "zscore" (ddof 1), "rloo" (n/(n−1) times the deviation) or "centre" (the deviation).
      baseline: the units that mean, std and n of A^S are taken over: "all_steps" of the group (all tokens, at token
        granularity); "first_seen", the first one of each episode; or "episode_mean", all of them, where each episode counts once.
      merge: "advantage", the sum above; or "reward": the returns-to-go of both centred sources are added and whitened over all
        action tokens (PRIME).
      reference: the denominator of the log-ratio: "old", the policy that made the rollout, or "initial",
        `log_prob_initial`.
      reward_from: "pre" scores steps with the prm before its update of the iteration, "post" after it; read by the trainer.
      prm_frozen: the prm is never trained; read by the trainer, and the gradient of `prm_loss` is zero.
      step_reward: "prm"; or a control: "shuffled" permutes the rewards of each episode by `step_permutation`, "uniform"
        gives each step the mean of its episode.
      alpha_scaled: short for the schedule `pair_accuracy(0, alpha)` of alpha: α times (2·(the prm's pair accuracy) − 1), at least 0. A
        schedule of alpha in `schedules` takes its place.
      singleton: what the only counted unit of a group gets: "zero", or "raw", its own outcome or process reward (as in the
        release).
      eps: added to every std.

    Raises:
      ValueError: at construction, on an invalid value of an option.

    Source: iStar (arXiv 2509.19199). The default of every option is the paper's definition.
    """

    name: ClassVar[str] = "istar"
    has_prm: ClassVar[bool] = True
    recommended: ClassVar[str] = "stable"
    variants: ClassVar = ablations.ISTAR_VARIANTS

    beta: float = 0.05
    alpha: float = 1.0
    episode_advantage: str = "rloo"
    granularity: str = "step"
    prm_objective: str = "dpo"
    prm_beta: float | None = None
    trajectory_reduce: str = "sum"
    nll_coef: float = 0.0
    step_norm: str = "none"
    step_norm_floor: float = 1e-3
    step_advantage: str = "zscore"
    baseline: str = "all_steps"
    merge: str = "advantage"
    reference: str = "old"
    reward_from: str = "pre"
    prm_frozen: bool = False
    step_reward: str = "prm"
    alpha_scaled: bool = False
    singleton: str = "zero"
    eps: float = 1e-6

    def __post_init__(self):
        for field, choices in CHOICES.items():
            check_choice(self, field, choices)
        if self.granularity == "token" and self.step_reward != "prm":
            raise ValueError(f"step_reward={self.step_reward!r} of '{self.name}' is a control of granularity='step' only")
        check_at_least(self, 0, "alpha", "nll_coef", "eps")
        for field in ("beta", "prm_beta", "step_norm_floor"):
            if getattr(self, field) is not None and getattr(self, field) <= 0:
                raise ValueError(f"{field} of '{self.name}' must be positive, not {getattr(self, field)!r}")

    @classmethod
    def variant(cls, name: str, **options: Any) -> IStar:
        """The method with the options of a variant, such as "paper" or "released"; explicit options override them."""
        if name not in cls.variants:
            raise ValueError(f"unknown variant '{name}' of '{cls.name}'; there are: {', '.join(sorted(cls.variants))}")
        return cls(**{**cls.variants[name], **options})

    @property
    def needs_pairs(self) -> bool:
        """True with pairs of episodes or steps; cross-entropy learns from every episode."""
        return self.prm_objective != "cross_entropy"

    @property
    def label_signals(self) -> frozenset[str]:
        return frozenset({"anchor_id"} if self.prm_objective == _STATE_PAIRS else ())

    @property
    def prm_signals(self) -> frozenset[str]:
        return self.label_signals | (self.requires & {*_REFERENCE_SIGNAL.values()})

    def labels(self, batch: Batch, episodes) -> dict[str, np.ndarray]:
        return {"anchor_id": anchors(batch, episodes)} if self.label_signals else {}

    @property
    def needs_group(self) -> bool:
        """True if pairs train the PRM, or if an episode's outcome is compared with those of its group only."""
        return self.needs_pairs or (self.episode_advantage != "reinforce_plus_plus" and self.singleton == "zero")

    @property
    def requires(self) -> frozenset[str]:
        needed = {"log_prob_prm"}
        if self.reference in _REFERENCE_SIGNAL:
            needed.add(_REFERENCE_SIGNAL[self.reference])
        if self.step_reward == "shuffled":
            needed.add("step_permutation")
        return frozenset(needed)

    @property
    def default_schedules(self) -> dict[str, Schedule]:
        return {"alpha": PairAccuracy(0.0, self.alpha)} if self.alpha_scaled else {}

    @property
    def losses(self) -> dict:
        return {"prm": self.prm_loss}

    def host_signals(self, batch: Batch, episodes, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return ablations.drawn(self.requires, batch, rng)

    def assign(self, batch: Batch) -> Credit:
        units = UNITS[self.granularity](batch)
        log_ratio_RxL = self._log_ratio(batch.signals["log_prob_prm"], batch)
        reward = pieces.implicit_rewards(log_ratio_RxL, self.beta, units)  # equation 1
        if self.granularity == "step":
            reward = ablations.controlled(reward, self.step_reward, batch)
        process = pieces.compare_within_groups(  # equation 4
            ablations.rescaled(reward, units, self.step_norm, self.step_norm_floor),
            units,
            scale=_SCALE[self.step_advantage],
            eps=self.eps,
            weight=ablations.BASELINE[self.baseline](units),
            singleton=self.singleton,
        )
        episode_E = episode_advantage(batch, self.episode_advantage, eps=self.eps, singleton=self.singleton)  # equation 3
        episode_RxL = to_tokens(per_step(episode_E, batch), batch)
        merged = _MERGE[self.merge](episode_RxL, process, self.alpha, units)

        step_reward_ExS = units.to_steps(reward)
        metrics = pieces.process_metrics(step_reward_ExS, log_ratio_RxL, episode_RxL, merged, batch)
        metrics["alpha"] = jnp.asarray(self.alpha, jnp.float32)
        return Credit(merged.advantage, step_reward_ExS, step_mean(merged.advantage, batch), merged.returns, metrics)

    def prm_loss(self, log_prob_prm_RxL: Array, batch: Batch) -> tuple[Array, Metrics]:
        """Loss of the prm from its log-probabilities of the tokens of the whole batch (see `Method.prm_loss`).

        The metrics are those of `dpo_pairs` (`pairs`, `pair_accuracy`, `pair_margin`), `objective`, and `nll` or
        `label_accuracy` where they are computed.
        """
        check_signals(self, batch, among=self.prm_signals)
        if self.prm_frozen:
            log_prob_prm_RxL = jax.lax.stop_gradient(log_prob_prm_RxL)
        beta = self.beta if self.prm_beta is None else self.prm_beta
        log_ratio_RxL = self._log_ratio(log_prob_prm_RxL, batch)
        if self.prm_objective == _STATE_PAIRS:
            loss, metrics = pieces.state_pair_loss(beta * step_sum(log_ratio_RxL, batch), batch)
        else:
            score_E = pieces.trajectory_scores(log_ratio_RxL, beta, batch)
            score_E = ablations.TRAJECTORY_REDUCE[self.trajectory_reduce](score_E, batch)
            loss, metrics = _OBJECTIVE[self.prm_objective](score_E, batch)  # equation 2
        metrics["objective"] = loss
        if self.uses("nll_coef"):
            metrics["nll"] = pieces.winners_negative_log_likelihood(log_prob_prm_RxL, batch)
            loss = loss + self.nll_coef * metrics["nll"]
        return loss, jax.lax.stop_gradient(metrics)

    def _log_ratio(self, log_prob_prm_RxL: Array, batch: Batch) -> Array:
        """`[R, L]`: log π_prm − log π_reference on counted action tokens, 0 elsewhere."""
        signal = _REFERENCE_SIGNAL.get(self.reference)
        return pieces.log_ratio(log_prob_prm_RxL, batch.signals[signal] if signal else batch.log_prob_old, batch)


@register("prime")
@dataclasses.dataclass(frozen=True)
class PRIME(IStar):
    """PRIME: token rewards, cross-entropy, a fixed reference and merged rewards. It is `IStar` with other defaults.

    Token rewards β·(log π_prm − log π_initial) and outcomes are centred separately by RLOO; each episode counts once, by the mean
    of its tokens. Their returns-to-go are added (`Credit.returns`) and whitened over all action tokens (`Credit.advantage`). The
    variant "released" first divides token rewards by the largest return-to-go of the batch, as `dp_prime.py` of the public
    release does.

    Source: PRIME (arXiv 2502.01456) and its public release.
    """

    name: ClassVar[str] = "prime"
    variants: ClassVar = ablations.PRIME_VARIANTS
    recommended: ClassVar[str] = ""

    granularity: str = "token"
    prm_objective: str = "cross_entropy"
    step_advantage: str = "rloo"
    baseline: str = "episode_mean"
    merge: str = "reward"
    reference: str = "initial"
