"""Exact values of a policy in a finite task, by dynamic programming over the steps that are left.

`T` is the padded number of steps, `S` the number of states, `A` that of actions, `K` that of outcomes of an action. A policy is given by
the logarithms of its probabilities, `[S, A]`, or `[T, S, A]` where it depends on the step. All functions are pure, and can be jitted and
mapped over policies.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from stepreward.arena.task import Task

Array = jax.Array


class Values(NamedTuple):
    """Expected outcomes under a policy, float32.

    Attributes:
      value: `[T + 1, S]`, V_t(s): the expected reward from step t on, in state s; 0 from the horizon on.
      q: `[T, S, A]`, Q_t(s, a).
      advantage: `[T, S, A]`, A_t(s, a) = Q_t(s, a) − V_t(s).
    """

    value: Array
    q: Array
    advantage: Array


def by_step(log_policy: Array, task: Task) -> Array:
    """`[T, S, A]`: the policy at each step, from one of `[S, A]` or `[T, S, A]`."""
    return jnp.broadcast_to(log_policy, (task.max_steps, *log_policy.shape[-2:]))


def values(task: Task, log_policy: Array, reward: Array | None = None) -> Values:
    """The exact values of a policy.

    Q_t(s, a) = Σ_k p_k·(r_k + [not terminal]·V_{t+1}(s'_k)),  V_t(s) = Σ_a π_t(a | s)·Q_t(s, a),  V = 0 from the horizon on

    Args:
      task: the task.
      log_policy: log-probabilities, `[S, A]` or `[T, S, A]`.
      reward: float `[S, A, K]` in place of the task's reward.
    """
    probability_TxSxA = jnp.exp(by_step(log_policy, task))
    return _backwards(task, lambda q, p: (p * q).sum(axis=1), probability_TxSxA, task.reward if reward is None else reward)


def optimal(task: Task, step_cost: float = 0.0) -> Values:
    """The values of the best policy that may depend on the step: V_t(s) = max_a Q_t(s, a).

    Args:
      step_cost: subtracted from the reward of every step.
    """
    return _backwards(task, lambda q, _: q.max(axis=1), jnp.zeros((task.max_steps, 1, 1)), task.reward - step_cost)


def expert(task: Task) -> Array:
    """`[T, S, A]`: log-probabilities of a best policy that does not dawdle, and draws uniformly among the best actions.

    Each step costs 0.001: while there is time left, a policy that is only best in its outcome may do anything.
    """
    q = optimal(task, step_cost=1e-3).q
    best = q >= q.max(axis=2, keepdims=True) - 1e-5
    return jnp.where(best, 0.0, -1e9) - jnp.log(best.sum(axis=2, keepdims=True))


def _backwards(task: Task, value_of, extra_T, reward_SxAxK: Array) -> Values:
    goes_on_SxAxK = task.probability * ~task.terminal
    reward_SxA = (task.probability * reward_SxAxK).sum(axis=2)

    def back(value_S, at):
        step, extra = at
        q_SxA = reward_SxA + (goes_on_SxAxK * value_S[task.next_state]).sum(axis=2)
        q_SxA = jnp.where(step < task.horizon, q_SxA, 0.0)
        value_S = value_of(q_SxA, extra)
        return value_S, (value_S, q_SxA)

    last_S = jnp.zeros(task.num_states)
    _, (value_TxS, q_TxSxA) = jax.lax.scan(back, last_S, (jnp.arange(task.max_steps), extra_T), reverse=True)
    return Values(jnp.concatenate([value_TxS, last_S[None]]), q_TxSxA, q_TxSxA - value_TxS[..., None])


def expected_outcome(task: Task, log_policy: Array) -> Array:
    """The expected reward of an episode, a scalar."""
    return (task.start * values(task, log_policy).value[0]).sum()


def success(task: Task, log_policy: Array) -> Array:
    """The probability that an episode succeeds, a scalar."""
    return (task.start * values(task, log_policy, task.success.astype(jnp.float32)).value[0]).sum()


def steps_to_come(task: Task, log_policy: Array) -> Array:
    """float32 `[T + 1, S]`: how many steps an episode still takes on average: what it costs to play on from a state."""
    return values(task, log_policy, jnp.ones_like(task.reward)).value


def occupancy(task: Task, log_policy: Array) -> Array:
    """float32 `[T, S]`: the probability that an episode takes its step t in state s."""
    probability_TxSxA = jnp.exp(by_step(log_policy, task))
    goes_on_SxAxK = task.probability * ~task.terminal

    def forth(occupied_S, at):
        step, probability_SxA = at
        occupied_S = jnp.where(step < task.horizon, occupied_S, 0.0)
        flow_SxAxK = (occupied_S[:, None] * probability_SxA)[..., None] * goes_on_SxAxK
        return jnp.zeros_like(occupied_S).at[task.next_state].add(flow_SxAxK), occupied_S

    return jax.lax.scan(forth, task.start, (jnp.arange(task.max_steps), probability_TxSxA))[1]


def policy_gradient(task: Task, logits: Array) -> Array:
    """The exact gradient of the expected outcome with respect to the logits of a tabular softmax policy.

    ∂J/∂θ(s, a) = Σ_t d_t(s)·π(a | s)·A_t(s, a), d_t the occupancy; without the sum over t where the logits depend on the step

    Args:
      logits: `[S, A]` or `[T, S, A]`.

    Returns:
      float32, the shape of `logits`.
    """
    log_policy = jax.nn.log_softmax(logits)
    weight_TxSxA = occupancy(task, log_policy)[..., None] * jnp.exp(by_step(log_policy, task))
    gradient_TxSxA = weight_TxSxA * values(task, log_policy).advantage
    return gradient_TxSxA if logits.ndim == 3 else gradient_TxSxA.sum(axis=0)
