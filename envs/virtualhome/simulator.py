"""Wraps the evolving-graph simulator of the package `virtualhome-eval` (MIT) as an immutable scene with pure steps.

A home is a graph: nodes with a class and states (OPEN, ON, SITTING …), edges with a relation (INSIDE, ON, CLOSE, HOLDS_RH …).
An action changes the graph. The package stores a state as its difference from the initial graph, so states are small, immutable
and can be shared.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import random
from pathlib import Path
from typing import Any, NamedTuple

INSTALL = "pip install --no-deps 'virtualhome-eval>=0.1.1,<0.2'"
# --no-deps: its dependencies (pddlgym with gym and an old Pillow, openai, ipdb) serve other parts; this part needs only numpy.
_PACKAGE = "virtualhome_eval"
_GRAPHS = f"{_PACKAGE}.simulation.evolving_graph"

KNOWN_STATES = 128  # number of states of a scene whose transitions are cached
NEAR_RELATIONS = ("CLOSE", "FACING")  # where the agent stands and looks; never part of a task's goal


class Simulator(NamedTuple):
    """The package's classes that this module uses, and the folder of its installation."""

    Action: Any
    EnvironmentGraph: Any
    EnvironmentState: Any
    ExecutionInfo: Any
    Property: Any
    Relation: Any
    Script: Any
    ScriptExecutor: Any
    ScriptLine: Any
    ScriptObject: Any
    State: Any
    TimeMeasurement: Any
    root: Path


@functools.lru_cache(maxsize=1)
def simulator() -> Simulator:
    """Imports the package once. If it is missing, raises ValueError with the command that installs it."""
    before = random.getstate()  # the package's import seeds Python's generator
    try:
        common, environment, execution, scripts = (
            importlib.import_module(f"{_GRAPHS}.{name}") for name in ("common", "environment", "execution", "scripts")
        )
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != _PACKAGE:
            raise  # the package is installed, but one that it imports is not
        raise ValueError(f"VirtualHome needs the package virtualhome-eval, which is not installed; run {INSTALL}") from None
    finally:
        random.setstate(before)
    found = {}
    for name in Simulator._fields[:-1]:
        found[name] = next(getattr(module, name) for module in (scripts, environment, execution, common) if hasattr(module, name))
    return Simulator(**found, root=Path(importlib.import_module(_PACKAGE).__file__).parent)


def untangled(edges: list[dict]) -> list[dict]:
    """Drops INSIDE edges between nodes that are inside each other. They are errors in the data; SPA-RL drops them, too."""
    inside = {(edge["from_id"], edge["to_id"]) for edge in edges if edge["relation_type"] == "INSIDE"}
    tangled = {pair for pair in inside if pair[::-1] in inside}
    return [edge for edge in edges if edge["relation_type"] != "INSIDE" or (edge["from_id"], edge["to_id"]) not in tangled]


class Scene:
    """An initial graph, with queries about the states that follow from it. Immutable, so environments may share it.

    Args:
      graph: {"nodes": [{"id", "class_name", "category", "properties", "states"}, …],
        "edges": [{"from_id", "relation_type", "to_id"}, …]}.

    Raises:
      ValueError: the graph is malformed, has no character, or its character is in no room.
    """

    def __init__(self, graph: dict):
        sim = self._sim = simulator()
        try:
            self.graph = sim.EnvironmentGraph({"nodes": graph["nodes"], "edges": untangled(graph["edges"])})
            nodes = list(self.graph.get_nodes())
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a VirtualHome graph of nodes and edges ({type(error).__name__}: {error})") from None
        self.names = {node.id: node.class_name for node in nodes}
        self.ids: dict[str, tuple[int, ...]] = {}
        for node in sorted(nodes, key=lambda node: node.id):
            self.ids[node.class_name] = (*self.ids.get(node.class_name, ()), node.id)
        characters = self.ids.get("character", ())
        if not characters:
            raise ValueError("the VirtualHome graph has no node of the class character")
        self.agent = characters[0]
        self._start = sim.EnvironmentState(self.graph, {}, instance_selection=True)
        self._known: dict[Any, dict[tuple, Any]] = {}
        self.rooms = frozenset(node.id for node in nodes if node.category == "Rooms")
        self.body = frozenset(node.id for node in nodes if sim.Property.BODY_PART in node.properties)
        if self.room(self.start()) is None:
            raise ValueError("the character of the VirtualHome graph is in no room; add an INSIDE edge to a room")

    def start(self):
        """Returns the initial state."""
        return self._start

    def execute(self, state, verb: str, ids: tuple[int, ...]):
        """Returns the state after `[VERB] <object> (id) …`, or None when the simulator refuses. `ids` are ids of this scene.

        The verbs are the names of the package's Action. A legal verb never raises, whatever the ids.
        """
        after = self._call(state, verb, ids, True)
        return None if after is state else after  # for a refused put back, it returns the unchanged state

    def allows(self, state, verb: str, ids: tuple[int, ...]) -> bool:
        """Whether the preconditions of an action hold. It is cheaper than executing the action."""
        return self._call(state, verb, ids, False) is not None

    def _call(self, state, verb, ids, modify):
        """Caches the results of actions: episodes of one task visit the same states repeatedly."""
        known = self._known.get(state)
        if known is None:
            if len(self._known) >= KNOWN_STATES:
                self._known.clear()
            known = self._known[state] = {}
        asked = (verb, ids, modify)
        if asked not in known:
            known[asked] = self._simulate(state, verb, ids, modify)
        return known[asked]

    def _simulate(self, state, verb, ids, modify):
        sim = self._sim
        line = sim.ScriptLine(sim.Action[verb], [sim.ScriptObject(self.names[number], number) for number in ids], 0)
        try:
            states = sim.ScriptExecutor.call_action_method(sim.Script([line]), state, sim.ExecutionInfo(), 0, modify)
            return next(states, None)
        except (AssertionError, AttributeError, TypeError):
            return None  # the simulator's way of refusing unforeseen cases, such as leaving a place in no room
        finally:
            sim.TimeMeasurement.reset_all()  # it would record every change forever

    def states(self, state, number: int) -> tuple[str, ...]:
        """Returns the states of a node, in the simulator's order."""
        return tuple(each.name for each in sorted(state.get_node(number).states, key=lambda each: each.value))

    def targets(self, state, number: int, relation: str) -> list[int]:
        """Returns the nodes to which node `number` has an edge of the relation, in ascending order."""
        return sorted(state.get_node_ids_from(number, self._sim.Relation[relation]))

    def has_edge(self, state, start: int, relation: str, end: int) -> bool:
        """Whether the edge is in the state's graph; False for unknown nodes."""
        first, last = self.graph.get_node(start), self.graph.get_node(end)
        return first is not None and last is not None and state.has_edge(first, self._sim.Relation[relation], last)

    def has_property(self, number: int, *names: str) -> bool:
        """Whether the node has one of the properties."""
        return any(self._sim.Property[name] in self.graph.get_node(number).properties for name in names)

    def held(self, state) -> list[int]:
        """Returns the objects in the agent's hands, right hand first."""
        return [number for hand in ("HOLDS_RH", "HOLDS_LH") for number in self.targets(state, self.agent, hand)]

    def room(self, state, number: int | None = None) -> int | None:
        """Returns the room of a node (default: the agent), following INSIDE edges; None if it is in no room."""
        seen, layer = set(), [self.agent if number is None else number]
        while layer:
            for each in layer:
                if each in self.rooms:
                    return each
            seen.update(layer)
            layer = [up for each in layer for up in self.targets(state, each, "INSIDE") if up not in seen]
        return None

    def visible_near(self, state) -> list[int]:
        """Returns the objects close to the agent, in ascending order, except body parts and contents of closed containers."""
        near = [number for number in self.targets(state, self.agent, "CLOSE") if number not in self.body and number != self.agent]
        return [number for number in near if not self._shut_in(state, number)]

    def _shut_in(self, state, number: int) -> bool:
        return any(
            up not in self.rooms and self._sim.State.CLOSED in state.get_node(up).states for up in self.targets(state, number, "INSIDE")
        )

    def key(self, state, *more: Any) -> str:
        """Returns a digest that is equal for states with equal graphs and equal `more`."""
        graph = self.graph
        removed = state._removed_edges_from
        added = sorted(
            (start, relation.value, end)
            for (start, relation), ends in state._new_edges_from.items()
            for end in ends - removed.get((start, relation), set()) - graph.get_node_ids_from(start, relation)
        )
        gone = sorted(
            (start, relation.value, end)
            for (start, relation), ends in removed.items()
            for end in ends & graph.get_node_ids_from(start, relation)
        )
        changed = sorted(
            (number, self.states(state, number))
            for number, node in state._new_nodes.items()
            if node.states != graph.get_node(number).states
        )
        taken = sorted((key[1], source.id, relation.value) for key, (source, relation) in state.executor_data.items() if source is not None)
        digest = hashlib.blake2b(repr((added, gone, changed, taken, more)).encode(), digest_size=8)
        return digest.hexdigest()
