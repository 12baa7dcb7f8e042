"""The judge of a run: scores of steps for methods such as PPR, by rules or by a language model behind an address (`training/judges.py`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np

from stepreward import processes
from stepreward.batch import Batch
from stepreward.envs.endpoint import Endpoint
from stepreward.errors import UserError
from stepreward.programs import Program
from stepreward.training import judges
from stepreward.training.asking import check_endpoint
from stepreward.training.auxiliaries.base import Auxiliary, NotReady
from stepreward.training.layout import Layout

FOLDER = "judge"  # in the workdir: the scores that a language model gave


class Judge(Auxiliary):
    """Scores the steps of an iteration's episodes. It learns nothing, and its scores are no part of checkpoints.

    An episode with a step that has no score is masked for credit, as if its environment had failed.

    Attributes:
      unscored: bool `[E]`, the episodes of the last batch that have a step without a score.
    """

    name = "judge"
    order = 0
    provides = frozenset({"process_score"})
    when = None
    trains = False

    def __init__(self, c, parts, layout: Layout, key: jax.Array):
        self.check(c, parts.method)  # a plan for a slice makes the judge without the checks of a run
        self._url = c.judge.url
        self._judge = make_judge(c, parts.workdir)
        self._scores: np.ndarray | None = None
        self.unscored: np.ndarray | None = None

    @classmethod
    def check(cls, c, method) -> None:
        j = c.judge
        check_endpoint("judge", j, judges.KINDS)
        for name, least in (("history", 0), ("max_characters", 2)):
            if j[name] < least:
                raise ValueError(f"judge.{name}={j[name]} must be at least {least}.")

    def open(self) -> None:
        """Checks that the judge can be asked.

        Raises:
          UserError: no server responds at judge.url.
        """
        try:
            processes.on_writer(self._judge.reach)
        except judges.Unreachable as error:
            raise UserError(advice(self._url, error)) from None

    def prepare(self, batch: Batch, episodes: list) -> dict:
        """Scores the episodes that are not masked; returns metrics.

        Raises:
          NotReady: the judge answered none of the requests.
        """
        started, those = time.monotonic(), np.flatnonzero(batch.episode_mask)
        try:
            verdict = processes.on_writer(lambda: self._judge.judge([episodes[i] for i in those]))
        except judges.Unreachable as error:
            raise NotReady(advice(self._url, error)) from None
        self._scores = np.zeros(batch.step_mask.shape, np.float32)
        self.unscored = np.zeros(batch.num_episodes, bool)
        for place, scores in zip(those, verdict.scores):
            self._scores[place, : len(scores)] = scores
            self.unscored[place] = bool(np.isnan(scores).any())
        metrics = {"calls": verdict.calls, "failures": verdict.failures, "masked_episodes": self.unscored.sum()}
        return {f"judge/{name}": float(x) for name, x in metrics.items()} | {"time/judge_s": time.monotonic() - started}

    def scores(self, placed: Batch, to_rows: Callable, policy_params) -> dict:
        """Returns the scores that `prepare` found."""
        return {} if self._scores is None else {"process_score": self._scores}

    def programs(self, stage: str) -> Iterator[Program]:
        return iter(())


def advice(url: str, error: Exception) -> str:
    """Returns the error of a judge at an address that does not answer, and what to do."""
    return (
        f"{error}. Start the server of judge.url={url!r} again, or set judge.url to the address of a running one, and repeat the "
        "command: the run resumes, and scores that it has are not asked for again. judge.kind=rules needs no server."
    )


def make_judge(c, workdir: Path | None) -> judges.Judge:
    """Returns the judge that the config names; a language model's scores are kept in the workdir."""
    j = c.judge
    if j.kind == "rules":
        return judges.RuleJudge()
    endpoint = Endpoint("judge", j.url, j.model, j.key_variable, j.temperature, j.timeout_s, j.retries)
    folder = None if workdir is None else Path(workdir) / FOLDER
    return judges.EndpointJudge(endpoint, folder, parallel=j.parallel, history=j.history, longest=j.max_characters)
