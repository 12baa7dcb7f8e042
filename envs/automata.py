"""Deterministic automata of subgoals: what an environment's tasks ask for, step by step, over facts about its state.

    data = {
        "states": ["away", "there", "done"],
        "start": "away",
        "accepting": ["done"],
        "edges": [
            {"from": "away", "to": "there", "when": {"near": True, "won": False}},
            {"from": "there", "to": "done", "when": {"won": True}},
        ],
    }
    found = automaton(data)             # checked
    q = found.next(found.start, facts)  # at reset, and again after each step

An environment that declares `protocol.AUTOMATON` has one automaton for all tasks of its settings. At reset the automaton reads the facts of
the first state, and after each step those of the state that the step led to. It is in an accepting state exactly when the task is won.
"""

from __future__ import annotations

import dataclasses
import functools
import heapq
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

Condition = Mapping[str, Any]  # fact → its value, or a list of the values that it may have


@dataclasses.dataclass(frozen=True)
class Edge:
    """A transition between two states.

    Attributes:
      source, target: numbers of states.
      when: pairs of a fact and the values that it may have; all pairs must hold.
      length: the number of subgoals that the edge reaches or loses at once, at least 1.
    """

    source: int
    target: int
    when: tuple[tuple[str, tuple[Any, ...]], ...]
    length: int = 1

    def holds(self, facts: Mapping[str, Any]) -> bool:
        """Whether its condition is true of some facts."""
        return all(facts[name] in values for name, values in self.when)

    def excludes(self, other: Edge) -> bool:
        """Whether no facts fulfil the conditions of both edges: one fact has no value that both allow."""
        own = dict(self.when)
        return any(name in own and not set(own[name]) & set(values) for name, values in other.when)


@dataclasses.dataclass(frozen=True)
class Automaton:
    """A deterministic automaton; plain data that can be pickled. `automaton` makes and checks one.

    A state in which no edge's condition holds is kept.

    Attributes:
      states: names of the states, which are numbered in this order.
      start: number of the state before the first facts are read.
      accepting: numbers of the accepting states.
      edges: the transitions.
    """

    states: tuple[str, ...]
    start: int
    accepting: tuple[int, ...]
    edges: tuple[Edge, ...]

    def next(self, state: int, facts: Mapping[str, Any]) -> int:
        """Returns the number of the state after reading the facts of one state of the environment.

        Raises:
          ValueError: an edge reads a fact that is missing.
        """
        try:
            return next((edge.target for edge in self._leaving[state] if edge.holds(facts)), state)
        except KeyError as error:
            raise ValueError(f"the automaton of subgoals reads the fact {error}, which the environment does not give") from None

    def distances(self) -> tuple[float, ...]:
        """Returns d(q) of each state q: the least sum of the edges' lengths on a way to an accepting state.

        With lengths of 1 it is the number of edges. A state without a way gets 1 more than the largest other distance.
        """
        return self._distances

    @functools.cached_property
    def _distances(self) -> tuple[float, ...]:
        into: dict[int, list[Edge]] = {}
        for edge in self.edges:
            into.setdefault(edge.target, []).append(edge)
        found: dict[int, int] = {}
        queue = [(0, state) for state in self.accepting]
        while queue:
            distance, state = heapq.heappop(queue)
            if state not in found:
                found[state] = distance
                for edge in into.get(state, ()):
                    heapq.heappush(queue, (distance + edge.length, edge.source))
        far = 1 + max(found.values())
        return tuple(float(found.get(state, far)) for state in range(len(self.states)))

    def traps(self) -> tuple[int, ...]:
        """Returns the numbers of the states from which no accepting state can be reached."""
        reached = set(self.accepting)
        while more := {edge.source for edge in self.edges if edge.target in reached} - reached:
            reached |= more
        return tuple(state for state in range(len(self.states)) if state not in reached)

    @functools.cached_property
    def _leaving(self) -> tuple[tuple[Edge, ...], ...]:
        leaving: list[list[Edge]] = [[] for _ in self.states]
        for edge in self.edges:
            leaving[edge.source].append(edge)
        return tuple(map(tuple, leaving))


def automaton(data: Mapping[str, Any]) -> Automaton:
    """Makes an automaton from plain data, as in the example above; an edge may also have a "length" of at least 1.

    Raises:
      ValueError: the data has another form; a state is unknown or named twice; two edges of a state with different targets may hold at
        once; there is no accepting state; or one cannot be reached from the start.
    """
    _check_keys("an automaton", data, ("states", "start", "accepting", "edges"))
    states = tuple(data["states"])
    if repeated := [name for name in states if states.count(name) > 1]:
        raise ValueError(f"the automaton has two states named {repeated[0]!r}: give each its own name")

    def number(name: Any, what: str) -> int:
        if name not in states:
            raise ValueError(f"{what} of the automaton names the unknown state {name!r}; its states are {', '.join(map(repr, states))}")
        return states.index(name)

    start = number(data["start"], "the start")
    accepting = tuple(number(name, "the list of accepting states") for name in data["accepting"])
    if not accepting:
        raise ValueError("the automaton has no accepting state: name at least one in 'accepting'")
    edges = []
    for found in data["edges"]:
        _check_keys("an edge of the automaton", found, ("from", "to", "when"), ("length",))
        length = found.get("length", 1)
        if isinstance(length, bool) or not isinstance(length, int) or length < 1:
            raise ValueError(
                f"the edge from {found['from']!r} to {found['to']!r} has the length {length!r}: give a whole number, at least 1"
            )
        when = tuple((name, tuple(v) if isinstance(v, (list, tuple)) else (v,)) for name, v in found["when"].items())
        edges.append(Edge(number(found["from"], "an edge"), number(found["to"], "an edge"), when, length))
    made = Automaton(states, start, accepting, tuple(edges))
    _check_determinism(made)
    reached = {start}
    while more := {edge.target for edge in edges if edge.source in reached} - reached:
        reached |= more
    for state in accepting:
        if state not in reached:
            raise ValueError(f"no way leads from the start {states[start]!r} to the accepting state {states[state]!r}: add edges")
    return made


def check_enabled(enabled: bool) -> None:
    """Raises ValueError unless an environment was made with its option `automaton`."""
    if not enabled:
        raise ValueError("the environment has an automaton only with automaton=True")


def _check_keys(what: str, data: Any, needed: Sequence[str], optional: Sequence[str] = ()) -> None:
    if not isinstance(data, Mapping) or set(needed) - set(data) or set(data) - {*needed, *optional}:
        keys = ", ".join(map(repr, data)) if isinstance(data, Mapping) else type(data).__name__
        raise ValueError(f"{what} must have the keys {', '.join(map(repr, needed))}; got {keys or 'none'}")


def _check_determinism(made: Automaton) -> None:
    for leaving in made._leaving:
        for one, other in itertools.combinations(leaving, 2):
            if one.target != other.target and not one.excludes(other):
                source, *targets = (made.states[state] for state in (one.source, one.target, other.target))
                raise ValueError(
                    f"the automaton's edges from {source!r} to {targets[0]!r} and to {targets[1]!r} may hold at once: "
                    "give them conditions in which one fact has no value in common"
                )


def ladder(stages: Sequence[tuple[str, Condition]]) -> list[dict[str, Any]]:
    """Returns edges between all stages of a task, as data: each leads to a stage where that stage's condition holds.

    An edge has the length of the number of stages that it climbs or falls, so that a step that skips some does not make the task shorter.

    Args:
      stages: names of states and their conditions, from the first stage to the last.
    """
    return [
        {"from": source, "to": target, "when": dict(condition), "length": abs(above - below)}
        for below, (source, _) in enumerate(stages)
        for above, (target, condition) in enumerate(stages)
        if above != below
    ]


@functools.cache
def countdown(parts: int) -> Automaton:
    """Returns the automaton of tasks with a number of equal parts in any order. It reads the fact `left`, at most `parts`.

    Its states are "`parts` left" (the start) … "0 left" (accepting), with d = the number of parts that are left.

    Raises:
      ValueError: `parts` is below 1.
    """
    if parts < 1:
        raise ValueError(f"parts={parts}: give a whole number, at least 1")
    stages = [(f"{left} left", {"left": left}) for left in range(parts, -1, -1)]
    names = [name for name, _ in stages]
    return automaton({"states": names, "start": names[0], "accepting": names[-1:], "edges": ladder(stages)})
