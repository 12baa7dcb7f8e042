"""The interface of strategies, and their table."""

from __future__ import annotations

import abc
import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np

from stepreward import registry
from stepreward import signals as table
from stepreward.rollout.episode import Cost, Episode, Task

Play = Callable[..., list[Episode]]  # (starts, key, *, keep=False, turns=None) -> an episode for each start: `player.Player`
OUTCOMES = ("return", "success")
BRANCHES = 1_000_000  # folded into the key of a rollout for the draws of its branches; no turn has this number


class Rollout(NamedTuple):
    """What a strategy played.

    Attributes:
      episodes: those to train on, one for each task, in the order of the tasks.
      signals: what the branches tell about the steps of `episodes`: by name, one array `[steps]` for each episode. Each name has a row in
        `stepreward.signals`.
      cost: of every episode that was played, branches included. What several episodes share counts once.
      counts: numbers to log, by name: `failed_branches`, the branches whose environment failed, and `absent_leaves`, the episodes that
        are padding, because an episode ended before the level where it would have branched; and others that the strategy explains.
    """

    episodes: list[Episode]
    signals: dict[str, list[np.ndarray]]
    cost: Cost
    counts: Mapping[str, int] = {}

    def arrays(self, max_steps: int) -> dict[str, np.ndarray]:
        """The signals as `[E, S]` with S = `max_steps`, in their dtype; the padding of their row after the last step of an episode."""
        return {name: np.stack([_padded(row, max_steps, table.row(name)) for row in rows]) for name, rows in self.signals.items()}

    @property
    def branch_steps(self) -> int:
        """Environment steps that were played and are in none of `episodes`."""
        return self.cost.env_steps - len({id(step) for episode in self.episodes for step in episode.steps if step.sampled})


def _padded(row: np.ndarray, length: int, found: table.Row) -> np.ndarray:
    return np.pad(np.asarray(row, found.dtype), (0, length - len(row)), constant_values=found.padding)


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

    @property
    def capabilities(self) -> frozenset[str]:
        """What else the environment must declare (`envs.protocol`)."""
        return frozenset()

    def check(self, group_size: int, max_steps: int) -> None:
        """Raises ValueError where the options do not fit `rollout.group_size` and `rollout.max_steps`; called before a run begins."""
        return None

    @abc.abstractmethod
    def __call__(self, play: Play, tasks: Sequence[Task], key: jax.Array) -> Rollout:
        """Plays the tasks.

        Args:
          play: plays an episode from each start, see `Collector.play`.
          tasks: what to play; the tasks of a group follow each other.
          key: of all draws; each call of `play` gets a key of its own.
        """


_STRATEGIES: dict[str, type[Strategy]] = {}
_KIND = "rollout strategy"


def register(name: str) -> Callable[[type[Strategy]], type[Strategy]]:
    """Class decorator that makes a strategy known to `make` under `name`. Raises ValueError if the name is taken."""
    return registry.adding(_STRATEGIES, _KIND, name)


def names() -> tuple[str, ...]:
    """The registered strategies, sorted."""
    return tuple(sorted(_STRATEGIES))


def make(name: str, **options: Any) -> Strategy:
    """Builds a strategy by name. Raises ValueError that lists what there is when the name or an option is unknown."""
    found = registry.find(_STRATEGIES, _KIND, name)
    registry.check_options(_KIND, name, options, [field.name for field in dataclasses.fields(found)])
    return found(**options)


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raises a ValueError that lists the choices if the value of an option is not one of them."""
    if value not in choices:
        raise ValueError(f"{name}={value!r} is not one of {', '.join(choices)}.")


def outcome_of(episode: Episode, outcome: str) -> float:
    """The outcome of an episode: "return" is the sum of its rewards, "success" is 0 or 1; a judge's score replaces either."""
    return episode.outcome(outcome)


def by_group(tasks: Sequence[Task]) -> list[list[Task]]:
    """The tasks of each group, in their order."""
    return [list(group) for _, group in itertools.groupby(tasks, key=lambda task: task.group)]


def forget_snapshots(episodes: Sequence[Episode]) -> None:
    """Drops the snapshots of episodes that nothing will be started from any more."""
    for episode in episodes:
        episode.pause = None
        for step in episode.steps:
            step.snapshot = None
