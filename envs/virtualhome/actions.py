"""Reads and writes actions in natural language, for the 42 verbs of the simulator.

The forms are those of SPA-RL's VirtualHome tasks ("walk to {}", "put {} on {}"). An object is named by its class, with blanks or
underscores ("washing machine"); `washing machine (1000)` names an instance by its number in the graph.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple

# The simulator's verbs and their text forms.
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
    """An object in an action: its class, and the number of the instance if the action gives one."""

    name: str
    number: int | None = None


class Command(NamedTuple):
    """A parsed action: the simulator's verb and its objects."""

    verb: str
    objects: tuple[Named, ...]


def read(text: object, known: Collection[str]) -> Command | None:
    """Parses an action; returns None for a text that is not one, and for any value that is not a string.

    Args:
      text: a model's action, such as "Put plate on table (123).".
      known: the classes of the scene. If a text can be split into two objects in several ways, the split with known classes
        counts. A text with an unknown class is not an action.
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
    """Writes an action, with blanks in the names of objects; `read` is its inverse."""
    said = (each.name.replace("_", " ") + ("" if each.number is None else f" ({each.number})") for each in objects)
    return FORMS[verb].format(*said)


def read_line(line: str) -> tuple[str, tuple[Named, ...]]:
    """Parses a line of a VirtualHome program: `[PUTBACK] <plate> (1.1000) <table> (1.123)` → verb and numbered objects.

    Raises ValueError for a malformed line, an unknown verb or a wrong number of objects.
    """
    match = _LINE.match(line.strip())
    verb = match[1].upper() if match else ""
    if verb not in FORMS:
        raise ValueError(f"not a line of a VirtualHome program: {line.strip()!r}")
    objects = tuple(Named(name.lower().replace(" ", "_"), int(number)) for name, number in _OBJECT.findall(match[2]))
    if len(objects) != FORMS[verb].count("{}"):
        raise ValueError(f"[{verb}] takes {FORMS[verb].count('{}')} objects, not {len(objects)}: {line.strip()!r}")
    return verb, objects
