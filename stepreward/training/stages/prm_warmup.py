"""Batches of the start policy that only the process reward model learns from, before reinforcement learning."""

from __future__ import annotations

from stepreward.models.heads import decoder_of
from stepreward.training import preferring, streams
from stepreward.training.stages.base import Progress, Stage
from stepreward.training.tasks import training_tasks


class PRMWarmup(Stage):
    """A tick plays one batch."""

    name = "prm_warmup"
    command = "train"

    def wanted(self) -> bool:
        method = self.run.method
        return preferring.reinforces(self.c) and method.has_prm and not method.prm_frozen and self.c.prm.warmup_batches > 0

    @property
    def finished(self) -> bool:
        return self.counters.of("prm_batches") >= self.c.prm.warmup_batches

    def begin(self) -> None:
        self.run.begin_reinforcement()

    def tick(self) -> dict:
        c, counters, learner, number = self.c, self.counters, self.run.learner, self.counters.of("prm_batches")
        names = self.run.environments(number * c.rollout.groups, c.rollout.groups)
        tasks = training_tasks(c.seed, "prm_warmup", number, c.rollout.groups, c.rollout.group_size, environments=names)
        rollout, metrics = self.run.play(tasks, streams.device(self.run.key, "prm_warmup", number))
        metrics = self.run.count_failed(metrics)
        batch = self.run.pack(rollout)
        metrics |= learner.prepare(batch, rollout.episodes)
        batch = learner.score(batch, metrics)
        learner.look(batch, metrics)
        metrics |= learner.auxiliaries["prm"].warm_up(batch, number, decoder_of(learner.policy.params))
        counters.add("prm_batches")
        return metrics | self.run.spend(rollout.cost)

    def progress(self) -> Progress:
        return Progress("PRM warm-up", self.counters.of("prm_batches"), self.c.prm.warmup_batches)
