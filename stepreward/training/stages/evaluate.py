"""The final evaluation: the supervised policy and the trained one on the same held-out tasks."""

from __future__ import annotations

import dataclasses
import time

from stepreward.metrics import wilson_interval
from stepreward.rollout.episode import lost, summary
from stepreward.training import streams
from stepreward.training.playing import healthy
from stepreward.training.stages.base import Progress, Stage
from stepreward.training.tasks import held_out_tasks


class Evaluate(Stage):
    """One tick; writes `evaluation.json`."""

    name = "evaluate"
    finished = True

    def wanted(self) -> bool:
        return self.c.eval.final_episodes > 0

    @staticmethod
    def absent(c) -> str:
        return "eval.final_episodes=0"

    def tick(self) -> dict:
        c, started, run = self.c, time.monotonic(), self.run
        collector, learner = run.parts.collector, run.learner
        if c.eval.final_temperature != c.rollout.temperature:
            sampling = dataclasses.replace(collector.engine.sampling, temperature=c.eval.final_temperature)
            collector = dataclasses.replace(collector, engine=dataclasses.replace(collector.engine, sampling=sampling))
        tasks = held_out_tasks(c, run.parts.collector.pool, c.eval.final_episodes)
        table, start = {}, learner.start_model.join(learner.layout.place_parameters(run.start()))
        for name, params in (("start", start), ("end", learner.actor)):
            played = collector.collect(params, tasks, streams.device(run.key, "evaluate"))
            good = healthy(played, "final evaluation")
            low, high = wilson_interval(sum(e.success for e in good), len(good))
            counts = {"episodes": len(good), "failed_episodes": len(played) - len(good)}
            table[name] = summary(good) | lost(good) | {"success_low": low, "success_high": high} | counts
        run.folder.write_json("evaluation.json", table)
        metrics = {f"final/{name}_{k}": float(v) for name, found in table.items() for k, v in found.items()}
        return metrics | {"time/eval_s": time.monotonic() - started}

    def progress(self) -> Progress:
        return Progress("evaluation", 0, 1)
