"""Adaptation of the distances in an automaton of subgoals to a policy that does not succeed (Adaptive Reward Design). Plain values, no arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from stepreward.envs.automata import Automaton

WINDOW, ENOUGH = 20, 0.1  # the release adapts unless this share of that many episodes succeeded


class Adaptation(NamedTuple):
    """The state that adaptation carries from episode to episode. JSON can represent it without loss (`to_json`, `from_json`).

    Attributes:
      distance: d_k of each state.
      eta: η, the share of the penalty in the hybrid reward.
      episodes: episodes since the last success or adaptation; with rules="released", all episodes.
      visits: how many steps of these episodes led to each state.
      updates: the number of adaptations, k.
      best: with rules="released", the best rank at the last adaptation by rank; −1: none.
      recent: with rules="released", whether each of the last episodes succeeded, the oldest first.
    """

    distance: tuple[float, ...]
    eta: float
    episodes: int
    visits: tuple[int, ...]
    updates: int = 0
    best: int = -1
    recent: tuple[bool, ...] = ()

    def to_json(self) -> dict:
        """Returns the fields as plain JSON values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in self._asdict().items()}

    @classmethod
    def from_json(cls, fields: dict) -> Adaptation:
        """The state that `to_json` was called on."""
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})


@dataclasses.dataclass(frozen=True)
class Rules:
    """When and how distances are adapted. The fields are those of `ARD`; theta is a number here.

    Attributes:
      adapt, every, mu, theta, eta, rules: see `stepreward.credit.ard.ARD`.
      automaton: whose distances d_0 are adapted.
    """

    automaton: Automaton
    adapt: str
    every: int
    mu: float
    theta: float
    eta: float
    rules: str

    def begin(self) -> Adaptation:
        """The state before the first episode: d_0, and the first η."""
        initial = self.automaton.distances()
        return Adaptation(initial, self.eta, 0, (0,) * len(initial))

    def after(self, state: Adaptation, reached: Sequence[int], success: bool) -> Adaptation:
        """Returns the state after an episode.

        Args:
          state: the state before it.
          reached: the automaton's states after each of its steps.
          success: whether it succeeded.
        """
        visits = list(state.visits)
        for q in reached:
            visits[q] += 1
        state = state._replace(visits=tuple(visits), episodes=state.episodes + 1)
        if self.rules == "released":
            state = state._replace(recent=(*state.recent, bool(success))[-WINDOW:])
            due = state.episodes % self.every == 0 and sum(state.recent) / len(state.recent) < ENOUGH
            due &= state.updates < max(ranks_of(self.automaton.distances()))
            return self._adapted(state) if due else state
        if success:
            return state._replace(episodes=0, visits=(0,) * len(visits))
        if state.episodes < self.every:
            return state
        return self._adapted(state)._replace(episodes=0, visits=(0,) * len(visits))

    def _adapted(self, state: Adaptation) -> Adaptation:
        if self.adapt == "none":
            return state
        initial, traps = self.automaton.distances(), self.automaton.traps()
        state = state._replace(updates=state.updates + 1)
        if self.adapt == "visits":
            distance = by_visits(state.distance, state.visits, self.mu, self.theta, self.automaton.accepting, traps)
        else:
            best = best_rank(initial, state.visits, (*self.automaton.accepting, *traps))
            if best is None or (self.rules == "released" and best == state.best):
                return state
            distance, state = by_rank(state.distance, initial, best, self.theta), state._replace(best=best)
        return state._replace(distance=distance, eta=state.eta / self.theta)


def ranks_of(distance: Sequence[float]) -> list[int]:
    """Returns the rank of each state: the number of different smaller distances, so 0 for the accepting states."""
    order = sorted(set(distance))
    return [order.index(d) for d in distance]


def best_rank(initial: Sequence[float], visits: Sequence[int], excluded: Sequence[int]) -> int | None:
    """Returns the least rank, by d_0, of the visited states that are not `excluded`; None if there is none."""
    ranks = ranks_of(initial)
    return min((ranks[q] for q, count in enumerate(visits) if count and q not in excluded), default=None)


def by_visits(
    distance: Sequence[float], visits: Sequence[int], mu: float, theta: float, accepting: Sequence[int], traps: Sequence[int]
) -> tuple[float, ...]:
    """Adapts distances by visits (v0): d_{k+1}(q) = μ·d_k(q) + θ·(visits of q) / (all visits).

    The distance of an accepting state stays 0. A state from which acceptance is out of reach counts as visited in every step, so that no
    way to it becomes progress; the release does the same.

    Args:
      distance: d_k.
      visits: how often each state was reached.
      mu, theta: μ, θ.
      accepting, traps: numbers of those states.
    """
    total = max(sum(visits), 1)
    share = [1.0 if q in traps else count / total for q, count in enumerate(visits)]
    return tuple(d if q in accepting else mu * d + theta * share[q] for q, d in enumerate(distance))


def by_rank(distance: Sequence[float], initial: Sequence[float], best: int, theta: float) -> tuple[float, ...]:
    """Adapts distances by rank (v1): adds θ to d_k of the states whose rank by d_0 is `best` or a larger number, which are farther from
    acceptance. So the next subgoal after the best one that was reached pays θ more."""
    return tuple(d + theta * (rank >= best) for d, rank in zip(distance, ranks_of(initial)))
