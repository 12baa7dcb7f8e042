"""What learns beside the policy in the arena: tables in place of the models of `training/auxiliaries`.

A table is a `Learner`: its numbers and the state of its optimizer, Adam as in the trainer. The losses are those of the credit method
and of `kernels`, on the same batches as a language model's.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from stepreward.arena.play import Episodes
from stepreward.batch import Batch
from stepreward.credit import Credit, Method
from stepreward.kernels import clipped_value_loss

Array = jax.Array


class Learner(NamedTuple):
    """A table and the state of its optimizer."""

    table: Array
    state: Any


def optimizer(max_norm: float) -> optax.GradientTransformation:
    """Clipping by global norm and Adam, without the learning rate."""
    return optax.chain(optax.clip_by_global_norm(max_norm), optax.scale_by_adam())


POLICY, PRM = optimizer(1.0), optimizer(10.0)  # max_grad_norm of the trainer: 10 for the PRM, 1 for all others
OPTIMIZERS = {"adam": POLICY, "sgd": optax.identity()}  # of the policy


def fresh(table: Array, made: optax.GradientTransformation = POLICY) -> Learner:
    return Learner(table, made.init(table))


def descend(learner: Learner, gradient: Array, rate: Array | float, wanted: Array | bool = True, made=POLICY) -> Learner:
    """One update; none where `wanted` is False."""
    change, state = made.update(gradient, learner.state)
    updated = Learner(learner.table - rate * change, state)
    return jax.tree.map(lambda new, old: jnp.where(wanted, new, old), updated, learner)


def shuffled_groups(key: Array, batches: Any, parts: int) -> Any:
    """The leading axis of each array in random order, in `parts` equal parts."""
    count = len(jax.tree.leaves(batches)[0])
    order = jax.random.permutation(key, count)
    return jax.tree.map(lambda x: x[order].reshape(parts, count // parts, *x.shape[1:]), batches)


# --- Critic ---


def critic_values(table: Array, episodes: Episodes) -> Array:
    """`[E, T]`: V of the state before each step, from a table `[S]` or `[T, S]`."""
    return table[episodes.state] if table.ndim == 1 else table[jnp.arange(table.shape[0]), episodes.state]


def train_critic(learner: Learner, method: Method, batch: Batch, episodes: Episodes, credit: Credit, rate: float, epochs: int) -> Learner:
    """Regression on the credit's returns, clipped around the values that the credit read (`critic.clip` = 0.2)."""
    mask = method.value_mask(batch)

    def loss(table):
        return clipped_value_loss(critic_values(table, episodes), batch.signals["value"], credit.returns, mask, clip=0.2)[0]

    return jax.lax.fori_loop(0, epochs, lambda _, found: descend(found, jax.grad(loss)(found.table), rate), learner)


# --- PRM ---


def log_probs(logits: Array, batch: Batch, state: Array) -> Array:
    """`[E, T]`: log-probabilities of the actions under a softmax table, 0 off the action mask."""
    of_states = jax.nn.log_softmax(logits)[state]
    return jnp.where(batch.action_mask, jnp.take_along_axis(of_states, batch.tokens[..., None], axis=2)[..., 0], 0.0)


def train_prm(learner: Learner, method: Method, batches: Batch, states: Array, valid: Array, rate: Array, key: Array) -> Learner:
    """One update on each of some batches, which are stacked along a first axis, in random order.

    Args:
      states: int32 `[B, E, T]`.
      valid: bool `[B]`, which of them there are.
    """

    def update(found, at):
        batch, state, there = at
        loss = lambda logits: method.with_coefficients(batch).prm_loss(log_probs(logits, batch, state), batch)
        gradient, metrics = jax.grad(loss, has_aux=True)(found.table)
        learns = there & ((metrics["pairs"] > 0) if method.needs_pairs else True)
        return descend(found, gradient, rate, learns, PRM), None

    order = jax.random.permutation(key, len(valid))
    return jax.lax.scan(update, learner, jax.tree.map(lambda x: x[order], (batches, states, valid)))[0]


# --- Estimator and discriminator ---


def train_estimator(learner: Learner, method: Method, batches: Batch, states: Array, rate: float, epochs: int) -> Learner:
    """Passes over mini-batches of explored episodes, stacked along a first axis; the output of a step is that of its state and action."""

    def update(found, at):
        batch, state = at
        loss = lambda table: method.with_coefficients(batch).losses["estimator"](table[state, batch.tokens], batch)[0]
        return descend(found, jax.grad(loss)(found.table), rate), None

    once = lambda _, found: jax.lax.scan(update, found, (batches, states))[0]
    return jax.lax.fori_loop(0, epochs, once, learner)


def train_discriminator(
    learner: Learner, method: Method, batch: Batch, state: Array, shown: Batch, shown_state: Array, rate: float
) -> Learner:
    """One update on the policy's episodes and as many of the expert."""
    both = together(batch, shown)
    states, expert = jnp.concatenate([state, shown_state]), jnp.arange(both.num_episodes) >= batch.num_episodes
    both = both.replace(signals={k: v for k, v in batch.signals.items() if k.startswith("scheduled_")}).with_signals(from_expert=expert)
    loss = lambda table: method.with_coefficients(both).losses["discriminator"](table[states, both.tokens], both)[0]
    return descend(learner, jax.grad(loss)(learner.table), rate, batch.episode_mask.any())


def together(a: Batch, b: Batch) -> Batch:
    """The episodes of two batches without signals, whose rows are episodes of the same length."""
    a, b = a.replace(signals={}), b.replace(signals={})
    count, steps = a.step_mask.shape
    step_id = jnp.where(b.step_id >= 0, b.step_id + count * steps, -1)
    b = b.replace(step_id=step_id, group_id=b.group_id + count)
    return jax.tree.map(lambda x, y: jnp.concatenate([x, y]), a, b)
