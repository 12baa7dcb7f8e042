"""How a rollout is played: a strategy is a loop over `play`.

    rollout = make("restore", k=4)(collector.player(params), tasks, key)

It plays each task, may play on from states that it met, and says what all of that cost. To add one, write a class as below; a credit
method asks for it by its name (`Method.strategy`).
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np

from stepreward.rollout.episode import Cost, Episode, Start, Task, total_cost

Play = Callable[..., list[Episode]]  # (starts, key, *, keep=False) -> an episode for each start: `Collector.player`
OUTCOMES = ("return", "success")
_BRANCHES = 1_000_000  # folded into the key of a rollout for the draws of its branches; no turn has this number


class Rollout(NamedTuple):
    """What a strategy played.

    Attributes:
      episodes: those to train on, one for each task, in the order of the tasks.
      signals: what the branches tell about the steps of `episodes`: by name, one float32 array `[steps]` for each episode.
      cost: of every episode that was played, branches included.
    """

    episodes: list[Episode]
    signals: dict[str, list[np.ndarray]]
    cost: Cost

    def arrays(self, max_steps: int) -> dict[str, np.ndarray]:
        """The signals as float32 `[E, S]` with S = `max_steps`; 0 after the last step of an episode."""
        padded = lambda row: np.pad(row, (0, max_steps - len(row)))
        return {name: np.stack([padded(row) for row in rows]) for name, rows in self.signals.items()}


@dataclasses.dataclass(frozen=True)
class Strategy(abc.ABC):
    """A way to play tasks; a frozen dataclass whose fields are its options.

    Attributes:
      name: what `make` knows it by.
      provides: names of its `Rollout.signals`.
      restarts: it starts episodes in the middle, which the environment must allow (`Collector.check_restarts`).
    """

    name: ClassVar[str] = ""
    provides: ClassVar[frozenset[str]] = frozenset()
    restarts: ClassVar[bool] = False

    @abc.abstractmethod
    def __call__(self, play: Play, tasks: Sequence[Task], key: jax.Array) -> Rollout:
        """Plays the tasks.

        Args:
          play: plays an episode from each start, see `Collector.play`.
          tasks: what to play.
          key: of all draws; each call of `play` gets a key of its own.
        """


_STRATEGIES: dict[str, type[Strategy]] = {}


def register(name: str) -> Callable[[type[Strategy]], type[Strategy]]:
    """Class decorator that makes a strategy known to `make` under `name`. Raises ValueError if the name is taken."""

    def add(strategy: type[Strategy]) -> type[Strategy]:
        if name in _STRATEGIES:
            raise ValueError(f"a strategy named '{name}' is registered already")
        strategy.name = name
        _STRATEGIES[name] = strategy
        return strategy

    return add


def names() -> tuple[str, ...]:
    """The registered strategies, sorted."""
    return tuple(sorted(_STRATEGIES))


def make(name: str, **options: Any) -> Strategy:
    """Builds a strategy by name. Raises ValueError that lists what there is when the name or an option is unknown."""
    if name not in _STRATEGIES:
        raise ValueError(f"unknown rollout strategy '{name}'; there are: {', '.join(names())}")
    known = [field.name for field in dataclasses.fields(_STRATEGIES[name])]
    for option in options:
        if option not in known:
            raise ValueError(f"rollout strategy '{name}' has no option '{option}'; its options are: {', '.join(known) or 'none'}")
    return _STRATEGIES[name](**options)


@register("chain")
@dataclasses.dataclass(frozen=True)
class Chain(Strategy):
    """Plays each task once."""

    def __call__(self, play: Play, tasks: Sequence[Task], key: jax.Array) -> Rollout:
        episodes = play([Start(task) for task in tasks], key)
        return Rollout(episodes, {}, total_cost(episodes))


@register("restore")
@dataclasses.dataclass(frozen=True)
class Restore(Strategy):
    """Plays each task once, then `k` episodes on from every state of it: Monte Carlo values of its states.

        mc_value[t] = 1/k · Σ_i outcome_i,   i = 1 … k episodes that start in s_t

    is an unbiased estimate of V(s_t), the outcome that the policy reaches from s_t. The episode itself is not among the k. A
    continuation whose environment failed is left out; where all k failed, and in an episode that failed, the value is NaN.

    Attributes:
      k: episodes from each state, at least 1.
      outcome: "return", the sum of all rewards, those before s_t included, or "success", 0 or 1.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"mc_value"})
    restarts: ClassVar[bool] = True
    k: int = 4
    outcome: str = "return"

    def __post_init__(self):
        if self.k < 1:
            raise ValueError(f"k={self.k}: play at least 1 episode from each state.")
        if self.outcome not in OUTCOMES:
            raise ValueError(f"outcome={self.outcome!r} is not one of {', '.join(OUTCOMES)}.")

    def __call__(self, play: Play, tasks: Sequence[Task], key: jax.Array) -> Rollout:
        episodes = play([Start(task) for task in tasks], key, keep=True)
        states = [(e, turn) for e, episode in enumerate(episodes) if episode.failure is None for turn in range(len(episode.steps))]
        starts = [Start.before(episodes[e], turn) for e, turn in states for _ in range(self.k)]
        branches = play(starts, jax.random.fold_in(key, _BRANCHES))
        values = [np.full(len(episode.steps), np.nan, np.float32) for episode in episodes]
        for index, (e, turn) in enumerate(states):
            found = [self._outcome(branch) for branch in branches[self.k * index : self.k * (index + 1)] if branch.failure is None]
            if found:
                values[e][turn] = np.mean(found)
        for episode in episodes:
            for step in episode.steps:
                step.snapshot = None  # nothing starts there any more
        return Rollout(episodes, {"mc_value": values}, total_cost([*episodes, *branches]))

    def _outcome(self, episode: Episode) -> float:
        return episode.episode_return if self.outcome == "return" else float(episode.success)
