"""The supervised start: imitation of the environment's expert."""

from __future__ import annotations

import time

import numpy as np

from stepreward.training import demonstrating, streams
from stepreward.training.outputs import FIT
from stepreward.training.policy import sft_step
from stepreward.training.stages.base import Progress, Stage
from stepreward.training.state import mean_metrics


class SupervisedStart(Stage):
    """A tick is `sft.log_every` updates on demonstrations. The output is the supervised policy."""

    name = "sft"
    decides = (
        "seed", "environment.name", "environment.preset", "environment.prompt", "environment.data", "environment.options.",
        "mixture.environments.",
        "model.preset", "model.path", "model.pieces", "model.system", "model.thinking", "model.compute_dtype", "model.param_dtype",
        "model.moment_dtype", "lora.sft", "rollout.context", "rollout.history", "rollout.max_steps",
        "rollout.long_observation", "rollout.max_image_tokens",
        "sft.episodes", "sft.updates", "sft.stop_loss", "sft.rows", "sft.learning_rate", "sft.warmup_updates", "sft.max_grad_norm",
    )  # fmt: skip
    borrows = ("stages.sft",)

    def __init__(self, run):
        super().__init__(run)
        self._batch, self._fit, self._learnt = None, {}, False
        self._left_out: dict[str, int] = {}  # demonstrations and observations that did not fit

    @property
    def finished(self) -> bool:
        return self._learnt or self.counters.of("sft_updates") >= self.c.sft.updates

    def take(self) -> set[str]:
        self.run.learner.take(self.run.start())
        return {self.name}

    def tick(self) -> dict:
        c, counters, learner = self.c.sft, self.counters, self.run.learner
        if self._batch is None and c.updates:
            self._pack_demonstrations()
        started, losses = time.monotonic(), []
        for _ in range(min(c.log_every, c.updates - counters.of("sft_updates"))):
            update, rows = counters.of("sft_updates"), len(self._batch.tokens)
            rng = np.random.default_rng(streams.host(self.c.seed, "sft", update))
            part = learner.layout.demonstrated_rows(self._batch, rng.choice(rows, c.rows, replace=rows < c.rows))
            learner.policy, out = sft_step(learner.policy, part, **learner.sft_arguments(update))
            losses.append(out)
            counters.add("sft_updates")
        metrics = {f"sft/{name}": value for name, value in mean_metrics(losses).items()} if losses else {}
        metrics |= {f"sft/{name}": float(count) for name, count in self._left_out.items()}
        metrics["time/sft_s"] = time.monotonic() - started
        self._learnt = metrics.get("sft/loss", np.inf) < c.stop_loss
        if self.finished:
            self.run.check_finite(metrics)
            facts = self.run.fingerprint("sft") | {FIT: self._fit}
            self.run.folder.output("sft").save(learner.policy.params, facts, metrics)
            self._batch = None
        return metrics

    def leave(self) -> dict:
        return self.run.evaluate()

    def progress(self) -> Progress:
        return Progress("warm start", self.counters.of("sft_updates"), self.c.sft.updates)

    def _pack_demonstrations(self) -> None:
        parts = self.run.parts
        episodes = demonstrating.all_episodes(parts)
        self._fit = demonstrating.fit(episodes, len(parts.demonstrations), parts)
        self._batch = self.run.learner.layout.pack(episodes, row_multiple=1)
        cut = sum(step.cut > 0 for episode in episodes for step in episode.steps)
        self._left_out = {"demonstrations_left_out": max(0, demonstrating.asked(self.c, parts) - len(episodes))}
        self._left_out |= {"observations_cut": cut} if cut else {}


class FirstLook(Stage):
    """One tick that evaluates a supervised policy that another run made."""

    name = "start"
    command = "sft"
    finished = True

    def wanted(self) -> bool:
        return self.counters.tick == 0  # the supervised policy has not been evaluated in this workdir

    def tick(self) -> dict:
        return {}

    def leave(self) -> dict:
        return self.run.evaluate()

    def progress(self) -> Progress:
        return Progress("first look", 0, 1)
