"""The strategy "restore": Monte Carlo values of states, from episodes that are played on from them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

import jax
import numpy as np

from stepreward.envs.protocol import EXPERT
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
    outcome_of,
    register,
)

AT = ("all", "cuts", "expert_prefix")


def cut_points(steps: Sequence[Step], below: float, tokens_per_cut: int) -> list[int]:
    """The steps that segments of an episode start with.

    The first step starts one. Any other step starts one where the steps since the last start have at least `tokens_per_cut` tokens of a
    probability less than `below`. Their probability is the one that they were sampled with, `Step.log_prob`.
    """
    found, uncertain = [], tokens_per_cut
    for turn, step in enumerate(steps):
        if uncertain >= tokens_per_cut:
            found.append(turn)
            uncertain = 0
        uncertain += int(np.sum(np.asarray(step.log_prob) < math.log(below)))
    return found


@register("restore")
@dataclasses.dataclass(frozen=True)
class Restore(Strategy):
    """Plays each task once, then `k` episodes on from states of it: Monte Carlo values of these states.

        mc_value[t] = 1/k · Σ_i outcome_i,   i = 1 … k episodes that start in s_t

    is an unbiased estimate of V(s_t), the outcome that the policy reaches from s_t. The episode itself is not among the k. A
    continuation whose environment failed is left out and counted (`failed_branches`). Where all k failed, in a state that is not
    measured, and in an episode that failed, the value is NaN.

    `at` chooses the states:

    * "all": every state of every episode (VinePPO).
    * "cuts": the states where a segment starts, see `cut_points`. SPO cuts at every fifth token whose probability is below 0.9; here a
      cut is moved to the next step, since an episode can only be restored between steps.
    * "expert_prefix": the states of the trajectory that the environment's `expert` takes from the beginning of each group's task (IPR).
      With T expert steps, episode i of the n of a group starts before expert step ⌊i·T / n⌋, so the first one starts at the beginning.
      Its first steps are then the expert's, which are not trained on (`Step.sampled`). They have the values of the states of the
      expert; so has the first step of the policy, and no later one. Where the expert finds no way or its environment fails, the
      episodes of the group start at the beginning, and nothing is measured.

    With `adaptive`, continuations are played in at most k rounds of one for each state. After each round a state is done where its mean so
    far is greater than the mean so far of the measured state before it in the episode. The first state takes all k. The rule follows
    RRO, which samples until a value rises above the one before it. Such a value is biased upwards, since sampling stops at a high mean.

    Attributes:
      k: episodes from each state, at least 1; with `adaptive`, at most so many.
      outcome: "return", the sum of all rewards, those before s_t included, or "success", 0 or 1.
      at: where values are measured, see above.
      below: with at="cuts", a token of a smaller probability than this counts, in (0, 1].
      tokens_per_cut: with at="cuts", how many such tokens a segment has at least, at least 1.
      adaptive: stop early, see above. The exact rule of RRO is uncertain.
      unfinished: the outcome of a continuation that a limit cut short (VinePPO's release); None: the one that it has.

    Sources: VinePPO (arXiv 2410.01679), SPO (arXiv 2505.23564), IPR (arXiv 2406.11176), RRO (arXiv 2505.20737).
    """

    provides: ClassVar[frozenset[str]] = frozenset({"mc_value"})
    restarts: ClassVar[bool] = True
    k: int = 4
    outcome: str = "return"
    at: str = "all"
    below: float = 0.9
    tokens_per_cut: int = 5
    adaptive: bool = False
    unfinished: float | None = None

    def __post_init__(self):
        if self.k < 1:
            raise ValueError(f"k={self.k}: play at least 1 episode from each state.")
        check_choice("outcome", self.outcome, OUTCOMES)
        check_choice("at", self.at, AT)
        if not 0 < self.below <= 1:
            raise ValueError(f"below={self.below} is a probability: it must be greater than 0 and at most 1.")
        if self.tokens_per_cut < 1:
            raise ValueError(f"tokens_per_cut={self.tokens_per_cut}: a segment has at least 1 uncertain token.")

    @property
    def capabilities(self) -> frozenset[str]:
        return frozenset({EXPERT} if self.at == "expert_prefix" else ())

    def __call__(self, play: Play, tasks: Sequence[Task], key: jax.Array) -> Rollout:
        if self.at == "expert_prefix":
            return self._on_expert_prefixes(play, tasks, key)
        episodes = play([Start(task) for task in tasks], key, keep=True)
        turns = [self._measured(episode) for episode in episodes]
        values, branches = self._values(play, episodes, turns, key)
        forget_snapshots(episodes)  # nothing starts there any more
        return self._rollout(episodes, values, [*episodes, *branches], branches)

    def _measured(self, episode: Episode) -> Sequence[int]:
        if episode.failure is not None:
            return []
        if self.at == "cuts":
            return cut_points(episode.steps, self.below, self.tokens_per_cut)
        return range(len(episode.steps))

    def _on_expert_prefixes(self, play: Play, tasks: Sequence[Task], key: jax.Array) -> Rollout:
        groups = by_group(tasks)
        experts = play.expert([group[0] for group in groups], keep=True)
        paths = [expert if expert.failure is None else Episode(expert.task) for expert in experts]
        starts = []
        for path, group in zip(paths, groups, strict=True):
            turns = [i * len(path.steps) // len(group) for i in range(len(group))]
            starts += [Start.before(path, turn) if path.steps else Start(path.task) for turn in turns]
        episodes = play(starts, key)
        of_expert, branches = self._values(play, paths, [range(len(path.steps)) for path in paths], key)
        values, index = [], 0
        for known, group in zip(of_expert, groups, strict=True):
            for _ in group:
                episode = episodes[index]
                row = np.full(len(episode.steps), np.nan, np.float32)
                reached = min(episode.prefix + 1, len(row), len(known)) if episode.failure is None else 0
                row[:reached] = known[:reached]
                values.append(row)
                index += 1
        forget_snapshots(paths)
        return self._rollout(episodes, values, [*experts, *episodes, *branches], branches)

    def _rollout(self, episodes, values, played, branches) -> Rollout:
        failed = sum(branch.failure is not None for branch in branches)
        return Rollout(episodes, {"mc_value": values}, total_cost(played), {"failed_branches": failed, "absent_leaves": 0})

    def _values(self, play: Play, episodes: Sequence[Episode], turns: Sequence[Sequence[int]], key) -> tuple[list, list[Episode]]:
        """The values before some steps of each episode, NaN before the others; and all continuations."""
        states = [(e, turn) for e, found in enumerate(turns) for turn in found]
        before = [i - 1 if i and states[i - 1][0] == e else None for i, (e, _) in enumerate(states)]  # the measured state before each
        outcomes: list[list[float]] = [[] for _ in states]
        branches: list[Episode] = []
        todo = list(range(len(states)))
        for number in range(self.k if self.adaptive else 1):
            times = 1 if self.adaptive else self.k
            starts = [Start.before(episodes[states[i][0]], states[i][1]) for i in todo for _ in range(times)]
            played = play(starts, jax.random.fold_in(key, BRANCHES + number)) if starts else []
            for place, branch in enumerate(played):
                if branch.failure is None:
                    outcomes[todo[place // times]].append(self._outcome(branch))
            branches += played
            means = [np.mean(found) if found else np.nan for found in outcomes]
            todo = [i for i in todo if before[i] is None or not means[i] > means[before[i]]]
        values = [np.full(len(episode.steps), np.nan, np.float32) for episode in episodes]
        for (e, turn), mean in zip(states, means):
            values[e][turn] = mean
        return values, branches

    def _outcome(self, branch: Episode) -> float:
        return self.unfinished if branch.truncated and self.unfinished is not None else outcome_of(branch, self.outcome)
