"""The run: warm start, PRM warm-up, reinforcement learning; resumable after every tick.

A run is a sequence of ticks: a few supervised updates, one batch of PRM warm-up, or one iteration of reinforcement learning. What
a tick does depends only on the checkpointed state and its number, so a killed run repeats the ticks after its last checkpoint
bit for bit.
"""

from __future__ import annotations

import dataclasses
import math
import signal
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from stepreward import parallel
from stepreward.checkpoint import Checkpoints
from stepreward.config import config_difference, load_config, save_config
from stepreward.credit import credit_quality, step_permutation
from stepreward.errors import UserError
from stepreward.metrics import MetricsWriter, read_metrics
from stepreward.report import write_episodes
from stepreward.rollout.episode import Episode, to_record
from stepreward.rollout.packing import pack
from stepreward.training import setup
from stepreward.training.minibatches import group_minibatches, pad_rows, round_up, row_minibatches
from stepreward.training.policy import normalise_advantage, policy_step, sft_step
from stepreward.training.prm import prm_step, score
from stepreward.training.state import TrainState, create

# Keys that may differ when a workdir is resumed: they say how long to go on and how often to look.
RESUMABLE_CHANGES = ("train.env_steps", "eval.every", "eval.prm_as_policy_every", "checkpoint.every", "checkpoint.keep")
_CREDIT_METRICS = ("step_reward_std", "step_reward_group_std", "process_share", "alpha")


class TrainingDiverged(UserError):
    """A loss or gradient stopped being finite."""


@dataclasses.dataclass
class Counters:
    """Where a run stands; saved as JSON."""

    phase: str = "sft"
    tick: int = 0
    sft_updates: int = 0
    prm_batches: int = 0
    iteration: int = 0
    env_steps: int = 0
    failed_episodes: int = 0
    wall_s: float = 0.0


class Runner:
    """Builds a run from its config, resumes it if the workdir holds one, and takes it to its end.

    Args:
      config: see `configs/`.
      workdir: folder of the run.
      on_tick: called with the runner and the metrics of each tick, for the display.
    """

    def __init__(self, config, workdir: str | Path, on_tick=None):
        self.c, self.workdir = config, Path(workdir)
        self.on_tick = on_tick or (lambda runner, metrics: None)
        setup.check(config)
        self._claim_workdir()
        self.parts = setup.build(config, self.workdir)
        self.method, self.mesh = self.parts.method, self.parts.mesh
        self.key = jax.random.key(config.seed)
        self.counters = Counters()
        self._layout()
        self._optimizers()
        params = setup.initial_params(config, self.parts)
        self.policy = create(params, self.sft_optimizer)
        self.prm = create(params, self.prm_optimizer) if self.method.has_prm else None
        self.initial = params if self._needs_initial() else None
        self.replay: list = []
        self.held_out = setup.held_out_tasks(config, self.parts.factory, config.eval.episodes)
        self._sft_batch = None
        self.checkpoints = Checkpoints(self.workdir, keep=config.checkpoint.keep)
        self._stop = False
        resumed = self._restore()
        self.metrics = MetricsWriter(self.workdir, self.counters.tick if resumed else None)
        self._started = time.monotonic() - self.counters.wall_s

    # --- The loop ---

    @property
    def finished(self) -> bool:
        return self.counters.phase == "done"

    def run(self) -> None:
        """Runs to the end, or until interrupted: then the last finished tick is saved first.

        Raises:
          TrainingDiverged: a loss or gradient is not finite; the last good checkpoint stays.
          KeyboardInterrupt: after saving.
        """
        handlers = {s: signal.signal(s, self._request_stop) for s in _stop_signals()}
        try:
            while not self.finished:
                self._tick()
                if self._stop:
                    self._save(wait=True)
                    raise KeyboardInterrupt
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            self.close()

    def close(self) -> None:
        """Waits for what is being written and releases environments."""
        self.checkpoints.close()
        self.metrics.close()
        self.parts.collector.pool.close()

    def _tick(self) -> None:
        counters = self.counters
        counters.tick += 1
        phase = counters.phase
        metrics = {"sft": self._sft_tick, "prm": self._prm_tick, "rl": self._rl_tick}[phase]()
        counters.wall_s = time.monotonic() - self._started
        record = {"iteration": counters.tick, "phase": phase, "env_steps": counters.env_steps, "wall_s": counters.wall_s}
        self._check_finite(metrics)
        self.metrics.write(record | metrics)
        self.on_tick(self, metrics)
        if counters.phase != phase or counters.tick % self.c.checkpoint.every == 0:
            self._save(wait=self.finished)

    def _request_stop(self, *_):
        if self._stop:  # asked twice: now
            raise KeyboardInterrupt
        self._stop = True

    # --- Phases ---

    def _sft_tick(self) -> dict:
        c, counters = self.c.sft, self.counters
        if self._sft_batch is None:
            episodes = setup.demonstration_episodes(self.parts.demonstrations, self.parts)
            self._sft_batch = self._pack(episodes, row_multiple=1)
        started, losses = time.monotonic(), []
        for _ in range(min(c.log_every, c.updates - counters.sft_updates)):
            rng = np.random.default_rng([self.c.seed, 2, counters.sft_updates])
            index = rng.choice(len(self._sft_batch.tokens), c.rows, replace=len(self._sft_batch.tokens) < c.rows)
            self.policy, out = sft_step(
                self.policy, self._sft_rows(index), optimizer=self.sft_optimizer, **self._passes
            )
            losses.append(out)
            counters.sft_updates += 1
        metrics = {f"sft/{k}": float(np.mean([o[k] for o in losses])) for k in ("loss", "grad_norm")} if losses else {}
        metrics["time/sft_s"] = time.monotonic() - started
        if counters.sft_updates >= c.updates:
            self._begin_rl()
            metrics |= self._evaluate()
        return metrics

    def _begin_rl(self) -> None:
        """The supervised policy becomes the start of policy, PRM and reference."""
        params = self.policy.params
        if self.initial is not None:
            self.initial = jax.tree.map(jnp.copy, params)
        if self.prm is not None:
            self.prm = create(params, self.prm_optimizer)
        self.policy = create(params, self.policy_optimizer)
        self._sft_batch = None
        warm = self.prm is not None and not self.method.prm_frozen and self.c.prm.warmup_batches > 0
        self.counters.phase = "prm" if warm else "rl"

    def _prm_tick(self) -> dict:
        """One batch of the start policy that only the PRM learns from."""
        c, counters = self.c, self.counters
        tasks = setup.training_tasks(c.seed, "prm", counters.prm_batches, c.rollout.groups, c.rollout.group_size)
        episodes, metrics = self._rollout(tasks, jax.random.fold_in(jax.random.fold_in(self.key, 1), counters.prm_batches))
        batch = self._score(self._pack(episodes), metrics)
        metrics |= self._prm_before(batch)[1]
        self._update_prm(batch, metrics, [c.seed, 3, counters.prm_batches])
        counters.prm_batches += 1
        counters.env_steps += int(batch.step_mask.sum())
        if counters.prm_batches >= c.prm.warmup_batches:
            counters.phase = "rl"
        return metrics

    def _rl_tick(self) -> dict:
        c, counters = self.c, self.counters
        tasks = setup.training_tasks(c.seed, "train", counters.iteration, c.rollout.groups, c.rollout.group_size)
        episodes, metrics = self._rollout(tasks, jax.random.fold_in(jax.random.fold_in(self.key, 2), counters.iteration))
        batch = self._score(self._pack(episodes), metrics)
        credit_of = self._credit(batch, metrics)
        after = self.prm is not None and self.method.reward_from == "post"
        credited = None if after else credit_of(batch, episodes)
        if not c.prm.resync:
            self._update_prm(batch, metrics, [c.seed, 4, counters.iteration])
        if after:
            credited = credit_of(self._score(batch, metrics), episodes)
        self._update_policy(batch, np.asarray(credited.advantage), metrics, [c.seed, 5, counters.iteration])
        if c.prm.resync:  # to the new policy, which the next batch comes from
            self._update_prm(batch, metrics, [c.seed, 4, counters.iteration])
        counters.iteration += 1
        counters.env_steps += int(batch.step_mask.sum())
        last = counters.env_steps >= c.train.env_steps
        if last or counters.iteration % c.eval.every == 0:
            metrics |= self._evaluate()
            record = [to_record(e, *(np.asarray(x)[i] for x in (credited.step_reward, credited.step_advantage)))
                      for i, e in list(enumerate(episodes))[: c.rollout.group_size]]  # fmt: skip
            write_episodes(self.workdir, counters.tick, _telling(record, c.eval.record))
        if last:
            counters.phase = "done"
        return metrics

    # --- The pieces of an iteration ---

    def _rollout(self, tasks, key) -> tuple[list, dict]:
        started = time.monotonic()
        episodes = self.parts.collector.collect(self.policy.params, tasks, key)
        seconds = time.monotonic() - started
        good = [e for e in episodes if e.failure is None]
        failed = len(episodes) - len(good)
        self.counters.failed_episodes += failed
        if not good:
            raise UserError(f"every environment of the batch failed; the first one: {episodes[0].failure}")
        steps = [s for e in good for s in e.steps]
        tokens = sum(len(s.prompt_tokens) + len(s.action_tokens) for s in steps)
        metrics = {
            "rollout/success": np.mean([e.success for e in good]),
            "rollout/return": np.mean([e.episode_return for e in good]),
            "rollout/steps_per_episode": len(steps) / len(good),
            "rollout/executed": np.mean([s.executed for s in steps]),
            "rollout/invalid": np.mean([s.action is None for s in steps]),
            "rollout/entropy": np.concatenate([s.entropy for s in steps]).mean(),
            "rollout/failed_episodes": self.counters.failed_episodes,
            "rollout/tokens_per_s": tokens / seconds,
            "time/rollout_s": seconds,
        }
        return episodes, {k: float(v) for k, v in metrics.items()}

    def _pack(self, episodes, row_multiple: int | None = None):
        c = self.c
        return pack(
            episodes, context=c.rollout.context, max_steps=c.rollout.max_steps, row_length=c.rollout.max_row_tokens,
            row_multiple=row_multiple or self.capacity, pad_id=self.parts.chat.codec.pad_id, outcome=c.credit.outcome,
            outcome_scale=c.credit.outcome_scale,
        )  # fmt: skip

    def _score(self, batch, metrics):
        """Adds the log-probabilities that the method and the policy's loss need."""
        started = time.monotonic()
        wanted = {}
        if self.prm is not None:
            wanted["log_prob_prm"] = self.prm.params
        if self.initial is not None:
            wanted["log_prob_initial"] = self.initial
        placed = self._place(batch) if wanted else None
        for name, params in wanted.items():
            log_prob, _ = score(params, placed, **self._model)
            batch = batch.with_signals(**{name: np.asarray(log_prob)})
        metrics["time/scoring_s"] = metrics.get("time/scoring_s", 0.0) + time.monotonic() - started
        return batch

    def _prm_before(self, batch) -> tuple[np.ndarray, dict]:
        """How the PRM does on a batch that it has not learnt from."""
        if self.prm is None:
            return np.float32(1), {}
        loss, found = _prm_loss(self.method, batch)
        accuracy = float(found["pair_accuracy"]) if float(found["pairs"]) else 0.5
        metrics = {"prm/pair_accuracy": accuracy, "prm/pairs": float(found["pairs"]), "prm/loss": float(loss)}
        return np.float32(np.clip(2 * accuracy - 1, 0, 1)), metrics

    def _credit(self, batch, metrics):
        """Returns the function that credits a batch and logs what it saw."""
        scale, found = self._prm_before(batch)
        metrics |= found
        rng = np.random.default_rng([self.c.seed, 6, self.counters.iteration])

        def credit(batch, episodes):
            started = time.monotonic()
            extra = {"alpha_scale": scale} if "alpha_scale" in self.method.requires else {}
            if "step_permutation" in self.method.requires:
                extra["step_permutation"] = step_permutation(rng, batch.step_mask)
            credited = jax.device_get(_credit(self.method, batch.with_signals(**extra)))
            metrics.update({f"credit/{k}": float(credited.metrics[k]) for k in _CREDIT_METRICS if k in credited.metrics})
            if "prm_kl_k3" in credited.metrics:
                metrics["prm/kl_policy"] = float(credited.metrics["prm_kl_k3"])
            metrics.update(self._quality(credited, batch, episodes))
            metrics["time/scoring_s"] += time.monotonic() - started
            return credited

        return credit

    def _quality(self, credited, batch, episodes) -> dict:
        """Credit against true progress, where the environment knows it."""
        unreachable = 2.0 * self.c.rollout.max_steps
        progress = np.full(batch.step_mask.shape, np.nan)
        for row, episode in zip(progress, episodes):
            row[: len(episode.steps)] = episode.progress(unreachable)
        if not np.isfinite(progress).any() or self.prm is None:
            return {}
        return {f"credit/{k}": v for k, v in credit_quality(credited.step_reward, progress, batch.step_mask).items()}

    def _update_prm(self, batch, metrics, seed) -> None:
        """Trains the PRM on this batch and the replayed ones, each with the log-probabilities it was collected under."""
        if self.prm is None or self.method.prm_frozen:
            return
        c, started, outs = self.c.prm, time.monotonic(), []
        if c.resync:
            self.prm = self.prm.replace(params=jax.tree.map(jnp.copy, self.policy.params))
        rng = np.random.default_rng(seed)
        signals = {k: v for k, v in batch.signals.items() if k == "log_prob_initial"}
        batch = batch.replace(signals=signals)
        groups = c.minibatch_groups or self.c.rollout.groups
        capacity = self._row_capacity(groups * self.c.rollout.group_size)
        for _ in range(c.epochs):
            mixed = self.method.needs_pairs
            parts = [p for b in [batch, *self.replay] for p in group_minibatches(b, groups, capacity, rng, mixed_only=mixed)]
            for index in rng.permutation(len(parts)):
                self.prm, out = prm_step(
                    self.prm, self._place(parts[index]), optimizer=self.prm_optimizer, method=self.method, **self._model
                )
                outs.append(out)
        if c.replay:
            self.replay = [batch, *self.replay][: c.replay]
        if outs:  # none where no group holds a pair
            metrics["prm/grad_norm"] = float(np.mean([o["grad_norm"] for o in outs]))
            metrics["prm/train_loss"] = float(np.mean([o["loss"] for o in outs]))
        metrics["time/prm_s"] = time.monotonic() - started

    def _update_policy(self, batch, advantage, metrics, seed) -> None:
        c, started, outs = self.c.policy, time.monotonic(), []
        rng = np.random.default_rng(seed)
        signals = {"advantage": normalise_advantage(advantage, batch, c.advantage_norm)}
        if c.kl_coef:
            signals["log_prob_reference"] = batch.signals["log_prob_initial"]
        batch = batch.replace(signals=signals)
        capacity = round_up(min(c.minibatch_rows, self.capacity), self.c.train.chunk_rows)
        for _ in range(c.epochs):
            for part, _ in row_minibatches(batch, c.minibatch_rows, capacity, rng):
                part = self._place(part)
                self.policy, out = policy_step(
                    self.policy, part, part.signals["advantage"], optimizer=self.policy_optimizer,
                    loss=self.parts.policy_loss, **self._model,
                )  # fmt: skip
                outs.append(out)
        names = [k for k in outs[0] if k not in ("tokens",)]
        metrics |= {f"policy/{k}": float(np.mean([o[k] for o in outs])) for k in names}
        metrics["policy/sampler_gap"] = abs(float(outs[0]["ratio_mean"]) - 1.0)  # first mini-batch: nothing has moved yet
        metrics["time/policy_s"] = time.monotonic() - started

    def _evaluate(self) -> dict:
        """Success on the fixed held-out set, played exactly as in training; the same draws each time."""
        c, started = self.c.eval, time.monotonic()
        key = jax.random.fold_in(self.key, 3)
        episodes = self.parts.collector.collect(self.policy.params, self.held_out, key)
        good = [e for e in episodes if e.failure is None]
        metrics = {"eval/success": float(np.mean([e.success for e in good])), "eval/episodes": len(good)}
        metrics["eval/return"] = float(np.mean([e.episode_return for e in good]))
        every = c.prm_as_policy_every
        if self.prm is not None and every and self.counters.iteration % every == 0 and not self.method.prm_frozen:
            played = self.parts.collector.collect(self.prm.params, self.held_out, key)
            metrics["prm/policy_success"] = float(np.mean([e.success for e in played]))
        metrics["time/eval_s"] = time.monotonic() - started
        return metrics

    # --- State ---

    def _layout(self) -> None:
        c = self.c
        self.capacity = self._row_capacity(c.rollout.groups * c.rollout.group_size)
        self._passes = dict(
            graphdef=self.parts.graphdef, chunk_rows=c.train.chunk_rows,
            max_actions=c.rollout.max_answer_tokens if c.rollout.context == "step" else None,
        )  # fmt: skip
        self._model = self._passes | dict(temperature=c.rollout.temperature)

    def _row_capacity(self, episodes: int) -> int:
        """Rows that hold `episodes` episodes of full length, in whole chunks."""
        rows = episodes * (self.c.rollout.max_steps if self.c.rollout.context == "step" else 1)
        return round_up(rows, self.c.train.chunk_rows)

    def _optimizers(self) -> None:
        self.sft_optimizer = setup.make_optimizer(self.c.sft)
        self.policy_optimizer = setup.make_optimizer(self.c.policy)
        self.prm_optimizer = setup.make_optimizer(self.c.prm)

    def _needs_initial(self) -> bool:
        return "log_prob_initial" in self.method.requires or self.c.policy.kl_coef != 0

    def _sft_rows(self, index):
        """A mini-batch of demonstrated steps; step and episode levels play no part in imitation."""
        batch, capacity = self._sft_batch, round_up(self.c.sft.rows, self.c.train.chunk_rows)
        names = ("tokens", "positions", "segment_ids", "action_mask", "step_id", "log_prob_old")
        rows = {n: pad_rows(np.asarray(getattr(batch, n))[index], capacity, -1 if n == "step_id" else 0) for n in names}
        one = {k: getattr(batch, k)[:1] for k in ("step_mask", "env_reward", "executed")}
        one |= {k: getattr(batch, k)[:1] for k in ("episode_mask", "outcome", "success", "truncated", "group_id")}
        return self._place(batch.replace(**rows, **one))

    def _place(self, batch):
        """Rows split over the mesh, the rest on every device."""
        rows, copy = parallel.row_sharding(self.mesh), parallel.replicated(self.mesh)
        token_shape = np.shape(batch.tokens)
        return jax.tree.map(lambda x: jax.device_put(x, rows if np.shape(x) == token_shape else copy), batch)

    def _tree(self) -> dict:
        tree = {"policy": self.policy, "key": np.asarray(jax.random.key_data(self.key))}
        if self.prm is not None:
            tree["prm"] = self.prm
        if self.initial is not None:
            tree["initial"] = self.initial
        if self.replay:
            tree["replay"] = self.replay
        return tree

    def _save(self, wait: bool = False) -> None:
        counters = dataclasses.asdict(self.counters) | {"replayed": len(self.replay)}
        self.checkpoints.save(self.counters.tick, self._tree(), counters)
        if wait:
            self.checkpoints.wait()

    def _restore(self) -> bool:
        counters = self.checkpoints.counters()
        if counters is None:
            return False
        replayed = counters.pop("replayed")
        self.counters = Counters(**counters)
        if self.counters.phase != "sft":
            self.policy = create(self.policy.params, self.policy_optimizer)
        if replayed:
            self.replay = [self._empty_batch() for _ in range(replayed)]
        _, tree, _ = self.checkpoints.restore(self._tree())
        self.policy, self.key = tree["policy"], jax.random.wrap_key_data(jnp.asarray(tree["key"]))
        self.prm, self.initial = tree.get("prm"), tree.get("initial")
        self.replay = tree.get("replay", [])
        if self.finished and self.counters.env_steps < self.c.train.env_steps:
            self.counters.phase = "rl"  # the same run with a longer budget
        return True

    def _empty_batch(self):
        """A batch of the shapes that a rollout packs into, as the template of a replayed one."""
        c = self.c.rollout
        tasks = setup.training_tasks(self.c.seed, "train", 0, c.groups, c.group_size)
        batch = self._pack([Episode(task) for task in tasks])
        if self.initial is not None:
            batch = batch.with_signals(log_prob_initial=np.zeros(batch.tokens.shape, np.float32))
        return batch

    def _claim_workdir(self) -> None:
        """Writes the config into a new workdir, or checks that the one there is the same."""
        path = self.workdir / "config.json"
        if self.workdir.exists() and not self.workdir.is_dir():
            raise UserError(f"workdir {str(self.workdir)!r} is a file: give a folder.")
        if path.exists():
            found = config_difference(load_config(path), self.c)
            found = [line for line in found if not line.startswith(RESUMABLE_CHANGES)]
            if found:
                raise UserError(
                    f"workdir {str(self.workdir)!r} holds a run with another config ({'; '.join(found[:3])}"
                    f"{'; …' if len(found) > 3 else ''}): give another --workdir, or the same config to resume it."
                )
        elif self.workdir.is_dir() and any(self.workdir.iterdir()):
            raise UserError(f"workdir {str(self.workdir)!r} is not empty and holds no run: give another --workdir.")
        try:
            self.workdir.mkdir(parents=True, exist_ok=True)
            save_config(self.c, path)
        except OSError as error:
            raise UserError(f"workdir {str(self.workdir)!r} cannot be written: {error.strerror or error}.") from error

    def _check_finite(self, metrics: dict) -> None:
        bad = [k for k, v in metrics.items() if k.split("/")[0] in ("sft", "policy", "prm") and not math.isfinite(v)]
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


@partial(jax.jit, static_argnums=0)
def _credit(method, batch):
    return method.credit(batch)


@partial(jax.jit, static_argnums=0)
def _prm_loss(method, batch):
    return method.prm_loss(batch.signals["log_prob_prm"], batch)


def _stop_signals():
    import threading

    return (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()


def _telling(records: list[dict], count: int) -> list[dict]:
    """Episodes worth a look: a success and a failure of the same room first, the longer ones before the shorter."""
    records = [r for r in records if r["steps"]]
    won = sorted((r for r in records if r["success"]), key=lambda r: -len(r["steps"]))
    lost = [r for r in records if not r["success"]]
    mixed = [r for pair in zip(won, lost) for r in pair]
    rest = [r for r in won + lost if not any(r is m for m in mixed)]
    return (mixed + rest)[:count]
