"""Exact advantages of the policy that played, where the environment knows its transitions: the truth that credit is compared with."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from stepreward import processes
from stepreward.batch import Batch
from stepreward.credit import Credit
from stepreward.envs.graphs import StateGraph
from stepreward.envs.protocol import TRANSITIONS
from stepreward.models.heads import decoder_of
from stepreward.programs import Program
from stepreward.rollout.environments import Call, EnvironmentFailure
from stepreward.rollout.episode import Task
from stepreward.text import clean
from stepreward.training.auxiliaries.base import Auxiliary
from stepreward.training.backbones import Backbone
from stepreward.training.layout import Layout
from stepreward.training.scoring import score

_log = logging.getLogger(__name__)
Array = np.ndarray


class Exact(Auxiliary):
    """`exact_advantage`: A(s_t, a_t) = Q(s_t, a_t) − V(s_t) of the outcome, under the policy that played, with the steps that are left.

    Every state that a task can reach is shown to the policy as it would be in an episode, and every action is scored as an answer, so
    π(a | s) is known in each state. The rest of its probability is that of answers which are no canonical action; these leave the state as
    it is. Dynamic programming over the steps that are left gives Q and V. Another spelling of an action would make π(a | s) a little too
    small: `exact/other_probability` is the mean of that rest.

    The prompt must show the present state and nothing else. A task whose environment fails here has no exact advantages: its episodes get
    NaN, and are masked where the credit method needs them.

    Attributes:
      model: the policy's backbone; None before `begin`.
      capacity: rows that are scored at once.
    """

    name = "exact"
    title = "exact advantages"
    provides = frozenset({"exact_advantage"})
    configured = False
    order = 0
    when = None
    trains = False
    reads_policy = True

    def __init__(self, c, parts, layout: Layout, key: jax.Array):
        self.c, self.layout, self._parts = c, layout, parts
        self.capacity = 4 * c.train.chunk_rows
        self.model: Backbone | None = None
        self._required = self.provides <= parts.method.requires
        self._episodes: list = []
        self._graphs: dict[tuple, StateGraph | None] = {}
        self._other = 0.0
        self.unscored: Array | None = None

    @classmethod
    def asked(cls, c) -> bool:
        return bool(c.credit.get("exact", False))  # the config of an older run has no such key

    @classmethod
    def check(cls, c, method) -> None:
        why = "exact advantages (credit.method=oracle, credit.exact) need "
        if c.rollout.context != "step" or c.rollout.history:
            raise ValueError(f"{why}prompts that show the present state and nothing else: set rollout.context=step and rollout.history=0.")
        if c.rollout.top_k or c.rollout.top_p != 1:
            raise ValueError(f"{why}the whole distribution of answers: set rollout.top_k=0 and rollout.top_p=1.")
        if len(c.mixture.environments):
            raise ValueError(f"{why}one environment: leave mixture.environments empty.")
        if c.train.mode != "online":
            raise ValueError(f"{why}the policy that played: set train.mode=online.")

    def open(self) -> None:
        """Raises ValueError if the environment does not know its transitions, or if the policy sees pictures."""
        collector = self._parts.collector
        collector.check_offers(frozenset({TRANSITIONS}), "exact advantages (credit.method=oracle, credit.exact)")
        if collector.reader is not None:
            raise ValueError("exact advantages are computed from texts: use an environment preset without pictures.")

    def begin(self, model: Backbone, params) -> None:
        """Takes the policy's backbone; the parameters are given with each batch."""
        self.model = model

    def prepare(self, batch: Batch, episodes: list) -> dict:
        """Asks the environments for the states of each task; returns metrics."""
        started = time.monotonic()
        self._episodes = [episode if counts else None for episode, counts in zip(episodes, batch.episode_mask)]
        tasks = {_place(e.task): e.task for e in self._episodes if e is not None}
        self._graphs = dict(zip(tasks, self.states(list(tasks.values()))))
        lost = [place for place, graph in self._graphs.items() if graph is None]
        if self._required:
            known = lambda e: e is None or self._graphs[_place(e.task)] is not None
            self.unscored = ~np.pad([known(e) for e in self._episodes], (0, batch.num_episodes - len(episodes)), constant_values=True)
        states = sum(len(graph.keys) for graph in self._graphs.values() if graph is not None)
        counts = {"exact/states": float(states), "exact/failed_tasks": float(len(lost))}
        return counts | {"time/exact_s": time.monotonic() - started}

    def states(self, tasks: Sequence[Task]) -> list[StateGraph | None]:
        """The states of tasks; None where the environment failed. The processes share the work."""
        pool, slots, found = self._parts.collector.pool, self.c.rollout.max_rows // processes.count(), []
        mine = [tasks[index] for index in processes.share(len(tasks))]
        for first in range(0, len(mine), slots):
            calls = [
                [Call(slot, "reset", (), {"seed": task.seed, "options": {"split": task.split}}), Call(slot, "transitions")]
                for slot, task in enumerate(mine[first : first + slots])
            ]
            for results in pool.call_all(calls):
                if isinstance(results, EnvironmentFailure):
                    _log.warning("a task has no exact advantages: %s", results)
                found.append(None if isinstance(results, EnvironmentFailure) else results[1])
        return [graph for part in processes.gather_objects(found) for graph in part]

    def scores(self, placed: Batch, to_rows, policy_params) -> dict:
        """Returns the exact advantages, `[E, S]`, of the batch that was prepared; NaN where they are not known."""
        c, graphs = self.c, {place: graph for place, graph in self._graphs.items() if graph is not None}
        policies = self.policies(policy_params, list(graphs.values()))
        self._other = float(1.0 - np.concatenate([policy.sum(axis=1) for policy in policies]).mean()) if policies else 0.0
        tables = {}
        for (place, graph), policy in zip(graphs.items(), policies):
            horizon = min(c.rollout.max_steps, graph.max_steps)
            tables[place] = _Table(graph, *solve(graph, policy, horizon, c.credit.outcome, c.rollout.invalid_penalty))
        found = np.full(placed.step_mask.shape, np.nan, np.float32)
        for row, episode in zip(found, self._episodes):
            table = None if episode is None else tables.get(_place(episode.task))
            if table is not None:
                row[: len(episode.steps)] = [table.advantage(turn, step.state_key, step.action) for turn, step in enumerate(episode.steps)]
        return {"exact_advantage": found * np.float32(c.credit.outcome_scale)}

    def credited(self, credit: Credit) -> dict:
        """The mean probability of answers that are no canonical action."""
        return {"exact/other_probability": self._other}

    # --- The policy in every state ---

    def policies(self, params, graphs: Sequence[StateGraph]) -> list[Array]:
        """π(a | s) of every graph, float64 `[N, A]`."""
        prompt, chat = self._parts.collector.prompt, self._parts.chat
        said, rows = {}, []
        for graph in graphs:
            answers = [said.setdefault(action, chat.answer(clean(prompt.answer(action)))) for action in graph.actions]
            for view in graph.views:
                asked = chat.user_turn(prompt.window(view, []), first=True)
                rows += [(asked, answer) for answer in answers]
        log_prob = np.concatenate([self._score(params, rows[i : i + self.capacity]) for i in range(0, len(rows), self.capacity)] or [[]])
        found, first = [], 0
        for graph in graphs:
            shape = (len(graph.views), len(graph.actions))
            found.append(np.exp(log_prob[first : first + shape[0] * shape[1]].astype(np.float64)).reshape(shape))
            first += shape[0] * shape[1]
        return found

    def _score(self, params, rows: Sequence[tuple[Array, Array]]) -> Array:
        """The log-probability of each answer after its prompt, float32."""
        batch = answer_rows(rows, self.capacity, self.c.rollout.max_row_tokens, self._parts.chat.codec.pad_id)
        placed = self.model.reads(self.layout.place(batch))
        found = processes.to_host(score(decoder_of(params), placed, **self.layout.scoring(self.model))[0])
        return (found * batch.action_mask).sum(axis=1)[: len(rows)]

    def programs(self, stage: str, policy_params=None) -> Iterator[Program]:
        if stage == "train":
            rows = self.model.reads(self.layout.shapes(self.capacity))
            yield Program(
                "exact/score",
                score,
                (decoder_of(policy_params), rows),
                self.layout.scoring(self.model),
                trips=self.layout.chunks(self.capacity),
                kernel_flops=self.layout.kernel_flops(self.model, self.capacity),
            )


def _place(task: Task) -> tuple[int, str]:
    return task.seed, task.split


def answer_rows(rows: Sequence[tuple[Array, Array]], capacity: int, length: int, pad_id: int) -> Batch:
    """A batch (NumPy) of `capacity` rows, each a prompt and an answer, whose tokens are its actions.

    Raises:
      ValueError: a row has more than `length` tokens.
    """
    tokens = np.full((capacity, length), pad_id, np.int32)
    filled, acts = np.zeros((capacity, length), np.int32), np.zeros((capacity, length), bool)
    for row, (asked, answer) in enumerate(rows):
        middle, end = len(asked), len(asked) + len(answer)
        if end > length:
            raise ValueError(f"a state needs a row of {end} tokens for its exact advantage: raise rollout.max_row_tokens={length}.")
        tokens[row, :middle], tokens[row, middle:end] = asked, answer
        filled[row, :end], acts[row, middle:end] = 1, True
    step_id = np.where(acts, np.arange(capacity, dtype=np.int32)[:, None], -1)
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape) * filled
    zeros, one = np.zeros(tokens.shape, np.float32), np.ones((capacity, 1), bool)
    number = np.zeros(capacity, np.float32)
    return Batch(
        tokens, positions, filled, acts, step_id, zeros, one, one.astype(np.float32), one, one[:, 0], number, one[:, 0], ~one[:, 0],
        np.arange(capacity, dtype=np.int32),
    )  # fmt: skip


# --- Dynamic programming ---


class _Table(NamedTuple):
    """Exact values of a task; the last column of `q` is an answer that is no action, `[T, N, A + 1]` with `value` `[T, N]`."""

    graph: StateGraph
    q: Array
    value: Array

    def advantage(self, turn: int, key: str, action: str | None) -> float:
        """The advantage of an action at a turn, from 0; NaN in an unknown state."""
        try:
            state = self.graph.keys.index(key)
        except ValueError:
            return float("nan")
        column = self.graph.actions.index(action) if action in self.graph.actions else len(self.graph.actions)
        return self.q[turn, state, column] - self.value[turn, state]


def solve(graph: StateGraph, policy: Array, horizon: int, outcome: str, invalid_penalty: float = 0.0) -> tuple[Array, Array]:
    """The exact values of a policy at each turn of an episode.

        Q_t(s, a) = r(s, a) + [not over] · V_{t+1}(s′),  V_t(s) = Σ_a π(a | s) · Q_t(s, a),  V_T = 0

    Args:
      graph: the states.
      policy: π(a | s), float `[N, A]`; what is left to 1 is an answer that is no action.
      horizon: T, the most turns of an episode.
      outcome: "success": the reward is 1 where the task is won; "return": it is the environment's.
      invalid_penalty: subtracted from the reward of an answer that is no action, where the outcome is the return.

    Returns:
      Q, float64 `[T, N, A + 1]`, whose last column is an answer that is no action; and V, `[T, N]`.
    """
    success = outcome == "success"
    states = np.arange(len(graph.keys))
    reward = np.column_stack([graph.won, np.zeros(len(states))] if success else [graph.reward, np.full(len(states), graph.idle_reward)])
    reward = reward.astype(np.float64)
    reward[:, -1] -= 0.0 if success else invalid_penalty
    following = np.column_stack([graph.next_state, states])
    goes_on = np.column_stack([~graph.done, np.ones(len(states), bool)])
    policy = np.column_stack([policy, np.maximum(0.0, 1.0 - policy.sum(axis=1))])
    q, value, later = np.zeros((horizon, *policy.shape)), np.zeros((horizon, len(states))), np.zeros(len(states))
    for turn in reversed(range(horizon)):
        q[turn] = reward + goes_on * later[following]
        value[turn] = later = (policy * q[turn]).sum(axis=1)
    return q, value
