"""The interface of preference methods, and their table."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np

from stepreward import registry
from stepreward.rollout.episode import UNSOLVED, Cost, Episode, Start, total_cost
from stepreward.rollout.player import Player
from stepreward.rollout.strategies.base import OUTCOMES, check_choice


class Pairs(NamedTuple):
    """Pairs of step ranges, of which the first is better.

    Attributes:
      chosen, rejected: int32 `[P, 3]`: the index of an episode, the first step of the range, and the step behind its last one.
      weight: float32 `[P]`, the weight of each pair in the loss.
    """

    chosen: np.ndarray
    rejected: np.ndarray
    weight: np.ndarray

    @classmethod
    def of(cls, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Pairs:
        """Makes pairs of weight 1 from `(chosen, rejected)`, each `(episode, first, end)`."""
        found = np.array([[*chosen, *rejected] for chosen, rejected in pairs], np.int32).reshape(-1, 6)
        return cls(found[:, :3], found[:, 3:], np.ones(len(found), np.float32))

    @property
    def number(self) -> int:
        """P, the number of pairs."""
        return len(self.weight)

    def moved(self, number: int) -> Pairs:
        """The pairs after `number` other episodes were put before theirs."""
        shift = np.array([number, 0, 0], np.int32)
        return Pairs(self.chosen + shift, self.rejected + shift, self.weight)


def joined(parts: Sequence[Pairs]) -> Pairs:
    """Several sets of pairs, whose episodes have one numbering, as one."""
    return Pairs(*map(np.concatenate, zip(*parts, strict=True))) if parts else Pairs.of([])


class Collected(NamedTuple):
    """What a method collected.

    Attributes:
      episodes: those that `pairs` refer to. All of their steps may be trained on, those of the expert too. Without pairs it is one
        episode, so that a part of a dataset is never empty. There is none only if every environment failed.
      pairs: which behaviours are better.
      cost: of everything that was played.
      played: number of episodes that were played, continuations included.
      failed: number of these whose environment failed.
      metrics: further numbers to log; `unsolved` is how often the expert knew no way, or gave no answer.
    """

    episodes: list[Episode]
    pairs: Pairs
    cost: Cost
    played: int
    failed: int
    metrics: Mapping[str, float] = {}


def collected(pairs: Sequence[tuple], played: Sequence[Episode], **metrics: float) -> Collected:
    """Makes a `Collected`.

    Args:
      pairs: `(chosen, rejected)`, each `(episode, first, end)` with an `Episode`.
      played: every episode that was played; what several share is counted once in their costs.
      metrics: further numbers to log.
    """
    index: dict[int, int] = {}
    episodes: list[Episode] = []

    def place(side) -> tuple[int, int, int]:
        episode, first, end = side
        if id(episode) not in index:
            index[id(episode)] = len(episodes)
            episodes.append(trainable(episode))
        return index[id(episode)], first, end

    found = Pairs.of([(place(chosen), place(rejected)) for chosen, rejected in pairs])
    if not episodes:
        episodes = [trainable(episode) for episode in played if episode.failure is None and episode.steps][:1]
    failures = [episode.failure for episode in played if episode.failure is not None]
    unsolved = sum(failure in UNSOLVED for failure in failures)
    counts = {"unsolved": float(unsolved)} | metrics
    return Collected(episodes, found, total_cost(played), len(played), len(failures) - unsolved, counts)


def trainable(episode: Episode) -> Episode:
    """A copy of an episode whose every step counts as sampled, and which keeps no snapshots."""
    steps = [dataclasses.replace(step, sampled=True, snapshot=None) for step in episode.steps]
    return dataclasses.replace(episode, steps=steps, prefix=0, pause=None)


@dataclasses.dataclass(frozen=True)
class Preference(abc.ABC):
    """A method that learns from preference pairs; a frozen dataclass whose fields are its options.

    The loss of a pair, with the reference policy π_ref from which the stage started, is

        −log σ(β · [log π/π_ref (chosen) − log π/π_ref (rejected)]) − sft · log π(chosen)

    where log π of a range of steps is the sum over all tokens of their answers.

    Attributes:
      name: what `make` knows it by.
      needs: capabilities that the environment must declare.
      restarts: it starts episodes in the middle, so the environment must offer snapshots or replays.
      advised: its expert proposes single actions, so that a language model may take the place of the environment's (`Player.adviser`).
      rounds: how often it explores and then trains.
      beta: β of each round; the last one also serves later rounds.
      rate: factors of `preference.learning_rate`, of each round, as `beta`.
      sft: weight of the imitation of the chosen steps.
      outcome: what an episode is worth: "return", the sum of its rewards, or "success", 0 or 1.
    """

    name: ClassVar[str] = ""
    needs: ClassVar[frozenset[str]] = frozenset()
    restarts: ClassVar[bool] = False
    advised: ClassVar[bool] = False

    rounds: int = 1
    beta: tuple[float, ...] = (0.1,)
    rate: tuple[float, ...] = (1.0,)
    sft: float = 0.0
    outcome: str = "return"

    def __post_init__(self):
        for field in ("beta", "rate"):
            value = getattr(self, field)
            value = tuple(value) if isinstance(value, (list, tuple)) else (value,)
            object.__setattr__(self, field, tuple(map(float, value)))
            if not value or any(not 0 < x < math.inf for x in value):
                raise ValueError(f"{field}={value}: give one positive, finite number for each round, at least one.")
        if self.rounds < 1:
            raise ValueError(f"rounds={self.rounds}: explore and train at least once.")
        if not 0 <= self.sft < math.inf:
            raise ValueError(f"sft={self.sft} must be at least 0 and finite.")
        check_choice("outcome", self.outcome, OUTCOMES)

    @property
    def judged(self) -> bool:
        """Whether it asks a judge for the scores of steps (`Player.judge`)."""
        return False

    def beta_of(self, number: int) -> float:
        """β of a round, counted from 0."""
        return self.beta[min(number, len(self.beta) - 1)]

    def rate_of(self, number: int) -> float:
        """The factor of the learning rate in a round, counted from 0."""
        return self.rate[min(number, len(self.rate) - 1)]

    def value(self, episode: Episode) -> float:
        """What an episode is worth; NaN if its environment failed."""
        return math.nan if episode.failure is not None else episode.outcome(self.outcome)

    @abc.abstractmethod
    def collect(self, player: Player, tasks: Sequence, key: jax.Array) -> Collected:
        """Plays some tasks and compares behaviours.

        Args:
          player: plays episodes with the present policy.
          tasks: the tasks, each once.
          key: of all draws; each call of `player` gets a key of its own.
        """

    # --- What several methods share ---

    def values_after(
        self, player: Player, places: Sequence[tuple[Episode, int]], n: int, key: jax.Array
    ) -> tuple[list[float], list[Episode]]:
        """Monte Carlo values of the states behind steps.

        Args:
          places: episodes and steps. An episode may be paused behind the step.
          n: how many episodes are played on from each state.

        Returns:
          The mean outcome of the n episodes for each place: the outcome of the episode itself where the step is its last one, NaN where
          all n failed. And the episodes that were played.
        """
        starts, owners = [], []
        for index, (episode, step) in enumerate(places):
            if step + 1 < len(episode.steps):
                found = Start.before(episode, step + 1)
            elif episode.pause is not None:
                found = Start.after(episode)
            else:
                continue
            starts += [found] * n
            owners += [index] * n
        played = player(starts, key) if starts else []
        outcomes: list[list[float]] = [[] for _ in places]
        for index, episode in zip(owners, played, strict=True):
            if episode.failure is None:
                outcomes[index].append(self.value(episode))
        known = set(owners)
        mean = lambda found: float(np.mean(found)) if found else math.nan
        values = [mean(outcomes[i]) if i in known else self.value(episode) for i, (episode, _) in enumerate(places)]
        return values, played


def same_answers(one: Episode, other: Episode, first: int, end: tuple[int, int]) -> bool:
    """Whether two episodes answered alike, token by token, from step `first` to the ends `end` of theirs."""
    mine, theirs = one.steps[first : end[0]], other.steps[first : end[1]]
    return len(mine) == len(theirs) and all(np.array_equal(a.action_tokens, b.action_tokens) for a, b in zip(mine, theirs))


_METHODS: dict[str, type[Preference]] = {}
_KIND = "preference method"


def register(name: str) -> Callable[[type[Preference]], type[Preference]]:
    """Class decorator that makes a method known to `make` under `name`. Raises ValueError if the name is taken."""
    return registry.adding(_METHODS, _KIND, name)


def names() -> tuple[str, ...]:
    """The registered methods, sorted."""
    return tuple(sorted(_METHODS))


def make(name: str, **options: Any) -> Preference:
    """Builds a method by name. Raises ValueError that lists what there is when the name or an option is unknown."""
    found = registry.find(_METHODS, _KIND, name)
    registry.check_options(_KIND, name, options, [field.name for field in dataclasses.fields(found)])
    return found(**options)


def check_count(name: str, value: int, least: int = 1) -> None:
    """Raises a ValueError if a count is less than `least`."""
    if value < least:
        raise ValueError(f"{name}={value} must be at least {least}.")
