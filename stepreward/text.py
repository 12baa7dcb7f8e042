"""Cleans text where it enters the library: from environments, clients, configs and command lines.

Python's strings may hold what no file, terminal or tokenizer takes: half of an emoji, which JSON can spell (`"\\ud83d"`) and
bytes in a command line can become. Such text is replaced once, where it enters, so that nothing behind it has to care.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# A noncharacter: Unicode reserves it for use inside a program, so clean text never holds it and `chat.unmarked` may use it.
RESERVED = "\ufdd0"

_SURROGATE = re.compile("[\ud800-\udfff]")
_ODD = re.compile(f"[\0{RESERVED}\ud800-\udfff]")
_DEPTH = 8  # of nested containers; deeper ones are no text that is shown


def clean(text: str) -> str:
    """Returns the text with U+FFFD in place of lone surrogates, NUL and U+FDD0; two surrogates of a pair become their character.

    Clean text comes back as it is, so cleaning twice equals cleaning once. A subclass of `str` becomes a plain `str`.
    """
    text = text if type(text) is str else str.__str__(text)
    if not _ODD.search(text):
        return text
    return whole(text).replace("\0", REPLACEMENT).replace(RESERVED, REPLACEMENT)


def whole(text: str) -> str:
    """Returns the text with U+FFFD in place of lone surrogates, which no encoding takes; all else stays as it is."""
    if not _SURROGATE.search(text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def cleaned(value: Any, depth: int = _DEPTH) -> Any:
    """Returns the value with every string in its mappings, lists and tuples clean, keys included.

    What holds no odd text comes back as the same object; arrays and objects of other types are not looked into.
    """
    if isinstance(value, str):
        return clean(value)
    if not depth or not isinstance(value, (Mapping, list, tuple)):
        return value
    if isinstance(value, Mapping):
        pairs = {cleaned(key, depth - 1): cleaned(item, depth - 1) for key, item in value.items()}
        same = all(a is b and pairs[a] is value[b] for a, b in zip(pairs, value)) and len(pairs) == len(value)
        return value if same else pairs
    items = [cleaned(item, depth - 1) for item in value]
    if all(new is old for new, old in zip(items, value)):
        return value
    return items if isinstance(value, list) else tuple(items)
