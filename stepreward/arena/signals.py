"""The signals of credit methods in the arena, as arrays: those that a run's host computes from episodes, and stand-ins for what a language
model or a judge would say.

Each function of `PROVIDED` takes a `Moment` and the method, and returns the signal of its name. `TOLD` says in a few words what a signal
knows that no agent would know, and what it stands in for.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from stepreward.arena import exact
from stepreward.arena.play import Episodes
from stepreward.arena.task import SUBGOALS, UNREACHABLE, Task
from stepreward.batch import Batch
from stepreward.credit.base import step_mask
from stepreward.credit.branches import numbered
from stepreward.envs.parsing import TAGS

Array = jax.Array

FLOOR = 1e-3  # the least probability of success whose logarithm is a signal
JUDGE_NOISE = 0.2  # standard deviation of the judge's noise


class Moment(NamedTuple):
    """What signals are computed from.

    Attributes:
      task: the task.
      episodes: the episodes of the batch.
      batch: the batch, without signals.
      policy: `[S, A]`, log-probabilities of the policy that played.
      start: `[S, A]`, those of the policy that learning started from.
      trained: `[S, A]`, those of a policy that was trained elsewhere, see `measure.half_trained`.
      values: the exact values of `policy`.
      start_success: `[T + 1, S]`, the exact probability of success under `start`.
      key: random key.
    """

    task: Task
    episodes: Episodes
    batch: Batch
    policy: Array
    start: Array
    trained: Array
    values: exact.Values
    start_success: Array
    key: Array

    def of_steps(self, table_TxS: Array) -> Array:
        """`[E, T]`: an entry of a table by step and state, for each step's state."""
        return table_TxS[jnp.arange(self.task.max_steps), self.episodes.state]

    def of_actions(self, table: Array) -> Array:
        """`[E, T]`: an entry of a table `[S, A]` or `[T, S, A]` for the action of each step."""
        state, action = self.episodes.state, self.episodes.action
        return table[state, action] if table.ndim == 2 else table[jnp.arange(self.task.max_steps), state, action]


# --- What the host computes from episodes ---


def first_equal(key_ExT: Array, mask_ExT: Array, size: int) -> Array:
    """int32 `[E, T]`: equal keys get the flat index of their first step, −1 off the mask.

    Args:
      key_ExT: int32, below `size`.
    """
    flat = jnp.arange(key_ExT.size).reshape(key_ExT.shape)
    of_key = jax.ops.segment_min(flat.reshape(-1), jnp.where(mask_ExT, key_ExT, size).reshape(-1), num_segments=size + 1)
    return jnp.where(mask_ExT, of_key[jnp.where(mask_ExT, key_ExT, size)], -1).astype(jnp.int32)


def anchor_id(m: Moment, method) -> Array:
    """GiGPO: steps of a group that were taken in the same state."""
    states = m.task.num_states
    return first_equal(m.batch.group_id[:, None] * states + m.episodes.state, step_mask(m.batch), states * m.batch.num_episodes)


def level_id(m: Moment, method) -> Array:
    """HGPO: steps of a group whose last 1, 2, … states are equal."""
    mask, size = step_mask(m.batch), m.episodes.state.size
    levels = [anchor_id(m, method)]
    for _ in range(method.history):
        before = jnp.pad(levels[-1][:, :-1], ((0, 0), (1, 0)), constant_values=-1)
        pairs = jnp.where((before >= 0) & mask, before * size + levels[0], -1)
        number = numbered(pairs, m.batch)
        levels.append(jnp.where(number.known, number.number, -1))
    return jnp.stack(levels, axis=-1)


def equal_id(m: Moment, method) -> Array:
    """SALT: steps of a group with the same state and action."""
    if method.key != "state_action":
        raise ValueError(f"the arena computes the signal equal_id for key='state_action', not {method.key!r}")
    states, actions = m.policy.shape
    key = (m.batch.group_id[:, None] * states + m.episodes.state) * actions + m.episodes.action
    return first_equal(key, step_mask(m.batch), states * actions * m.batch.num_episodes)


def step_permutation(m: Moment, method) -> Array:
    """A random order of the steps of each episode; the steps are the first entries of a row."""
    steps = m.task.max_steps
    uniform = jax.random.uniform(m.key, m.batch.step_mask.shape)
    return jnp.argsort(jnp.where(m.batch.step_mask, uniform, 1.0 + jnp.arange(steps)), axis=1).astype(jnp.int32)


def turn_reward(m: Moment, method) -> Array:
    """The change of the share of subgoals that have been reached."""
    gained = m.task.subgoal[m.episodes.next_state] - m.task.subgoal[m.episodes.state]
    return jnp.where(step_mask(m.batch), gained / m.task.subgoals, 0.0).astype(jnp.float32)


def automaton_state(m: Moment, method) -> Array:
    """The automaton of subgoals counts the most subgoals that the episode has reached, so that none is rewarded twice."""
    return jnp.where(step_mask(m.batch), jax.lax.cummax(m.task.subgoal[m.episodes.state], axis=1), -1)


def automaton_next(m: Moment, method) -> Array:
    reached = jnp.maximum(m.task.subgoal[m.episodes.state], m.task.subgoal[m.episodes.next_state])
    return jnp.where(step_mask(m.batch), jax.lax.cummax(reached, axis=1), -1)


def automaton_distances(task: Task) -> Array:
    """float32 `[SUBGOALS + 1]`, d_0: the number of subgoals that are missing."""
    return jnp.maximum(task.subgoals - jnp.arange(SUBGOALS + 1), 0).astype(jnp.float32)


# --- What branches tell ---


def mc_value(m: Moment, method) -> Array:
    """The mean outcome of k episodes that are played on from each state, or from each cut.

    An outcome is 0 or 1, so that k independent continuations from a state have Bernoulli outcomes with its exact value as probability:
    they are drawn as such, which is the same distribution as that of playing them.
    """
    k = method.strategy_options["k"]
    chance = jnp.clip(m.of_steps(m.values.value[:-1]), 0.0, 1.0)
    mean = (jax.random.uniform(m.key, (k, *chance.shape)) < chance).mean(axis=0)
    measured = cut_points(m, method) if method.strategy_options["at"] == "cuts" else step_mask(m.batch)
    return jnp.where(measured, mean, jnp.nan).astype(jnp.float32)


def cut_points(m: Moment, method) -> Array:
    """bool `[E, T]`: where a segment starts, as `rollout.strategies.restore.cut_points`; a step is one token."""
    options = method.strategy_options

    def forward(uncertain, at):
        mask, log_prob = at
        cut = mask & (uncertain >= options["tokens_per_cut"])
        uncertain = jnp.where(cut, 0, uncertain)
        return uncertain + (mask & (log_prob < np.log(options["below"]))), cut

    first = jnp.full(m.batch.num_episodes, options["tokens_per_cut"])
    return jax.lax.scan(forward, first, (step_mask(m.batch).T, m.batch.log_prob_old.T))[1].T


def branch_steps(m: Moment, method) -> Array:
    """The environment steps that the continuations of `mc_value` take on average, a scalar."""
    measured = cut_points(m, method) if method.strategy_options["at"] == "cuts" else step_mask(m.batch)
    to_come = m.of_steps(exact.steps_to_come(m.task, m.policy)[:-1])
    return method.strategy_options["k"] * jnp.where(measured, to_come, 0.0).sum()


# --- Stand-ins for what models and judges say ---


def answer_log_prob(m: Moment, method) -> Array:
    """IGPO: the logarithm of the exact probability of success from the state, under the policy that learning started from."""
    return jnp.log(jnp.maximum(m.of_steps(m.start_success[:-1]), FLOOR))


def process_score(m: Moment, method) -> Array:
    """PPR: 0.8, 0.5 or 0.2 for a step that comes closer to success, keeps the distance, or moves away; with noise, and clipped to [0, 1]."""
    distance = jnp.minimum(m.task.distance, UNREACHABLE)
    won = m.episodes.reward > 0
    closer = jnp.where(won, 1.0, jnp.sign(distance[m.episodes.state] - distance[m.episodes.next_state]))
    noise = JUDGE_NOISE * jax.random.normal(m.key, closer.shape)
    return jnp.clip(0.5 + 0.3 * closer + noise, 0.0, 1.0)


def log_prob_hindsight(m: Moment, method) -> Array:
    """HCAPO: log π(a | s, the episode succeeds) by Bayes' rule with exact values; 0 in an episode that failed."""
    value, q = m.of_steps(m.values.value[:-1]), m.of_actions(m.values.q)
    told = m.of_actions(m.policy) + jnp.log(jnp.maximum(q, FLOOR)) - jnp.log(jnp.maximum(value, FLOOR))
    return jnp.where(m.batch.success[:, None], told, 0.0)


def tag_id(m: Moment, method) -> Array:
    """RLVMR: the kind of thought before a step: planning first, reflection after an action without effect, else exploring."""
    plan, explores, reflects = (TAGS.index(tag) for tag in ("planning", "explore", "reflection"))
    stuck = jnp.pad(~m.batch.executed[:, :-1], ((0, 0), (1, 0)))
    tag = jnp.where(jnp.arange(m.task.max_steps) == 0, plan, jnp.where(stuck, reflects, explores))
    return jnp.where(step_mask(m.batch), tag, -1).astype(jnp.int32)


def rule_reward(m: Moment, method) -> Array:
    """RLVMR: a plan pays in a success, exploring if it finds a state that is new in the episode, reflection if the action has an effect."""
    plan, explores, reflects = (TAGS.index(tag) for tag in ("planning", "explore", "reflection"))
    tag = tag_id(m, method)
    kept = (tag == plan) & m.batch.success[:, None] | (tag == explores) & new_state(m) | (tag == reflects) & m.batch.executed
    size = jnp.select([tag == plan, tag == explores, tag == reflects], [method.planning, method.explore, method.reflection], 0.0)
    return jnp.where(step_mask(m.batch) & kept, size, 0.0).astype(jnp.float32)


def new_state(m: Moment) -> Array:
    """bool `[E, T]`: whether the step led to a state that its episode had not been in."""

    def forward(seen, at):
        after, mask = at
        place = jnp.arange(len(after))
        new = mask & ~seen[place, after]
        return seen.at[place, after].max(mask), new

    count, states = m.batch.num_episodes, m.task.num_states
    seen = jnp.zeros((count, states), bool).at[jnp.arange(count), m.episodes.state[:, 0]].set(True)
    return jax.lax.scan(forward, seen, (m.episodes.next_state.T, step_mask(m.batch).T))[1].T


def _of_table(name: str):
    return lambda m, method: jnp.where(m.batch.action_mask, m.of_actions(getattr(m, name)), 0.0)


def exact_advantage(m: Moment, method) -> Array:
    """The exact advantage of each step's action under the policy that played."""
    return jnp.where(step_mask(m.batch), m.of_actions(m.values.advantage), 0.0)


def _of_strategy(name: str):
    return lambda m, method: m.episodes.signals[name]


PROVIDED = {
    "anchor_id": anchor_id,
    "level_id": level_id,
    "equal_id": equal_id,
    "step_permutation": step_permutation,
    "turn_reward": turn_reward,
    "automaton_state": automaton_state,
    "automaton_next": automaton_next,
    "mc_value": mc_value,
    "answer_log_prob": answer_log_prob,
    "process_score": process_score,
    "log_prob_hindsight": log_prob_hindsight,
    "tag_id": tag_id,
    "rule_reward": rule_reward,
    "log_prob_initial": _of_table("start"),
    "log_prob_start": _of_table("start"),
    "log_prob_trained": _of_table("trained"),
    "exact_advantage": exact_advantage,
    **{name: _of_strategy(name) for name in ("node_id", "segment_id", "sibling_id", "segment_value", "parent_value")},
}

TOLD = {
    "turn_reward": "subgoals",
    "automaton_state": "subgoals",
    "answer_log_prob": "exact success of the first policy (stands in for the log-probability of an answer)",
    "process_score": "noisy distance to the goal (stands in for a judge)",
    "log_prob_hindsight": "exact posterior of the action in a success (stands in for a hindsight prompt)",
    "tag_id": "tags by rule (stand in for tagged thoughts)",
    "log_prob_trained": "a half-trained policy (stands in for a trained checkpoint)",
    "discriminator_logit": "episodes of a best policy",
    "exact_advantage": "exact advantages",
}
