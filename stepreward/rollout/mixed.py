"""Plays tasks of several environments: each start goes to the collector of its task's environment."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from stepreward.errors import naming
from stepreward.models.images import ImageReader
from stepreward.rollout.chat import Dialogue
from stepreward.rollout.engine import Engine
from stepreward.rollout.environments import Pool
from stepreward.rollout.episode import PAUSED, Episode, Start, Task
from stepreward.rollout.play import Collector
from stepreward.rollout.player import Adviser, Player

UNJUDGED = "the judge gave this episode no score"  # the failure of such an episode
Judge = Callable[[Sequence[Episode]], Sequence[float]]  # a score in [0, 1] for each episode, NaN where there is none


class Pools:
    """The pools of several environments, which are closed together."""

    def __init__(self, pools: Sequence[Pool]):
        self._pools = tuple(pools)

    def close(self) -> None:
        """Closes every pool."""
        with contextlib.ExitStack() as stack:
            for pool in self._pools:
                stack.callback(pool.close)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


@dataclasses.dataclass
class MixedCollector:
    """A `play.Collector` of several environments: `Task.environment` names the one that an episode is played in.

    The environments are played one after the other, in the order of `collectors`. What an episode draws depends on the key, its index and
    its turn, as in a single collector, and not on the other environments.

    Attributes:
      collectors: by the name of the environment; all have the same engine, chat and context.
      judges: of the environments whose outcome is a judge's score. An episode without a score fails.
    """

    collectors: Mapping[str, Collector]
    judges: Mapping[str, Judge] = dataclasses.field(default_factory=dict)

    @property
    def _first(self) -> Collector:
        return next(iter(self.collectors.values()))

    @property
    def engine(self) -> Engine:
        """Samples the answers in all environments."""
        return self._first.engine

    @property
    def chat(self) -> Dialogue:
        """Turns the messages of all environments into tokens."""
        return self._first.chat

    @property
    def context(self) -> str:
        """See `play.Collector`."""
        return self._first.context

    @property
    def reader(self) -> ImageReader | None:
        """See `play.Collector`."""
        return self._first.reader

    @property
    def pool(self) -> Pools:
        """The pools of all environments."""
        return Pools([collector.pool for collector in self.collectors.values()])

    def with_engine(self, engine: Engine) -> MixedCollector:
        """A collector that samples with another engine."""
        return dataclasses.replace(self, collectors={name: each.with_engine(engine) for name, each in self.collectors.items()})

    def collect(self, params, tasks: Sequence[Task], key: jax.Array) -> list[Episode]:
        """See `play.Collector.collect`."""
        return self.play(params, [Start(task) for task in tasks], key)

    def play(
        self, params, starts: Sequence[Start], key: jax.Array, *, keep: bool = False, turns: int | None = None, score_answers: bool = False
    ) -> list[Episode]:
        """See `play.Collector.play`."""
        return self.player(params, score_answers=score_answers)(starts, key, keep=keep, turns=turns)

    def player(self, params, *, score_answers: bool = False) -> Player:
        """See `play.Collector.player`."""
        return Player(self, self.engine.prepare(params), score_answers)

    def check_offers(self, needed: frozenset[str], why: str) -> None:
        """Raises ValueError that names the first environment without one of the capabilities `needed`."""
        self._check(lambda collector: collector.check_offers(needed, why))

    def check_restarts(self) -> None:
        """Raises ValueError that names the first environment that offers neither snapshots nor replays."""
        self._check(lambda collector: collector.check_restarts())

    @property
    def pauses_freely(self) -> bool:
        """See `Player.pauses_freely`."""
        return all(collector.pauses_freely for collector in self.collectors.values())

    def _check(self, check: Callable[[Collector], None]) -> None:
        for name, collector in self.collectors.items():
            with naming(name):
                check(collector)

    def _play(
        self,
        params,
        starts: Sequence[Start],
        key: jax.Array,
        keep: bool,
        turns: int | None,
        score_answers: bool,
        indices: Sequence[int] | None = None,
    ) -> list[Episode]:
        indices = range(len(starts)) if indices is None else indices

        def play(collector: Collector, name: str, places: list[int]) -> list[Episode]:
            chosen, those = [starts[place] for place in places], [indices[place] for place in places]
            played = collector._play(params, chosen, key, keep, turns, score_answers, those)
            if name in self.judges:
                judge_outcomes(played, self.judges[name])
            return played

        return self._routed(starts, play)

    def _demonstrate(
        self,
        starts: Sequence[Start],
        keep: bool,
        turns: int | None = None,
        draws: Sequence[int] | None = None,
        adviser: Adviser | None = None,
    ) -> list[Episode]:
        """See `Player.expert` and `Player.advise`."""

        def demonstrate(collector: Collector, name: str, places: list[int]) -> list[Episode]:
            chosen = None if draws is None else [draws[place] for place in places]
            return collector._demonstrate([starts[place] for place in places], keep, turns, chosen, adviser)

        return self._routed(starts, demonstrate)

    def _routed(self, starts: Sequence[Start], play: Callable[[Collector, str, list[int]], list[Episode]]) -> list[Episode]:
        """Calls `play` for each environment with its collector, its name and the places of its starts; returns all episodes in order."""
        names = [start.task.environment for start in starts]
        if unknown := set(names) - set(self.collectors):
            raise ValueError(f"a task is of the environment {min(unknown)!r}; the environments are {', '.join(self.collectors)}.")
        episodes: dict[int, Episode] = {}
        for name, collector in self.collectors.items():
            if places := [place for place, other in enumerate(names) if other == name]:
                episodes.update(zip(places, play(collector, name, places), strict=True))
        return [episodes[place] for place in range(len(starts))]


def judge_outcomes(episodes: Sequence[Episode], judge: Judge) -> None:
    """Makes the judge's score the outcome of each finished episode; an episode without a score fails."""
    finished = [episode for episode in episodes if episode.counts and episode.end != PAUSED]
    for episode, score in zip(finished, judge(finished) if finished else (), strict=True):
        if np.isnan(score):
            episode.failure = UNJUDGED
        else:
            episode.judge(float(score))
