"""The rules by which methods form pairs: pure functions of outcomes, values and lengths."""

from __future__ import annotations

import math
from collections.abc import Sequence


def eto_end(expert_steps: int, rejected_steps: int, extra_messages: int) -> int:
    """How many steps of a rejected episode ETO trains on: as many as the expert took and ⌊extra_messages / 2⌋ more, as a step has two
    messages."""
    return min(rejected_steps, expert_steps + extra_messages // 2)


def better(one: float, other: float, threshold: float = 0.0) -> int:
    """1 if `one` is more than `threshold` above `other`, −1 if it is more than that below, otherwise 0; 0 where one is NaN."""
    if math.isnan(one) or math.isnan(other):
        return 0
    return (one - other > threshold) - (other - one > threshold)


def ipr_better(finals: tuple[float, float], values: tuple[float, float], final_threshold: float, value_threshold: float) -> int:
    """IPR's rule for a step: 1 or −1 where the final outcomes differ by more than one threshold, the Monte Carlo values by more than the
    other, and both have the same sign; otherwise 0."""
    by_final = better(*finals, final_threshold)
    return by_final if by_final == better(*values, value_threshold) else 0


def rising(before: float, values: Sequence[float]) -> int | None:
    """The index of the first value that is greater than `before`; None if there is none. NaN is greater than nothing."""
    return next((index for index, value in enumerate(values) if value > before), None)


def critical(original: float, alternatives: Sequence[float], bad: float, good: float) -> int | None:
    """CSO's rule for a step: the index of the best alternative, if the original scores below `bad` and the best above `good`, strictly.

    The first of equally good ones counts. NaN scores are left out.
    """
    known = [(value, -index) for index, value in enumerate(alternatives) if not math.isnan(value)]
    if not known or not original < bad:
        return None
    value, index = max(known)
    return -index if value > good else None
