"""What a rollout strategy plays with: one policy, prepared for several calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from stepreward.rollout.episode import Episode, Start, Task

Messages = Sequence[Mapping[str, str]]  # {"role": "user" or "assistant", "content": text}, the last one from the user


class Adviser(Protocol):
    """An expert outside the environment, such as a language model."""

    def __call__(self, conversations: Sequence[Messages], draws: Sequence[int]) -> list[str | None]:
        """Returns an answer to each conversation, None where there is none; the same conversation and number give the same answer."""


class StepJudge(Protocol):
    """Scores the steps of episodes."""

    def __call__(self, episodes: Sequence[Episode]) -> list[np.ndarray]:
        """Returns the scores of each episode's steps, float32 `[steps]` in [0, 1], NaN where there is none."""


class Player(NamedTuple):
    """Plays episodes with one policy, whose parameters are prepared.

    Attributes:
      collector: the `play.Collector` that plays.
      params: as `Engine.prepare` returned them.
      score_answers: see `Collector.play`.
      adviser: who advises in place of the environment's expert; None: the environment's expert.
      judge: scores steps; None: there is no judge.
    """

    collector: Any
    params: Any
    score_answers: bool = False
    adviser: Adviser | None = None
    judge: StepJudge | None = None

    def __call__(
        self,
        starts: Sequence[Start],
        key: jax.Array,
        *,
        keep: bool = False,
        turns: int | None = None,
        indices: Sequence[int] | None = None,
    ) -> list[Episode]:
        """See `Collector.play`.

        Args:
          starts, key, keep, turns: see there.
          indices: of the starts, in place of their order, for the draws; no two may be equal.
        """
        return self.collector._play(self.params, starts, key, keep, turns, self.score_answers, indices)

    def expert(self, tasks: Sequence[Task], *, keep: bool = False) -> list[Episode]:
        """Plays each task as the environment's expert does; the policy samples nothing (`Step.sampled`).

        An episode fails where the expert knows no way, or where its actions do not end the episode.

        Args:
          tasks: what to play.
          keep: see `Collector.play`.

        Raises:
          ValueError: the environment has no expert.
        """
        return self.collector._demonstrate([Start(task) for task in tasks], keep)

    def advise(self, starts: Sequence[Start], *, keep: bool = False, draws: Sequence[int] | None = None) -> list[Episode]:
        """Plays one action of the expert from each start; the episode is then paused, or over.

        Args:
          starts: states, from which the expert plans anew. An episode fails where the expert knows no way or gives no answer.
          keep: see `Collector.play`.
          draws: for each start, the entropy of the expert's choice among equally good actions; None: 0 for all.

        Raises:
          ValueError: the environment has no expert.
        """
        return self.collector._demonstrate(starts, keep, turns=1, draws=draws or [0] * len(starts), adviser=self.adviser)

    @property
    def pauses_freely(self) -> bool:
        """Whether an episode that is paused and played on costs no more than restoring its environment: no text is read again."""
        return self.collector.pauses_freely

    @property
    def vocab_size(self) -> int:
        """How many tokens the policy chooses from."""
        return self.collector.chat.codec.vocab_size
