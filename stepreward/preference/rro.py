"""RRO: candidates for an action are tried until the value of the state rises."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

import jax

from stepreward.preference.base import Collected, Preference, check_count, collected, register, same_answers
from stepreward.preference.rules import rising
from stepreward.rollout.episode import Episode, Start
from stepreward.rollout.player import Player


@dataclasses.dataclass(eq=False)
class _Walk:
    """One task that is walked through.

    Attributes:
      start: the present state; None when the walk is over.
      value: the Monte Carlo value of the action before it.
      tried: candidates for the present step, with their values.
    """

    start: Start | None
    value: float = math.nan
    tried: list[tuple[Episode, float]] = dataclasses.field(default_factory=list)


@register("rro")
@dataclasses.dataclass(frozen=True)
class RRO(Preference):
    """Reward rising optimisation.

    The policy walks through each task. At each step it samples candidates for its action one by one, at most `most`. The value of a
    candidate is the mean outcome of `n` episodes that the policy plays on from the state behind it. The first candidate whose value is
    greater than that of the step before is chosen, and the ones before it are rejected, each in a pair of single steps. If none rises,
    the best candidate is taken, and the step forms no pair. The first step compares with the value of the initial state, measured
    in the same way.

    Uncertain, since no code is public: the value that the first step must exceed, what happens where none rises, and β.

    Attributes:
      most: candidates of a step, at most. The paper uses 1.64 to 1.86 on average (`candidates_per_step`).
      n: episodes for each value, at least 1.

    Source: RRO (arXiv 2505.20737).
    """

    restarts: ClassVar[bool] = True
    most: int = 5
    n: int = 5

    def __post_init__(self):
        super().__post_init__()
        check_count("most", self.most, 2)
        check_count("n", self.n)

    def collect(self, player: Player, tasks: Sequence, key: jax.Array) -> Collected:
        root, key = jax.random.split(key)
        first = player([Start(task) for task in tasks for _ in range(self.n)], root)
        walks, played, pairs, steps, tried = [], list(first), [], 0, 0
        for index, task in enumerate(tasks):
            values = [self.value(episode) for episode in first[self.n * index : self.n * (index + 1)] if episode.failure is None]
            walks.append(_Walk(Start(task), sum(values) / len(values)) if values else _Walk(None))
        turn = 0
        while going := [walk for walk in walks if walk.start is not None]:
            for number in range(self.most):
                trying = [walk for walk in going if rising(walk.value, [value for _, value in walk.tried]) is None]
                if not trying:
                    break
                draws = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, turn), number))
                candidates = player([walk.start for walk in trying], draws[0], keep=True, turns=1)
                usable = [(walk, episode) for walk, episode in zip(trying, candidates, strict=True) if len(episode.steps) > turn]
                values, branches = self.values_after(player, [(episode, turn) for _, episode in usable], self.n, draws[1])
                played += [*candidates, *branches]
                for (walk, episode), value in zip(usable, values, strict=True):
                    walk.tried.append((episode, value))
            for walk in going:
                tried += len(walk.tried)
                steps += bool(walk.tried)
                pairs += self._step(walk, turn)
            turn += 1
        return collected(pairs, played, candidates_per_step=tried / max(steps, 1))

    @staticmethod
    def _step(walk: _Walk, turn: int) -> list[tuple]:
        """Takes the chosen candidate, and returns the pairs of the step."""
        known = [(episode, value) for episode, value in walk.tried if not math.isnan(value)]
        walk.tried = []
        if not known:
            walk.start = None
            return []
        index = rising(walk.value, [value for _, value in known])
        chosen, value = known[index] if index is not None else max(known, key=lambda found: found[1])
        ends = (turn + 1, turn + 1)
        others = [episode for episode, _ in known if not same_answers(chosen, episode, turn, ends)] if index is not None else []
        walk.value, walk.start = value, Start.after(chosen) if chosen.pause is not None else None
        return [((chosen, turn, turn + 1), (episode, turn, turn + 1)) for episode in others]
