"""The run: supervised start, exploration, estimator, reinforcement learning, evaluation; resumable after every tick.

A run is a sequence of ticks: a few supervised updates, one part of the exploration, one epoch of the estimator, one batch of PRM
warm-up, or one iteration of reinforcement learning. What a tick does depends only on the checkpointed state and its number, so a
killed run repeats the ticks after its last checkpoint bit for bit. Which phases a run has follows from its credit method;
`stages.py` groups them.

With several processes each runs this same loop; the writer alone writes files, checkpoints are written by all together.
"""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from stepreward import processes
from stepreward.checkpoint import Checkpoints
from stepreward.config import leaves
from stepreward.errors import Terminated, UserError
from stepreward.metrics import MetricsWriter, read_metrics, wilson_interval, write_atomically
from stepreward.models.heads import decoder_of
from stepreward.report import drop_episodes, telling, write_episodes
from stepreward.rollout.episode import cuts, lost, summary, to_record, true_progress
from stepreward.training import demonstrating, fitting, identity, setup, stages
from stepreward.training import workdir as workdirs
from stepreward.training.auxiliaries import AFTER_CREDIT, AFTER_POLICY, BEFORE_CREDIT, Lesson
from stepreward.training.auxiliaries import estimator as estimating
from stepreward.training.counters import PHASES, Counters
from stepreward.training.exploration import Exploration, by_task, offline_groups
from stepreward.training.idle import Stillness, warn_of_idle_settings
from stepreward.training.learner import Learner
from stepreward.training.policy import sft_step


class TrainingDiverged(UserError):
    """A loss or gradient stopped being finite."""


class Runner:
    """Builds a run from its config, resumes it if the workdir holds one, and takes it to its end.

    Args:
      config: see `configs/`.
      workdir: folder of the run.
      on_tick: called with the runner and the metrics of each tick, for the display.
    """

    def __init__(self, config, workdir: str | Path, on_tick=None):
        config, _ = fitting.settle(config, workdir)
        self.c, self.workdir = config, Path(workdir)
        self.on_tick = on_tick or (lambda runner, metrics: None)
        processes.together(lambda: setup.check(config))
        processes.check_same(leaves(getattr(config, "untracked", config)), "the config")
        self._locks: list = []  # of the writer alone
        processes.on_writer(lambda: self._locks.extend(workdirs.claim(config, self.workdir)))
        try:
            self._prepare(config)
        except BaseException:
            workdirs.release(self._locks)
            raise

    def _prepare(self, config) -> None:
        processes.together(lambda: workdirs.find(self.workdir))
        processes.on_writer(lambda: workdirs.borrow_words(config, self.workdir))
        self.parts = setup.build(config, self.workdir)
        self.inputs = processes.on_writer(lambda: identity.of(config, self.parts))
        self.method, self.mesh = self.parts.method, self.parts.mesh
        if processes.is_writer():
            warn_of_idle_settings(config, self.method)
        self._stillness = Stillness(self.method)
        self.key = jax.random.key(config.seed)
        self.counters = Counters()
        self.learner = Learner(config, self.parts, self.key)
        self.exploration = Exploration(config, self.workdir, self.inputs) if self._has("explore") else None
        self.held_out = setup.held_out_tasks(config, self.parts.collector.pool, config.eval.episodes)
        self._sft_batch = self._explored = None
        self._sft_fit: dict = {}
        self._left_out: dict[str, int] = {}  # of demonstrations
        self.checkpoints = Checkpoints(self.workdir, keep=config.checkpoint.keep, folder=config.checkpoint.folder)
        self._stop = 0  # the signal that asked for it
        resumed = self._restore()
        self.metrics = None  # of the writer alone
        if processes.is_writer():
            self.metrics = MetricsWriter(self.workdir, self.counters.tick if resumed else None)
            drop_episodes(self.workdir, after=self.counters.tick)
        self._started = time.monotonic() - self.counters.wall_s

    # --- The loop ---

    @property
    def finished(self) -> bool:
        return self.counters.phase == "done"

    @property
    def stage(self) -> str | None:
        """The stage that the next tick belongs to; None when the run is finished."""
        return PHASES[self.counters.phase]

    def run(self, stage: str | None = None) -> None:
        """Runs to the end, or to the end of one stage, or until interrupted: then the last finished tick is saved first.

        Args:
          stage: only this one of `stages.STAGES`, which must be the next one or partly done.

        Raises:
          UserError: the stage is finished already, or lacks the output of the one before it.
          TrainingDiverged: a loss or gradient is not finite; the last good checkpoint stays.
          KeyboardInterrupt: after saving; on SIGTERM it is `Terminated`.
        """
        handlers = {s: signal.signal(s, self._request_stop) for s in _stop_signals()}
        try:
            if stage is not None:
                stages.check_turn(stage, self.stage, {PHASES[p] for p in PHASES if self._has(p)}, self.c)
            while not self.finished and stage in (None, self.stage):
                self._tick()
                asked = int(processes.agree_max(self._stop))  # of any process
                if asked:
                    self._stop = asked
                    self._save(wait=True)
                    raise self._interruption()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler or signal.SIG_DFL)  # None: one that is not Python's
            self.close()

    def close(self) -> None:
        """Waits for what is being written and releases environments."""
        self.checkpoints.close()
        if self.metrics is not None:
            self.metrics.close()
        self.parts.collector.pool.close()
        workdirs.release(self._locks)

    def _tick(self) -> None:
        counters = self.counters
        counters.tick += 1
        phase, stage = counters.phase, self.stage
        metrics = getattr(self, f"_{phase}_tick")()
        if processes.is_writer():
            stages.mark_begun(self.workdir, [stage])  # not before: a config that a stage cannot begin with may still be put right
        counters.wall_s = time.monotonic() - self._started
        record = {"iteration": counters.tick, "phase": phase, "env_steps": counters.env_steps, "wall_s": counters.wall_s}
        self._check_finite(metrics)
        if self.metrics is not None:
            self.metrics.write(record | metrics)
        self.on_tick(self, metrics)
        seam = counters.phase != phase
        if seam or counters.tick % self.c.checkpoint.every == 0 or phase in ("explore", "estimator"):
            self._save(wait=seam)  # no tick of a new phase without the checkpoint that it starts from

    def _request_stop(self, number, _):
        if self._stop:  # asked twice: now
            raise self._interruption()
        self._stop = number

    def _interruption(self) -> KeyboardInterrupt:
        return Terminated() if self._stop == signal.SIGTERM else KeyboardInterrupt()

    # --- Phases ---

    def _wants(self, phase: str) -> bool:
        """Whether a phase is still to be done when the ones before it are."""
        return phase not in self.counters.taken and self._has(phase)

    def _has(self, phase: str) -> bool:
        """Whether this run has a phase."""
        c, method = self.c, self.method
        if phase == "start":
            return self.counters.tick == 0  # a supervised policy that is new to this workdir
        if phase == "explore":
            return method.has_progress or c.train.mode == "offline"
        if phase == "estimator":
            return method.has_progress
        if phase == "prm":
            return method.has_prm and not method.prm_frozen and c.prm.warmup_batches > 0
        return phase != "evaluate" or c.eval.final_episodes > 0

    def _advance(self) -> None:
        """To the next phase; reinforcement learning starts from the supervised policy."""
        order = list(PHASES)
        was = order.index(self.counters.phase)
        self.counters.phase = next(p for p in order[was + 1 :] if self._wants(p))
        self.learner.begin_stage(self.counters.phase)
        if self.counters.phase in ("prm", "rl") and was < order.index("prm"):
            self.learner.begin_rl()
            self._sft_batch = None
            if self.c.train.mode == "online":
                self._explored = None

    def _sft_tick(self) -> dict:
        c, counters = self.c.sft, self.counters
        if self._sft_batch is None and c.updates:
            episodes = demonstrating.demonstration_episodes(self.parts.demonstrations, self.parts)
            self._sft_fit = demonstrating.fit(episodes, len(self.parts.demonstrations), self.parts)
            self._sft_batch = self.learner.layout.pack(episodes, row_multiple=1)
            left_out = max(0, c.episodes - len(episodes))
            cut = sum(step.cut > 0 for episode in episodes for step in episode.steps)
            self._left_out = {"demonstrations_left_out": left_out} | ({"observations_cut": cut} if cut else {})
        started, losses, learner = time.monotonic(), [], self.learner
        for _ in range(min(c.log_every, c.updates - counters.sft_updates)):
            rng = np.random.default_rng([self.c.seed, 2, counters.sft_updates])
            index = rng.choice(len(self._sft_batch.tokens), c.rows, replace=len(self._sft_batch.tokens) < c.rows)
            rows = learner.layout.demonstrated_rows(self._sft_batch, index)
            learner.policy, out = sft_step(learner.policy, rows, **learner.sft_arguments(counters.sft_updates))
            losses.append(out)
            counters.sft_updates += 1
        metrics = {f"sft/{name}": float(np.mean([o[name] for o in losses])) for name in losses[0]} if losses else {}
        metrics |= {f"sft/{name}": float(count) for name, count in self._left_out.items()}
        metrics["time/sft_s"] = time.monotonic() - started
        learnt = metrics.get("sft/loss", np.inf) < c.stop_loss
        if learnt or counters.sft_updates >= c.updates:
            self._check_finite(metrics)
            facts = self._fingerprint("sft") | {stages.FIT: self._sft_fit}
            stages.StageOutput(self.workdir, "sft").save(learner.policy.params, facts, metrics)
            self._advance()
            metrics |= self._evaluate()
        return metrics

    def _start_tick(self) -> dict:
        """A supervised policy that another run made: only looked at."""
        self._advance()
        return self._evaluate()

    def _explore_tick(self) -> dict:
        """Plays and records one part. A part that a killed run had recorded is played again, to the same end, and kept."""
        counters, part = self.counters, self.counters.explored_parts
        recorded = self.exploration.finished_parts()
        key = jax.random.fold_in(jax.random.fold_in(self.key, 4), part)
        episodes, metrics = self._rollout(self.exploration.tasks(part), key)
        if part >= recorded:
            self.exploration.record(part, episodes)
        counters.explored_parts += 1
        counters.explored_steps += sum(len(e.steps) for e in episodes if e.failure is None)
        metrics["explore/env_steps"] = counters.explored_steps
        if counters.explored_parts >= self.exploration.parts:
            self._advance()
        return metrics

    def _estimator_tick(self) -> dict:
        """One epoch over the explored episodes; the last one measures the estimator on held-out tasks."""
        c, counters, estimator = self.c, self.counters, self.learner.auxiliaries["estimator"]
        episodes, batch = self._explored_episodes()
        held_out = estimating.held_out_groups(batch.group_id, c.estimator.held_out, c.seed)
        metrics = estimator.epoch(batch, held_out, [c.seed, 7, counters.estimator_epochs])
        counters.estimator_epochs += 1
        if counters.estimator_epochs >= c.estimator.epochs or estimator.finished:
            trained = np.setdiff1d(batch.group_id, held_out)
            reference = float(batch.outcome[np.isin(batch.group_id, trained) & batch.episode_mask].mean())
            truth = true_progress(episodes, c.rollout.max_steps)
            measured = estimator.episodes(batch, held_out if len(held_out) else trained)
            found = estimator.quality(batch, measured, truth, reference)
            metrics |= {f"estimator/{k}": v for k, v in found.items()}
            self._check_finite(metrics)
            stages.StageOutput(self.workdir, "estimator").save(estimator.best, self._fingerprint("estimator"), found)
            self._advance()
        return metrics

    def _prm_tick(self) -> dict:
        """One batch of the start policy that only the PRM learns from."""
        c, counters = self.c, self.counters
        tasks = setup.training_tasks(c.seed, "prm", counters.prm_batches, c.rollout.groups, c.rollout.group_size)
        episodes, metrics = self._rollout(tasks, jax.random.fold_in(jax.random.fold_in(self.key, 1), counters.prm_batches))
        batch = self.learner.score(self._pack(episodes), metrics)
        self.learner.look(batch, metrics)
        metrics |= self.learner.auxiliaries["prm"].warm_up(batch, counters.prm_batches, decoder_of(self.learner.policy.params))
        counters.prm_batches += 1
        counters.env_steps += int(batch.step_mask.sum())
        if counters.prm_batches >= c.prm.warmup_batches:
            self._advance()
        return metrics

    def _rl_tick(self) -> dict:
        c, counters, learner = self.c, self.counters, self.learner
        episodes, metrics = self._experience()
        batch = learner.score(self._pack(episodes), metrics)
        signals, credited = learner.look(batch, metrics), None
        lesson = lambda: Lesson(batch, episodes, credited, decoder_of(learner.policy.params), counters.iteration)
        if learner.learn(BEFORE_CREDIT, lesson(), metrics):
            batch = learner.score(batch, metrics)
        credited = learner.credit(batch, episodes, signals, metrics, [c.seed, 6, counters.iteration])
        learner.learn(AFTER_CREDIT, lesson(), metrics)
        learner.update_policy(batch, credited, metrics, [c.seed, 5, counters.iteration])
        learner.learn(AFTER_POLICY, lesson(), metrics)
        if processes.is_writer():
            self._stillness.see(metrics)
        counters.iteration += 1
        counters.env_steps += int(batch.step_mask.sum())
        last = counters.env_steps >= c.train.env_steps or (c.train.mode == "offline" and self._offline_tasks() is None)
        if last or counters.iteration % c.eval.every == 0:
            metrics |= self._evaluate()
            record = [
                to_record(e, *(np.asarray(x)[i] for x in (credited.step_reward, credited.step_advantage)))
                for i, e in list(enumerate(episodes))[: c.rollout.group_size]
            ]
            if processes.is_writer():
                write_episodes(self.workdir, counters.tick, telling(record, c.eval.record))
        if last:
            self._advance()
        return metrics

    def _evaluate_tick(self) -> dict:
        """The supervised policy and the trained one on the same held-out tasks; writes `evaluation.json`."""
        c, started, collector = self.c, time.monotonic(), self.parts.collector
        if c.eval.final_temperature != c.rollout.temperature:
            sampling = dataclasses.replace(collector.engine.sampling, temperature=c.eval.final_temperature)
            collector = dataclasses.replace(collector, engine=dataclasses.replace(collector.engine, sampling=sampling))
        tasks = setup.held_out_tasks(c, self.parts.collector.pool, c.eval.final_episodes)
        table, start = {}, self.learner.start_model.join(self.learner.layout.place_parameters(self._start()))
        for name, params in (("start", start), ("end", self.learner.actor)):
            played = collector.collect(params, tasks, jax.random.fold_in(self.key, 3))
            good = _healthy(played, "final evaluation")
            found = summary(good) | lost(good)
            low, high = wilson_interval(sum(e.success for e in good), len(good))
            counts = {"episodes": len(good), "failed_episodes": len(played) - len(good)}
            table[name] = found | {"success_low": low, "success_high": high} | counts
        path = self.workdir / "evaluation.json"
        processes.on_writer(lambda: write_atomically(path, json.dumps(table, indent=2) + "\n"))
        self._advance()
        metrics = {f"final/{name}_{k}": float(v) for name, found in table.items() for k, v in found.items()}
        return metrics | {"time/eval_s": time.monotonic() - started}

    # --- The pieces of an iteration ---

    def _experience(self) -> tuple[list, dict]:
        """The episodes of one iteration: played now, or the next ones of the exploration."""
        c, iteration = self.c, self.counters.iteration
        if c.train.mode == "online":
            tasks = setup.training_tasks(c.seed, "train", iteration, c.rollout.groups, c.rollout.group_size)
            return self._rollout(tasks, jax.random.fold_in(jax.random.fold_in(self.key, 2), iteration))
        tasks = by_task(self._explored_episodes()[0])
        episodes = [e for task in self._offline_tasks() for e in tasks[task]]
        good = _healthy(episodes, "batch of explored episodes")
        return episodes, {f"rollout/{k}": v for k, v in (summary(good) | cuts(good)).items()}

    def _offline_tasks(self) -> list[int] | None:
        return offline_groups(list(range(self.c.exploration.tasks)), self.c.rollout.groups, self.counters.iteration, self.c.seed)

    def _explored_episodes(self) -> tuple[list, object]:
        """The recorded episodes, and all of them as one batch with the labels that the estimator needs."""
        if self._explored is None:
            episodes = self.exploration.read()
            batch = self.learner.layout.pack(episodes, row_multiple=1)
            if self.method.has_progress:
                estimating.check_outcomes(batch)
                batch = estimating.with_labels(batch, episodes, self.method)
            self._explored = episodes, batch
        return self._explored

    def _rollout(self, tasks, key) -> tuple[list, dict]:
        started = time.monotonic()
        episodes = self.parts.collector.collect(self.learner.actor, tasks, key)
        seconds = time.monotonic() - started
        good = _healthy(episodes, "batch")
        self.counters.failed_episodes += len(episodes) - len(good)
        tokens = sum(len(s.prompt_tokens) + len(s.action_tokens) for e in good for s in e.steps)
        metrics = {f"rollout/{k}": v for k, v in (summary(good) | cuts(good)).items()} | {
            "rollout/failed_episodes": self.counters.failed_episodes,
            "rollout/tokens_per_s": tokens / seconds,
            "time/rollout_s": seconds,
        }
        return episodes, {k: float(v) for k, v in metrics.items()}

    def _pack(self, episodes):
        return self.learner.layout.pack(episodes)

    def _evaluate(self) -> dict:
        """The fixed held-out set, played exactly as in training; the same draws each time."""
        c, started, learner = self.c.eval, time.monotonic(), self.learner
        key = jax.random.fold_in(self.key, 3)
        played = self.parts.collector.collect(learner.actor, self.held_out, key)
        good = _healthy(played, "evaluation")
        found = summary(good)
        metrics = {f"eval/{k}": found[k] for k in ("success", "score", "return", "steps_per_episode", "executed")}
        metrics |= {f"eval/{k}": v for k, v in lost(good).items()}
        metrics["eval/episodes"] = len(good)
        if len(good) < len(played):
            metrics["eval/failed_episodes"] = len(played) - len(good)
        every = c.prm_as_policy_every
        prm = learner.auxiliaries.get("prm")
        if prm is not None and every and self.counters.iteration % every == 0 and not self.method.prm_frozen:
            collector = setup.collector_of(self.c, self.parts, prm.model)
            played = collector.collect(prm.actor, self.held_out, key)
            metrics["prm/policy_success"] = float(np.mean([e.success for e in _healthy(played, "evaluation of the PRM")]))
        metrics["time/eval_s"] = time.monotonic() - started
        return metrics

    # --- State ---

    def _fingerprint(self, stage: str) -> dict:
        more = {"progress_options": self.method.progress_options} if stage == "estimator" else {}
        return stages.fingerprint(self.c, stage, **identity.deciding(self.inputs, stage), **more)

    def _tree(self) -> dict:
        return self.learner.tree() | {"key": np.asarray(jax.random.key_data(self.key))}

    def _save(self, wait: bool = False) -> None:
        facts = {"counters": dataclasses.asdict(self.counters), "learner": self.learner.facts()}
        facts |= {"inputs": self.inputs, "config": stages.digest(self.c)}
        self.checkpoints.save(self.counters.tick, self._tree(), facts)
        if wait:
            self.checkpoints.wait()

    def _restore(self) -> bool:
        """Goes on from the latest checkpoint, or from what the config borrows; returns whether there was a checkpoint."""
        facts = self.checkpoints.counters()
        begun = processes.on_writer(lambda: stages.begun(self.workdir))
        if facts is None:
            workdirs.check_not_lost(self.workdir, self.c, begun)
            if self.c.stages.sft:
                self._take_stages()
            return False
        if "inputs" in facts:
            identity.check(facts["inputs"], self.inputs, begun, f"the run in {str(self.workdir)!r}")
        self.counters = Counters(**facts["counters"])
        changed = facts.get("config") != stages.digest(self.c)
        if self.stage == "train" and "train" not in begun and changed:  # what trains may have been changed since
            self.counters.phase = "sft"
            self._take_stages()
            return True
        self.learner.reach(self.stage, self._start)  # for the structure of what was saved
        template = self.learner.template(facts["learner"]) | {"key": np.asarray(jax.random.key_data(self.key))}
        _, tree, _ = self.checkpoints.restore(template)
        self.learner.load(tree, facts["learner"])
        self.key = jax.random.wrap_key_data(jnp.asarray(tree["key"]))
        trained = self.counters.phase in ("evaluate", "done")
        if trained and self.counters.env_steps < self.c.train.env_steps and self.c.train.mode == "online":
            self.counters.phase = "rl"  # the same run with a longer budget
        return True

    def _start(self):
        """The supervised policy's parameters."""
        return setup.read_start(self.c, self.workdir, self.learner.start, self.inputs)

    def _take_stages(self) -> None:
        """Starts behind the stages whose output is there: in those workdirs that the config names, or in this one.

        Output of this workdir is taken only where a checkpoint says that the run has come past it: a run that is killed between a
        stage's output and the checkpoint makes that stage again.
        """
        c, learner, counters = self.c, self.learner, self.counters
        learner.take(self._start())
        counters.taken = []
        if self.exploration is not None and self.exploration.finished_parts() == self.exploration.parts:
            counters.taken.append("explore")
        output = stages.StageOutput(self.workdir, "estimator", c.stages.estimator)
        if self.method.has_progress and (output.borrowed or output.exists):
            estimator = learner.auxiliaries["estimator"]
            learner.begin_stage("estimator")  # for the structure
            estimator.take(learner.model, output.read(estimator.best, self._fingerprint("estimator"))[0])
            counters.taken += ["estimator"] + (["explore"] if c.train.mode == "online" else [])
        self._advance()

    def _check_finite(self, metrics: dict) -> None:
        learnt = ("sft", "policy", *self.learner.auxiliaries)
        bad = [k for k, v in metrics.items() if k.split("/")[0] in learnt and not math.isfinite(v)]
        if bad:
            where = f"{self.counters.phase} tick {self.counters.tick} (iteration {self.counters.iteration})"
            self.checkpoints.wait()
            kept = self.checkpoints.steps()
            raise TrainingDiverged(
                f"{', '.join(bad)} not finite at {where}: training stopped. "
                + (f"The last good checkpoint is tick {kept[-1]}. " if kept else "No checkpoint had been written. ")
                + "Start again in a new workdir with a lower learning rate or a longer warm-up."
            )

    def history(self) -> list[dict]:
        """All metrics of the run so far."""
        return read_metrics(self.workdir / "metrics.jsonl")


def _healthy(episodes: list, what: str) -> list:
    """The episodes whose environment did not fail; UserError where there are none."""
    good = [e for e in episodes if e.failure is None]
    if not good:
        raise UserError(f"every environment of the {what} failed; the first one: {episodes[0].failure}")
    return good


def _stop_signals():
    import threading

    return (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
