"""iStar and PRIME: step rewards implicit in a process reward model (prm), a language model trained on outcomes alone.

The step reward is the log-ratio of two models over the tokens of the step; no annotation of steps is needed. iStar
trains the prm with DPO between successful and failed episodes of a group, PRIME with cross-entropy on the success
label. One class covers both, the ablations of the iStar paper, and what iStar's public release computes instead
(`docs/methods.md`).
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from stepreward.batch import Batch
from stepreward.credit.base import (
    Credit,
    Method,
    Metrics,
    check_choice,
    check_signals,
    first_step,
    first_token,
    per_step,
    register,
    step_mask,
    step_mean,
    step_sum,
    to_tokens,
    token_count,
    token_mask,
)
from stepreward.credit.controls import step_permutation
from stepreward.credit.outcome import (
    EPISODE_ADVANTAGES,
    advantage_metrics,
    counted_episodes,
    episode_advantage,
    outcome_metrics,
)
from stepreward.kernels import (
    dpo_pairs,
    group_normalise,
    group_statistics,
    implicit_reward_cross_entropy,
    kl_k3,
    masked_mean,
    masked_std,
    masked_whiten,
    negative_log_likelihood,
    paired_winners,
    return_to_go,
    token_stream,
)
from stepreward.kernels.masked import SINGLETON

Array = jax.Array

CHOICES = {
    "episode_advantage": EPISODE_ADVANTAGES,
    "granularity": ("step", "token"),
    "prm_objective": ("dpo", "cross_entropy"),
    "trajectory_reduce": ("sum", "mean", "token_mean"),
    "step_norm": ("none", "maxabs", "std", "max_return"),
    "step_advantage": ("zscore", "rloo", "centre"),
    "baseline": ("all_steps", "first_seen", "episode_mean"),
    "merge": ("advantage", "reward"),
    "reference": ("old", "initial"),
    "reward_from": ("pre", "post"),
    "step_reward": ("prm", "shuffled", "uniform"),
    "singleton": SINGLETON,
}
_SCALE = {"zscore": "std", "rloo": "leave_one_out", "centre": "none"}
_REFERENCE_SIGNAL = {"initial": "log_prob_initial"}


@register("istar")
@dataclasses.dataclass(frozen=True)
class IStar(Method):
    """Implicit step rewards: A(a_t) = A^E(τ) + α·A^S(a_t).

    r(a_t) = β·Σ over the tokens of a_t of (log π_prm − log π_reference)                                  (equation 1)
    L_prm = mean over pairs of −log σ(Σ_t r(τ⁺) − Σ_t r(τ⁻)), success × failure within a group            (equation 2)
    A^S(a_t) = (r(a_t) − mean) / std over all steps of all episodes of the group                          (equation 4)

    Step rewards are not accumulated over time. Signals: `log_prob_prm` `[R, L]`; with the options that say so
    `log_prob_initial` `[R, L]`, `step_permutation` int32 `[E, S]`, `alpha_scale` scalar.

    Attributes:
      beta: β of the step reward.
      alpha: α, weight of the process reward's advantage; 0 leaves the outcome method.
      episode_advantage: A^E: "rloo", "grpo", "dr_grpo", "reinforce_plus_plus" or "reinforce_plus_plus_baseline".
      granularity: unit of the process reward: "step", or "token" (each token its own log-ratio).
      prm_objective: "dpo", or "cross_entropy" of σ(score) with the success label.
      prm_beta: β inside the loss of the prm; None is `beta`.
      trajectory_reduce: an episode's score in the loss: "sum" of its step rewards, their "mean" over steps, or
        "token_mean".
      nll_coef: adds this times the mean negative log-likelihood per action token, under the prm, of the successful
        episodes that are in a pair.
      step_norm: divides process rewards by their size over the whole batch before advantages: "none"; "maxabs", the largest
        |r|; "std"; or "max_return", the largest |sum of this and all later rewards of the episode| (PRIME's release).
      step_norm_floor: added to that size, so that it is the least divisor; keeps numerical noise of an untrained prm from
        being inflated.
      step_advantage: A^S: "zscore" (ddof 1), "rloo" (n/(n−1) times the deviation) or "centre" (the deviation).
      baseline: units in mean, std and n of A^S: "all_steps" of the group (tokens, at token granularity), the
        "first_seen" one of each episode, or "episode_mean", all of them with each episode counting once.
      merge: "advantage", the sum above; or "reward": both centred sources are rewards of one stream, added as
        returns-to-go and whitened over all action tokens (PRIME).
      reference: the denominator of the log-ratio: "old", the policy that made the rollout, or "initial",
        `log_prob_initial`.
      reward_from: "pre" scores with the prm before its update of the iteration, "post" after; read by the trainer.
      prm_frozen: never train the prm; read by the trainer, and `prm_loss` then has zero gradient.
      step_reward: "prm"; or a control: "shuffled" permutes the rewards of each episode by `step_permutation`, "uniform"
        gives each step the mean of its episode.
      alpha_scaled: multiply α by the signal `alpha_scale`, e.g. the prm's held-out pair accuracy mapped to [0, 1].
      singleton: what the only counted unit of a group gets: "zero", or "raw", its own outcome or process reward (as in the
        release).
      eps: added to every std.

    Raises:
      ValueError: at construction, on a value that no option has.

    Source: iStar (arXiv 2509.19199). The default of every option is the paper's definition.
    """

    name: ClassVar[str] = "istar"
    has_prm: ClassVar[bool] = True
    recommended: ClassVar[str] = "stable"
    variants: ClassVar = {
        "paper": {},
        # What stays stable with tiny models and few rooms, where the paper's form collapses; evidence in docs/log.md. Step rewards
        # keep their size (a PRM that knows nothing says nothing), the PRM keeps its mass on actions that winners took, and counts
        # as far as it ranks new pairs better than chance.
        "stable": {"beta": 1.0, "step_advantage": "centre", "nll_coef": 1.0, "alpha": 0.3, "alpha_scaled": True},
        "released": {
            "prm_frozen": True,
            "trajectory_reduce": "mean",
            "step_norm": "maxabs",
            "step_norm_floor": 1e-6,
            "episode_advantage": "rloo",
            "step_advantage": "rloo",
            "baseline": "first_seen",
            "singleton": "raw",
        },
    }

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
        for field in ("alpha", "nll_coef", "eps"):
            if getattr(self, field) < 0:
                raise ValueError(f"{field} of '{self.name}' must be at least 0, not {getattr(self, field)!r}")
        for field in ("beta", "prm_beta", "step_norm_floor"):
            if getattr(self, field) is not None and getattr(self, field) <= 0:
                raise ValueError(f"{field} of '{self.name}' must be positive, not {getattr(self, field)!r}")

    @classmethod
    def variant(cls, name: str, **options: Any) -> IStar:
        """The method of the "paper", or of the public release ("released"); explicit options override the variant's."""
        if name not in cls.variants:
            raise ValueError(f"unknown variant '{name}' of '{cls.name}'; there are: {', '.join(sorted(cls.variants))}")
        return cls(**{**cls.variants[name], **options})

    @property
    def needs_pairs(self) -> bool:
        """True with DPO; cross-entropy learns from every episode."""
        return self.prm_objective == "dpo"

    @property
    def needs_group(self) -> bool:
        """True where pairs train the PRM, or where an episode's outcome is compared with those of its group alone."""
        return self.needs_pairs or (self.episode_advantage != "reinforce_plus_plus" and self.singleton == "zero")

    @property
    def requires(self) -> frozenset[str]:
        needed = {"log_prob_prm"}
        if self.reference in _REFERENCE_SIGNAL:
            needed.add(_REFERENCE_SIGNAL[self.reference])
        if self.step_reward == "shuffled":
            needed.add("step_permutation")
        if self.alpha_scaled:
            needed.add("alpha_scale")
        return frozenset(needed)

    @property
    def losses(self) -> dict:
        return {"prm": self.prm_loss}

    def host_signals(self, batch: Batch, episodes, rng: np.random.Generator) -> dict[str, np.ndarray]:
        if self.step_reward != "shuffled":
            return {}
        return {"step_permutation": step_permutation(rng, batch.step_mask)}

    def assign(self, batch: Batch) -> Credit:
        log_ratio_RxL = self._log_ratio(batch.signals["log_prob_prm"], batch)
        if self.granularity == "step":
            reward, mask = self._controlled(self.beta * step_sum(log_ratio_RxL, batch), batch), step_mask(batch)
            step_reward_ExS, spread = reward, lambda x_ExS: to_tokens(x_ExS, batch)
        else:
            reward, mask = self.beta * log_ratio_RxL, token_mask(batch)
            step_reward_ExS, spread = step_sum(reward, batch), lambda x_RxL: x_RxL

        process = group_normalise(
            self._rescaled(reward, mask, batch),
            self._group_id(batch),
            mask,
            num_groups=batch.num_episodes,
            scale=_SCALE[self.step_advantage],
            eps=self.eps,
            weight=self._weight(batch),
            singleton=self.singleton,
        )
        if self.merge == "reward":
            process = self._return_to_go(process, mask, batch)
        alpha = self.alpha * (batch.signals["alpha_scale"] if self.alpha_scaled else 1.0)
        process_RxL = alpha * spread(process)
        episode_E = episode_advantage(batch, self.episode_advantage, eps=self.eps, singleton=self.singleton)
        episode_RxL = to_tokens(per_step(episode_E, batch), batch)
        advantage_RxL, returns_RxL = episode_RxL + process_RxL, None
        if self.merge == "reward":
            advantage_RxL, returns_RxL = masked_whiten(advantage_RxL, token_mask(batch)), advantage_RxL

        metrics = {
            **outcome_metrics(batch),
            **advantage_metrics(advantage_RxL, batch),
            **self._metrics(step_reward_ExS, log_ratio_RxL, episode_RxL, process_RxL, batch),
            "alpha": jnp.asarray(alpha, jnp.float32),
        }
        return Credit(advantage_RxL, step_reward_ExS, step_mean(advantage_RxL, batch), returns_RxL, metrics)

    def prm_loss(self, log_prob_prm_RxL: Array, batch: Batch) -> tuple[Array, Metrics]:
        """Loss of the prm from its log-probabilities of the tokens of the whole batch (see `Method.prm_loss`).

        The metrics are those of `dpo_pairs` (`pairs`, `pair_accuracy`, `pair_margin`), `objective`, and `nll` or
        `label_accuracy` where they are computed.
        """
        check_signals(self, batch, among=_REFERENCE_SIGNAL.values())
        if self.prm_frozen:
            log_prob_prm_RxL = jax.lax.stop_gradient(log_prob_prm_RxL)
        mask_E = counted_episodes(batch)
        score_E = self._trajectory_score(log_prob_prm_RxL, batch)
        loss, metrics = dpo_pairs(score_E, batch.success, batch.group_id, mask_E)
        if self.prm_objective == "cross_entropy":
            loss, label_metrics = implicit_reward_cross_entropy(score_E, batch.success, mask_E)
            metrics = {**metrics, **label_metrics}
        metrics["objective"] = loss
        if self.nll_coef:
            winner_E = paired_winners(batch.success, batch.group_id, mask_E)
            won_RxL = token_mask(batch) & (to_tokens(per_step(winner_E, batch), batch) > 0)
            metrics["nll"] = negative_log_likelihood(log_prob_prm_RxL, won_RxL)
            loss = loss + self.nll_coef * metrics["nll"]
        return loss, jax.lax.stop_gradient(metrics)

    def _log_ratio(self, log_prob_prm_RxL: Array, batch: Batch) -> Array:
        """`[R, L]`: log π_prm − log π_reference on counted action tokens, 0 elsewhere."""
        signal = _REFERENCE_SIGNAL.get(self.reference)
        reference_RxL = batch.signals[signal] if signal else batch.log_prob_old
        difference_RxL = log_prob_prm_RxL.astype(jnp.float32) - reference_RxL.astype(jnp.float32)
        return jnp.where(token_mask(batch), difference_RxL, 0.0)

    def _trajectory_score(self, log_prob_prm_RxL: Array, batch: Batch) -> Array:
        """`[E]`: β times the log-ratio of each episode, summed or averaged as `trajectory_reduce` says."""
        beta = self.beta if self.prm_beta is None else self.prm_beta
        score_E = beta * step_sum(self._log_ratio(log_prob_prm_RxL, batch), batch).sum(axis=1)
        if self.trajectory_reduce == "mean":
            return score_E / jnp.maximum(step_mask(batch).sum(axis=1), 1)
        if self.trajectory_reduce == "token_mean":
            return score_E / jnp.maximum(token_count(batch).sum(axis=1), 1)
        return score_E

    def _controlled(self, reward_ExS: Array, batch: Batch) -> Array:
        """The step rewards themselves, or what a control puts in their place."""
        mask_ExS = step_mask(batch)
        if self.step_reward == "shuffled":
            reward_ExS = jnp.take_along_axis(reward_ExS, batch.signals["step_permutation"], axis=1)
        elif self.step_reward == "uniform":
            reward_ExS = jnp.broadcast_to(masked_mean(reward_ExS, mask_ExS, axis=1)[:, None], reward_ExS.shape)
        return jnp.where(mask_ExS, reward_ExS, 0.0)

    def _rescaled(self, reward: Array, mask: Array, batch: Batch) -> Array:
        """Process rewards divided by their size over the batch plus the floor."""
        if self.step_norm == "none":
            return reward
        if self.step_norm == "std":
            size = masked_std(reward, mask, ddof=1)
        else:
            measured = reward if self.step_norm == "maxabs" else self._return_to_go(reward, mask, batch)
            size = jnp.max(jnp.where(mask, jnp.abs(measured), 0.0), initial=0.0)
        return reward / (size + self.step_norm_floor)

    def _group_id(self, batch: Batch) -> Array:
        """Group of each unit: `[E, S]` or `[R, L]`."""
        group_ExS = jnp.broadcast_to(batch.group_id[:, None], batch.step_mask.shape)
        return group_ExS if self.granularity == "step" else _at_tokens(group_ExS, batch)

    def _weight(self, batch: Batch) -> Array | None:
        """How much each unit counts in the statistics of its group: `[E, S]` or `[R, L]`, or None for once each."""
        mask_ExS = step_mask(batch)
        if self.baseline == "all_steps":
            return None
        if self.baseline == "first_seen":
            first_ExS = first_step(mask_ExS).astype(jnp.float32)
            if self.granularity == "step":
                return first_ExS
            # The first step that has a token: one whose text was cut away entirely has none.
            with_token_ExS = first_step(mask_ExS & (token_count(batch) > 0)).astype(jnp.float32)
            return jnp.where(first_token(batch), to_tokens(with_token_ExS, batch), 0.0)
        units_ExS = mask_ExS if self.granularity == "step" else token_count(batch)
        share_E = 1.0 / jnp.maximum(units_ExS.sum(axis=1), 1)
        share_ExS = per_step(share_E, batch)
        return share_ExS if self.granularity == "step" else to_tokens(share_ExS, batch)

    def _return_to_go(self, reward: Array, mask: Array, batch: Batch) -> Array:
        """Sum of the rewards of this and all later units of the episode."""
        if self.granularity == "step":
            return return_to_go(reward, mask)
        stream = token_stream(batch.step_id, mask, batch.max_steps)
        ends_1xN = jnp.where(stream.episode_end, 0.0, 1.0)
        return stream.put(return_to_go(stream.take(reward), stream.mask, ends_1xN), reward.shape)

    def _metrics(self, step_reward_ExS, log_ratio_RxL, episode_RxL, process_RxL, batch: Batch) -> Metrics:
        mask_ExS, mask_RxL = step_mask(batch), token_mask(batch)
        group_ExS = jnp.broadcast_to(batch.group_id[:, None], mask_ExS.shape)
        _, group_std_ExS, _ = group_statistics(step_reward_ExS, group_ExS, mask_ExS, num_groups=batch.num_episodes, ddof=1)
        mask_E = counted_episodes(batch)
        outcome_size = jnp.where(mask_E, jnp.abs(batch.outcome), 0.0).sum()
        episode_size, process_size = jnp.abs(episode_RxL).sum(), jnp.abs(process_RxL).sum()
        return {
            "step_reward_mean": masked_mean(step_reward_ExS, mask_ExS),
            "step_reward_std": masked_std(step_reward_ExS, mask_ExS, ddof=1),
            "step_reward_group_std": masked_mean(group_std_ExS, mask_ExS),
            "step_reward_max": jnp.max(jnp.abs(step_reward_ExS), initial=0.0),
            "shaped_to_outcome": jnp.abs(step_reward_ExS).sum() / jnp.maximum(outcome_size, 1e-8),
            "process_share": process_size / jnp.maximum(episode_size + process_size, 1e-8),
            # The tokens were sampled from the old policy, so these estimate KL(old ‖ prm) when the reference is "old".
            "prm_kl_k1": masked_mean(-log_ratio_RxL, mask_RxL),
            "prm_kl_k3": masked_mean(kl_k3(jnp.zeros_like(log_ratio_RxL), log_ratio_RxL), mask_RxL),
        }


@register("prime")
@dataclasses.dataclass(frozen=True)
class PRIME(IStar):
    """PRIME, the same class with other defaults: token rewards, cross-entropy, a fixed reference, merged rewards.

    Token rewards β·(log π_prm − log π_initial) and outcomes are centred by RLOO each on its own, an episode counting
    once by the mean of its tokens; returns-to-go of both are added (`Credit.returns`) and whitened over all action
    tokens (`Credit.advantage`). The variant "released" divides token rewards by the largest return of the batch first, as
    `dp_prime.py` of the public release does.

    Source: PRIME (arXiv 2502.01456) and its public release.
    """

    name: ClassVar[str] = "prime"
    variants: ClassVar = {"paper": {}, "released": {"step_norm": "max_return", "step_norm_floor": 1e-6}}
    recommended: ClassVar[str] = ""

    granularity: str = "token"
    prm_objective: str = "cross_entropy"
    step_advantage: str = "rloo"
    baseline: str = "episode_mean"
    merge: str = "reward"
    reference: str = "initial"


def _at_tokens(x_ExS: Array, batch: Batch) -> Array:
    """`to_tokens` for integers."""
    return to_tokens(x_ExS, batch).astype(x_ExS.dtype)
