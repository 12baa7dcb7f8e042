"""An expert that sees only what a player sees: it looks in one place after the other, then does what is asked.

Its order is fixed and easy to learn: open surfaces before containers that must be opened, by type as listed in ORDER,
within a type by number. What it passes on the way it remembers. It goes on from any point of an episode when it has been
told the turns up to there.
"""

from __future__ import annotations

import re

from envs.alfworld.grammar import NEW, in_words_of

ORDER = (
    "countertop", "diningtable", "coffeetable", "sidetable", "desk", "dresser", "shelf", "bed", "sofa", "armchair",
    "ottoman", "tvstand", "cart", "stoveburner", "coffeemachine", "toaster", "sinkbasin", "bathtubbasin", "toilet",
    "garbagecan", "handtowelholder", "towelholder", "toiletpaperhanger", "laundryhamper",
    "fridge", "microwave", "safe", "box", "cabinet", "drawer",
)  # fmt: skip
_TOOLS = {"clean": "sinkbasin", "heat": "microwave", "cool": "fridge"}
_CHANGES = {"clean": "clean", "hot": "heat", "heat": "heat", "cool": "cool"}
_TASKS = (
    re.compile(r"(?:put|find) (?P<two>two) (?P<target>\w+) (?:in|on|and put them in) (?P<parent>\w+)"),
    re.compile(r"put an? (?P<change>clean|hot|cool) (?P<target>\w+) (?:in|on) (?P<parent>\w+)"),
    re.compile(r"(?P<change>clean|heat|cool) some (?P<target>\w+) and put it in (?P<parent>\w+)"),
    re.compile(r"put (?:an?|some) (?P<target>\w+) (?:in|on) (?P<parent>\w+)"),
    re.compile(r"(?:look at|examine the|examine) (?P<target>\w+) (?:under|with) the (?P<lamp>\w+)"),
)
_SEEN = re.compile(r"you see (.*?)\.?\s*$", re.MULTILINE)


def things(text: str) -> list[str]:
    """The things that a sentence of the game lists after "you see", in its order; none for "nothing"."""
    found = _SEEN.search(text)
    if not found:
        return []
    listed = re.sub(r",? and (?=an? )", ", ", found[1])
    return [re.sub(r"^an? ", "", one.strip()) for one in listed.split(", ") if one.strip() not in ("", "nothing")]


class Explorer:
    """One episode's player. `act` gives the next action or None; `see` tells it what an action led to."""

    def __init__(self, task: str, room: str):
        """Takes the task's sentence and the first observation.

        Raises ValueError for a task in words other than the benchmark's templates.
        """
        match = next((found for pattern in _TASKS if (found := pattern.search(task))), None)
        if match is None:
            raise ValueError(f"the task {task!r} is not in the words of the benchmark's templates")
        asked = match.groupdict()
        self.target, self.parent, self.lamp = asked["target"], asked.get("parent"), asked.get("lamp")
        self.change = _CHANGES.get(asked.get("change") or "")
        self.two = bool(asked.get("two"))
        first = re.search(r"Looking quickly around you, you see .*", room)
        self.places = sorted(things(first[0]) if first else [], key=_rank)
        self.inside: dict[str, list[str]] = {}  # what was seen in a place that has been looked into
        self.shut: set[str] = set()
        self.refused: set[tuple[str, str]] = set()
        self.at = self.held = ""
        self.changed: set[str] = set()
        self.examine = False

    def see(self, action: str, text: str) -> None:
        """Takes in a turn: the action, in either wording, and the observation that followed."""
        action = in_words_of(action or "", NEW)
        verb, _, rest = action.partition(" ")
        failed = text.strip() == "Nothing happens."
        if verb == "go":
            place = rest.removeprefix("to ")
            if place in self.places:
                self.at, self.examine = place, failed  # it stands there already when "go to" fails
                self._look(place, text)
        elif verb in ("open", "examine") and rest in self.places:
            self.examine = False
            if failed:
                self.inside.setdefault(rest, [])
            self._look(rest, text)
        elif verb == "close" and not failed:
            self.shut.add(rest)
        elif verb == "take":
            thing, _, place = rest.partition(" from ")
            if thing in self.inside.get(place, []):
                self.inside[place].remove(thing)
            if not failed:
                self.held = thing
        elif verb == "move":
            thing, _, place = rest.partition(" to ")
            if failed:
                self.refused.add((thing, place))
            else:
                self.held = ""
                self.inside.setdefault(place, []).append(thing)
        elif verb in _TOOLS and not failed:
            self.changed.add(f"{verb} {rest.partition(' with ')[0]}")

    def act(self) -> str | None:
        """The next action, in the new wording; None when there is nowhere left to look."""
        if self.examine:
            return f"examine {self.at}"
        if self.held and _kind(self.held) != self.target:
            return self._put_down()
        if not self.held:
            return self._fetch()
        if self.lamp:
            lamp = next(((one, place) for place in self.places for one in self.inside.get(place, []) if _kind(one) == self.lamp), None)
            if lamp is None:
                return self._search()
            return self._go(lamp[1]) or f"use {lamp[0]}"
        if self.change and f"{self.change} {self.held}" not in self.changed:
            tool = next((place for place in self.places if _kind(place) == _TOOLS[self.change]), None)
            return tool and (self._go(tool) or f"{self.change} {self.held} with {tool}")
        parent = self._parent()
        return parent and (self._go(parent) or self._open(parent) or f"move {self.held} to {parent}")

    def _look(self, place: str, text: str) -> None:
        if f"The {place} is closed" in text:
            self.shut.add(place)
        elif "you see" in text:
            self.shut.discard(place)
            self.inside[place] = things(text)

    def _go(self, place: str) -> str | None:
        return None if self.at == place else f"go to {place}"

    def _open(self, place: str) -> str | None:
        return f"open {place}" if place in self.shut else None

    def _parent(self) -> str | None:
        """The place to bring things to: the one that holds one of two already, else the first that has not refused."""
        fitting = [place for place in self.places if _kind(place) == self.parent and (self.held, place) not in self.refused]
        if self.two:
            fitting.sort(key=lambda place: -sum(_kind(one) == self.target for one in self.inside.get(place, [])))
        return fitting[0] if fitting else None

    def _fetch(self) -> str | None:
        keep = self._parent() if self.two else None
        for place in self.places:
            for thing in self.inside.get(place, []):
                if _kind(thing) == self.target and place != keep:
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


def _kind(name: str) -> str:
    return name.rpartition(" ")[0]


def _rank(place: str) -> tuple[int, str, int]:
    kind, _, number = place.rpartition(" ")
    return (ORDER.index(kind) if kind in ORDER else ORDER.index("fridge") - 1, kind, int(number) if number.isdigit() else 0)
