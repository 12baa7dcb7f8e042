"""The two wordings of the benchmark: games before and after version 0.4 of the package.

|          | old                                       | new                             |
|----------|-------------------------------------------|---------------------------------|
| action   | put apple 1 in/on fridge 1                | move apple 1 to fridge 1        |
| feedback | You put the apple 1 in/on the fridge 1.   | You move the apple 1 to the fridge 1. |
| arrival  | You arrive at loc 4. The fridge 1 is ...  | You arrive at fridge 1. The ... |
"""

from __future__ import annotations

import re

OLD, NEW = "old", "new"
_PUT = re.compile(r"put (\S.*?) (?:in/on|in|on) (\S.*)")
_MOVE = re.compile(r"move (\S.*?) to (\S.*)")
_ARRIVAL = re.compile(r"\AYou arrive at [^.\n]*\. ")
_WORDINGS = (
    ("put {o} in/on {r}", "move {o} to {r}"),
    ("You put the {o.name} in/on the {r.name}.", "You move the {o.name} to the {r.name}."),
    ("You arrive at {lend.name}.", "You arrive at {r.name}."),
)


def wording(grammar: str) -> str:
    """Returns the wording of a game's grammar text: "old" or "new"."""
    return OLD if _WORDINGS[0][0] in grammar else NEW


def rewrite(grammar: str, form: str) -> str:
    """Converts a game's grammar text to the wording `form`, "old" or "new"; changes nothing else."""
    for old, new in _WORDINGS:
        grammar = grammar.replace(new, old) if form == OLD else grammar.replace(old, new)
    return grammar


def in_words_of(action: str, form: str) -> str:
    """Converts an action of either wording to the wording `form`, with the engine's spacing and in lower case."""
    action = " ".join(action.split()).lower()
    found = _PUT.fullmatch(action) or _MOVE.fullmatch(action)
    if not found:
        return action
    return f"put {found[1]} in/on {found[2]}" if form == OLD else f"move {found[1]} to {found[2]}"


def without_arrival(text: str) -> str:
    """Removes the sentence "You arrive at ... ." from an observation, if other sentences follow it."""
    return _ARRIVAL.sub("", text)
