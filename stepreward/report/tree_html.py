"""The tree of a recorded group as HTML: its segments with their values, below the segments that they start from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stepreward.metrics import is_number
from stepreward.report.episode_html import escaped, signed

_ACTIONS = 8  # of a segment that are shown; the others are in the tooltip


def tree_html(files: Sequence[Mapping[str, Any]]) -> str:
    """Returns the tree of the last file that has one as a section; "" if none has.

    Args:
      files: contents of the files of recorded episodes (see `report.episodes`), first iteration first.
    """
    file = next((file for file in reversed(files) if file.get("tree")), None)
    if file is None:
        return ""
    tree = file["tree"]
    below: dict[Any, list[Mapping[str, Any]]] = {}
    for segment in tree["segments"]:
        below.setdefault(segment.get("parent"), []).append(segment)
    facts = [f"iteration {file['iteration']}", f"{len(tree['segments'])} segments"]
    if tree.get("absent"):
        facts.append(f"{tree['absent']} absent leaves, below episodes that ended early")
    legend = (
        "Each line is a segment, the steps between two branching points: its turns, its actions, and the <b>value</b> of the state that it leads "
        "to, the mean of the segments below it or the outcome of the episode. <b>best</b> marks the segment of the highest value "
        "among those that start from the same state. All leaves are trained on, except those whose environment failed."
    )
    root = f"<p>root {_value(tree.get('value'))}</p>" + _children(None, below)
    return (
        f'<section><h2>Tree of a group</h2><p class="facts">{legend}</p>'
        f'<article class="episode tree"><p class="facts">{" · ".join(facts)}</p>{root}</article></section>'
    )


def _children(parent: Any, below: Mapping[Any, list[Mapping[str, Any]]]) -> str:
    segments = below.get(parent, [])
    values = [segment["value"] for segment in segments if is_number(segment.get("value"))]
    best = max(values) if len(set(values)) > 1 else None
    items = "".join(f"<li>{_segment(s, best)}{_children(s['id'], below) if 'id' in s else ''}</li>" for s in segments)
    return f"<ul>{items}</ul>" if items else ""


def _segment(segment: Mapping[str, Any], best: float | None) -> str:
    first, last = segment["first"] + 1, segment["last"] + 1
    turns = f"turn {first}" if first >= last else f"turns {first}–{last}"
    actions = ["no action" if action is None else str(action) for action in segment["actions"]]
    shown = " · ".join(actions[:_ACTIONS]) + (f" · … {len(actions) - _ACTIONS} more" if len(actions) > _ACTIONS else "")
    marks = ""
    if segment.get("failure") is not None:
        marks = f' <span class="badge bad" title="{escaped(segment["failure"])}">left out: the environment failed</span>'
    elif "success" in segment:
        marks = f' <span class="badge {"good" if segment["success"] else "bad"}">{"solved" if segment["success"] else "failed"}</span>'
    if best is not None and segment.get("value") == best:
        marks = f' <span class="badge">best</span>{marks}'
    return f'<span class="soft">{turns}</span> <span title="{escaped(" · ".join(actions))}">{escaped(shown)}</span> {_value(segment.get("value"))}{marks}'


def _value(value: Any) -> str:
    return f"<b>{signed(value)}</b>" if is_number(value) else '<span class="soft">no value</span>'
