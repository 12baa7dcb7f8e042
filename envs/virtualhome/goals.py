"""What a task asks for, as facts about the graph that hold or do not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from stepreward.envs.virtualhome.simulator import NEAR_RELATIONS, Scene, untangled


class Fact(NamedTuple):
    """One fact. kind "edge": `start RELATION end` is there; "no edge": it is not; "states": node `start` has just `states`;
    "state": it has them among others."""

    kind: str
    start: int
    relation: str = ""
    end: int = -1
    states: frozenset[str] = frozenset()

    def holds(self, scene: Scene, state) -> bool:
        """Whether the fact is true in a state of the scene."""
        if self.kind == "edge":
            return scene.has_edge(state, self.start, self.relation, self.end)
        if self.kind == "no edge":
            return not scene.has_edge(state, self.start, self.relation, self.end)
        if self.start not in scene.names:
            return False
        has = frozenset(scene.states(state, self.start))
        return has == self.states if self.kind == "states" else has >= self.states


class Goal(NamedTuple):
    """Facts that must hold together, and actions that must have been done, in this order: each one of a set of verbs."""

    facts: tuple[Fact, ...]
    actions: tuple[frozenset[str], ...] = ()

    @property
    def size(self) -> int:
        """How many facts and actions there are."""
        return len(self.facts) + len(self.actions)

    def missing(self, scene: Scene, state, acted: int) -> int:
        """How many facts do not hold in `state`, and how many actions are still to do when `acted` are done."""
        return sum(not fact.holds(scene, state) for fact in self.facts) + len(self.actions) - acted

    def advance(self, acted: int, verb: str) -> int:
        """How many of the actions are done after one more, executed, action."""
        return acted + (acted < len(self.actions) and verb in self.actions[acted])


def _edges(graph: Mapping[str, Any]) -> set[tuple[int, str, int]]:
    far = [edge for edge in graph["edges"] if edge["relation_type"] not in NEAR_RELATIONS]
    return {(edge["from_id"], edge["relation_type"], edge["to_id"]) for edge in untangled(far)}


def from_graphs(first: Mapping[str, Any], final: Mapping[str, Any]) -> Goal:
    """What changed between two graphs: states of nodes, edges gone and edges come; CLOSE and FACING edges do not count."""
    before = {node["id"]: frozenset(node["states"]) for node in first["nodes"]}
    after = {node["id"]: frozenset(node["states"]) for node in final["nodes"]}
    start, end = _edges(first), _edges(final)
    facts = [Fact("states", number, states=states) for number, states in sorted(after.items()) if before.get(number) != states]
    facts += [Fact("edge", *edge) for edge in sorted(end - start)]
    facts += [Fact("no edge", *edge) for edge in sorted(start - end)]
    return Goal(tuple(facts))


def from_revision(revision: Mapping[str, Any]) -> Goal:
    """The goal of an SPA-RL task.

    revision: {"nodes": as they must be, "revised_nodes": edges that must go, "revised_add_edges": edges that must come}.

    CLOSE and FACING edges do not count. Raises ValueError when a part is missing or malformed.
    """
    try:
        facts = [Fact("states", node["id"], states=frozenset(node["states"])) for node in revision["nodes"]]
        for kind, part in (("edge", "revised_add_edges"), ("no edge", "revised_nodes")):
            edges = sorted({(edge["from_id"], edge["relation_type"], edge["to_id"]) for edge in revision[part]})
            facts += [Fact(kind, *edge) for edge in edges if edge[1] not in NEAR_RELATIONS]
    except (KeyError, TypeError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise ValueError(f"not a revised_graph of nodes, revised_nodes and revised_add_edges ({why})") from None
    return Goal(tuple(facts))


def from_annotation(annotation: Mapping[str, Any]) -> Goal:
    """The goal of an annotated task (Embodied Agent Interface): states, edges of every relation, and actions in order.

    annotation: {"goal": [{"id", "state"} or {"from_id", "relation_type", "to_id"}], "actions": ["GRAB", "WASH|RINSE", …]}.
    """
    facts = []
    for each in annotation["goal"]:
        if "state" in each:
            facts.append(Fact("state", each["id"], states=frozenset({each["state"]})))
        else:
            facts.append(Fact("edge", each["from_id"], each["relation_type"], each["to_id"]))
    actions = tuple(frozenset(group.replace(" ", "").upper().split("|")) for group in annotation["actions"])
    return Goal(tuple(dict.fromkeys(facts)), actions)
