"""The progress estimator: a language model with a scalar head, whose outputs over an episode's steps are trained to explain its outcome.

The loss is the credit method's `Method.progress_loss`, which couples the steps of an episode.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from stepreward import parallel, processes
from stepreward.batch import Batch
from stepreward.credit.quality import credit_quality, outcome_fit
from stepreward.credit.schedules import Standing
from stepreward.errors import UserError
from stepreward.models.adapters import join
from stepreward.programs import Program
from stepreward.training import backbones, chunks, streams
from stepreward.training.auxiliaries.base import AFTER_POLICY, Auxiliary, Lesson
from stepreward.training.auxiliaries.update import StepOutputs, auxiliary_step
from stepreward.training.backbones import Backbone
from stepreward.training.layout import Layout
from stepreward.training.minibatches import row_episodes, take_episodes
from stepreward.training.state import create, make_optimizer, mean_metrics

Array = jax.Array

OUTPUTS = StepOutputs()
ATTENTION = ("causal", "bidirectional")


@partial(jax.jit, static_argnames=("graphdef", "chunk_rows", "max_actions"))
def estimate(params, batch: Batch, *, graphdef, chunk_rows, max_actions=None, base=None) -> Array:
    """The estimator's output for each step, float32 `[E, S]`; 0 for padding and failed episodes.

    Args:
      params: `{"decoder", "scalar_head"}`.
    """
    apply = lambda rows: (OUTPUTS.of_rows(graphdef, join(base, params), rows, max_actions),)
    return OUTPUTS.of_batch(chunks.map_rows(apply, batch, chunk_rows)[0], batch)


@partial(jax.jit, static_argnums=0)
def _loss(method, output_ExS, batch):
    return method.with_coefficients(batch).progress_loss(output_ExS, batch)[0]


@partial(jax.jit, static_argnums=0)
def _contributions(method, output_ExS, batch):
    return method.with_coefficients(batch).contributions(output_ExS, batch)


class Estimator(Auxiliary):
    """The estimator of a run.

    Attributes:
      model: the estimator's backbone.
      state: parameters and optimizer; None once training has ended for good.
      best: the parameters with the lowest loss on held-out tasks so far.
      best_loss: that loss.
      stale: the number of epochs since `best` was reached.
      replay: recent batches, newest first, on which a refresh trains.
      coefficients: the values of the method's scheduled coefficients, as scalar signals: those of the first iteration until it begins.
    """

    name = "estimator"
    order = 2
    provides = frozenset({"progress"})
    stage = "estimator"
    when = AFTER_POLICY

    def __init__(self, c, parts, layout: Layout, key: jax.Array):
        self.c, self.method, self.layout, self.key = c.estimator, parts.method, layout, streams.device(key, "estimator_head")
        self.optimizer = make_optimizer(c.estimator, c.model.moment_dtype)
        self.replay: list[Batch] = []
        self.coefficients = self.method.scheduled_values(Standing())
        self.model: Backbone | None = None
        self.state, self.best, self.best_loss, self.stale = None, None, float("inf"), 0

    @property
    def params(self):
        return self.best

    @classmethod
    def wanted(cls, method) -> bool:
        return method.has_progress

    @classmethod
    def check(cls, c, method) -> None:
        if c.estimator.attention != "bidirectional":
            return
        if not method.reads_ahead:
            raise ValueError(
                f"estimator.attention='bidirectional' shows the estimator the steps after each step, but that of "
                f"credit.method={method.name!r} predicts from earlier steps alone: set estimator.attention=causal."
            )
        if c.rollout.context != "episode":
            raise ValueError(
                f"estimator.attention='bidirectional' reads whole episodes, but rollout.context={c.rollout.context!r} makes a row of each "
                "step: set rollout.context=episode, or estimator.attention=causal."
            )

    @property
    def begun(self) -> bool:
        return self.best is not None

    def begin(self, model: Backbone, params) -> None:
        """Initialises the estimator as a copy of the policy with a new head."""
        self.take(model, self.layout.headed(model, params, self.key, self.c.head))

    def take(self, model: Backbone, params) -> None:
        """Initialises the estimator from trained parameters, including a head."""
        self.model = backbones.bidirectional(model) if self.c.attention == "bidirectional" else model
        self.state = create(params, self.optimizer)
        self.best = parallel.copy(params)
        self.best_loss, self.stale = float("inf"), 0

    def begin_training(self, params) -> None:
        """Frees the optimizer, if no refresh will use it."""
        if not self.c.refresh_every:
            self.state = None

    # --- Training on explored episodes ---

    def epoch(self, batch: Batch, held_out: np.ndarray, seed) -> dict:
        """Trains one pass over the tasks that are not held out, measures the loss on the held-out ones, and keeps the best parameters.

        Args:
          batch: all explored episodes (NumPy), with the label signals of the method.
          held_out: group ids of the held-out tasks; if empty, the loss is measured on the training tasks.
          seed: entropy of the shuffle and of dropout.

        Returns:
          Metrics.
        """
        started, outs, rng = time.monotonic(), [], np.random.default_rng(seed)
        mine = self.episodes(batch, held_out, among=False)
        for part, _ in self._parts(batch, rng.permutation(mine)):
            outs.append(self._step(part, seed, len(outs)))
        metrics = {f"estimator/{name}": value for name, value in mean_metrics(outs).items()}
        seconds = time.monotonic() - started
        loss = self.loss(batch, self.episodes(batch, held_out) if len(held_out) else mine)
        if loss < self.best_loss:
            self.best, self.best_loss, self.stale = jax.tree.map(jnp.copy, self.state.params), loss, 0
        else:
            self.stale += 1
        speed = float(batch.step_mask[mine].sum()) / seconds
        return metrics | {"estimator/held_out_loss": loss, "estimator/steps_per_s": speed, "time/estimator_s": seconds}

    @staticmethod
    def episodes(batch: Batch, groups: np.ndarray, among: bool = True) -> np.ndarray:
        """Indices of the valid episodes (`episode_mask`) in some groups; with `among=False`, in all other groups."""
        return np.flatnonzero((np.isin(batch.group_id, groups) == among) & batch.episode_mask)

    def loss(self, batch: Batch, episodes: np.ndarray) -> float:
        """Returns the method's loss on some episodes: the mean over mini-batches, weighted by their numbers of episodes."""
        losses, sizes = [], []
        for part, count in self._parts(batch, episodes):
            placed = self._place(part)
            losses.append(_loss(self.method, estimate(self.state.params, placed, **self._passes), placed))
            sizes.append(count)
        return float(np.average([float(x) for x in losses], weights=sizes))

    @property
    def finished(self) -> bool:
        """Whether the held-out loss has stopped falling."""
        return self.stale > self.c.patience

    def quality(self, batch: Batch, episodes: np.ndarray, progress_ExS: np.ndarray, reference: float) -> dict[str, float]:
        """Measures how well the best parameters predict some episodes' outcomes and the true progress of their steps.

        Args:
          progress_ExS: exact progress of each step of `batch`, NaN where unknown.
          reference: the constant prediction to compare with: the mean of `Method.explained_outcome` in the training tasks.
        """
        found = []
        for part, count in self._parts(batch, episodes):
            placed = self._place(part)
            output = estimate(self.best, placed, **self._passes)
            found.append(processes.to_host(_contributions(self.method, output, placed))[:count])
        contribution = np.concatenate(found)
        fit = outcome_fit(contribution.sum(axis=1), np.asarray(self.method.explained_outcome(batch))[episodes], reference)
        return fit | credit_quality(contribution, progress_ExS[episodes], batch.step_mask[episodes])

    # --- During reinforcement learning ---

    def scores(self, placed: Batch, to_rows, policy_params) -> dict:
        """Returns the estimator's output for each step, `[E, S]`."""
        return {"progress": processes.to_host(estimate(self.best, placed, **self._passes))}

    def learn(self, lesson: Lesson) -> dict:
        """Keeps the batch, and trains on the kept batches every `refresh_every` iterations; returns metrics."""
        if not self.c.refresh_every or self.layout.c.train.mode == "offline":
            return {}
        self.coefficients = lesson.coefficients
        self.remember(with_labels(lesson.batch, lesson.episodes, self.method))
        number = lesson.iteration + 1
        return {} if number % self.c.refresh_every else self.refresh(streams.host(self.layout.c.seed, "estimator_refresh", number))

    def remember(self, batch: Batch) -> None:
        """Keeps a batch for the next refresh."""
        if self.c.refresh_every:
            kept = batch.replace(signals={k: batch.signals[k] for k in self.method.label_signals})
            self.replay = [kept, *self.replay][: self.c.refresh_every]

    def refresh(self, seed) -> dict:
        """Continues training on the kept batches; returns metrics."""
        started, rng = time.monotonic(), np.random.default_rng(seed)
        parts = [p for b in self.replay for p, _ in self._parts(b, rng.permutation(np.flatnonzero(b.episode_mask)))]
        outs = [self._step(parts[i], seed, n) for n, i in enumerate(rng.permutation(len(parts)))]
        self.best = jax.tree.map(jnp.copy, self.state.params)
        metrics = {f"estimator/{name}": value for name, value in mean_metrics(outs).items()} if outs else {}
        return metrics | {"time/estimator_s": time.monotonic() - started}

    def saved(self) -> tuple[dict, dict]:
        trees = {"best": self.best} | ({} if self.state is None else {"state": self.state})
        trees |= {"recent": self.replay} if self.replay else {}
        best = self.best_loss if math.isfinite(self.best_loss) else None  # JSON has no infinity
        return trees, {"recent": len(self.replay), "best_loss": best, "stale": self.stale}

    def expect(self, facts: dict, empty) -> None:
        self.replay = [empty(self.method.label_signals) for _ in range(facts["recent"])]

    def load(self, saved: dict, facts: dict) -> None:
        self.best, self.state, self.replay = saved["best"], saved.get("state"), saved.get("recent", [])
        self.best_loss = math.inf if facts["best_loss"] is None else facts["best_loss"]
        self.stale = facts["stale"]

    @property
    def _passes(self) -> dict:
        return self.layout.passes(self.model)

    def _step(self, part: Batch, seed, update: int) -> dict:
        self.state, out = auxiliary_step(self.state, self._place(part), **self._update(seed, update))
        return out

    def _place(self, part: Batch) -> Batch:
        return self.layout.place_for_training(part.with_signals(**self.coefficients))

    def _update(self, seed, update: int) -> dict:
        training = self.layout.training(self.model, seed, update)
        return dict(name=self.name, outputs=OUTPUTS, optimizer=self.optimizer, method=self.method, **self._passes, **training)

    def programs(self, stage: str) -> Iterator[Program]:
        layout, model, c = self.layout, self.model, self.layout.c
        size, updates = self.c.minibatch_episodes, 0
        rows, signals = layout.row_capacity(size), (*self.method.label_signals, *self.coefficients)
        if stage == "estimator":
            held_out = round(self.c.held_out * c.exploration.tasks)
            updates = -(-(c.exploration.tasks - held_out) * c.exploration.rollouts // size)
            yield Program(
                "estimator/measure",
                estimate,
                (self.state.params, layout.shapes(rows, size, signals)),
                self._passes,
                times=-(-(held_out or c.exploration.tasks) * c.exploration.rollouts // size),
                trips=layout.chunks(rows),
                kernel_flops=layout.kernel_flops(model, rows),
            )
        elif stage == "train":
            yield Program(
                "estimator/estimate",
                estimate,
                (self.best, layout.shapes()),
                self._passes,
                trips=layout.chunks(),
                kernel_flops=layout.kernel_flops(model),
            )
            if (
                self.c.refresh_every and c.train.mode == "online"
            ):  # a refresh of n batches every n iterations: one batch per iteration on average
                updates = -(-c.rollout.groups * c.rollout.group_size // size)
        if updates:
            passes = (0 if layout.chunks(rows) == 1 else 1) + layout.training_passes(model)
            yield Program(
                "estimator/update",
                auxiliary_step,
                (self.state, layout.shapes(rows, size, signals)),
                self._update([0], 0),
                times=updates,
                trips=layout.chunks(rows),
                kernel_flops=layout.kernel_flops(model, rows, passes),
            )

    def _parts(self, batch: Batch, episodes: np.ndarray) -> Iterator[tuple[Batch, int]]:
        """Yields mini-batches of episodes, all of one shape, and the number of episodes in each."""
        size, rows = self.c.minibatch_episodes, row_episodes(batch)
        capacity = self.layout.row_capacity(size)
        for first in range(0, len(episodes), size):
            some = episodes[first : first + size]
            yield take_episodes(batch, some, capacity, size, rows), len(some)


def held_out_groups(group_id: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Draws the group ids of a random share of the tasks, on which the estimator never trains."""
    groups = np.unique(group_id)
    count = int(round(share * len(groups)))
    return np.sort(np.random.default_rng(streams.host(seed, "estimator_held_out")).permutation(groups)[:count])


def with_labels(batch: Batch, episodes, method) -> Batch:
    """Adds the label signals that the method's loss reads, which are deterministic."""
    return batch.with_signals(**method.labels(batch, episodes)) if method.label_signals else batch


def check_outcomes(batch: Batch) -> None:
    """Raises a UserError if an outcome is outside [0, 1], the range for which the progress estimator is trained."""
    outcome = np.asarray(batch.outcome)[np.asarray(batch.episode_mask)]
    if outcome.size and (outcome.min() < 0 or outcome.max() > 1):
        raise UserError(
            f"outcomes range from {outcome.min():.3g} to {outcome.max():.3g}, but the progress estimator needs outcomes in [0, 1]: set "
            "credit.outcome=success, or choose credit.outcome_scale so that the scaled return is in this range."
        )
