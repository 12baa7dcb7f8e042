"""Goals of tasks, as facts about the graph that must hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from stepreward.envs.virtualhome.simulator import NEAR_RELATIONS, Scene, untangled


class Fact(NamedTuple):
    """One fact. kind "edge": the edge `start RELATION end` exists; "no edge": it does not; "states": node `start` has exactly
    `states`; "state": it has at least these."""

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
    """Facts that must all hold, and actions that must be done in this order; each action allows a set of verbs."""

    facts: tuple[Fact, ...]
    actions: tuple[frozenset[str], ...] = ()

    @property
    def size(self) -> int:
        """The number of facts and actions."""
        return len(self.facts) + len(self.actions)

    def missing(self, scene: Scene, state, acted: int) -> int:
        """Returns the number of facts that do not hold in `state`, plus the number of actions to do after the first `acted`."""
        return sum(not fact.holds(scene, state) for fact in self.facts) + len(self.actions) - acted

    def advance(self, acted: int, verb: str) -> int:
        """Returns the number of required actions that are done after executing `verb`."""
        return acted + (acted < len(self.actions) and verb in self.actions[acted])


def _edges(graph: Mapping[str, Any]) -> set[tuple[int, str, int]]:
    far = [edge for edge in graph["edges"] if edge["relation_type"] not in NEAR_RELATIONS]
    return {(edge["from_id"], edge["relation_type"], edge["to_id"]) for edge in untangled(far)}


def from_graphs(first: Mapping[str, Any], final: Mapping[str, Any]) -> Goal:
    """Returns the changes between two graphs: states of nodes, removed edges and added edges, except CLOSE and FACING edges."""
    before = {node["id"]: frozenset(node["states"]) for node in first["nodes"]}
    after = {node["id"]: frozenset(node["states"]) for node in final["nodes"]}
    start, end = _edges(first), _edges(final)
    facts = [Fact("states", number, states=states) for number, states in sorted(after.items()) if before.get(number) != states]
    facts += [Fact("edge", *edge) for edge in sorted(end - start)]
    facts += [Fact("no edge", *edge) for edge in sorted(start - end)]
    return Goal(tuple(facts))


def from_revision(revision: Mapping[str, Any]) -> Goal:
    """Returns the goal of an SPA-RL task.

    revision: {"nodes": required states of nodes, "revised_nodes": edges to remove, "revised_add_edges": edges to add}.

    CLOSE and FACING edges are ignored. Raises ValueError when a part is missing or malformed.
    """
    try:
        facts = [Fact("states", node["id"], states=frozenset(node["states"])) for node in revision["nodes"]]
        for kind, part in (("edge", "revised_add_edges"), ("no edge", "revised_nodes")):
            edges = sorted({(edge["from_id"], edge["relation_type"], edge["to_id"]) for edge in revision[part]})
            facts += [Fact(kind, *edge) for edge in edges if edge[1] not in NEAR_RELATIONS]
    except (KeyError, TypeError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise ValueError(f"revised_graph must have nodes, revised_nodes and revised_add_edges ({why})") from None
    return Goal(tuple(facts))


def from_annotation(annotation: Mapping[str, Any]) -> Goal:
    """Returns the goal of an annotated task (Embodied Agent Interface): states, edges of any relation, and ordered actions.

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
