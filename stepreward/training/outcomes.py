"""Outcomes by a judge, for the environments of a mixture that ask for one: the score of whole episodes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stepreward import processes
from stepreward.errors import UserError
from stepreward.rollout.episode import Episode
from stepreward.training import judges
from stepreward.training.auxiliaries.base import NotReady
from stepreward.training.auxiliaries.judge import advice, make_judge

# The config keys that a judged outcome depends on; they decide what is explored.
DECIDES = ("kind", "model", "temperature", "history", "max_characters")


class OutcomeJudge:
    """Scores episodes with the judge of the config (`judge.*`); the writer asks it for all processes."""

    def __init__(self, c, workdir: Path | None):
        self._url, self._judge = c.judge.url, make_judge(c, workdir)

    def open(self) -> None:
        """Raises UserError unless the judge can be asked."""
        try:
            processes.on_writer(self._judge.reach)
        except judges.Unreachable as error:
            raise UserError(advice(self._url, error)) from None

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Returns the score of each episode in [0, 1], NaN where there is none.

        Raises:
          NotReady: the judge answered none of the requests.
        """
        try:
            scores = processes.on_writer(lambda: self._judge.outcomes(episodes)).scores
        except judges.Unreachable as error:
            raise NotReady(advice(self._url, error)) from None
        return [float(score[0]) for score in scores]
