"""The strategy "tree": every node of a level has the same number of children."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

import jax

from stepreward.rollout.episode import ABSENT, PAUSED, Episode, Start, Task, total_cost
from stepreward.rollout.strategies.base import (
    BRANCHES,
    OUTCOMES,
    Play,
    Rollout,
    Strategy,
    by_group,
    check_choice,
    forget_snapshots,
    register,
)
from stepreward.rollout.strategies.segments import SIGNALS, tree_signals


@register("tree")
@dataclasses.dataclass(frozen=True)
class Tree(Strategy):
    """Plays a tree from each group's task, as TreeRPO and SPO-tree do.

    With branching (b_1, …, b_D), the root has b_1 children, each of those b_2, and so on. A child is a segment of `segment_steps` turns;
    the segments of the last level are played to the end of the episode. The b_1 · … · b_D leaves are the episodes of the group, so
    `rollout.group_size` must be this product.

    An episode that ends in an earlier level is one leaf, however many leaves there would have been below it. The others are absent:
    masked episodes without steps, which are padding and no failures (`Rollout.counts["absent_leaves"]`). The same holds below a
    segment whose environment failed, whose one leaf is a failed episode.

    All segments of a level are played at once, in one call of `play`.

    Attributes:
      branching: (b_1, …, b_D), the number of children of each node in each level, each at least 1. None: as many levels of two children
        as the group has leaves for, so `rollout.group_size` must be a power of 2.
      segment_steps: the number of turns in a segment, at least 1.
      outcome: the value of a leaf: "return", the sum of all rewards, or "success", 0 or 1.

    Sources: TreeRPO (arXiv 2506.05183), SPO (arXiv 2505.23564). There, a segment is a number of tokens.
    """

    provides: ClassVar[frozenset[str]] = SIGNALS
    restarts: ClassVar[bool] = True
    branching: tuple[int, ...] | None = None
    segment_steps: int = 2
    outcome: str = "return"

    def __post_init__(self):
        if self.branching is not None:
            branching = self.branching if isinstance(self.branching, Sequence) else (self.branching,)
            object.__setattr__(self, "branching", tuple(branching))
        if self.branching is not None and (not self.branching or any(not isinstance(b, int) or b < 1 for b in self.branching)):
            raise ValueError(f"branching={self.branching}: give the number of children in each level, each at least 1.")
        if self.segment_steps < 1:
            raise ValueError(f"segment_steps={self.segment_steps}: a segment has at least 1 turn.")
        check_choice("outcome", self.outcome, OUTCOMES)

    def levels(self, leaves: int) -> tuple[int, ...]:
        """The number of children of each node, by level, of a tree with that many leaves.

        Raises:
          ValueError: there is no such tree; the message names `rollout.group_size`.
        """
        if self.branching is None:
            depth = leaves.bit_length() - 1
            if depth < 1 or leaves != 2**depth:
                raise ValueError(
                    f"a tree of two children a level has 2, 4, 8 … leaves, not rollout.group_size={leaves}: set credit.options.branching to "
                    f"numbers whose product is {leaves}, or another rollout.group_size."
                )
            return (2,) * depth
        if leaves != math.prod(self.branching):
            product = " · ".join(map(str, self.branching))
            raise ValueError(
                f"rollout.group_size={leaves} is not the number of leaves of a tree with branching={self.branching}: set "
                f"rollout.group_size={math.prod(self.branching)} (= {product}), or another branching."
            )
        return self.branching

    def check(self, group_size: int, max_steps: int) -> None:
        levels = len(self.levels(group_size))
        first = (levels - 1) * self.segment_steps  # the turn in which the last level begins
        if first >= max_steps:
            raise ValueError(
                f"a tree of {levels} levels with segment_steps={self.segment_steps} would branch for the last time after "
                f"{first} turns, but rollout.max_steps={max_steps}: set fewer levels, a smaller segment_steps or more max_steps."
            )

    def __call__(self, play: Play, tasks: Sequence[Task], key: jax.Array) -> Rollout:
        groups = by_group(tasks)
        branching, size = self.levels(len(groups[0])), len(groups[0])
        for group in groups:
            self.levels(len(group))
            if len(group) != size:
                raise ValueError(f"the groups have {size} and {len(group)} tasks: give each the same number.")
        leaves: list[Episode | None] = [None] * len(tasks)
        open_nodes = [(size * index, Start(group[0])) for index, group in enumerate(groups)]  # (first leaf below it, its state)
        played: list[Episode] = []
        firsts: set[int] = set()
        below = size
        for level, children in enumerate(branching):
            below //= children
            last = level == len(branching) - 1
            places = [(place + below * child, start) for place, start in open_nodes for child in range(children)]
            turns = None if last else self.segment_steps
            level_key = jax.random.fold_in(key, BRANCHES + level)
            episodes = play([start for _, start in places], level_key, keep=not last, turns=turns) if places else []
            if children > 1:
                firsts |= {id(episode.steps[episode.prefix]) for episode in episodes if len(episode.steps) > episode.prefix}
            played += episodes
            open_nodes = []
            for (place, _), episode in zip(places, episodes, strict=True):
                if episode.end == PAUSED:
                    open_nodes.append((place, Start.after(episode)))
                else:
                    leaves[place] = episode
        found = [Episode(task, end=ABSENT) if leaf is None else leaf for task, leaf in zip(tasks, leaves, strict=True)]
        forget_snapshots(played)
        signals = tree_signals([found[i : i + size] for i in range(0, len(found), size)], firsts, self.outcome)
        failed = sum(episode.failure is not None for episode in played)
        return Rollout(found, signals, total_cost(played), {"failed_branches": failed, "absent_leaves": leaves.count(None)})
