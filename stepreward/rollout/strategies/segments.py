"""The tree that the episodes of a group form where they share steps: its segments, and their values.

A node is a state of the group's task. The episodes of a group form a tree: they share the steps up to the state where they branch. A
segment is a run of steps between two branching points, or between a branching point and the end of an episode. It starts from a node and
leads to one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from stepreward.rollout.episode import Episode
from stepreward.rollout.strategies.base import outcome_of

SIGNALS = frozenset({"node_id", "segment_id", "sibling_id", "segment_value", "parent_value"})


@dataclasses.dataclass
class _Node:
    """The state that a segment leads to, or the root.

    Attributes:
      parent: the state that the segment starts from; None for the root.
      segment: the number of the segment.
      outcomes: of the episodes that end here.
      children: the states that segments from here lead to.
      number: of the segments from here; -1 until there is one.
    """

    parent: _Node | None = None
    segment: int = -1
    outcomes: list[float] = dataclasses.field(default_factory=list)
    children: list[_Node] = dataclasses.field(default_factory=list)
    number: int = -1
    value: float = np.nan


def tree_signals(groups: Sequence[Sequence[Episode]], firsts: Collection[int], outcome: str) -> dict[str, list[np.ndarray]]:
    """The signals of the episodes' trees; see the rows of `stepreward.signals`.

    The value of a node is the mean of the values of its children, or the outcome of the episode that ends in it. Episodes that failed
    or are absent are left out: they have no ids (-1) and no values (NaN).

    Args:
      groups: the episodes of each group. Those that share a step hold the same object.
      firsts: `id(step)` of the first steps of all segments that start from a branching point.
      outcome: what the value of an episode is, one of `OUTCOMES`.

    Returns:
      By name one array `[steps]` for each episode. Steps, segments and branching points are numbered separately, over all groups and in
      the order of the episodes, so each number is less than the number of all steps.
    """
    steps: dict[int, tuple[int, _Node]] = {}  # id(step) -> its number, and the node that its segment leads to
    nodes: list[_Node] = []  # parents before their children
    branching = 0
    for episodes in groups:
        nodes.append(root := _Node())
        for episode in episodes:
            node = root
            for index, step in enumerate(episode.steps if episode.counts else ()):
                if id(step) not in steps:
                    if index == 0 or id(step) in firsts:
                        if node.number < 0:
                            node.number, branching = branching, branching + 1
                        nodes.append(child := _Node(node, len(nodes) - len(groups)))
                        node.children.append(child)
                        node = child
                    steps[id(step)] = len(steps), node
                node = steps[id(step)][1]
            if node is not root:
                node.outcomes.append(outcome_of(episode, outcome))
    for node in reversed(nodes):
        if values := [child.value for child in node.children] + node.outcomes:
            node.value = float(np.mean(values))
    segments = {id(node): number for number, node in enumerate(node for node in nodes if node.parent is not None)}

    def told(episode: Episode) -> dict[str, np.ndarray]:
        if not episode.counts:
            none, nan = np.full(len(episode.steps), -1, np.int32), np.full(len(episode.steps), np.nan, np.float32)
            return {name: nan if name.endswith("value") else none for name in SIGNALS}
        found = [steps[id(step)] for step in episode.steps]
        return {
            "node_id": np.array([number for number, _ in found], np.int32),
            "segment_id": np.array([segments[id(node)] for _, node in found], np.int32),
            "sibling_id": np.array([node.parent.number for _, node in found], np.int32),
            "segment_value": np.array([node.value for _, node in found], np.float32),
            "parent_value": np.array([node.parent.value for _, node in found], np.float32),
        }

    rows = [told(episode) for episodes in groups for episode in episodes]
    return {name: [row[name] for row in rows] for name in sorted(SIGNALS)}


def tree_record(episodes: Sequence[Episode], signals: Mapping[str, Sequence[np.ndarray]]) -> dict[str, Any] | None:
    """The tree of one group as plain JSON data for the report; None if `signals` hold no tree.

    Args:
      episodes: of one group.
      signals: those of `tree_signals` for these episodes.

    Returns:
      `value`, of the root; `absent`, the number of absent leaves; and `segments`, each after the one that it starts from. A segment has
      `id`, `parent` (an id; None: the root), `first` and `last` (its steps, from 0), `actions` and `value`; a leaf also `success`. The
      branch of a failed environment has no id and no value, but `failure`. An unknown value is None.
    """
    if "segment_id" not in signals or not episodes:
        return None
    known: dict[int, dict[str, Any]] = {}
    segments: list[dict[str, Any]] = []
    of_step: dict[int, int] = {}  # id(step) -> its segment
    root, absent = None, 0
    number = lambda value: None if np.isnan(value) else float(value)
    for index, episode in enumerate(episodes):
        if not episode.counts:
            absent += episode.failure is None
            continue
        parent = None
        for turn, step in enumerate(episode.steps):
            segment = of_step[id(step)] = int(signals["segment_id"][index][turn])
            if segment not in known:
                values = {name: number(signals[name][index][turn]) for name in ("segment_value", "parent_value")}
                root = values["parent_value"] if parent is None else root
                known[segment] = {"id": segment, "parent": parent, "first": turn, "actions": [], "value": values["segment_value"]}
                segments.append(known[segment])
            found = known[segment]
            if turn - found["first"] == len(found["actions"]):
                found["actions"].append(step.action)
                found["last"] = turn
            parent = segment
        if episode.steps:
            known[parent]["success"] = bool(episode.success)
    for episode in episodes:
        if episode.failure is not None:
            shared = [of_step[id(step)] for step in episode.steps if id(step) in of_step]
            own = [step.action for step in episode.steps if id(step) not in of_step]
            first = len(episode.steps) - len(own)
            parent = shared[-1] if shared else None
            segments.append({"parent": parent, "first": first, "last": first + len(own) - 1, "actions": own, "failure": episode.failure})
    return {"value": root, "absent": absent, "segments": segments}
