"""The strategy "chain": each task is played once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax

from stepreward.rollout.episode import Start, Task, total_cost
from stepreward.rollout.strategies.base import Play, Rollout, Strategy, register


@register("chain")
@dataclasses.dataclass(frozen=True)
class Chain(Strategy):
    """Plays each task once."""

    def __call__(self, play: Play, tasks: Sequence[Task], key: jax.Array) -> Rollout:
        episodes = play([Start(task) for task in tasks], key)
        return Rollout(episodes, {}, total_cost(episodes))
