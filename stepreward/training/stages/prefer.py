"""Preference learning: rounds of exploring, forming pairs, and training on them."""

from __future__ import annotations

import logging
import time

import numpy as np

from stepreward import processes
from stepreward.errors import UserError
from stepreward.report import telling
from stepreward.rollout.episode import to_record
from stepreward.training import experts, preferring, streams
from stepreward.training.auxiliaries.update import auxiliary_step
from stepreward.training.outcomes import RunJudge
from stepreward.training.pair_data import PairData
from stepreward.training.stages.base import Progress, Stage
from stepreward.training.state import mean_metrics
from stepreward.training.tasks import training_tasks

_log = logging.getLogger(__name__)


class Prefer(Stage):
    """A tick explores and records one part of a round, or trains one epoch on the round's pairs.

    A part that a killed run has already recorded is played again with the same result.
    """

    name = preferring.NAME
    decides = (
        "preference.method", "preference.options.", "preference.tasks", "preference.part_tasks", "preference.epochs",
        "preference.minibatch_pairs", "preference.learning_rate", "preference.warmup_updates", "preference.weight_decay",
        "preference.max_grad_norm", "preference.reference", "preference.then_train", *experts.DECIDES,
    )  # fmt: skip
    borrows = ("stages.preference",)
    saves_every_tick = True

    def __init__(self, run):
        super().__init__(run)
        self.method = run.parts.preference
        self._batch, self._pairs = None, None
        self._expert = experts.make_expert(run.c, run.workdir)
        self._judge = RunJudge(run.c, run.workdir) if preferring.judged(run.c) else None

    def wanted(self) -> bool:
        return self.method is not None

    def begin(self) -> None:
        for asked in (self._expert, self._judge):
            if asked is not None:
                asked.open()

    @staticmethod
    def absent(c) -> str:
        return "preference.method is not set"

    @property
    def _round(self) -> int:
        return self.counters.of("preference_rounds")

    @property
    def _data(self) -> PairData:
        return PairData(self.c, self.run.workdir, self.run.fingerprint(self.name), self._round)

    @property
    def finished(self) -> bool:
        return self._round >= self.method.rounds

    def tick(self) -> dict:
        data = self._data
        explored = data.borrowed or self.counters.of("preference_parts") >= data.parts
        return self._train(data) if explored else self._explore(data)

    def progress(self) -> Progress:
        c = self.c.preference
        each = c.epochs + (0 if self.c.stages.preference else -(-c.tasks // c.part_tasks))
        done = self._round * each + self.counters.of("preference_parts") + self.counters.of("preference_epochs")
        return Progress("preference", done, self.method.rounds * each)

    def _explore(self, data: PairData) -> dict:
        c, counters, part, started = self.c.preference, self.counters, self.counters.of("preference_parts"), time.monotonic()
        recorded = data.finished_parts()
        count, index = min(c.part_tasks, c.tasks - part * c.part_tasks), (self._round, part)
        tasks = training_tasks(self.c.seed, self.name, index, count, 1)
        judge = None if self._judge is None else self._judge.steps
        player = self.run.parts.collector.player(self.run.learner.actor)._replace(adviser=self._expert, judge=judge)
        found = self.method.collect(player, tasks, streams.device(self.run.key, self.name, *index))
        counters.failed_episodes += found.failed
        if not found.episodes:
            raise UserError(f"every environment failed while {self.method.name} explored: see the warnings above.")
        if part >= recorded:
            data.record(part, found)
        self._show(found)
        counters.add("preference_parts")
        counters.add("preference_pairs", found.pairs.number)
        metrics = {f"preference/{name}": float(value) for name, value in found.metrics.items()}
        metrics |= {"preference/pairs": float(found.pairs.number), "preference/pairs_in_all": float(counters.of("preference_pairs"))}
        metrics |= {"preference/episodes_played": float(found.played), "rollout/failed_episodes": float(counters.failed_episodes)}
        metrics |= {"rollout/replayed_steps": float(found.cost.replayed_steps), "time/rollout_s": time.monotonic() - started}
        return metrics | self.run.spend(found.cost)

    def _show(self, found) -> None:
        """Records the episodes of the first pair for the report."""
        if found.pairs.number:
            both = [found.episodes[side[0, 0]] for side in (found.pairs.chosen, found.pairs.rejected)]
            self.run.folder.write_episodes(self.counters.tick, self._round, telling([to_record(e) for e in both], self.c.eval.record))

    def _train(self, data: PairData) -> dict:
        counters, learner, started = self.counters, self.run.learner, time.monotonic()
        epoch, metrics = counters.of("preference_epochs"), {}
        if epoch == 0 and self._round:
            learner.begin_round(self._round)
        if self._batch is None:
            self._read(data)
        if self._pairs.number:
            metrics = self._epoch(epoch)
        elif processes.is_writer() and epoch == 0:
            _log.warning("round %d of %s found no pairs, so there is nothing to learn from", self._round + 1, self.method.name)
        counters.add("preference_epochs")
        metrics["time/preference_s"] = time.monotonic() - started
        if counters.of("preference_epochs") >= self.c.preference.epochs:
            counters.add("preference_rounds")
            counters.count |= {"preference_parts": 0, "preference_epochs": 0}
            self._batch = self._pairs = None
            metrics |= self.run.evaluate()
        return metrics

    def _read(self, data: PairData) -> None:
        """Reads the round's pairs, with the log-probabilities of the reference."""
        learner = self.run.learner
        episodes, self._pairs = data.read()
        batch = learner.layout.pack(episodes, row_multiple=self.c.train.chunk_rows)
        self._batch = preferring.with_reference(learner.initial, batch, learner.layout, learner.model)

    def _epoch(self, epoch: int) -> dict:
        """Trains once on every pair; returns metrics."""
        c, learner, outs = self.c.preference, self.run.learner, []
        seed = streams.host(self.c.seed, self.name, self._round, epoch)
        capacity = preferring.pair_capacity(self.c, learner.layout)
        parts = preferring.pair_minibatches(self._batch, self._pairs, c.minibatch_pairs, capacity, np.random.default_rng(seed))
        for part in parts:
            placed = learner.layout.place_for_training(learner.model.reads(part))
            learner.policy, out = auxiliary_step(learner.policy, placed, **learner.preference_arguments(self._round, seed, len(outs)))
            outs.append(out)
        return {f"preference/{name}": value for name, value in mean_metrics(outs).items()} | {"preference/updates": float(len(outs))}
