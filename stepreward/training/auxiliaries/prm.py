"""The implicit process reward model (PRM): it scores tokens, and is trained on pairs or labels of whole episodes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from functools import partial
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np

from stepreward import processes
from stepreward.batch import Batch
from stepreward.credit.schedules import Standing
from stepreward.programs import Program
from stepreward.training import backbones, streams
from stepreward.training.auxiliaries.base import AFTER_CREDIT, AFTER_POLICY, BEFORE_CREDIT, Auxiliary, Lesson
from stepreward.training.auxiliaries.update import LogProbs, auxiliary_step
from stepreward.training.backbones import Backbone
from stepreward.training.layout import Layout
from stepreward.training.minibatches import group_minibatches
from stepreward.training.scoring import score
from stepreward.training.state import TrainState, create, make_optimizer, mean_metrics

Array = jax.Array


class ProcessRewardModel(Auxiliary):
    """The PRM of a run.

    Attributes:
      state: parameters and optimizer; None before `begin`.
      model: the PRM's backbone; None before `begin`.
      replay: earlier batches, newest first, on which every update trains again.
      labels: the labels (`Method.labels`) of the batch that is scored next.
    """

    name = "prm"
    title = "PRM"
    order = 0
    provides = frozenset({"log_prob_prm"})

    def __init__(self, c, parts, layout: Layout, key: jax.Array | None = None):
        self.c, self.parts, self.method, self.layout = c, parts, parts.method, layout
        self.optimizer = make_optimizer(c.prm, c.model.moment_dtype)
        self.state: TrainState | None = None
        self.model: Backbone | None = None
        self.replay: list[Batch] = []
        self.labels: dict[str, np.ndarray] = {}

    @property
    def params(self):
        return self.state.params

    @property
    def actor(self):
        """The PRM's decoder, to play with."""
        return self.model.join(self.params)

    @classmethod
    def wanted(cls, method) -> bool:
        return method.has_prm

    @property
    def begun(self) -> bool:
        return self.state is not None

    @property
    def when(self) -> str | None:
        if self.method.prm_frozen:
            return None
        if self.c.prm.resync:  # the update starts from the new policy, which plays the next batch
            return AFTER_POLICY
        return BEFORE_CREDIT if self.method.reward_from == "post" else AFTER_CREDIT

    def begin(self, model: Backbone, params) -> None:
        """Initialises the PRM as a copy of the policy, or from the model that the config names."""
        self.model, params = backbones.prm_model(self.c, self.parts, model, params)
        self.state = create(params, self.optimizer)

    def prepare(self, batch: Batch, episodes) -> dict:
        """Finds the labels of the batch that its loss reads; returns no metrics."""
        self.labels = self.method.labels(batch, episodes)
        return {}

    def scores(self, placed: Batch, to_rows, policy_params) -> dict:
        """Returns the log-probabilities of action tokens under the PRM, `[R, L]`, and the labels of the batch."""
        found = score(self.params, self.model.reads(placed), **self.layout.scoring(self.model))[0]
        return {"log_prob_prm": to_rows(processes.to_host(found)), **self.labels}

    def look(self, batch: Batch) -> tuple[dict, dict]:
        """Returns the pair accuracy on a batch that the PRM has not learnt from, 0.5 without a pair, and metrics."""
        loss, found = _loss(self.method, batch)
        accuracy = float(found["pair_accuracy"]) if float(found["pairs"]) else 0.5
        metrics = {f"prm/{name}": float(value) for name, value in found.items()} | {"prm/pair_accuracy": accuracy, "prm/loss": float(loss)}
        return {"pair_accuracy": accuracy}, metrics

    def credited(self, credit) -> dict:
        """Returns an estimate of KL(behaviour policy ‖ PRM), in nats per token, if the method computes one."""
        return {"prm/kl_policy": float(credit.metrics["prm_kl_k3"])} if "prm_kl_k3" in credit.metrics else {}

    def plays(self, iteration: int) -> bool:
        every = self.c.eval.prm_as_policy_every
        return bool(every) and iteration % every == 0 and not self.method.prm_frozen

    def learn(self, lesson: Lesson) -> dict:
        """Trains on this batch and the replayed ones; returns metrics."""
        return self.update(lesson.batch, streams.host(self.c.seed, "prm", lesson.iteration), lesson.policy, lesson.coefficients)

    def warm_up(self, batch: Batch, number: int, policy_params) -> dict:
        """Trains as in `learn`, before the first iteration; `number` counts the warm-up batches from 0."""
        return self.update(batch, streams.host(self.c.seed, "prm_warmup", number), policy_params, self.method.scheduled_values(Standing()))

    def update(self, batch: Batch, seed, policy_params, coefficients: Mapping[str, np.float32] = MappingProxyType({})) -> dict:
        """Trains on this batch and the replayed ones, each with its own log-probabilities at collection; returns metrics.

        Args:
          coefficients: the values of scheduled coefficients, as scalar signals; for the replayed batches too.
        """
        if self.method.prm_frozen:
            return {}
        c, started, outs, metrics = self.c.prm, time.monotonic(), [], {}
        if c.resync:
            self.state = self.state.replace(params=jax.tree.map(jnp.copy, policy_params))
        rng = np.random.default_rng(seed)
        batch = batch.replace(signals={name: batch.signals[name] for name in self.method.prm_signals})
        groups, capacity = self._minibatch
        for _ in range(c.epochs):
            mixed = self.method.needs_pairs
            parts = [p for b in [batch, *self.replay] for p in group_minibatches(b, groups, capacity, rng, mixed_only=mixed)]
            for index in rng.permutation(len(parts)):
                part = self.layout.place_for_training(self.model.reads(parts[index]).with_signals(**coefficients))
                self.state, out = auxiliary_step(self.state, part, **self._update(seed, len(outs)))
                outs.append(out)
        if c.replay:
            self.replay = [batch, *self.replay][: c.replay]
        if outs:  # empty if no group has a pair
            means = mean_metrics(outs)
            metrics["prm/grad_norm"] = means.pop("grad_norm")
            metrics |= {f"prm/train_{name}": value for name, value in means.items()}
        metrics["time/prm_s"] = time.monotonic() - started
        return metrics

    def saved(self) -> tuple[dict, dict]:
        trees = {"state": self.state} | ({"replay": self.replay} if self.replay else {})
        return trees, {"replayed": len(self.replay)}

    def expect(self, facts: dict, empty) -> None:
        signals = sorted(self.method.prm_signals)
        self.replay = [empty(signals) for _ in range(facts["replayed"])]

    def load(self, saved: dict, facts: dict) -> None:
        self.state, self.replay = saved["state"], saved.get("replay", [])

    @property
    def _minibatch(self) -> tuple[int, int]:
        """Numbers of groups and of rows in a mini-batch."""
        groups = self.c.prm.minibatch_groups or self.c.rollout.groups
        return groups, self.layout.row_capacity(groups * self.c.rollout.group_size)

    def _update(self, seed, update: int) -> dict:
        return dict(
            name=self.name,
            outputs=LogProbs(self.layout.c.rollout.temperature),
            optimizer=self.optimizer,
            method=self.method,
            **self.layout.passes(self.model),
            **self.layout.training(self.model, seed, update),
        )

    def programs(self, stage: str) -> Iterator[Program]:
        if stage != "train":
            return
        layout, model, c = self.layout, self.model, self.c
        twice = self.method.reward_from == "post"
        yield Program(
            "prm/score",
            score,
            (self.params, model.reads(layout.shapes())),
            layout.scoring(model),
            times=2 if twice else 1,
            trips=layout.chunks(),
            kernel_flops=layout.kernel_flops(model),
        )
        if self.method.prm_frozen:
            return
        groups, rows = self._minibatch
        signals = (*sorted(self.method.prm_signals), *self.method.scheduled_values(Standing()))
        batch = model.reads(layout.shapes(rows, groups * c.rollout.group_size, signals))
        # With more than one chunk, one forward pass computes all outputs before the forward and backward passes.
        passes = (0 if layout.chunks(rows) == 1 else 1) + layout.training_passes(model)
        yield Program(
            "prm/update",
            auxiliary_step,
            (self.state, batch),
            self._update([0], 0),
            times=c.prm.epochs * (1 + c.prm.replay) * -(-c.rollout.groups // groups),
            trips=layout.chunks(rows),
            kernel_flops=layout.kernel_flops(model, rows, passes),
        )


@partial(jax.jit, static_argnums=0)
def _loss(method, batch):
    return method.with_coefficients(batch).prm_loss(batch.signals["log_prob_prm"], batch)
