"""The critic: values of all action tokens, and updates of a critic with its own backbone.

`policy.policy_step` updates a critic that shares the policy's backbone.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from stepreward import processes
from stepreward.batch import Batch
from stepreward.kernels import clipped_value_loss
from stepreward.models.adapters import join
from stepreward.programs import Program
from stepreward.training import chunks, streams
from stepreward.training.auxiliaries.base import AFTER_CREDIT, Auxiliary, Lesson
from stepreward.training.backbones import Backbone
from stepreward.training.layout import Layout
from stepreward.training.state import TrainState, apply_gradients, create, make_optimizer, mean_metrics

Array = jax.Array

BACKBONES = ("separate", "shared")
VALUE_SIGNALS = ("value", "returns", "value_mask")


@dataclasses.dataclass(frozen=True)
class ValueLoss:
    """L = ½ · mean of the clipped squared error; see `kernels.clipped_value_loss`.

    Attributes:
      clip: maximum distance ε from the value with which advantages were computed; None does not clip.
      coef: weight in the policy's loss, if critic and policy share a backbone.
    """

    clip: float | None = 0.2
    coef: float = 0.1

    def __call__(self, value_RxL: Array, chunk: dict[str, Array], denominator: Array) -> tuple[Array, dict[str, Array]]:
        return clipped_value_loss(value_RxL, chunk["value"], chunk["returns"], chunk["value_mask"], clip=self.clip, denominator=denominator)


def value_signals(batch: Batch) -> dict[str, Array]:
    """The `[R, L]` arrays that a value loss reads."""
    return {name: batch.signals[name] for name in VALUE_SIGNALS}


@partial(jax.jit, static_argnames=("graphdef", "chunk_rows", "max_actions"))
def values(params, batch: Batch, *, graphdef, chunk_rows, max_actions=None, base=None) -> Array:
    """The value of the state before each action token, float32 `[R, L]`; 0 elsewhere.

    Args:
      params: `{"decoder", "scalar_head"}`.
    """
    apply = lambda rows: (chunks.head_outputs_of(graphdef, join(base, params), rows, max_actions, before=True),)
    return chunks.map_rows(apply, batch, chunk_rows)[0]


@partial(jax.jit, static_argnames=("graphdef", "optimizer", "loss", "chunk_rows", "max_actions"), donate_argnames="state")
def critic_step(
    state: TrainState,
    batch: Batch,
    *,
    graphdef,
    optimizer,
    loss: ValueLoss,
    chunk_rows,
    max_actions=None,
    base=None,
    dropout_key=None,
) -> tuple[TrainState, dict[str, Array]]:
    """One update of a separate critic on one mini-batch of rows, which has the signals of `value_signals`."""
    count = jnp.maximum(batch.signals["value_mask"].sum(), 1)
    chunked = chunks.row_inputs(batch, chunk_rows, dropout_key) | {k: chunks.split(v, chunk_rows) for k, v in value_signals(batch).items()}
    loss_fn = lambda params, c: loss(chunks.head_outputs_of(graphdef, join(base, params), c, max_actions, before=True), c, count)
    grads, metrics = chunks.accumulate(loss_fn, state.params, chunked, chunks.used_chunks(batch.action_mask, chunk_rows))
    state, more = apply_gradients(state, grads, optimizer)
    return state, metrics | more


class Critic(Auxiliary):
    """The critic of a run.

    Attributes:
      state: parameters and optimizer of a separate critic; None before `begin`, and for a shared backbone.
      model: the critic's backbone; None before `begin`.
      shared: whether the critic is a head on the policy's backbone, whose parameters are then part of the policy's.
    """

    name = "critic"
    order = 1
    provides = frozenset({"value"})

    def __init__(self, c, parts, layout: Layout, key: jax.Array):
        self.c, self.seed, self.method, self.layout, self.key = c.critic, c.seed, parts.method, layout, streams.device(key, "critic_head")
        self.shared = c.critic.backbone == "shared"
        self.loss = value_loss(c)
        self.optimizer = make_optimizer(c.critic, c.model.moment_dtype)
        self.state: TrainState | None = None
        self.model: Backbone | None = None

    @classmethod
    def wanted(cls, method) -> bool:
        return method.has_critic

    @property
    def begun(self) -> bool:
        return self.shared or self.state is not None

    @property
    def when(self) -> str | None:
        return None if self.shared else AFTER_CREDIT

    @property
    def value_loss(self) -> ValueLoss | None:
        return self.loss if self.shared else None

    @property
    def reads_with_policy(self) -> tuple[str, ...]:
        return VALUE_SIGNALS if self.shared else ()

    def joined(self, params):
        return self.headed(params) if self.shared else params

    def policy_signals(self, batch: Batch, credit) -> dict:
        return self._signals(batch, credit) if self.shared else {}

    def _signals(self, batch: Batch, credit) -> dict:
        mask = np.asarray(_value_mask(self.method, batch))
        return {"value": batch.signals["value"], "returns": np.asarray(credit.returns), "value_mask": mask}

    def begin(self, model: Backbone, params) -> None:
        """Initialises a separate critic as a copy of the policy with a new head."""
        self.model = model
        if not self.shared:
            self.state = create(self.headed(params), self.optimizer)

    def headed(self, params):
        """Returns a decoder's parameters with those of a new head added."""
        return self.layout.headed(self.model, params, self.key, self.c.head)

    def scores(self, placed: Batch, to_rows, policy_params) -> dict:
        """Returns the values before all action tokens, `[R, L]`."""
        params = policy_params if self.shared else self.state.params
        return {"value": to_rows(processes.to_host(values(params, placed, **self.layout.passes(self.model))))}

    def learn(self, lesson: Lesson) -> dict:
        """Trains a separate critic on the returns; returns metrics."""
        batch = lesson.batch.with_signals(**self._signals(lesson.batch, lesson.credit))
        return self.update(batch, streams.host(self.seed, "policy", lesson.iteration, 1))

    def update(self, batch: Batch, seed) -> dict:
        """Trains a separate critic for several epochs over shuffled rows, with the signals of `value_signals`; returns metrics."""
        started, outs, rng = time.monotonic(), [], np.random.default_rng(seed)
        batch = batch.replace(signals=value_signals(batch))
        for part in self.layout.minibatches(batch, self.c.minibatch_rows, self.c.epochs, rng):
            self.state, out = critic_step(self.state, part, **self._update(seed, len(outs)))
            outs.append(out)
        metrics = {f"critic/{name}": value for name, value in mean_metrics(outs).items()}
        return metrics | {"time/critic_s": time.monotonic() - started}

    def saved(self) -> tuple[dict, dict]:
        return ({} if self.shared else {"state": self.state}), {}

    def load(self, saved: dict, facts: dict) -> None:
        self.state = saved.get("state")

    def _update(self, seed, update: int) -> dict:
        return dict(
            optimizer=self.optimizer,
            loss=self.loss,
            **self.layout.passes(self.model),
            **self.layout.training(self.model, seed, update),
        )

    def programs(self, stage: str, policy_params=None) -> Iterator[Program]:
        """See `Component.programs`; a critic that shares the policy's backbone reads `policy_params`."""
        if stage != "train":
            return
        layout, model = self.layout, self.model
        yield Program(
            "critic/values",
            values,
            (policy_params if self.shared else self.state.params, layout.shapes()),
            layout.passes(model),
            trips=layout.chunks(),
            kernel_flops=layout.kernel_flops(model),
        )
        if not self.shared:
            rows = layout.minibatch_capacity(self.c.minibatch_rows)
            yield Program(
                "critic/update",
                critic_step,
                (self.state, layout.shapes(rows, signals=VALUE_SIGNALS)),
                self._update([0], 0),
                times=self.c.epochs * -(-layout.capacity // rows),
                trips=layout.chunks(rows),
                kernel_flops=layout.kernel_flops(model, rows, layout.training_passes(model)),
            )


@partial(jax.jit, static_argnums=0)
def _value_mask(method, batch):
    return method.value_mask(batch)


def value_loss(c) -> ValueLoss:
    """Returns the critic's objective, with the config's settings."""
    return ValueLoss(c.critic.clip or None, c.critic.coef)
