"""SALT-style credit: steps of a group that are equal share the mean of their episodes' advantages."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from stepreward.batch import Batch
from stepreward.credit.base import Credit, Method, check_at_least, check_choice, per_step, register, step_mask, to_tokens
from stepreward.credit.host import equal_ids, of_steps, step_array
from stepreward.credit.outcome import EPISODE_ADVANTAGES, episode_advantage, outcome_reward
from stepreward.credit.pieces import common_metrics
from stepreward.kernels import group_statistics, masked_mean

Array = jax.Array


@register("salt")
@dataclasses.dataclass(frozen=True)
class SALT(Method):
    """SALT-style: A(a_t) = mean of A^E(τ) over all steps of the group that equal step t, each with the advantage of its episode.

    A step that successes and failures share gets about 0, and a step that only one episode took keeps the advantage of that episode. Each
    step counts once, so an episode that repeats a step counts once for each time. Signal: `equal_id` int32 `[E, S]`, the id of the steps
    that are equal, or −1 for a step that equals no other (`host_signals`).

    The method was written after the abstract of the paper: neither code nor full text could be read. The reading above, and what makes two
    steps equal, are not verified.

    Attributes:
      key: what must agree for two steps to be equal: "state_action", the state before the action and the action (equal steps form a graph
        whose branches may join again); "prefix", the whole episode up to the step (a tree); or "window", the last `window` states and
        actions, the step included.
      window: ≥ 1; 1 is "state_action".
      episode_advantage: A^E, one of the outcome methods.
      eps: added to the standard deviation of A^E.

    Raises:
      ValueError: at construction, on a value out of range.

    Source: SALT (arXiv 2510.20022).
    """

    name: ClassVar[str] = "salt"
    requires: ClassVar[frozenset[str]] = frozenset({"equal_id"})
    needs_group: ClassVar[bool] = True

    key: str = "state_action"
    window: int = 2
    episode_advantage: str = "grpo"
    eps: float = 1e-6

    def __post_init__(self):
        check_choice(self, "key", ("state_action", "prefix", "window"))
        check_choice(self, "episode_advantage", EPISODE_ADVANTAGES)
        check_at_least(self, 0, "eps")
        check_at_least(self, 1, "window")

    def host_signals(self, batch: Batch, episodes, rng: np.random.Generator) -> dict[str, np.ndarray]:
        steps, group_id = of_steps(episodes, lambda step: (step.state_key, step.action)), np.asarray(batch.group_id).tolist()
        window = {"state_action": 1, "window": self.window, "prefix": None}[self.key]
        ids = equal_prefixes(steps, group_id) if window is None else equal_ids(last_steps(steps, window), group_id)
        return {"equal_id": step_array(ids, batch, dtype=np.int32, fill=-1)}

    def assign(self, batch: Batch) -> Credit:
        mask_ExS, equal_ExS = step_mask(batch), batch.signals["equal_id"]
        episode_ExS = per_step(episode_advantage(batch, self.episode_advantage, eps=self.eps), batch)
        joined_ExS = mask_ExS & (equal_ExS >= 0)
        mean_ExS, _, size_ExS = group_statistics(episode_ExS, equal_ExS, joined_ExS, num_groups=mask_ExS.size, ddof=0)
        advantage_ExS = jnp.where(joined_ExS, mean_ExS, episode_ExS)
        advantage_RxL = to_tokens(advantage_ExS, batch)
        reward_ExS = outcome_reward(batch)
        metrics = common_metrics(advantage_RxL, reward_ExS, batch)
        metrics["steps_shared"] = masked_mean(size_ExS > 1, mask_ExS)
        return Credit(advantage_RxL, reward_ExS, advantage_ExS, None, metrics)


def last_steps(steps: Sequence[Sequence[Hashable]], count: int) -> list[list[tuple]]:
    """The last `count` steps up to each step of each episode; fewer at the beginning."""
    return [[tuple(episode[max(t + 1 - count, 0) : t + 1]) for t in range(len(episode))] for episode in steps]


def equal_prefixes(steps: Sequence[Sequence[Any]], group_id: Sequence[int]) -> list[list[int]]:
    """Numbers the prefixes of the episodes: two steps of a group share a number if all steps up to them are equal."""
    known: dict[tuple, int] = {}
    ids: list[list[int]] = []
    for episode, group in zip(steps, group_id):
        ids.append([])
        for step in episode:
            # The number of the prefix before the step stands for all of it, so that a key stays short.
            before = ids[-1][-1] if ids[-1] else -1
            ids[-1].append(known.setdefault((group, before, step), len(known)))
    return ids
