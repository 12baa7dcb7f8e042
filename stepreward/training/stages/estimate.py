"""Training of the progress estimator on explored episodes."""

from __future__ import annotations

import numpy as np

from stepreward.rollout.episode import true_progress
from stepreward.training import streams
from stepreward.training.auxiliaries import estimator as estimating
from stepreward.training.stages.base import Progress, Stage


class Estimate(Stage):
    """A tick is one epoch over the explored episodes; the last one measures the estimator on held-out tasks."""

    name = "estimator"
    decides = (
        "estimator.head", "estimator.attention", "estimator.learning_rate", "estimator.warmup_updates", "estimator.decay_updates", "estimator.weight_decay",
        "estimator.max_grad_norm", "estimator.minibatch_episodes", "estimator.epochs", "estimator.patience", "estimator.held_out",
        "credit.outcome", "credit.outcome_scale",
    )  # fmt: skip
    borrows = ("stages.exploration",)
    saves_every_tick = True

    @property
    def estimator(self):
        """The model that this stage trains."""
        return self.run.learner.auxiliaries["estimator"]

    def wanted(self) -> bool:
        return self.run.method.has_progress

    def facts(self) -> dict:
        method = self.run.method
        scheduled = {name: str(schedule) for name, schedule in method.coefficients.items() if name in method.progress_options}
        return {"progress_options": method.progress_options | scheduled}

    @property
    def finished(self) -> bool:
        return self.counters.of("estimator_epochs") >= self.c.estimator.epochs or self.estimator.finished

    def take(self) -> set[str]:
        output = self.run.folder.output("estimator", self.c.stages.estimator)
        if not self.wanted() or not (output.borrowed or output.exists):
            return set()
        learner = self.run.learner
        learner.begin_stage(self.name)  # so that `best` has the saved structure
        self.estimator.take(learner.model, output.read(self.estimator.best, self.run.fingerprint(self.name))[0])
        return {self.name} | ({"explore"} if self.c.train.mode == "online" else set())

    def tick(self) -> dict:
        c, counters = self.c, self.counters
        episodes, batch = self.run.explored()
        held_out = estimating.held_out_groups(batch.group_id, c.estimator.held_out, c.seed)
        entropy = streams.host(c.seed, "estimator", counters.of("estimator_epochs"))
        metrics = self.estimator.epoch(batch, held_out, entropy)
        counters.add("estimator_epochs")
        if self.finished:
            found = self._measure(episodes, batch, held_out)
            metrics |= {f"estimator/{k}": v for k, v in found.items()}
            self.run.check_finite(metrics)
            self.run.folder.output(self.name).save(self.estimator.best, self.run.fingerprint(self.name), found)
        return metrics

    def progress(self) -> Progress:
        return Progress("estimator", self.counters.of("estimator_epochs"), self.c.estimator.epochs)

    def _measure(self, episodes, batch, held_out) -> dict[str, float]:
        """Measures the best parameters on the held-out tasks, or on the training tasks if none are held out."""
        trained = np.setdiff1d(batch.group_id, held_out)
        explained = np.asarray(self.run.method.explained_outcome(batch))
        reference = float(explained[np.isin(batch.group_id, trained) & batch.episode_mask].mean())
        truth = true_progress(episodes, self.c.rollout.max_steps)
        measured = self.estimator.episodes(batch, held_out if len(held_out) else trained)
        return self.estimator.quality(batch, measured, truth, reference)
