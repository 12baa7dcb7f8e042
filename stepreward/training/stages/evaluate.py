"""The final evaluation: the supervised policy and the trained one on the same held-out tasks."""

from __future__ import annotations

import dataclasses
import time

from stepreward.metrics import wilson_interval
from stepreward.rollout.episode import lost, summary
from stepreward.training import streams
from stepreward.training.playing import by_environment, healthy, means
from stepreward.training.stages.base import Progress, Stage
from stepreward.training.tasks import held_out


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
            collector = collector.with_engine(dataclasses.replace(collector.engine, sampling=sampling))
        tasks = held_out(c, run.parts, c.eval.final_episodes)
        table, start = {}, learner.start_model.join(learner.layout.place_parameters(run.start()))
        for name, params in (("start", start), ("end", learner.actor)):
            played = collector.collect(params, tasks, streams.device(run.key, "evaluate"))
            parts = {each: _measured(those, "final evaluation") for each, those in by_environment(run.parts, played).items()}
            table[name] = _measured(played, "final evaluation") | ({} if "" in parts else means(parts.values()) | {"environments": parts})
        run.folder.write_json("evaluation.json", table)
        metrics = {f"final/{name}_{k}": float(v) for name, found in table.items() for k, v in found.items() if k != "environments"}
        for name, found in table.items():
            for each, measured in found.get("environments", {}).items():
                metrics |= {f"final/{each}/{name}_{k}": float(v) for k, v in measured.items()}
        return metrics | {"time/eval_s": time.monotonic() - started}

    def progress(self) -> Progress:
        return Progress("evaluation", 0, 1)


def _measured(played: list, what: str) -> dict[str, float]:
    """Returns means over the episodes that did not fail, the interval of their success, and counts."""
    good = healthy(played, what)
    low, high = wilson_interval(sum(e.success for e in good), len(good))
    counts = {"episodes": len(good), "failed_episodes": len(played) - len(good)}
    return summary(good) | lost(good) | {"success_low": low, "success_high": high} | counts
