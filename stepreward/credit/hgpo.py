"""HGPO: a step is compared with the steps of its group that were taken from the same state after the same recent states."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from stepreward.batch import Batch
from stepreward.credit.base import Credit, Method, check_at_least, check_choice, check_share, register, step_mask, to_tokens
from stepreward.credit.host import equal_ids, of_steps, step_array
from stepreward.credit.outcome import outcome_reward
from stepreward.credit.pieces import common_metrics
from stepreward.credit.units import StepUnits
from stepreward.kernels import group_normalise, group_statistics, masked_mean, return_to_go
from stepreward.kernels.inputs import select

Array = jax.Array

CHOICES = {"scale": ("none", "std"), "reward": ("outcome", "env"), "key": ("state", "observation"), "zero_levels": ("drop", "keep")}


@register("hgpo")
@dataclasses.dataclass(frozen=True)
class HGPO(Method):
    """Hierarchy-of-groups policy optimization: A(a_t) = Σ_k w_k·a_k(t) / Σ_k w_k.

    Level k = 1 … K + 1 of step t holds the steps of the group whose last k states, that of the step included, equal those of step t.
    A step joins level k if its episode has had at least k states, and a level counts if it holds at least two steps.

    a_k(t) = (G_t − mean) / F over the steps of level k, F = 1 or the standard deviation (ddof 0) plus eps
    G_t = Σ_{j ≥ t} γ^{j−t}·r_j
    w_k = (k + 1)^α

    With K = 0 this is A^S of GiGPO. There is no term of the episode's outcome; a step that shares no level has A = 0. Signal: `level_id`
    int32 `[E, S, K + 1]`, the id of the level-k steps that are equal, or −1 for a step in none (`host_signals`).

    Attributes:
      history: K ≥ 0, the number of earlier states that the highest level compares.
      alpha: α ≥ 0; 0 weights all levels alike. It is not verified whether the paper's weights are (k + 1)^α or k^α: these are the
        public release's.
      discount: γ in [0, 1].
      scale: F: "none" is 1, "std" the standard deviation.
      reward: r_t: "outcome" is the outcome at the last step, "env" the environment's reward for each step; see GiGPO.
      base_group: adds level 0, all steps of the group.
      zero_levels: "drop" leaves a level out of both sums if a_k(t) is exactly 0, as the public release does; "keep" counts each level that
        holds two steps. The paper does not state it.
      invalid_penalty: subtracted from G_t of a step that was not executed, but not from the returns of the steps before it (the release:
        0.1).
      key: what makes two states equal: "state", the environment's `state_key`; or "observation", the text, as in the release.
      eps: added to the standard deviation.

    Raises:
      ValueError: at construction, on a value out of range; in `credit`, on a `level_id` of another number of levels.

    Source: HGPO (arXiv 2602.22817).
    """

    name: ClassVar[str] = "hgpo"
    requires: ClassVar[frozenset[str]] = frozenset({"level_id"})
    needs_group: ClassVar[bool] = True
    variants: ClassVar = {"paper": {}, "released": {"reward": "env", "invalid_penalty": 0.1, "key": "observation"}}

    history: int = 2
    alpha: float = 1.0
    discount: float = 0.95
    scale: str = "none"
    reward: str = "outcome"
    base_group: bool = False
    zero_levels: str = "drop"
    invalid_penalty: float = 0.0
    key: str = "state"
    eps: float = 1e-6

    def __post_init__(self):
        for field, choices in CHOICES.items():
            check_choice(self, field, choices)
        check_at_least(self, 0, "history", "alpha", "invalid_penalty", "eps")
        check_share(self, "discount")

    def host_signals(self, batch: Batch, episodes, rng: np.random.Generator) -> dict[str, np.ndarray]:
        states = of_steps(episodes, lambda step: step.state_key if self.key == "state" else step.observation)
        group_id = np.asarray(batch.group_id).tolist()
        levels = [equal_ids(last_states(states, k), group_id) for k in range(1, self.history + 2)]
        return {"level_id": np.stack([step_array(ids, batch, dtype=np.int32, fill=-1) for ids in levels], axis=-1)}

    def assign(self, batch: Batch) -> Credit:
        mask_ExS, level_ExSxK = step_mask(batch), batch.signals["level_id"]
        if level_ExSxK.shape[2:] != (self.history + 1,):
            raise ValueError(f"level_id must have history + 1 = {self.history + 1} levels, not the shape {level_ExSxK.shape}")
        reward_ExS = outcome_reward(batch) if self.reward == "outcome" else select(mask_ExS, batch.env_reward)
        return_ExS = return_to_go(reward_ExS, mask_ExS, self.discount)
        return_ExS = return_ExS - self.invalid_penalty * (mask_ExS & ~batch.executed)

        levels = {k: level_ExSxK[..., k - 1] for k in range(1, self.history + 2)}
        if self.base_group:
            levels[0] = StepUnits(batch).group_id
        compared = [self._compared(k, level_ExS, return_ExS, mask_ExS) for k, level_ExS in levels.items()]
        weight_ExS = sum(weight_ExS for weight_ExS, _ in compared)
        advantage_ExS = sum(weight_ExS * a_ExS for weight_ExS, a_ExS in compared) / jnp.where(weight_ExS > 0, weight_ExS, 1.0)

        advantage_RxL = to_tokens(advantage_ExS, batch)
        metrics = common_metrics(advantage_RxL, reward_ExS, batch)
        for k, level_ExS in levels.items():
            metrics[f"level_{k}_shared"] = masked_mean(_size(level_ExS, mask_ExS) > 1, mask_ExS)
        return Credit(advantage_RxL, reward_ExS, advantage_ExS, None, metrics)

    def _compared(self, k: int, level_ExS: Array, return_ExS: Array, mask_ExS: Array) -> tuple[Array, Array]:
        """`[E, S]` each: the weight of level k, 0 where it does not count, and a_k."""
        joined_ExS = mask_ExS & (level_ExS >= 0)
        options = dict(num_groups=mask_ExS.size, scale=self.scale, ddof=0, eps=self.eps)
        a_ExS = group_normalise(return_ExS, level_ExS, joined_ExS, **options)
        counts_ExS = a_ExS != 0 if self.zero_levels == "drop" else _size(level_ExS, mask_ExS) > 1
        return jnp.where(counts_ExS, float(k + 1) ** self.alpha, 0.0), a_ExS


def _size(level_ExS: Array, mask_ExS: Array) -> Array:
    """float32 `[E, S]`: the number of steps in the level of each step, 0 for a step in none."""
    joined_ExS = mask_ExS & (level_ExS >= 0)
    return group_statistics(joined_ExS, level_ExS, joined_ExS, num_groups=mask_ExS.size, ddof=0)[2]


def last_states(states: Sequence[Sequence[Hashable]], count: int) -> list[list[tuple | None]]:
    """The last `count` states at each step of each episode, that of the step included; None before an episode has had as many."""
    at = lambda episode, t: tuple(episode[t + 1 - count : t + 1]) if t + 1 >= count else None
    return [[at(episode, t) for t in range(len(episode))] for episode in states]
