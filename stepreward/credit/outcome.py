"""Methods that read only the outcome of each episode: all tokens of an episode get the same advantage.

They are the baselines that step-level methods are compared with.
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
    last_step,
    per_step,
    register,
    step_mask,
    to_tokens,
    token_count,
    token_mask,
)
from stepreward.kernels import (
    dr_grpo,
    group_statistics,
    group_sum,
    grpo,
    masked_mean,
    masked_std,
    reinforce_plus_plus,
    reinforce_plus_plus_baseline,
    rloo,
)
from stepreward.kernels.masked import SINGLETON

Array = jax.Array

EPISODE_ADVANTAGES = ("grpo", "dr_grpo", "rloo", "reinforce_plus_plus", "reinforce_plus_plus_baseline")


def counted_episodes(batch: Batch) -> Array:
    """bool `[E]`: the episodes that enter statistics, which are those that did not fail and have at least one step."""
    return batch.episode_mask & batch.step_mask.any(axis=1)


def episode_advantage(batch: Batch, how: str, *, eps: float | None = None, singleton: str = "zero") -> Array:
    """float32 `[E]`: the advantage of each episode from `batch.outcome`; `how` is one of `EPISODE_ADVANTAGES`."""
    mask_E, outcome_E = counted_episodes(batch), batch.outcome.astype(jnp.float32)
    eps = {} if eps is None else {"eps": eps}
    if how == "grpo":
        return grpo(outcome_E, batch.group_id, mask_E, singleton=singleton, **eps)
    if how == "dr_grpo":
        return dr_grpo(outcome_E, batch.group_id, mask_E, singleton=singleton)
    if how == "rloo":
        return rloo(outcome_E, batch.group_id, mask_E, singleton=singleton)
    tokens_E = token_count(batch).sum(axis=1)
    if how == "reinforce_plus_plus":
        return reinforce_plus_plus(outcome_E, tokens_E, mask_E)
    if how == "reinforce_plus_plus_baseline":
        return reinforce_plus_plus_baseline(outcome_E, batch.group_id, tokens_E, mask_E, singleton=singleton)
    raise ValueError(f"episode_advantage must be one of {EPISODE_ADVANTAGES}, not {how!r}")


def others_outcome(batch: Batch) -> Array:
    """float32 `[E]`: the mean outcome of the other episodes of the group; its own for an episode without others."""
    return batch.outcome.astype(jnp.float32) - episode_advantage(batch, "rloo")


def outcome_metrics(batch: Batch) -> Metrics:
    """Scalars: the mean outcome, the mean over groups of its std, and the shares of groups with both labels and with equal outcomes."""
    mask_E, groups = counted_episodes(batch), batch.num_episodes
    ones_E = mask_E.astype(jnp.float32)
    size_G = group_sum(ones_E, batch.group_id, mask_E, groups)
    won_G = group_sum(batch.success.astype(jnp.float32), batch.group_id, mask_E, groups)
    real_G = size_G > 0
    _, std_E, _ = group_statistics(batch.outcome, batch.group_id, mask_E, num_groups=groups, ddof=1)
    # Each episode has the weight 1 / (size of its group), so that every group counts once.
    share_E = jnp.where(mask_E, 1.0 / jnp.maximum(size_G[batch.group_id], 1.0), 0.0)
    num_groups = jnp.maximum(real_G.sum(), 1)
    return {
        "outcome_mean": masked_mean(batch.outcome.astype(jnp.float32), mask_E),
        "outcome_group_std": (share_E * std_E).sum() / num_groups,
        "mixed_groups": (real_G & (won_G > 0) & (won_G < size_G)).sum() / num_groups,
        "flat_groups": (share_E * (std_E == 0)).sum() / num_groups,
    }


def advantage_metrics(advantage_RxL: Array, batch: Batch) -> Metrics:
    """Scalars about the advantages of the counted tokens: mean, standard deviation and largest absolute value."""
    mask_RxL = token_mask(batch)
    return {
        "advantage_mean": masked_mean(advantage_RxL, mask_RxL),
        "advantage_std": masked_std(advantage_RxL, mask_RxL, ddof=0),
        "advantage_max": jnp.max(jnp.abs(advantage_RxL), initial=0.0),
    }


def outcome_reward(batch: Batch) -> Array:
    """float32 `[E, S]`: the outcome at the last step of each counted episode, 0 elsewhere."""
    return jnp.where(last_step(step_mask(batch)), batch.outcome[:, None].astype(jnp.float32), 0.0)


@dataclasses.dataclass(frozen=True)
class OutcomeMethod(Method):
    """Gives each token the advantage of its episode."""

    def assign(self, batch: Batch) -> Credit:
        step_advantage_ExS = per_step(self._episode_advantage(batch), batch)
        advantage_RxL = to_tokens(step_advantage_ExS, batch)
        metrics = {**outcome_metrics(batch), **advantage_metrics(advantage_RxL, batch)}
        return Credit(advantage_RxL, outcome_reward(batch), step_advantage_ExS, None, metrics)

    def _episode_advantage(self, batch: Batch) -> Array:
        return episode_advantage(batch, self.name)


@dataclasses.dataclass(frozen=True)
class _Grouped(OutcomeMethod):
    """The base of methods that compare an episode with its group.

    Attributes:
      singleton: what the only episode of a group gets: "zero", or "raw", its own outcome (as in verl).
    """

    singleton: str = "zero"

    def __post_init__(self):
        check_choice(self, "singleton", SINGLETON)

    @property
    def needs_group(self) -> bool:
        """True unless the only episode of a group keeps its own outcome."""
        return self.singleton == "zero"

    def _episode_advantage(self, batch: Batch) -> Array:
        return episode_advantage(batch, self.name, singleton=self.singleton)


@register("grpo")
@dataclasses.dataclass(frozen=True)
class GRPO(_Grouped):
    """A = (R − mean_g) / (std_g + eps), ddof 1 (arXiv 2402.03300).

    Attributes:
      eps: added to the std.
    """

    name: ClassVar[str] = "grpo"
    eps: float = 1e-6

    def _episode_advantage(self, batch: Batch) -> Array:
        return episode_advantage(batch, "grpo", eps=self.eps, singleton=self.singleton)


@register("dapo")
@dataclasses.dataclass(frozen=True)
class DAPO(GRPO):
    """`grpo` on the groups whose outcomes are not all equal (`Filter`, "variance").

    The paper's clip range and token mean are keys of the config: see docs/methods.md.

    Source: DAPO (arXiv 2503.14476).
    """

    name: ClassVar[str] = "dapo"
    filter: ClassVar[str] = "variance"


@register("dr_grpo")
@dataclasses.dataclass(frozen=True)
class DrGRPO(_Grouped):
    """A = R − mean_g (arXiv 2503.20783); pair it with the loss aggregation "constant"."""

    name: ClassVar[str] = "dr_grpo"


@register("rloo")
@dataclasses.dataclass(frozen=True)
class RLOO(_Grouped):
    """A = R − mean of the others of the group (arXiv 2402.14740)."""

    name: ClassVar[str] = "rloo"


@register("reinforce_plus_plus")
@dataclasses.dataclass(frozen=True)
class ReinforcePlusPlus(OutcomeMethod):
    """A = R whitened over all action tokens of the batch (arXiv 2501.03262); no group is needed."""

    name: ClassVar[str] = "reinforce_plus_plus"


@register("reinforce_plus_plus_baseline")
@dataclasses.dataclass(frozen=True)
class ReinforcePlusPlusBaseline(_Grouped):
    """A = R − mean_g, whitened over all action tokens of the batch (arXiv 2501.03262)."""

    name: ClassVar[str] = "reinforce_plus_plus_baseline"
