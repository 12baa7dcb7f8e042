"""Warnings of what a rollout cut or ended early: one for each kind, which says which limits to raise."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

from stepreward.rollout.episode import ROW_FULL, TOO_LONG, Episode

_log = logging.getLogger(__name__)
CUT = "observations_cut"
FIRST = "first_prompt"
_SAID = {
    FIRST: "%s failed, as their first prompt was too long: %s.",
    TOO_LONG: "%s ended early, as an observation made the next prompt too long: %s, or rollout.long_observation='cut' to cut it.",
    ROW_FULL: "%s ended early, as their conversation was full: %s.",
    CUT: "%s had observations that were cut to fit the prompt, with a marker in their place: to show them whole, %s.",
}


def advice(needs: Mapping[str, int]) -> str:
    """Says which limits make everything fit: "set rollout.max_prompt_tokens to at least 812 and …"."""
    return "set " + " and ".join(f"{key} to at least {count}" for key, count in sorted(needs.items()))


def warn_of_losses(episodes: Sequence[Episode], warned: set[str]) -> None:
    """Logs a warning for each kind of loss among the episodes that is not in `warned` yet, and adds the kind to `warned`."""
    found = {
        FIRST: [e for e in episodes if e.failure is not None and e.needs and not e.steps],
        CUT: [e for e in episodes if any(step.cut for step in e.steps)],
        **{why: [e for e in episodes if e.end == why] for why in (TOO_LONG, ROW_FULL)},
    }
    for kind, lost in found.items():
        if lost and kind not in warned:
            warned.add(kind)
            _log.warning(_SAID[kind], f"{len(lost)} of {len(episodes)} episodes", advice(_largest(e.needs for e in lost)))


def _largest(needs: Iterable[Mapping[str, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for one in needs:
        for key, count in one.items():
            found[key] = max(count, found.get(key, 0))
    return found
