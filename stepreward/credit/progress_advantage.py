"""Progress advantage: the log-ratio of a trained policy and the one that its training started from, as the advantage of a step.

It is a measure of episodes: `step_progress`, `episode_score` and `failure_step` need the two log-probabilities and no training. The method
`progress_advantage` trains on it, which its paper does not show.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from stepreward.batch import Batch
from stepreward.credit.base import (
    Credit,
    Method,
    check_at_least,
    check_choice,
    last_token,
    per_step,
    register,
    step_mask,
    step_mean,
    step_sum,
    to_tokens,
    token_count,
    token_mask,
)
from stepreward.credit.outcome import EPISODE_ADVANTAGES, episode_advantage
from stepreward.credit.pieces import common_metrics

Array = jax.Array


def _last(x_RxL: Array, batch: Batch) -> Array:
    return step_sum(jnp.where(last_token(batch), x_RxL, 0.0), batch)


def _least(x_RxL: Array, batch: Batch) -> Array:
    steps = batch.num_episodes * batch.max_steps
    ids_RxL = jnp.where(token_mask(batch), batch.step_id, steps)
    least = jax.ops.segment_min(x_RxL.astype(jnp.float32).reshape(-1), ids_RxL.reshape(-1), num_segments=steps + 1)[:steps]
    return jnp.where(token_count(batch) > 0, least.reshape(batch.step_mask.shape), 0.0)


def _largest(x_RxL: Array, batch: Batch) -> Array:
    return -_least(-x_RxL, batch)


TOKEN_AGGREGATIONS = {"mean": step_mean, "sum": step_sum, "last": _last, "min": _least, "max": _largest}
STEP_AGGREGATIONS = ("mean", "sum", "last", "min", "max", "bottom10")


def step_progress(trained_RxL: Array, start_RxL: Array, batch: Batch, *, tokens: str = "mean", beta: float = 1.0) -> Array:
    """The progress advantage of each step: A_t = β·(agg log π_trained − agg log π_start).

    The tokens of a step are aggregated for each policy, and then subtracted: "min" is not the least log-ratio. If the trained policy is the
    optimum of a reward with a KL penalty β to the policy that it started from, the sum over the tokens is its soft advantage.

    Args:
      trained_RxL, start_RxL: `[R, L]`, log-probabilities of the tokens, in nats.
      batch: says which tokens belong to which step.
      tokens: one of `TOKEN_AGGREGATIONS`.
      beta: β.

    Returns:
      float32 `[E, S]`; 0 for a step without a token, and where no step counts.

    Source: progress advantage (arXiv 2606.26080) and its public release.
    """
    if tokens not in TOKEN_AGGREGATIONS:
        raise ValueError(f"tokens must be one of {', '.join(map(repr, TOKEN_AGGREGATIONS))}, not {tokens!r}")
    aggregate = TOKEN_AGGREGATIONS[tokens]
    difference_ExS = aggregate(trained_RxL, batch) - aggregate(start_RxL, batch)
    return jnp.where(step_mask(batch), beta * difference_ExS, 0.0)


def episode_score(advantage, mask, how: str = "mean") -> np.ndarray:
    """Scores episodes by the advantages of their steps, on the host, to choose the best of several.

    Args:
      advantage: float `[E, S]`.
      mask: bool `[E, S]`, the steps to use.
      how: one of `STEP_AGGREGATIONS`; "bottom10" is the mean of the least ⌈n / 10⌉ of n steps.

    Returns:
      float64 `[E]`, NaN for an episode without a step.

    Raises:
      ValueError: an unknown `how`, or arrays of different shapes.

    Source: the public release of progress advantage, which chooses `how` for each model: say which one was used.
    """
    if how not in STEP_AGGREGATIONS:
        raise ValueError(f"how must be one of {', '.join(map(repr, STEP_AGGREGATIONS))}, not {how!r}")
    reduce = {
        "mean": np.mean,
        "sum": np.sum,
        "last": lambda x: x[-1],
        "min": np.min,
        "max": np.max,
        "bottom10": lambda x: np.sort(x)[: math.ceil(0.1 * len(x))].mean(),
    }[how]
    return np.array([reduce(x) if len(x) else np.nan for x in _of_episodes(advantage, mask)], np.float64)


def failure_step(advantage, mask, how: str = "running_sum") -> np.ndarray:
    """Finds the step at which each episode went wrong, on the host.

    Args:
      advantage, mask: as in `episode_score`; the True entries are the first ones of their row.
      how: "running_sum", the step after which Σ_{k ≤ t} A_k is least; or "least", the step with the least A_t.

    Returns:
      int64 `[E]`: the first such step, −1 for an episode without a step.
    """
    if how not in ("running_sum", "least"):
        raise ValueError(f"how must be 'running_sum' or 'least', not {how!r}")
    measure = np.cumsum if how == "running_sum" else np.asarray
    return np.array([int(np.argmin(measure(x))) if len(x) else -1 for x in _of_episodes(advantage, mask)], np.int64)


def _of_episodes(advantage, mask) -> list[np.ndarray]:
    advantage, mask = np.asarray(advantage, np.float64), np.asarray(mask, bool)
    if advantage.shape != mask.shape or advantage.ndim != 2:
        raise ValueError(f"advantage and mask must share one shape [E, S], not {advantage.shape}, {mask.shape}")
    return [row[counted] for row, counted in zip(advantage, mask)]


@register("progress_advantage")
@dataclasses.dataclass(frozen=True)
class ProgressAdvantage(Method):
    """A(a_t) = A^E(τ) + w·A_t, A_t = β·(agg log π_trained − agg log π_start): see `step_progress`.

    The two policies are a frozen pair of checkpoints. A_t is an advantage already, so it is not compared with the group. The paper measures
    episodes with A_t, finds where they fail and chooses the best of several; that it also trains a policy is not shown. Signals:
    `log_prob_trained`, `log_prob_start` `[R, L]`.

    Attributes:
      weight: w ≥ 0, weight of A_t beside the outcome.
      beta: β ≥ 0.
      tokens: how the tokens of a step are aggregated for each policy: "mean", "sum", "last", "min" or "max". The release chooses it for
        each model.
      episode_advantage: A^E, one of the outcome methods; "none" leaves it out.

    Raises:
      ValueError: at construction, on a value out of range.

    Source: progress advantage (arXiv 2606.26080) and its public release.
    """

    name: ClassVar[str] = "progress_advantage"
    requires: ClassVar[frozenset[str]] = frozenset({"log_prob_trained", "log_prob_start"})

    weight: float = 1.0
    beta: float = 1.0
    tokens: str = "mean"
    episode_advantage: str = "rloo"

    def __post_init__(self):
        check_choice(self, "tokens", tuple(TOKEN_AGGREGATIONS))
        check_choice(self, "episode_advantage", (*EPISODE_ADVANTAGES, "none"))
        check_at_least(self, 0, "weight", "beta")

    @property
    def needs_group(self) -> bool:
        """True if only the outcome is left, and compared with the group."""
        return not (self.uses("weight") and self.uses("beta")) and self.episode_advantage not in ("reinforce_plus_plus", "none")

    def assign(self, batch: Batch) -> Credit:
        trained_RxL, start_RxL = batch.signals["log_prob_trained"], batch.signals["log_prob_start"]
        progress_ExS = step_progress(trained_RxL, start_RxL, batch, tokens=self.tokens, beta=self.beta)
        advantage_ExS = self.weight * progress_ExS
        if self.episode_advantage != "none":
            advantage_ExS = advantage_ExS + per_step(episode_advantage(batch, self.episode_advantage), batch)
        advantage_RxL = to_tokens(advantage_ExS, batch)
        metrics = common_metrics(advantage_RxL, progress_ExS, batch)
        return Credit(advantage_RxL, progress_ExS, advantage_ExS, None, metrics)
