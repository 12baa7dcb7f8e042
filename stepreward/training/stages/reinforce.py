"""Reinforcement learning: the steps of one iteration.

    play → (filter) → pack → signals → (teach) → credit → (teach) → improve → (teach)

*Play* the iteration's tasks with the policy; drop the groups that the *filter* does not keep; *pack* the episodes into rows of tokens; add
the *signals* that the credit method reads; turn them into *credit*, an advantage for every action; *improve* the policy on it. The models
that learn beside the policy are *taught* at the time that each of them names.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from stepreward.batch import Batch
from stepreward.credit import Credit
from stepreward.credit.filters import Filter
from stepreward.models.heads import decoder_of
from stepreward.report import telling
from stepreward.rollout.episode import Cost, to_record
from stepreward.rollout.strategies import Rollout
from stepreward.rollout.strategies.segments import tree_record
from stepreward.training import filtering, preferring, setup, streams
from stepreward.training.ahead import View
from stepreward.training.auxiliaries import AFTER_CREDIT, AFTER_POLICY, BEFORE_CREDIT, Lesson
from stepreward.training.exploration import by_task, offline_groups
from stepreward.training.filtering import Selection
from stepreward.training.playing import healthy, rollout_metrics
from stepreward.training.stages.base import Progress, Stage
from stepreward.training.tasks import training_tasks


class Reinforce(Stage):
    """A tick is one iteration."""

    name = "train"
    decides = (
        # These change an earlier stage's output only by rounding errors, so its output can be reused on another machine.
        "model.remat", "model.attention", "mesh.data", "mesh.fsdp", "mesh.tensor", "mesh.fit", "train.chunk_rows", "train.pack_rows",
        "rollout.max_rows", "rollout.schedule", "rollout.ahead", "mixture.order", "mixture.sequence", "mixture.transfer",
        # Borrowed outputs have their own fingerprints.
        "stages.sft", "stages.exploration", "stages.estimator", "stages.preference",
        # `decisions.fingerprint` adds the cases in which these decide an earlier stage.
        "lora.rank", "lora.alpha", "lora.targets", "lora.dropout", "lora.share_base", "sft.log_every",
        "rollout.groups", "rollout.group_size", "estimator.refresh_every", "credit.method", "credit.variant", "credit.options.", "credit.exact",
        "credit.schedules.",
        "filter.kind", "filter.share", "filter.weights", "filter.low", "filter.high", "filter.rounds",
        "prm.preset", "prm.path", "prm.learning_rate", "prm.warmup_updates", "prm.weight_decay", "prm.max_grad_norm",
        "prm.minibatch_groups", "prm.epochs", "prm.resync", "prm.replay", "prm.warmup_batches",
        "frozen_pair.trained", "frozen_pair.start", "hindsight.text", "hindsight.max_tokens",
        "discriminator.head", "discriminator.learning_rate", "discriminator.warmup_updates", "discriminator.weight_decay",
        "discriminator.max_grad_norm", "discriminator.minibatch_episodes", "discriminator.epochs",
        "judge.kind", "judge.model", "judge.temperature", "judge.history", "judge.max_characters",
        "critic.backbone", "critic.head", "critic.clip", "critic.coef", "critic.learning_rate", "critic.warmup_updates",
        "critic.weight_decay", "critic.max_grad_norm", "critic.minibatch_rows", "critic.epochs",
        "policy.learning_rate", "policy.warmup_updates", "policy.weight_decay", "policy.max_grad_norm", "policy.minibatch_rows",
        "policy.epochs", "policy.stop_kl", "policy.old_log_prob", "policy.advantage_norm", "policy.ratio", "policy.clip_low",
        "policy.clip_high", "policy.dual_clip", "policy.aggregation", "policy.constant", "policy.entropy_coef", "policy.kl_coef",
        "policy.kl", "policy.importance_cap", "policy.kl_reward_coef", "policy.kl_reward_target", "policy.kl_reward_horizon",
        "train.mode", "eval.episodes", "eval.final_episodes", "eval.final_temperature", "checkpoint.folder",
    )  # fmt: skip
    borrows = ("stages.estimator",)

    def wanted(self) -> bool:
        return preferring.reinforces(self.c)

    @staticmethod
    def absent(c) -> str:
        return f"preference.method={c.preference.method} ends it, unless preference.then_train is set"

    @property
    def filter(self) -> Filter:
        """Which groups are trained on."""
        return filtering.make_filter(self.c, self.run.method)

    def begin(self) -> None:
        self.run.begin_reinforcement()

    def tick(self) -> dict:
        c, counters, learner = self.c, self.counters, self.run.learner
        (rollout, dropped, metrics), later = self.run.ahead.take() if self.run.ahead.begun else self.experience(), None
        metrics = self.run.count_failed(metrics)
        episodes, packed, credited, exact = rollout.episodes, self.run.pack(rollout), None, None
        if c.rollout.ahead:
            metrics["rollout/staleness"] = 0.0 if learner.behind is None else float(learner.behind.staleness)
            if counters.env_steps + rollout.cost.env_steps < c.train.env_steps:
                later = learner.view(counters.env_steps, staleness=1)
                self.run.ahead.begin(partial(self.experience, later, counters.iteration + 1))
        if not dropped.all():
            batch = filtering.without_episodes(packed, dropped) if dropped.any() else packed
            metrics |= learner.prepare(batch, episodes)
            unscored = learner.unscored(batch)
            batch = filtering.without_episodes(batch, unscored) if unscored.any() else batch
            if batch.episode_mask.any():
                credited, exact = self._learn(batch, episodes, metrics)
        learner.behind = later
        self.run.watch(metrics)
        learner.note_success(metrics["rollout/success"])
        counters.iteration += 1
        if c.train.mode == "online":
            metrics |= self.run.spend(rollout.cost)
        else:
            counters.env_steps += int(packed.step_mask.sum())  # which an earlier stage has played
        if self.finished or counters.iteration % c.eval.every == 0:
            self.run.ahead.settle()
            metrics |= self.run.evaluate()
            self._record(rollout, credited, exact)
        return metrics

    def _learn(self, batch: Batch, episodes: list, metrics: dict) -> tuple[Credit, np.ndarray | None]:
        """Computes the credit of a batch, trains on it, and returns it with the exact advantages `[E, S]`, if known; adds metrics."""
        c, learner, iteration, credited = self.c, self.run.learner, self.counters.iteration, None
        batch = learner.score(batch, metrics)
        signals, coefficients = learner.look(batch, metrics, iteration)
        lesson = lambda: Lesson(batch, episodes, credited, decoder_of(learner.policy.params), iteration, coefficients)
        if learner.learn(BEFORE_CREDIT, lesson(), metrics):
            batch = learner.score(batch, metrics)
        credited = learner.credit(batch, episodes, signals | coefficients, metrics, streams.host(c.seed, "credit", iteration))
        learner.learn(AFTER_CREDIT, lesson(), metrics)
        learner.update_policy(batch, credited, metrics, streams.host(c.seed, "policy", iteration))
        learner.learn(AFTER_POLICY, lesson(), metrics)
        return credited, batch.signals.get("exact_advantage")

    @property
    def finished(self) -> bool:
        return self.counters.env_steps >= self.c.train.env_steps or (self.c.train.mode == "offline" and self._offline_tasks() is None)

    def reopened(self) -> bool:
        return self.counters.env_steps < self.c.train.env_steps and self.c.train.mode == "online"

    def progress(self) -> Progress:
        budget = self.c.train.env_steps
        return Progress("reinforcement", min(self.counters.env_steps, budget), budget)

    def _view(self) -> View:
        """What this iteration's rollout sees, if it is played now: for a resumed run, what it saw before the run ended."""
        learner = self.run.learner
        return learner.view(self.counters.env_steps) if learner.behind is None else learner.behind

    def experience(self, view: View | None = None, iteration: int | None = None) -> Selection:
        """Returns the episodes of one iteration, which of them are dropped, and metrics.

        Args:
          view: what the rollout sees of the run; None is what it sees now.
          iteration: the iteration; None is the current one.
        """
        c, iteration, view = self.c, self.counters.iteration if iteration is None else iteration, view or self._view()
        rollout, metrics = self._play(view, iteration)
        metrics |= filtering.health(rollout.episodes)
        if self.filter.kind == "none":
            return Selection(rollout, np.zeros(len(rollout.episodes), bool), metrics)

        def another(number: int) -> Rollout:
            more, found = self._play(view, iteration, number)
            metrics["time/rollout_s"] += found["time/rollout_s"]
            for name in ("failed_episodes", "branch_steps", "replayed_steps", *rollout.counts):
                if f"rollout/{name}" in found:
                    metrics[f"rollout/{name}"] += found[f"rollout/{name}"]
            return more

        chosen = filtering.select(self.filter, rollout, another, outcome=c.credit.outcome, scale=c.credit.outcome_scale)
        return chosen._replace(metrics=metrics | chosen.metrics)

    def _play(self, view: View, iteration: int, number: int = 0) -> tuple[Rollout, dict]:
        """Returns a round of groups, played now or taken from the explored episodes, and metrics; the filter may ask for rounds 1, 2 …"""
        c, learner = self.c, self.run.learner
        if c.train.mode == "online":
            stream, index = ("filter", (iteration, number)) if number else ("train", (iteration,))
            groups, names = c.rollout.groups, self.run.environments(iteration * c.rollout.groups, c.rollout.groups, view.env_steps)
            tasks = training_tasks(c.seed, stream, index, groups, c.rollout.group_size, number * groups, names)
            strategy = setup.make_strategy(c, self.run.method, learner.standing(iteration, view.successes))
            key, actor = streams.device(self.run.key, stream, *index), learner.model.join(view.params)
            return self.run.play(tasks, key, strategy, actor)
        tasks = by_task(self.run.explored()[0])
        episodes = [e for task in self._offline_tasks() for e in tasks[task]]
        good = healthy(episodes, "batch of explored episodes")
        return Rollout(episodes, {}, Cost()), rollout_metrics(self.run, good)

    def _offline_tasks(self) -> list[int] | None:
        return offline_groups(list(range(self.c.exploration.tasks)), self.c.rollout.groups, self.counters.iteration, self.c.seed)

    def _record(self, rollout: Rollout, credited, exact) -> None:
        """Records the first group with its credit, and its exact advantages `[E, S]` if they are known, for the report and the viewer."""
        size = self.c.rollout.group_size
        episodes, signals = rollout.episodes[:size], {name: rows[:size] for name, rows in rollout.signals.items()}
        rewards = [] if credited is None else [np.asarray(x) for x in (credited.step_reward, credited.step_advantage)]
        values, exact = signals.get("mc_value", [None] * size), [None] * size if exact is None else np.asarray(exact)
        record = [to_record(e, *(x[i] for x in rewards), value=values[i], exact=exact[i]) for i, e in enumerate(episodes)]
        chosen, tree = telling(record, self.c.eval.record), tree_record(episodes, signals)
        self.run.folder.write_episodes(self.counters.tick, self.counters.iteration, chosen, tree)
