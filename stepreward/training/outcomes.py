"""The judge of a run, for environments of a mixture whose outcome it judges, and for preference methods that ask it for scores of steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from stepreward import processes
from stepreward.errors import UserError
from stepreward.rollout.episode import Episode
from stepreward.training import judges
from stepreward.training.auxiliaries.base import NotReady
from stepreward.training.auxiliaries.judge import advice, make_judge

# The config keys that a judged outcome depends on; they decide what is explored.
DECIDES = ("kind", "model", "temperature", "history", "max_characters")


class RunJudge:
    """Scores episodes or steps with the judge of the config (`judge.*`); the writer asks it for all processes."""

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
        return [float(score[0]) for score in self._asked(lambda: self._judge.outcomes(episodes))]

    def steps(self, episodes: Sequence[Episode]) -> list[np.ndarray]:
        """Returns the scores of each episode's steps, float32 `[steps]` in [0, 1], NaN where there is none.

        Raises:
          NotReady: the judge answered none of the requests.
        """
        return self._asked(lambda: self._judge.judge(episodes))

    def _asked(self, ask: Callable[[], judges.Verdict]) -> list[np.ndarray]:
        try:
            return processes.on_writer(ask).scores
        except judges.Unreachable as error:
            raise NotReady(advice(self._url, error)) from None
