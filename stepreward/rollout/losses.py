"""Warnings of what a rollout cut or ended early: one for each kind, which says which limits to raise."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

from stepreward.rollout.episode import ROW_FULL, TOO_LONG, Episode
from stepreward.rollout.reference import unscored

_log = logging.getLogger(__name__)
CUT = "observations_cut"
FIRST = "first_prompt"
NO_REFERENCE, UNSCORED = "no_reference", "unscored_answers"
_NO_ROOM = (
    "with its lead-in it has no tokens, or more than rollout.max_prompt_tokens or than the row has left of rollout.max_row_tokens; "
    "raise these limits"
)
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


def warn_of_unscored(episodes: Sequence[Episode], warned: set[str]) -> None:
    """Logs a warning if reference answers of some episodes were not scored before every step, once for each of two reasons."""
    missed = [e for e in episodes if e.failure is None and unscored([e])]
    for kind, lost, why in (
        (NO_REFERENCE, [e for e in missed if e.reference is None], "the environment gave none"),
        (UNSCORED, [e for e in missed if e.reference is not None], _NO_ROOM),
    ):
        if lost and kind not in warned:
            warned.add(kind)
            _log.warning(
                "%d of %d episodes have steps before which no reference answer was scored: %s. These steps have no signal "
                "answer_log_prob.", len(lost), len(episodes), why,
            )  # fmt: skip


def _largest(needs: Iterable[Mapping[str, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for one in needs:
        for key, count in one.items():
            found[key] = max(count, found.get(key, 0))
    return found
