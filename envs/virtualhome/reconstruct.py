"""Rebuilds the initial graph of a task from an apartment's base graph, for tasks without their own graph.

VirtualHome prepared a graph for every program: it completed the states of objects, set the states that the program relies on, and
added objects that the apartment lacks (numbers from 1000). This module infers them from the task file: the edges that the
task removes existed, the edges that it adds did not, and an object that the program switches on was off. VirtualHome's tables
supply the rest, so a rebuilt graph resembles the original but need not equal it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from stepreward.envs.virtualhome.actions import Named
from stepreward.envs.virtualhome.simulator import simulator

# Property: the states of which an object with it has exactly one, the usual one first.
_USUAL = {"HAS_SWITCH": ("OFF", "ON"), "CAN_OPEN": ("CLOSED", "OPEN"), "HAS_PLUG": ("PLUGGED_IN", "PLUGGED_OUT")}
# Verb: the state that it requires of its object, and the opposite state.
_NEEDS = {
    "SWITCHON": ("OFF", "ON"),
    "SWITCHOFF": ("ON", "OFF"),
    "OPEN": ("CLOSED", "OPEN"),
    "CLOSE": ("OPEN", "CLOSED"),
    "PLUGIN": ("PLUGGED_OUT", "PLUGGED_IN"),
    "PLUGOUT": ("PLUGGED_IN", "PLUGGED_OUT"),
    "PUTIN": ("OPEN", "CLOSED"),
}


@functools.cache
def _table(name: str) -> Mapping[str, Any]:
    return json.loads((simulator().root / "resources" / name).read_text(encoding="utf-8"))


def rebuilt(
    base: Mapping[str, Any],
    revision: Mapping[str, Any],
    program: Sequence[tuple[str, tuple[Named, ...]]],
    objects: Mapping[str, int],
) -> dict[str, Any]:
    """Returns an apartment's base graph, prepared for a task.

    Args:
      base: the graph of an apartment.
      revision: the task's `revised_graph`.
      program: the task's program.
      objects: class → number of the instances in the program.

    Raises:
      ValueError: an object of the task is neither in the apartment nor named by the task.
    """
    nodes = {node["id"]: {**node, "states": list(node["states"])} for node in base["nodes"]}
    edges = {(edge["from_id"], edge["relation_type"], edge["to_id"]): None for edge in base["edges"]}
    named = {each.number: each.name for _, mentioned in program for each in mentioned}
    named.update({number: name for name, number in objects.items()})
    removed = _edges(revision, "revised_nodes")
    placed = [number for number in sorted(named) if number not in nodes]
    for number in placed:
        kind = {"class_name": named[number], "category": "placable_objects"}
        nodes[number] = {"id": number, **kind, "properties": [], "states": []}  # `_set_states` adds the properties
    for number in sorted({number for pair in _places(revision) for number in pair}):
        if number not in nodes:
            raise ValueError(f"object {number} is neither in the apartment nor named by the task; use the apartment that fits the task")
    agent = min(number for number, node in nodes.items() if node["class_name"] == "character")
    if any(edge[:2] == (agent, "INSIDE") for edge in removed):
        edges = {edge: None for edge in edges if edge[:2] != (agent, "INSIDE")}
    edges.update({edge: None for edge in removed if edge[0] in nodes and edge[2] in nodes})
    for edge in _edges(revision, "revised_add_edges"):
        edges.pop(edge, None)
    rooms = [number for number, node in nodes.items() if node["category"] == "Rooms"]
    visited = [each.number for _, mentioned in program for each in mentioned if each.number in rooms]
    for number in placed:
        _place(number, nodes, edges, rooms, visited)
    told = {node["id"]: node["properties"] for node in revision["nodes"] if node["id"] in nodes}
    _set_states(nodes, program, told)
    listed = [{"from_id": start, "relation_type": relation, "to_id": end} for start, relation, end in edges]
    return {"nodes": list(nodes.values()), "edges": listed}


def _edges(revision, part) -> list[tuple[int, str, int]]:
    return [(edge["from_id"], edge["relation_type"], edge["to_id"]) for edge in revision[part]]


def _places(revision) -> set[tuple[int, int]]:
    told = _edges(revision, "revised_nodes") + _edges(revision, "revised_add_edges")
    return {(start, end) for start, relation, end in told if relation not in ("CLOSE", "FACING")}


def _room_of(number, edges, rooms) -> int | None:
    seen, layer = set(), [number]
    while layer:
        found = [each for each in layer if each in rooms]
        if found:
            return found[0]
        seen.update(layer)
        layer = [end for start, relation, end in edges if start in layer and relation in ("INSIDE", "ON") and end not in seen]
    return None


def _place(number, nodes, edges, rooms, visited) -> None:
    """Places an object: where the task says, else next to an object it was close to, else at VirtualHome's usual place."""
    name = nodes[number]["class_name"]
    there = [end for start, relation, end in edges if start == number and relation in ("INSIDE", "ON")]
    beside = [end for start, relation, end in edges if start == number and relation == "CLOSE" and end != number]
    if not there and beside:
        there = [end for end in beside if _room_of(end, edges, rooms) is not None][:1]
    if not there:
        options = [
            ({"IN": "INSIDE"}.get(where["relation"].upper(), where["relation"].upper()), end)
            for where in _table("object_script_placing.json").get(name, [])
            for end in sorted(nodes)
            if nodes[end]["class_name"] == where["destination"].lower() and _room_of(end, edges, rooms) is not None
        ]
        liked = [option for option in options if _room_of(option[1], edges, rooms) in visited] or options
        if liked:
            relation, end = liked[0]
            if end not in rooms and relation in ("INSIDE", "ON"):
                edges[number, relation, end] = None
            there = [end]
    room = next((found for end in there if (found := _room_of(end, edges, rooms)) is not None), None)
    if room is None:
        room = visited[0] if visited else rooms[0]
    edges[number, "INSIDE", room] = None
    for end in there:
        if end not in rooms:
            edges[number, "CLOSE", end] = edges[end, "CLOSE", number] = None


def _set_states(nodes, program, told) -> None:
    for node in nodes.values():
        states = {state.upper() for state in node["states"]}
        usual = {*node["properties"], *_table("properties_data.json").get(node["class_name"], [])}
        node["properties"] = sorted(told.get(node["id"], usual))
        for name, choice in _USUAL.items():
            if name in node["properties"] and not states & set(choice):
                states.add(choice[0])
        if node["class_name"] != "character" and "DIRTY" not in states:
            states.add("CLEAN")
        node["states"] = sorted(states)
    settled = set()
    for verb, mentioned in program:
        if verb not in _NEEDS or mentioned[-1].number not in nodes:
            continue
        needed, other = _NEEDS[verb]
        node = nodes[mentioned[-1].number]
        kind = frozenset((needed, other))
        if (node["id"], kind) not in settled and set(node["states"]) & kind:
            node["states"] = sorted((set(node["states"]) - kind) | {needed})
        settled.add((node["id"], kind))
