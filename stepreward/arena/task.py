"""`Task`: a finite task with a horizon, as dense arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

Array = jax.Array

ACTIONS = 4  # of every task
OUTCOMES = 2  # of every action, at most
SUBGOALS = 12  # an upper bound on the subgoals of a task
UNREACHABLE = 1e6  # the distance of a state from which there is no success


@struct.dataclass
class Task:
    """A finite task; a pytree of arrays, so that tasks of one shape share a compiled program.

    Attributes:
      start: float32 `[S]`, the probability of each initial state.
      next_state: int32 `[S, A, K]`, the states that action a may lead to from state s.
      probability: float32 `[S, A, K]`, their probabilities.
      reward: float32 `[S, A, K]`, the reward of each transition. The outcome of an episode is the sum of its rewards.
      terminal: bool `[S, A, K]`, whether the transition ends the episode.
      success: bool `[S, A, K]`, whether it makes the episode a success. In the registered tasks the reward is 1 exactly here.
      subgoal: int32 `[S]`, how many subgoals have been reached in the state: the environment's measure of partial progress.
      subgoals: int32 scalar, the number of all subgoals.
      distance: float32 `[S]`, the least number of steps to success if every step has its likeliest result; `UNREACHABLE` if there is no way.
      horizon: int32 scalar, the steps of an episode, at most; no greater than `max_steps`.
      max_steps: T, the padded number of steps (static).
    """

    start: Array
    next_state: Array
    probability: Array
    reward: Array
    terminal: Array
    success: Array
    subgoal: Array
    subgoals: Array
    distance: Array
    horizon: Array
    max_steps: int = struct.field(pytree_node=False)

    @property
    def num_states(self) -> int:
        return self.next_state.shape[0]


class Result(NamedTuple):
    """One result of an action: the next state (any hashable value), its probability, and whether it is a success or ends the episode."""

    state: object
    probability: float = 1.0
    success: bool = False
    end: bool = False


def explore(
    starts: Sequence[object],
    act: Callable[[object, int], Sequence[Result]],
    subgoal: Callable[[object], int],
    *,
    subgoals: int,
    horizon: int,
    states: int,
    max_steps: int,
) -> Task:
    """Numbers all states that can be reached, and returns the task's arrays. A success ends the episode and has the reward 1.

    Args:
      starts: the initial states, equally likely.
      act: the results of an action, a number below `ACTIONS`, in a state; at most `OUTCOMES`, with probabilities that sum to 1.
      subgoal: the number of subgoals that have been reached in a state.
      subgoals: the number of all subgoals.
      horizon: the steps of an episode.
      states, max_steps: padded sizes.

    Raises:
      ValueError: the task does not fit the sizes, or an action has too many results.
    """
    number: dict[object, int] = {}
    index = lambda state: number.setdefault(state, len(number))
    queue, rows = list(dict.fromkeys(starts)), {}
    for state in queue:  # the queue grows while it is read; a state in which episodes only end is not acted in
        if len(number) > states:
            break
        rows[index(state)] = results = [act(state, action) for action in range(ACTIONS)]
        for result in (result for of_action in results for result in of_action):
            index(result.state)
            if not (result.end or result.success or result.state in queue):
                queue.append(result.state)
    if len(number) > states or horizon > max_steps or subgoals > SUBGOALS:
        raise ValueError(
            f"a task of {len(number)} states, {horizon} steps and {subgoals} subgoals does not fit {states}, {max_steps} and {SUBGOALS}"
        )
    next_state = np.tile(np.arange(states, dtype=np.int32)[:, None, None], (1, ACTIONS, OUTCOMES))
    probability = np.zeros(next_state.shape, np.float32)
    probability[..., 0] = 1.0
    terminal, success = np.zeros(next_state.shape, bool), np.zeros(next_state.shape, bool)
    for s, actions in rows.items():
        for a, results in enumerate(actions):
            if len(results) > OUTCOMES or abs(sum(r.probability for r in results) - 1) > 1e-6:
                raise ValueError(f"action {a} must have at most {OUTCOMES} results, whose probabilities sum to 1, not {results}")
            for k, r in enumerate(results):
                next_state[s, a, k], probability[s, a, k] = number[r.state], r.probability
                terminal[s, a, k], success[s, a, k] = r.end or r.success, r.success
    start = np.zeros(states, np.float32)
    for state in starts:
        start[number[state]] += 1.0 / len(starts)
    reached = np.zeros(states, np.int32)
    reached[: len(number)] = [subgoal(state) for state in number]
    found = Task(
        start=start,
        next_state=next_state,
        probability=probability,
        reward=success.astype(np.float32),
        terminal=terminal,
        success=success,
        subgoal=reached,
        subgoals=np.int32(subgoals),
        distance=_distances(next_state, probability, terminal, success),
        horizon=np.int32(horizon),
        max_steps=max_steps,
    )
    with jax.ensure_compile_time_eval():  # a task may be made first while a program is traced
        return jax.tree.map(jnp.asarray, found)


def _distances(next_state, probability, terminal, success) -> np.ndarray:
    """The least number of steps to success from each state, if every step has its likeliest result."""
    likeliest = probability.argmax(axis=2)[..., None]
    take = lambda x: np.take_along_axis(x, likeliest, axis=2)[..., 0]
    after, ends, wins = take(next_state), take(terminal), take(success)
    distance = np.full(len(next_state), UNREACHABLE, np.float32)
    for _ in range(len(next_state)):
        through = np.where(wins, 1.0, np.where(ends, UNREACHABLE, 1.0 + distance[after])).min(axis=1)
        if (through >= distance).all():
            break
        distance = np.minimum(distance, through).astype(np.float32)
    return distance
