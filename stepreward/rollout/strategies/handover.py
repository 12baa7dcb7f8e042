"""The strategy "handover": the environment's expert takes the first steps of each episode, and the policy the others."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax

from stepreward.envs.protocol import EXPERT
from stepreward.rollout.episode import Episode, Start, Task, total_cost
from stepreward.rollout.strategies.base import Play, Rollout, Strategy, by_group, forget_snapshots, register

_ROUNDING = 1e-6  # a share that comes from a schedule is a float32


def handover_turn(share: float, steps: int) -> int:
    """The first step of the policy where the expert's path has `steps` ≥ 1 steps: min(⌊share · steps⌋, steps − 1)."""
    return min(int(share * steps + _ROUNDING), steps - 1)


@register("handover")
@dataclasses.dataclass(frozen=True)
class Handover(Strategy):
    """Plays each task once, after the expert has taken its first steps.

    The expert plays the task of each group from its beginning. With T steps on its path, every episode of the group starts before step
    min(⌊share · T⌋, T − 1): the policy takes at least one step. The expert's steps are the first steps of the episodes and are not
    trained on (`Step.sampled`); all T of them count as replayed steps, once for a group. With a share of 0 the expert does not play, and
    the episodes are those of the strategy "chain".

    Where the expert finds no way or its environment fails, the episodes of the group start at the beginning, and `expert_failures` counts
    the group. `expert_steps` is the number of steps in the episodes that the expert took.

    Attributes:
      share: the expert's share of its own path, in [0, 1].

    Source: Task Phasing (arXiv 2210.10999), temporal phasing. There the share is that of an episode's time limit; here it is that of the
    expert's path, whose length is known.
    """

    restarts: ClassVar[bool] = True
    share: float = 0.5

    def __post_init__(self):
        if not 0 <= self.share <= 1:
            raise ValueError(f"share={self.share} is the expert's share of the steps: it must lie in [0, 1].")

    @property
    def capabilities(self) -> frozenset[str]:
        return frozenset({EXPERT})

    def __call__(self, play: Play, tasks: Sequence[Task], key: jax.Array) -> Rollout:
        groups = by_group(tasks)
        experts: list[Episode] = play.expert([group[0] for group in groups], keep=True) if self.share else []
        starts = []
        for group, path in zip(groups, experts or [None] * len(groups), strict=True):
            known = path is not None and path.failure is None
            starts += [Start.before(path, handover_turn(self.share, len(path.steps))) if known else Start(task) for task in group]
        episodes = play(starts, key)
        forget_snapshots([*experts, *episodes])
        counts = {
            "expert_steps": sum(not step.sampled for episode in episodes for step in episode.steps),
            "expert_failures": sum(expert.failure is not None for expert in experts),
        }
        return Rollout(episodes, {}, total_cost([*experts, *episodes]), counts)
