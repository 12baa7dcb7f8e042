"""The canonical form of an action: `search[words]` or `answer[words]`."""

from __future__ import annotations

SEARCH, ANSWER = "search", "answer"


def parse(action: str | None) -> tuple[str, str] | None:
    """Returns (kind, words) of an action, or None if it is not one. The words are stripped and not empty."""
    if not isinstance(action, str) or not action.endswith("]"):
        return None
    kind, bracket, rest = action.partition("[")
    words = rest[:-1].strip()
    return (kind, words) if bracket and kind in (SEARCH, ANSWER) and words else None


def write(kind: str, words: str) -> str:
    """Writes an action, so that `parse(write(kind, words)) == (kind, words)` for words that are stripped and not empty."""
    return f"{kind}[{words}]"
