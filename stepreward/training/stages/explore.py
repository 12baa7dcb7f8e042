"""Exploration: episodes of the supervised policy on training tasks, recorded part by part."""

from __future__ import annotations

from stepreward.training import outcomes, setup, streams
from stepreward.training.auxiliaries import estimator as estimating
from stepreward.training.exploration import SCORED
from stepreward.training.stages.base import Progress, Stage


class Explore(Stage):
    """A tick plays and records one part. If a killed run has already recorded the part, it is played again with the same result."""

    name = "explore"
    decides = (
        "exploration.tasks", "exploration.rollouts", "exploration.part_tasks",
        "rollout.invalid_penalty", "rollout.temperature", "rollout.top_k", "rollout.top_p",
        "rollout.max_answer_tokens", "rollout.max_prompt_tokens", "rollout.max_row_tokens",
    )  # fmt: skip
    saves_every_tick = True

    def __init__(self, run):
        super().__init__(run)
        self._explored = None

    def wanted(self) -> bool:
        return self.run.method.has_progress or self.c.train.mode == "offline"

    def facts(self) -> dict:
        mixture, found = self.run.parts.mixture, {SCORED: True} if setup.scores_answers(self.run.method) else {}
        if mixture is not None and any(entry.judged for entry in mixture.entries):
            found |= {f"judge.{name}": self.c.judge[name] for name in outcomes.DECIDES}  # they decide the outcomes of explored episodes
        return found

    @property
    def finished(self) -> bool:
        return self.counters.of("explored_parts") >= self.run.exploration.parts

    def take(self) -> set[str]:
        exploration = self.run.exploration
        return {self.name} if exploration is not None and exploration.finished_parts() == exploration.parts else set()

    def tick(self) -> dict:
        counters, exploration, part = self.counters, self.run.exploration, self.counters.of("explored_parts")
        recorded = exploration.finished_parts()
        rollout, metrics = self.run.play(exploration.tasks(part), streams.device(self.run.key, "explore", part))
        metrics = self.run.count_failed(metrics)
        if part >= recorded:
            exploration.record(part, rollout.episodes)
        counters.add("explored_parts")
        counters.add("explored_steps", sum(len(e.steps) for e in rollout.episodes if e.failure is None))
        return metrics | {"explore/env_steps": counters.of("explored_steps")}

    def progress(self) -> Progress:
        return Progress("exploration", self.counters.of("explored_parts"), self.run.exploration.parts)

    def episodes(self) -> tuple[list, object]:
        """Returns the recorded episodes, as a list and as one batch with the labels that the estimator needs."""
        if self._explored is None:
            episodes, method = self.run.exploration.read(), self.run.method
            batch = self.run.learner.layout.pack(episodes, row_multiple=1)
            if method.has_progress:
                estimating.check_outcomes(batch)
                batch = estimating.with_labels(batch, episodes, method)
            self._explored = episodes, batch
        return self._explored

    def forget(self) -> None:
        """Frees the memory of the recorded episodes."""
        self._explored = None
