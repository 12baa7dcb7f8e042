"""The strategy "entropy_branch": episodes branch where the policy is less certain than it was at their beginning."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

import jax
import numpy as np

from stepreward.rollout.episode import Episode, Start, Step, Task, total_cost
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


@register("entropy_branch")
@dataclasses.dataclass(frozen=True)
class EntropyBranch(Strategy):
    """Branches after answers of the environment that leave the policy uncertain, as ARPO does.

    Each group has m = `rollout.group_size` leaves, which are its episodes. First `n0` episodes are played from the root. Then the turns
    are gone through in order, from the second on. In turn t, each episode that has a step t and did not begin in this turn branches with
    probability clip(p + w·ΔH_t, 0, 1): `beam` − 1 further episodes are played from the state before step t, as far as the group has
    leaves left. ΔH_t = H_t − H_0, where H_t is the mean entropy of the first tokens of the answer of step t, divided by the logarithm
    of the vocabulary's size, and H_0 that of the episode's first answer. Leaves that are then left are played from the root.

    Branches branch again in later turns, and failed episodes do not branch. All branches of one turn are played in one call of `play`,
    those of all groups together. The draws depend on the rollout's key, the turn and the episode's place alone.

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
        n0 = self.n0 or -(-m // 2)
        roots = play([Start(group[0]) for group in groups for _ in range(n0)], key, keep=True)
        trees = [roots[n0 * index : n0 * (index + 1)] for index in range(len(groups))]
        draws, played, firsts, turn = jax.random.fold_in(key, BRANCHES), list(roots), set(), 0
        while any(len(tree) < m and turn + 1 < max(len(e.steps) for e in tree) for tree in trees):
            turn += 1
            uniform, key_of_turn = jax.random.split(jax.random.fold_in(draws, turn))
            uniform = np.asarray(jax.random.uniform(uniform, (len(groups), m)))
            parents = [self._branching(tree, turn, row, m, play.vocab_size) for tree, row in zip(trees, uniform, strict=True)]
            starts = [Start.before(parent, turn) for of_tree in parents for parent in of_tree]
            branches = iter(play(starts, key_of_turn, keep=True) if starts else [])
            for tree, of_tree in zip(trees, parents, strict=True):
                new = [next(branches) for _ in of_tree]
                firsts |= {id(e.steps[turn]) for e in of_tree + new if len(e.steps) > turn}
                tree += new
                played += new
        starts = [Start(group[0]) for group, tree in zip(groups, trees) for _ in range(m - len(tree))]
        rest = iter(play(starts, jax.random.fold_in(draws, BRANCHES)) if starts else [])
        failed = sum(episode.failure is not None for episode in played[len(roots) :])
        for tree in trees:
            new = [next(rest) for _ in range(m - len(tree))]
            tree += new
            played += new
        forget_snapshots(played)
        episodes = [episode for tree in trees for episode in tree]
        counts = {"failed_branches": failed, "absent_leaves": 0}
        return Rollout(episodes, tree_signals(trees, firsts, self.outcome), total_cost(played), counts)

    def _branching(self, tree: Sequence[Episode], turn: int, uniform: np.ndarray, m: int, vocab_size: int) -> list[Episode]:
        """The episodes of a tree that branch before step `turn`, each as often as it starts a branch there."""
        parents: list[Episode] = []
        for episode, draw in zip(tree, uniform):
            left = m - len(tree) - len(parents)
            begins_here = episode.prefix >= turn
            if episode.failure is None and not begins_here and turn < len(episode.steps) and left:
                first, now = (self._entropy(episode.steps[index], vocab_size) for index in (0, turn))
                if draw < branch_probability(now - first, self.p, self.w):
                    parents += [episode] * min(self.beam - 1, left)
        return parents

    def _entropy(self, step: Step, vocab_size: int) -> float:
        """H: the mean entropy of the first tokens of an answer, as a share of that of a uniform distribution over the vocabulary."""
        return float(np.mean(step.entropy[: self.first_tokens])) / math.log(vocab_size)
