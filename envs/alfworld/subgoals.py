"""The automaton of subgoals of each type of task: find the object, take it, clean, heat or cool it, and place it or look at it."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from stepreward.envs.alfworld.oracle import Goal
from stepreward.envs.automata import Automaton, automaton, ladder

_FOUND = ("found", {"won": False, "held": False})
_HELD = ("held", {"won": False, "held": True})
_CHANGE = (_FOUND, ("held", {"won": False, "held": True, "changed": False}), ("changed", {"won": False, "held": True, "changed": True}))
_TWO = (
    ("found", _FOUND[1] | {"placed": 0}),
    ("held", _HELD[1] | {"placed": 0}),
    ("one placed", _FOUND[1] | {"placed": 1}),
    ("second held", _HELD[1] | {"placed": 1}),
)
# The stages of each kind of task after the object is sought and before the task is done.
_STAGES: Mapping[str, tuple] = {
    "place": (_FOUND, _HELD),
    "light": (_FOUND, _HELD),
    "clean": _CHANGE,
    "heat": _CHANGE,
    "cool": _CHANGE,
    "two": _TWO,
    "other": (),
}
_CHANGES = {"isclean": "clean", "ishot": "heat", "iscool": "cool"}
_DONE = ("done", {"won": True})


def kind_of(goal: Goal | None) -> str:
    """Returns the kind of a task, a key of the automaton's chains; "other" for a goal outside the six task types."""
    if goal is None:
        return "other"
    if goal.lamp:
        return "light"
    return "two" if goal.count > 1 else _CHANGES.get(goal.change, "place")


@functools.cache
def subgoals() -> Automaton:
    """Returns the automaton. From "begin" it enters the chain of the kind of task at reset; "done" is accepting.

    An object that was found stays found, wherever the player goes.
    """
    states, edges = ["begin"], []
    for kind, stages in _STAGES.items():
        # The object counts as sought until it is in sight, so only the edge from there asks whether it is.
        named = [(f"{kind}: {name}", condition) for name, condition in (("sought", {}), *stages)] + [_DONE]
        sought = named[0][0]
        for edge in ladder(named):
            if edge["to"] == sought or edge["from"] == "done":
                continue
            first = edge["from"] == sought and edge["to"] == f"{kind}: found"
            edges.append(edge | {"when": edge["when"] | ({"seen": True} if first else {})})
        unseen = {"won": False} | ({"held": False, "seen": False} if stages else {}) | ({"placed": 0} if kind == "two" else {})
        for length, (name, condition) in enumerate([(sought, unseen), *named[1:-1]], 1):
            seen = {"seen": True} if name == f"{kind}: found" else {}
            edges.append({"from": "begin", "to": name, "when": condition | seen | {"kind": kind}, "length": length})
        states += [name for name, _ in named[:-1]]
    return automaton({"states": [*states, "done"], "start": "begin", "accepting": ["done"], "edges": edges})


def facts_of(true: Iterable[tuple[str, ...]], goal: Goal | None, won: bool) -> dict[str, Any]:
    """Returns the facts that the automaton reads.

    * kind: of the task. won: the task is solved.
    * seen: an object of the goal's type lies in sight, on or in an open receptacle where the player stands.
    * held: the player holds one. changed: and it was cleaned, heated or cooled as the goal says.
    * placed: how many of them are in one receptacle of the goal's type, at most 1.

    Args:
      true: the true facts of the game (`Engine.facts`).
      goal: the goal; None outside the six task types.
      won: whether the goal holds.
    """
    found: dict[str, Any] = {"kind": kind_of(goal), "won": won, "seen": False, "held": False, "changed": False, "placed": 0}
    if goal is None:
        return found
    have: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    for name, *arguments in true:
        have[name].append(tuple(arguments))
    kinds, homes, places = dict(have["objecttype"]), dict(have["inreceptacle"]), dict(have["receptacleatlocation"])
    parents = dict(have["receptacletype"])
    targets = {thing for thing, kind in kinds.items() if kind == goal.target}
    at = have["atlocation"][0][-1] if have["atlocation"] else ""
    closed = {one for (one,) in have["openable"]} - {one for (one,) in have["opened"]}
    inside = [home for thing, home in homes.items() if thing in targets]
    held = {arguments[-1] for arguments in have["holds"]} & targets
    found["seen"] = any(places.get(home) == at and home not in closed for home in inside)
    found["held"] = bool(held)
    found["changed"] = bool(goal.change) and any((thing,) in have[goal.change] for thing in held)
    found["placed"] = int(any(parents.get(home) == goal.parent for home in inside))
    return found
