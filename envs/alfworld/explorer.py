"""An expert that sees only what a player sees: it searches one place after another, then does the task.

Its search order is fixed and easy to learn: open surfaces before closed containers, types in the order of memory.ORDER, and
places of a type by number. It remembers everything it has seen. It can continue from any point of an episode once `see` has
received the turns up to that point.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from stepreward.envs.alfworld.memory import Memory, kind, room_places

TOOLS = {"clean": "sinkbasin", "heat": "microwave", "cool": "fridge"}
_CHANGES = {"clean": "clean", "hot": "heat", "heat": "heat", "cool": "cool"}
_TASKS = (
    re.compile(r"(?:put|find) (?P<two>two) (?P<target>\w+) (?:in|on|and put them in) (?P<parent>\w+)"),
    re.compile(r"put an? (?P<change>clean|hot|cool) (?P<target>\w+) (?:in|on) (?P<parent>\w+)"),
    re.compile(r"(?P<change>clean|heat|cool) some (?P<target>\w+) and put it in (?P<parent>\w+)"),
    re.compile(r"put (?:an?|some) (?P<target>\w+) (?:in|on) (?P<parent>\w+)"),
    re.compile(r"(?:look at|examine the|examine) (?P<target>\w+) (?:under|with) the (?P<lamp>\w+)"),
)


class Asked(NamedTuple):
    """A parsed task: types of the object, receptacle and lamp, what to do to the object, whether it asks for two; "" for none."""

    target: str
    parent: str
    change: str
    lamp: str
    two: bool


def asked_for(task: str) -> Asked | None:
    """Parses a task's sentence; returns None if it does not match the benchmark's templates."""
    match = next((found for pattern in _TASKS if (found := pattern.search(task))), None)
    if match is None:
        return None
    asked = match.groupdict()
    change = _CHANGES.get(asked.get("change") or "", "")
    return Asked(asked["target"], asked.get("parent") or "", change, asked.get("lamp") or "", bool(asked.get("two")))


class Explorer(Memory):
    """The player of one episode. `act` returns the next action or None; `see` takes the result of an action."""

    def __init__(self, task: str, room: str):
        """Takes the task's sentence and the first observation.

        Raises ValueError for a task that does not match the benchmark's templates.
        """
        asked = asked_for(task)
        if asked is None:
            raise ValueError(f"the task {task!r} does not match the benchmark's templates")
        self.target, self.parent, self.change, self.lamp, self.two = asked
        super().__init__(room_places(room))

    def act(self) -> str | None:
        """The next action, in the new wording; None when there is nowhere left to look."""
        if self.unsure:
            return f"examine {self.at}"
        if self.held and kind(self.held) != self.target:
            return self._put_down()
        if not self.held:
            return self._fetch()
        if self.lamp:
            seen = ((one, place) for place in self.places for one in self.inside.get(place, []))
            lamp = next((pair for pair in seen if kind(pair[0]) == self.lamp), None)
            if lamp is None:
                return self._search()
            return self._go(lamp[1]) or f"use {lamp[0]}"
        if self.change and f"{self.change} {self.held}" not in self.changed:
            tool = next((place for place in self.places if kind(place) == TOOLS[self.change]), None)
            return tool and (self._go(tool) or f"{self.change} {self.held} with {tool}")
        parent = self._parent()
        return parent and (self._go(parent) or self._open(parent) or f"move {self.held} to {parent}")

    def _go(self, place: str) -> str | None:
        return None if self.at == place else f"go to {place}"

    def _open(self, place: str) -> str | None:
        return f"open {place}" if place in self.shut else None

    def _parent(self) -> str | None:
        """The destination: the place that already has one of two objects, else the first that has not refused the object."""
        fitting = [place for place in self.places if kind(place) == self.parent and (self.held, place) not in self.refused]
        if self.two:
            fitting.sort(key=lambda place: -sum(kind(one) == self.target for one in self.inside.get(place, [])))
        return fitting[0] if fitting else None

    def _fetch(self) -> str | None:
        keep = self._parent() if self.two else None
        for place in self.places:
            for thing in self.inside.get(place, []):
                if kind(thing) == self.target and place != keep:
                    return self._go(place) or self._open(place) or f"take {thing} from {place}"
        return self._search()

    def _search(self) -> str | None:
        if self.at in self.shut and self.at not in self.inside:
            return f"open {self.at}"
        place = next((place for place in self.places if place not in self.inside), None)
        return place and (self._go(place) or self._open(place) or f"examine {place}")

    def _put_down(self) -> str | None:
        places = [self.at, *self.places] if self.at else self.places
        place = next((place for place in places if (self.held, place) not in self.refused), None)
        return place and (self._go(place) or self._open(place) or f"move {self.held} to {place}")
