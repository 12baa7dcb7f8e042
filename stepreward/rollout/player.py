"""What a rollout strategy plays with: one policy, prepared for several calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from stepreward.rollout.episode import Episode, Start, Task


class Player(NamedTuple):
    """Plays episodes with one policy, whose parameters are prepared.

    Attributes:
      collector: the `play.Collector` that plays.
      params: as `Engine.prepare` returned them.
      score_answers: see `Collector.play`.
    """

    collector: Any
    params: Any
    score_answers: bool = False

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
        """Plays one action of the environment's expert from each start; the episode is then paused, or over.

        Args:
          starts: states, from which the expert plans anew. An episode fails where the expert knows no way.
          keep: see `Collector.play`.
          draws: for each start, the entropy of the expert's choice among equally good actions; None: 0 for all.

        Raises:
          ValueError: the environment has no expert.
        """
        return self.collector._demonstrate(starts, keep, turns=1, draws=[0] * len(starts) if draws is None else draws)

    @property
    def pauses_freely(self) -> bool:
        """Whether an episode that is paused and played on costs no more than restoring its environment: no text is read again."""
        return self.collector.pauses_freely

    @property
    def vocab_size(self) -> int:
        """How many tokens the policy chooses from."""
        return self.collector.chat.codec.vocab_size
