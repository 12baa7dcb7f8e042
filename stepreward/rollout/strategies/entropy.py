"""The strategy "entropy_branch": episodes branch where the policy is less certain than it was at their beginning."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import jax
import numpy as np

from stepreward.rollout.episode import PAUSED, Episode, Start, Step, Task, total_cost
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


def branch_probability(delta, p: float, w: float):
    """clip(p + w·ΔH, 0, 1): the probability of branching where the normalised entropy has risen by `delta`."""
    return np.clip(p + w * np.asarray(delta), 0.0, 1.0)


@dataclasses.dataclass(eq=False)
class _Tree:
    """The episodes of a group while they are played.

    Attributes:
      task: of the group.
      number: of the group.
      leaves: its episodes, as far as they were played; None: not played yet.
      born: the turn before which each episode left another; 0: played from the root.
      turn: before which branches are decided on next.
      parted: `id(step)` of the steps that episodes took where others left them.
    """

    task: Task
    number: int
    leaves: list[Episode | None]
    born: list[int]
    turn: int = 1
    parted: set[int] = dataclasses.field(default_factory=set)

    def knows(self, episode: Episode | None) -> bool:
        """Whether step `turn` of an episode is known, or that it has none."""
        return episode is not None and (episode.end != PAUSED or len(episode.steps) > self.turn)


@register("entropy_branch")
@dataclasses.dataclass(frozen=True)
class EntropyBranch(Strategy):
    """Branches after answers of the environment that leave the policy uncertain, as ARPO does.

    Each group has m = `rollout.group_size` leaves, which are its episodes. First `n0` episodes are played from the root. Then the turns
    are gone through in order, from the second on. In turn t, each episode that has a step t and did not begin in this turn branches with
    probability clip(p + w·ΔH_t, 0, 1): `beam` − 1 further episodes are played from the state before step t, as far as the group has
    leaves left. ΔH_t = H_t − H_0, where H_t is the mean entropy of the first tokens of the answer of step t, divided by the logarithm
    of the vocabulary's size, and H_0 that of the episode's first answer. Leaves that are then left are played from the root.

    Branches branch again in later turns. An episode whose environment fails later branches before its failure like any other.

    The draws depend on the rollout's key, the turn and the episode's place in its group alone, so it does not matter when a branch is
    played. Where a pause costs little (`Player.pauses_freely`), all episodes play turn by turn until no leaves are left, and branches
    join them. Elsewhere each episode is played to its end before its branches begin.

    The entropy is that of the whole distribution at the sampling temperature. The public release computes it from the ten most probable
    tokens.

    Attributes:
      n0: episodes that are played from the root first, from 1 to m; None: half of m, rounded up (the paper: 8 of 16).
      p: probability of branching where the entropy is that of the first answer, in [0, 1].
      w: weight of ΔH, at least 0. The release's scripts set 0.2, its code has 0.5 as default.
      beam: how many ways lead on from a state where an episode branches, at least 2, the episode itself included.
      first_tokens: how many tokens of an answer H is the mean over, at least 1. The number is uncertain: the paper calls it k.
      outcome: the value of a leaf: "return", the sum of all rewards, or "success", 0 or 1.

    Source: ARPO (arXiv 2507.19849).
    """

    provides: ClassVar[frozenset[str]] = SIGNALS
    restarts: ClassVar[bool] = True
    n0: int | None = None
    p: float = 0.5
    w: float = 0.2
    beam: int = 2
    first_tokens: int = 20
    outcome: str = "return"

    def __post_init__(self):
        if self.n0 is not None and self.n0 < 1:
            raise ValueError(f"n0={self.n0}: play at least 1 episode from the root.")
        if not 0 <= self.p <= 1:
            raise ValueError(f"p={self.p} is a probability: it must lie in [0, 1].")
        if not 0 <= self.w < math.inf:
            raise ValueError(f"w={self.w} must be at least 0 and finite.")
        if self.beam < 2:
            raise ValueError(f"beam={self.beam}: at least 2 ways lead on from a state where an episode branches.")
        if self.first_tokens < 1:
            raise ValueError(f"first_tokens={self.first_tokens}: the entropy is a mean over at least 1 token.")
        check_choice("outcome", self.outcome, OUTCOMES)

    def check(self, group_size: int, max_steps: int) -> None:
        if self.n0 is not None and self.n0 > group_size:
            raise ValueError(
                f"n0={self.n0} episodes from the root are more than the rollout.group_size={group_size} leaves of a group: lower n0, or "
                "raise rollout.group_size."
            )

    def __call__(self, play: Play, tasks: Sequence[Task], key: jax.Array) -> Rollout:
        groups = by_group(tasks)
        m = len(groups[0])
        for group in groups:
            self.check(len(group), 0)
            if len(group) != m:
                raise ValueError(f"the groups have {m} and {len(group)} tasks: give each the same number.")
        n0, draws = self.n0 or -(-m // 2), jax.random.fold_in(key, BRANCHES)
        uniform = functools.cache(lambda turn: np.asarray(jax.random.uniform(jax.random.fold_in(draws, turn), (len(groups), m))))
        trees = [_Tree(group[0], number, [None] * n0, [0] * n0) for number, group in enumerate(groups)]
        todo = [(tree, place, Start(tree.task)) for tree in trees for place in range(n0)]
        played: list[Episode] = []
        while todo:
            full = all(len(tree.leaves) == m for tree in trees)
            turns = 1 if play.pauses_freely and not full else None
            indices = [tree.number * m + place for tree, place, _ in todo]
            found = play([start for *_, start in todo], key, keep=not full, turns=turns, indices=indices)
            played += found
            for (tree, place, _), episode in zip(todo, found, strict=True):
                tree.leaves[place] = episode
            todo = [
                (tree, place, Start.after(episode)) for tree in trees for place, episode in enumerate(tree.leaves) if episode.end == PAUSED
            ]
            for tree in trees:
                todo += [(tree, place, start) for place, start in self._grow(tree, m, play.vocab_size, uniform)]
        firsts = set()
        for tree in trees:
            firsts |= tree.parted
            for episode, born in zip(tree.leaves, tree.born, strict=True):
                episode.prefix = born
                firsts |= {id(step) for step in episode.steps[born : born + 1] if born}
        forget_snapshots(played)
        episodes = [episode for tree in trees for episode in tree.leaves]
        failed = sum(episode.failure is not None for tree in trees for episode in tree.leaves[n0:])
        counts = {"failed_branches": failed, "absent_leaves": 0}
        signals = tree_signals([tree.leaves for tree in trees], firsts, self.outcome)
        return Rollout(episodes, signals, total_cost(played), counts)

    def _grow(self, tree: _Tree, m: int, vocab_size: int, uniform: Callable[[int], np.ndarray]) -> list[tuple[int, Start]]:
        """Adds the branches that can be decided on, as leaves that are yet to be played; returns their places and starts.

        Args:
          uniform: the draws of a turn, `[groups, m]`.
        """
        new: list[tuple[int, Start]] = []
        while len(tree.leaves) < m and all(tree.knows(episode) for episode in tree.leaves):
            if all(tree.turn >= len(episode.steps) for episode in tree.leaves):  # the last turn is over
                starts, born = [Start(tree.task)] * (m - len(tree.leaves)), 0
            else:
                parents = self._branching(tree, uniform(tree.turn)[tree.number], m, vocab_size)
                starts, born = [Start.before(parent, tree.turn) for parent in parents], tree.turn
                tree.parted |= {id(parent.steps[tree.turn]) for parent in parents}
            new += [(len(tree.leaves) + i, start) for i, start in enumerate(starts)]
            tree.leaves += [None] * len(starts)
            tree.born += [born] * len(starts)
            tree.turn += 1
        return new

    def _branching(self, tree: _Tree, uniform: np.ndarray, m: int, vocab_size: int) -> list[Episode]:
        """The episodes of a tree that branch before its present turn, each as often as it starts a branch there."""
        parents: list[Episode] = []
        for episode, born, draw in zip(tree.leaves, tree.born, uniform):
            left = m - len(tree.leaves) - len(parents)
            if born < tree.turn < len(episode.steps) and left:
                first, now = (self._entropy(episode.steps[index], vocab_size) for index in (0, tree.turn))
                if draw < branch_probability(now - first, self.p, self.w):
                    parents += [episode] * min(self.beam - 1, left)
        return parents

    def _entropy(self, step: Step, vocab_size: int) -> float:
        """H: the mean entropy of the first tokens of an answer, as a share of that of a uniform distribution over the vocabulary."""
        return float(np.mean(step.entropy[: self.first_tokens])) / math.log(vocab_size)
