"""All states of a task and what each action leads to, for environments that know them (`protocol.TRANSITIONS`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class StateGraph:
    """The states that can be reached from the state of an episode, which is state 0. Transitions are deterministic.

    States in which the episode is over are not listed.

    Attributes:
      actions: the A actions. Any other answer changes nothing, and its reward is `idle_reward`.
      keys: `info["state_key"]` of each of the N states.
      views: what prompts see of each state (`protocol.prompt_view`).
      next_state: int32 `[N, A]`; arbitrary where `done`.
      reward: float32 `[N, A]`.
      done: bool `[N, A]`, whether the episode is then over, before any limit on its steps.
      won: bool `[N, A]`, whether the task is then solved.
      idle_reward: see `actions`.
      max_steps: how many steps of an episode the environment allows from here.
    """

    actions: tuple[str, ...]
    keys: tuple[str, ...]
    views: tuple[Mapping[str, Any], ...]
    next_state: np.ndarray
    reward: np.ndarray
    done: np.ndarray
    won: np.ndarray
    idle_reward: float
    max_steps: int

    def __post_init__(self):
        shape = (len(self.keys), len(self.actions))
        for name in ("next_state", "reward", "done", "won"):
            if getattr(self, name).shape != shape:
                raise ValueError(
                    f"{name} has shape {getattr(self, name).shape}; for {shape[0]} states and {shape[1]} actions it must be {shape}"
                )
        if len(self.views) != shape[0] or len(set(self.keys)) != shape[0]:
            raise ValueError("each state needs one view, and a key of its own")
        if ((self.next_state < 0) | (self.next_state >= shape[0])).any():
            raise ValueError(f"next_state must hold numbers of the {shape[0]} states")


class TooManyStates(ValueError):
    """More states can be reached than were asked for."""


def explore(
    start: Hashable, actions: tuple[str, ...], follow: Callable[[Any, str], tuple[Any, float, bool, bool]], most: int
) -> tuple[list, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Finds all states that can be reached, in the order of breadth-first search.

    Args:
      start: the first state.
      actions: what can be done in every state.
      follow: `(state, action) -> (next state, reward, done, won)`.
      most: the most states.

    Returns:
      The states, and `next_state`, `reward`, `done` and `won` of a `StateGraph`.

    Raises:
      TooManyStates: there are more than `most`.
    """
    states, index = [start], {start: 0}
    rows = []
    for state in states:  # grows while it is read
        row = []
        for action in actions:
            after, reward, done, won = follow(state, action)
            if not done and after not in index:
                index[after] = len(states)
                states.append(after)
                if len(states) > most:
                    raise TooManyStates(f"more than {most:,} states can be reached")
            row.append((0 if done else index[after], reward, done, won))
        rows.append(row)
    columns = zip(*(zip(*row) for row in rows))
    next_state, reward, done, won = (np.array(column) for column in columns)
    return states, next_state.astype(np.int32), reward.astype(np.float32), done.astype(bool), won.astype(bool)
