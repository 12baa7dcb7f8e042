"""A run: its parts, the operations that its stages use, and its checkpoints."""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from stepreward import processes
from stepreward.batch import Batch
from stepreward.config import leaves
from stepreward.errors import UserError
from stepreward.metrics import read_metrics
from stepreward.rollout.episode import Cost
from stepreward.rollout.strategies import Rollout, Strategy
from stepreward.training import decisions, fitting, identity, playing, setup
from stepreward.training.ahead import Ahead, check_mesh
from stepreward.training.counters import Counters
from stepreward.training.exploration import Exploration
from stepreward.training.idle import Stillness, warn_of_idle_settings
from stepreward.training.learner import Learner
from stepreward.training.stages import STAGES, Progress, Stage
from stepreward.training.tasks import held_out
from stepreward.training.workdir import Workdir, check_not_lost

DONE = "done"  # the name of the stage in a finished run


class TrainingDiverged(UserError):
    """A loss or gradient stopped being finite."""


class Run:
    """A run, built from its config and resumed from the workdir's checkpoint if there is one; `train.Runner` adds the loop.

    Args:
      config: see `configs/`.
      workdir: the run's folder.

    Attributes:
      c: the config, with the keys that were chosen for the devices.
      folder: the workdir, open for writing.
      parts: the run's parts, without parameters.
      learner: the models.
      stages: an object for each of `stages.STAGES`, by name; the run has those that are `wanted`.
      counters: the run's position and counters.
      ahead: the rollout that is played while the models learn, if the config asks for that.
    """

    def __init__(self, config, workdir: str | Path):
        self.c, _ = fitting.settle(config, workdir)
        processes.together(lambda: setup.check(self.c))
        processes.check_same(leaves(getattr(self.c, "untracked", self.c)), "the config")
        self.folder = Workdir(self.c, workdir)
        try:
            self._build()
        except BaseException:
            self.folder.release()
            raise

    def _build(self) -> None:
        c = self.c
        self.parts = setup.build(c, self.workdir)
        self.inputs = processes.on_writer(lambda: identity.of(c, self.parts))
        self.method, self.mesh = self.parts.method, self.parts.mesh
        if processes.is_writer():
            warn_of_idle_settings(c, self.method)
        self._stillness = Stillness(self.method)
        check_mesh(c, self.mesh)
        self.ahead = Ahead(self.parts.collector.engine.halted)
        self.key = jax.random.key(c.seed)
        self.counters = Counters(stage=STAGES[0].name)
        self.learner = Learner(c, self.parts, self.key)
        self.learner.open()
        for judge in getattr(self.parts.collector, "judges", {}).values():
            judge.open()
        self.stages: dict[str, Stage] = {stage.name: stage(self) for stage in STAGES}
        explores = self.stages["explore"].wanted()
        self.exploration = Exploration(c, self.workdir, self.fingerprint("explore")) if explores else None
        self.held_out = held_out(c, self.parts, c.eval.episodes)
        self.checkpoints = self.folder.checkpoints()
        resumed = self._restore()
        self.metrics = self.folder.open_metrics(self.counters.tick if resumed else None)
        self._started = time.monotonic() - self.counters.wall_s

    # --- The current stage ---

    def advance(self) -> None:
        """Moves to the next stage that the run has and whose output was not reused."""
        order = list(self.stages)
        later = order[order.index(self.counters.stage) + 1 :]
        self.counters.stage = next((n for n in later if n not in self.counters.taken and self.stages[n].wanted()), DONE)
        if self.stage is not None:
            self.learner.begin_stage(self.stage.name)
            self.stage.begin()

    @property
    def stage(self) -> Stage | None:
        """The stage that the next tick belongs to; None when the run is finished."""
        return self.stages.get(self.counters.stage)

    def progress(self) -> Progress:
        """Returns the progress of the current stage; for a finished run, that of its completed last stage."""
        if self.stage is not None:
            return self.stage.progress()
        words, _, total = [stage for stage in self.stages.values() if stage.wanted()][-1].progress()
        return Progress(words, total, total)

    @property
    def finished(self) -> bool:
        return self.stage is None

    @property
    def workdir(self) -> Path:
        return self.folder.path

    def close(self) -> None:
        """Waits for pending writes, and closes the environments and the workdir."""
        self.ahead.close()
        self.checkpoints.close()
        if self.metrics is not None:
            self.metrics.close()
        self.parts.collector.pool.close()
        self.folder.release()

    def history(self) -> list[dict]:
        """Returns the metrics of all ticks so far."""
        return read_metrics(self.workdir / "metrics.jsonl")

    # --- Operations for stages ---

    def play(self, tasks, key, strategy: Strategy | None = None, actor=None) -> tuple[Rollout, dict]:
        """Plays training episodes with the policy, or with another decoder; returns them, and metrics. Any thread may call it."""
        return playing.play(self, tasks, key, strategy, actor)

    def count_failed(self, metrics: dict) -> dict:
        """Adds a rollout's failed episodes to those of the run; returns the metrics with the total so far."""
        if "rollout/failed_episodes" not in metrics:  # episodes that an earlier stage has played and counted
            return metrics
        self.counters.failed_episodes += int(metrics["rollout/failed_episodes"])
        return metrics | {"rollout/failed_episodes": float(self.counters.failed_episodes)}

    def environments(self, first: int, groups: int, env_steps: int | None = None) -> list[str] | None:
        """Returns the environment of each of some groups, by its name in the mixture; None if the run has one environment.

        Args:
          first, groups: see `Mixture.environments`.
          env_steps: for groups of reinforcement learning, which `mixture.order` orders, the environment steps before them.
        """
        if self.parts.mixture is None:
            return None
        return self.parts.mixture.environments(first, groups, None if env_steps is None else env_steps / max(1, self.c.train.env_steps))

    def evaluate(self) -> dict:
        """Plays the fixed held-out set; returns metrics."""
        return playing.evaluate(self)

    def pack(self, rollout: Rollout) -> Batch:
        """Packs the episodes of a rollout into a batch, with those signals of the rollout that the method reads.

        Their values are outcomes of episodes, and are scaled as the outcomes of the batch are.
        """
        return playing.pack_rollout(self.c, self.learner.layout, self.method, rollout)

    def spend(self, cost: Cost) -> dict[str, float]:
        """Counts what the iteration's episodes cost, branches included; returns the totals so far as metrics."""
        self.counters.env_steps += cost.env_steps
        for name in ("sampled_tokens", "prompt_tokens"):
            self.counters.add(name, getattr(cost, name))
        return {f"rollout/{name}": float(self.counters.of(name)) for name in ("sampled_tokens", "prompt_tokens")}

    def start(self):
        """Reads the supervised policy's parameters."""
        return decisions.read_start(self.c, self.workdir, self.learner.start, self.inputs)

    def explored(self) -> tuple[list, object]:
        """Returns the explored episodes, as a list and as one batch."""
        return self.stages["explore"].episodes()

    def begin_reinforcement(self) -> None:
        """Initialises policy, reference and auxiliaries from the supervised policy, unless an earlier stage has."""
        if not self.learner.reinforcing:
            self.learner.begin_rl()
            if self.c.train.mode == "online":
                self.stages["explore"].forget()

    def fingerprint(self, stage: str) -> dict:
        """Returns everything that affects a stage's output; see `decisions.fingerprint`."""
        more = decisions.deciding(self.inputs, stage) | self.stages[stage].facts()
        return decisions.fingerprint(self.c, stage, **more)

    def watch(self, metrics: dict) -> None:
        """Warns once if several consecutive iterations had nothing to learn from."""
        if processes.is_writer():
            self._stillness.see(metrics)

    def check_finite(self, metrics: dict) -> None:
        """Raises TrainingDiverged if a metric of a model that learns is not finite."""
        learnt = ("sft", "policy", *self.learner.auxiliaries)
        bad = [k for k, v in metrics.items() if k.split("/")[0] in learnt and not math.isfinite(v)]
        if bad:
            where = f"tick {self.counters.tick} (stage {self.counters.stage}, iteration {self.counters.iteration})"
            self.checkpoints.wait()
            kept = self.checkpoints.steps()
            raise TrainingDiverged(
                f"{', '.join(bad)} not finite at {where}; training stopped. "
                + (f"The last good checkpoint is tick {kept[-1]}. " if kept else "No checkpoint had been written. ")
                + "Start again in a new workdir, with a lower learning rate or a longer warm-up."
            )

    # --- Checkpoints ---

    def save(self, wait: bool = False) -> None:
        """Writes a checkpoint of the last finished tick."""
        facts = {"counters": dataclasses.asdict(self.counters), "learner": self.learner.facts()}
        facts |= {"inputs": self.inputs, "config": decisions.digest(self.c)}
        self.checkpoints.save(self.counters.tick, self.learner.tree() | {"key": np.asarray(jax.random.key_data(self.key))}, facts)
        if wait:
            self.checkpoints.wait()

    def _restore(self) -> bool:
        """Restores the latest checkpoint, or else the stages that the config borrows; returns whether there was a checkpoint."""
        facts, begun = self.checkpoints.counters(), self.folder.begun
        if facts is None:
            check_not_lost(self.workdir, self.c, begun)
            if self.c.stages.sft:
                self._take_stages()
            return False
        self.counters = Counters.read(facts)
        decisions.check_inputs(facts["inputs"], self.inputs, begun, f"the run in {str(self.workdir)!r}")
        changed = facts.get("config") != decisions.digest(self.c)
        if self.stage is not None and self.stage.command == "train" and "train" not in begun and changed:
            self.counters.stage = STAGES[0].name  # the config of the next stage may have changed since
            self._take_stages()
            return True
        self.learner.reach(decisions.reached(self.counters.stage), self.start)  # so that the template has the saved structure
        template = self.learner.template(facts["learner"]) | {"key": np.asarray(jax.random.key_data(self.key))}
        _, tree, _ = self.checkpoints.restore(template)
        self.learner.load(tree, facts["learner"])
        self.key = jax.random.wrap_key_data(jnp.asarray(tree["key"]))
        order = [*self.stages, DONE]
        for name in order[: order.index(self.counters.stage)]:
            if self.stages[name].reopened():  # the run continues with a larger budget
                self.counters.stage = name
        return True

    def _take_stages(self) -> None:
        """Skips the stages whose output exists, in the workdirs that the config names or in this one.

        Output of this workdir is reused only if a checkpoint shows that the stage was finished: a run that was killed between writing the
        output and the checkpoint runs that stage again.
        """
        self.counters.taken = sorted(set().union(*(stage.take() for stage in self.stages.values())))
        self.advance()
