"""The shortest plan for a player with full knowledge, computed from the true facts.

Fetching or placing an object takes `go to`, `open` if the container is closed, and `take` or `move`. Cleaning, heating and
cooling work with closed doors. The plan is the shortest over all choices of objects, receptacles and tools, and of a place to
put down an object that is held but not needed. A receptacle at the agent's current location needs no `go to`.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

_TOOLS = {"isclean": ("clean", "sinkbasintype"), "ishot": ("heat", "microwavetype"), "iscool": ("cool", "fridgetype")}
_ABLE = {"isclean": "cleanable", "ishot": "heatable", "iscool": "coolable"}


class Goal(NamedTuple):
    """A parsed goal, with type names in lower case as in the facts.

    target: type of the object. parent: type of the receptacle, "" for a task with light. change: "isclean", "ishot",
    "iscool" or "". lamp: type of the lamp, or "". count: number of objects.
    """

    target: str
    parent: str
    change: str
    lamp: str
    count: int


def goal_of(problem: str) -> Goal | None:
    """Parses the goal of a PDDL problem; returns None outside the six task types (sliced objects, movable receptacles)."""
    text = problem[problem.find("(:goal") :].lower()
    if "issliced" in text or "inreceptacleobject" in text:
        return None
    types = re.findall(r"\(objecttype \?(\w+) (\w+)\)", text)
    parents = re.findall(r"\(receptacletype \?\w+ (\w+)\)", text)
    toggled = re.search(r"\(istoggled \?(\w+)\)", text)
    changes = [change for change in _TOOLS if f"({change} " in text]
    if toggled:
        lamps = [kind for name, kind in types if name == toggled[1]]
        targets = [kind for name, kind in types if name != toggled[1]]
        return Goal(targets[0], "", "", lamps[0], 1) if lamps and targets else None
    if not types or not parents or len(changes) > 1:
        return None
    return Goal(types[0][1], parents[0], "".join(changes), "", 2 if "(not (=" in text else 1)


class _World:
    """The facts, indexed for planning."""

    def __init__(self, facts: Iterable[tuple[str, ...]]):
        have = defaultdict(list)
        for name, *arguments in facts:
            have[name].append(tuple(arguments))
        for pairs in have.values():
            pairs.sort()
        self.kinds = dict(have["objecttype"])
        self.parents = dict(have["receptacletype"])
        self.places = dict(have["receptacleatlocation"])
        self.homes = dict(have["inreceptacle"])
        self.contains = set(have["cancontain"])
        self.is_true = {(name, *arguments) for name in have for arguments in have[name]}
        self.at = have["atlocation"][0][-1] if have["atlocation"] else ""
        self.held = have["holds"][0][-1] if have["holds"] else ""
        self.closed = frozenset(one for (one,) in have["openable"] if ("opened", one) not in self.is_true)

    def fits(self, thing: str, receptacle: str) -> bool:
        return (self.parents.get(receptacle), self.kinds.get(thing)) in self.contains


class _Walk:
    """A partial plan: the agent's location, the containers that are still closed, and the actions so far."""

    def __init__(self, world: _World):
        self.world, self.at, self.closed = world, world.at, set(world.closed)
        self.actions: list[str] = []

    def go(self, receptacle: str) -> _Walk:
        if self.world.places[receptacle] != self.at:
            self.actions.append(f"go to {receptacle}")
            self.at = self.world.places[receptacle]
        return self

    def into(self, receptacle: str) -> _Walk:
        self.go(receptacle)
        if receptacle in self.closed:
            self.actions.append(f"open {receptacle}")
            self.closed.remove(receptacle)
        return self

    def take(self, thing: str) -> _Walk:
        home = self.world.homes[thing]
        self.into(home).actions.append(f"take {thing} from {home}")
        return self

    def put(self, thing: str, receptacle: str) -> _Walk:
        self.into(receptacle).actions.append(f"move {thing} to {receptacle}")
        return self


def plan(facts: Iterable[tuple[str, ...]], goal: Goal) -> list[str] | None:
    """Returns a shortest list of actions that reaches `goal`, in the new wording; None when there is none.

    Among plans of equal length, the first by name is returned.

    Args:
      facts: (predicate, *argument names), as returned by `Engine.facts`.
      goal: the goal, which must not hold yet.
    """
    world = _World(facts)
    targets = [
        thing
        for thing, kind in sorted(world.kinds.items())
        if kind == goal.target and (("pickupable", thing) in world.is_true) and (thing in world.homes or thing == world.held)
    ]
    if goal.change:
        targets = [thing for thing in targets if (_ABLE[goal.change], thing) in world.is_true]
    if world.held and world.held not in targets:
        drops: list[str] = [one for one in sorted(world.places) if world.fits(world.held, one)]
    else:
        drops = [""]
    walks = _lit(world, goal, targets, drops) if goal.lamp else _placed(world, goal, targets, drops)
    best = min((walk.actions for walk in walks), key=len, default=None)
    return best


def _fresh(world: _World, drop: str) -> _Walk:
    walk = _Walk(world)
    return walk.put(world.held, drop) if drop else walk


def _swap(world: _World, walk: _Walk, thing: str, drops_held: bool) -> _Walk | None:
    """Takes `thing` unless it is held; returns None if the agent holds another object that it does not put down."""
    if thing == world.held:
        return walk
    return walk.take(thing) if drops_held or not world.held else None


def _lit(world: _World, goal: Goal, targets: list[str], drops: list[str]):
    lamps = [(lamp, home) for lamp, home in sorted(world.homes.items()) if world.kinds.get(lamp) == goal.lamp]
    for drop, thing, (lamp, home) in itertools.product(drops, targets, lamps):
        walk = _swap(world, _fresh(world, drop), thing, bool(drop))
        if walk is None:
            continue
        walk.go(home)
        if ("istoggled", lamp) not in world.is_true:
            walk.actions.append(f"use {lamp}")
        yield walk


def _placed(world: _World, goal: Goal, targets: list[str], drops: list[str]):
    verb, tool_type = _TOOLS.get(goal.change, ("", ""))
    tools = [one for one, kind in sorted(world.parents.items()) if kind == tool_type and one in world.places] or [""]
    parents = [one for one, kind in sorted(world.parents.items()) if kind == goal.parent and one in world.places]
    for drop, parent in itertools.product(drops, parents):
        inside = [thing for thing in targets if world.homes.get(thing) == parent]
        lacking = goal.count - len(inside) if goal.count > 1 else 1
        outside = [thing for thing in targets if thing not in inside or goal.count == 1]
        if world.held in outside and lacking > 1:  # place the held object first
            orders = [(world.held, thing) for thing in outside if thing != world.held]
        elif world.held in outside:
            orders = [(world.held,)] if goal.count > 1 else [(thing,) for thing in outside]
        else:
            orders = list(itertools.permutations(outside, max(lacking, 0)))
        for order, tool in itertools.product(orders, tools):
            walk = _fresh(world, drop)
            for thing in order:
                walk = _swap(world, walk, thing, bool(drop)) if thing == order[0] else walk.take(thing)
                if walk is None:
                    break
                if verb and (goal.change, thing) not in world.is_true:
                    if not tool:
                        walk = None
                        break
                    walk.go(tool).actions.append(f"{verb} {thing} with {tool}")
                walk.put(thing, parent)
            if walk is not None:
                yield walk
