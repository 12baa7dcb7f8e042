"""Cleans text where it enters the library: from environments, clients, configs and command lines.

Python strings may contain lone surrogates, such as half of an emoji, which JSON can contain (`"\\ud83d"`) and which invalid bytes in
a command line become. No file, terminal or tokenizer accepts them. They are replaced once, on entry, so that no other code has to
handle them.
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
_DEPTH = 8  # levels of nested containers; text at deeper levels is never shown


def clean(text: str) -> str:
    """Replaces lone surrogates, NUL and U+FDD0 by U+FFFD; a pair of surrogates becomes its character.

    Clean text is returned unchanged, so cleaning twice equals cleaning once. A subclass of `str` becomes a plain `str`.
    """
    text = text if type(text) is str else str.__str__(text)
    if not _ODD.search(text):
        return text
    return whole(text).replace("\0", REPLACEMENT).replace(RESERVED, REPLACEMENT)


def whole(text: str) -> str:
    """Replaces lone surrogates, which cannot be encoded, by U+FFFD, and leaves everything else unchanged."""
    if not _SURROGATE.search(text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def cleaned(value: Any, depth: int = _DEPTH) -> Any:
    """Cleans every string in nested mappings, lists and tuples, including keys.

    A value without text to clean is returned as the same object. Arrays and objects of other types are not searched.
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
