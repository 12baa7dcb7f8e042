"""Actions as text: the 42 verbs of the simulator in natural language, read and written.

The forms are those of SPA-RL's VirtualHome tasks ("walk to {}", "put {} on {}"). An object is named by its class, with blanks or
underscores ("washing machine"); `washing machine (1000)` names one instance by the number that the graph has for it.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple

# The simulator's verb, and how it is said.
FORMS = {
    "WALK": "walk to {}",
    "RUN": "run to {}",
    "FIND": "find {}",
    "TURNTO": "turn to {}",
    "LOOKAT": "look at {}",
    "WATCH": "watch {}",
    "POINTAT": "point at {}",
    "GREET": "greet {}",
    "TOUCH": "touch {}",
    "GRAB": "grab {}",
    "DROP": "drop {}",
    "RELEASE": "release {}",
    "PUTBACK": "put {} on {}",
    "PUTIN": "put {} in {}",
    "PUTOBJBACK": "put back {}",
    "PUTON": "put on {}",
    "PUTOFF": "take off {}",
    "POUR": "pour {} into {}",
    "OPEN": "open {}",
    "CLOSE": "close {}",
    "SWITCHON": "switch on {}",
    "SWITCHOFF": "switch off {}",
    "PLUGIN": "plug in {}",
    "PLUGOUT": "plug out {}",
    "TYPE": "type on {}",
    "READ": "read {}",
    "DRINK": "drink {}",
    "EAT": "eat {}",
    "CUT": "cut {}",
    "WASH": "wash {}",
    "RINSE": "rinse {}",
    "SCRUB": "scrub {}",
    "WIPE": "wipe {}",
    "SQUEEZE": "squeeze {}",
    "PUSH": "push {}",
    "PULL": "pull {}",
    "MOVE": "move {}",
    "SIT": "sit on {}",
    "LIE": "lie on {}",
    "STANDUP": "stand up",
    "SLEEP": "sleep",
    "WAKEUP": "wake up",
}

_LONGEST_FIRST = sorted(FORMS.items(), key=lambda item: -len(item[1].partition("{}")[0]))
_NUMBERED = re.compile(r"^(.*?)\s*\((\d{1,9})\)$", re.ASCII)
_LINE = re.compile(r"\[(\w+)\]((?:\s*<[^<>]+>\s*\([\d.]+\))*)\s*$", re.ASCII)
_OBJECT = re.compile(r"<([^<>]+)>\s*\((?:\d+\.)?(\d+)\)", re.ASCII)


class Named(NamedTuple):
    """An object as an action names it: its class, and the instance where the action says it."""

    name: str
    number: int | None = None


class Command(NamedTuple):
    """What a text asks for: the simulator's verb and its objects."""

    verb: str
    objects: tuple[Named, ...]


def read(text: object, known: Collection[str]) -> Command | None:
    """The command that a text holds; None when it holds none, whatever it is.

    Args:
      text: what a model wrote, e.g. "Put plate on table (123).".
      known: the classes of the scene. Where a text can be split into two objects in several ways, the one whose objects are known
        counts; an unknown object makes it no command.
    """
    if not isinstance(text, str) or len(text) > 200:
        return None
    words = " ".join(text.replace("_", " ").lower().split()).rstrip(".! ")
    for verb, form in _LONGEST_FIRST:
        before, hole, rest = form.partition("{}")
        if not hole:
            if words == form:
                return Command(verb, ())
            continue
        if not words.startswith(before):
            continue
        tail = words[len(before) :]
        joint = rest.partition("{}")[0]
        for objects in _splits(tail, joint):
            named = tuple(_named(each) for each in objects)
            if all(each.name in known for each in named):
                return Command(verb, named)
    return None


def _splits(tail: str, joint: str):
    if not joint:
        yield (tail,)
        return
    start = tail.find(joint)
    while start >= 0:
        yield tail[:start], tail[start + len(joint) :]
        start = tail.find(joint, start + 1)


def _named(text: str) -> Named:
    numbered = _NUMBERED.match(text.strip())
    name, number = (numbered[1], int(numbered[2])) if numbered else (text.strip(), None)
    return Named(name.strip().replace(" ", "_"), number)


def write(verb: str, objects: tuple[Named, ...]) -> str:
    """The text of a command, its objects with blanks: `read` gives the command back."""
    said = (each.name.replace("_", " ") + ("" if each.number is None else f" ({each.number})") for each in objects)
    return FORMS[verb].format(*said)


def read_line(line: str) -> tuple[str, tuple[Named, ...]]:
    """A line of a VirtualHome program: `[PUTBACK] <plate> (1.1000) <table> (1.123)` → its verb and its numbered objects.

    Raises ValueError when the line is none, or its verb has another number of objects.
    """
    match = _LINE.match(line.strip())
    verb = match[1].upper() if match else ""
    if verb not in FORMS:
        raise ValueError(f"not a line of a VirtualHome program: {line.strip()!r}")
    objects = tuple(Named(name.lower().replace(" ", "_"), int(number)) for name, number in _OBJECT.findall(match[2]))
    if len(objects) != FORMS[verb].count("{}"):
        raise ValueError(f"[{verb}] takes {FORMS[verb].count('{}')} objects: {line.strip()!r}")
    return verb, objects
