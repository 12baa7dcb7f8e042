"""Reads and writes the two forms of answer that agent papers use.

* tags (iStar, verl-agent; RAGEN with <answer>):  `<think>The door is shut.</think><action>open door</action>`
* labels (SPA-RL, ReAct):                         `Thought: The door is shut.` and, on a new line, `Action: open door`

RLVMR asks for a thought in tags that say its kind, one of `TAGS`:  `<planning>First find the key.</planning><action>open door</action>`

The readers accept any value and never raise. They return the text of the action; the prompt decides whether it is a legal one.
Tags and labels match in upper and lower case. `tagged(write_tagged(t, a)) == a` and `labelled(write_labelled(t, a)) == a` hold
when neither text contains tags or labels, and the action is one line without leading or trailing blanks.
"""

from __future__ import annotations

import functools
import re

# The rest of the label's line, or the first line with text in it after a bare label.
_ACTION = re.compile(r"(?<!\S)action:\s*(\S[^\r\n]*)", re.IGNORECASE)
_THOUGHT = re.compile(r"(?<!\S)thought:", re.IGNORECASE)

TAGS = ("planning", "explore", "reflection", "monitor")  # the kinds of thought of RLVMR (arXiv 2507.22844), in the paper's order


def between(text: str, tag: str) -> str | None:
    """Returns the text between the first `<tag>` and the next `</tag>`, unstripped; None when there is no such pair."""
    if not isinstance(text, str):
        return None
    start = _tag(f"<{tag}>").search(text)
    end = start and _tag(f"</{tag}>").search(text, start.end())
    return text[start.end() : end.start()] if end else None


def tagged(text: str, tag: str = "action", *, require_think: bool = True) -> str | None:
    """Returns the stripped text in the first pair of `tag` tags.

    Args:
      text: a model's answer; a value that is not a string counts as an answer without an action.
      tag: the tag's name.
      require_think: whether an answer without a pair of <think> tags counts as one without an action.

    Returns:
      The text, which may be empty, or None when the answer has no action.
    """
    if require_think and between(text, "think") is None:
        return None
    inside = between(text, tag)
    return None if inside is None else inside.strip()


def labelled(text: str, *, require_thought: bool = False) -> str | None:
    """Returns the stripped line after the first `Action:` label, and ignores all later lines.

    Args:
      text: a model's answer; a value that is not a string counts as an answer without an action. A label counts at the start of the
        text or after white space.
      require_thought: whether an answer without a `Thought:` label before the action counts as one without an action.

    Returns:
      The text, never empty, or None when the answer has no action.
    """
    found = _ACTION.search(text) if isinstance(text, str) else None
    if found is None or (require_thought and not _THOUGHT.search(text, 0, found.start())):
        return None
    return found[1].strip()


def tag_of(text: str) -> str | None:
    """Returns the one kind of thought, of `TAGS`, that the text has a pair of tags of; None when it has none or more than one kind."""
    found = [tag for tag in TAGS if between(text, tag) is not None]
    return found[0] if len(found) == 1 else None


def write_tagged(thought: str, action: str, tag: str = "action") -> str:
    """Writes an answer with thought and action in tags."""
    return f"<think>{thought}</think><{tag}>{action}</{tag}>"


def write_labelled(thought: str, action: str) -> str:
    """Writes an answer with thought and action on labelled lines."""
    return f"Thought: {thought}\nAction: {action}"


@functools.cache
def _tag(tag: str) -> re.Pattern:
    return re.compile(re.escape(tag), re.IGNORECASE | re.ASCII)
