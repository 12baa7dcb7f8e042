"""Filters before any credit method: which groups of an iteration are trained on. On the host, with NumPy.

A group whose episodes have equal outcomes shows no difference to learn from, and one whose outcomes differ much shows most. StarPO-S keeps
the groups with the largest standard deviation of the outcome, DAPO those where it is not 0, PRIME those of middling success.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class GroupOutcomes(NamedTuple):
    """The outcomes and successes of a group's episodes; those whose environment failed are left out."""

    outcome: np.ndarray
    success: np.ndarray

    @property
    def std(self) -> float:
        """The standard deviation of the outcomes, ddof 1: exactly 0 where all are equal, and for fewer than two episodes."""
        if len(self.outcome) < 2:
            return 0.0
        return float(np.std(np.asarray(self.outcome, np.float64) - self.outcome[0], ddof=1))


@dataclasses.dataclass(frozen=True)
class Filter:
    """Chooses groups. `kept` gives the indices of the groups that are trained on, in order.

    Attributes:
      kind: one of `KINDS`:
        "none": all groups.
        "variance": those with a standard deviation above 0 (DAPO's dynamic sampling).
        "accuracy": those with a share of successes in [low, high] (PRIME).
        "top_share": the share of the groups with the largest standard deviations, at least one (StarPO-S).
        "top_p": the fewest groups, by falling standard deviation, whose weights sum to `share` (RAGEN).
      share: in (0, 1], see "top_share" and "top_p".
      weights: the weights of "top_p": "linear", each standard deviation divided by their sum, or "softmax" of the standard deviations.
      low, high: see "accuracy".
      rounds: how often groups are played in an iteration until as many as the iteration has are kept, at least 1. Each round plays as
        many new groups as the first one. Only "variance" and "accuracy" play further rounds, since the others keep a share.

    Raises:
      ValueError: at construction, on a value out of range; the message names the config key.

    Source: RAGEN (arXiv 2504.20073), DAPO (arXiv 2503.14476), PRIME (arXiv 2502.01456).
    """

    kind: str = "none"
    share: float = 0.25
    weights: str = "linear"
    low: float = 0.2
    high: float = 0.8
    rounds: int = 1

    def __post_init__(self):
        for field, known in (("kind", KINDS), ("weights", WEIGHTS)):
            if getattr(self, field) not in known:
                raise ValueError(f"filter.{field}={getattr(self, field)!r} is not one of {', '.join(known)}.")
        if not 0 < self.share <= 1:
            raise ValueError(f"filter.share={self.share} is a share of the groups: it must be above 0 and at most 1.")
        if not 0 <= self.low <= self.high <= 1:
            raise ValueError(f"filter.low={self.low} and filter.high={self.high} must satisfy 0 <= low <= high <= 1.")
        if self.rounds < 1:
            raise ValueError(f"filter.rounds={self.rounds} must be at least 1.")
        if self.rounds > 1 and self.kind not in PLAYS_ON:
            raise ValueError(
                f"filter.rounds={self.rounds} plays further groups until enough are kept, which filter.kind={self.kind!r} does not need: "
                f"set filter.rounds=1, or filter.kind to {' or '.join(PLAYS_ON)}."
            )

    def kept(self, groups: Sequence[GroupOutcomes]) -> list[int]:
        """Returns the indices of the groups that are trained on; a group without an episode is never one."""
        filled = [i for i, group in enumerate(groups) if len(group.outcome)]
        return sorted(filled[i] for i in KINDS[self.kind](self, [groups[i] for i in filled]))


def _all(rule: Filter, groups: list[GroupOutcomes]) -> list[int]:
    return list(range(len(groups)))


def _varied(rule: Filter, groups: list[GroupOutcomes]) -> list[int]:
    return [i for i, group in enumerate(groups) if group.std > 0]


def _accurate(rule: Filter, groups: list[GroupOutcomes]) -> list[int]:
    return [i for i, group in enumerate(groups) if rule.low <= float(np.mean(group.success)) <= rule.high]


def _top_share(rule: Filter, groups: list[GroupOutcomes]) -> list[int]:
    count = max(1, int(rule.share * len(groups) + 1e-9))
    return _by_std(groups)[:count]


def _top_p(rule: Filter, groups: list[GroupOutcomes]) -> list[int]:
    weight = WEIGHTS[rule.weights](np.array([group.std for group in groups], np.float64))
    order = _by_std(groups)
    before = np.cumsum(weight[order]) - weight[order]
    return [i for i, sum_before in zip(order, before) if sum_before < rule.share - 1e-9 and weight[i] > 0]


def _by_std(groups: list[GroupOutcomes]) -> list[int]:
    """Indices by falling standard deviation; of equal ones, the earlier group comes first."""
    return sorted(range(len(groups)), key=lambda i: -groups[i].std)


def _linear(std: np.ndarray) -> np.ndarray:
    return std / std.sum() if std.sum() > 0 else std


def _softmax(std: np.ndarray) -> np.ndarray:
    weight = np.exp(std - std.max(initial=0.0))
    return weight / max(weight.sum(), 1e-300)


KINDS: dict[str, Callable] = {"none": _all, "variance": _varied, "accuracy": _accurate, "top_share": _top_share, "top_p": _top_p}
WEIGHTS: dict[str, Callable] = {"linear": _linear, "softmax": _softmax}
PLAYS_ON = ("variance", "accuracy")
COMPARING = ("variance", "top_share", "top_p")  # kinds that compare the episodes of a group
