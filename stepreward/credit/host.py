"""Signals that the host computes from episodes: values of steps as arrays, and numbers for what is equal within a group."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from stepreward.batch import Batch
from stepreward.credit.base import step_mask


def of_steps(episodes: Sequence[Any], read: Callable[[Any], Any]) -> list[list[Any]]:
    """Returns `read(step)` for each step of each episode; an episode that failed has none."""
    return [[read(step) for step in episode.steps] if episode.failure is None else [] for episode in episodes]


def step_array(rows: Sequence[Sequence[Any]], batch: Batch, *, dtype: type = np.float32, fill: float = 0) -> np.ndarray:
    """Returns `[E, S]`: the values `rows[e][s]` at the steps that count, `fill` elsewhere.

    Args:
      rows: one sequence an episode, in the order of the batch; no longer than S.
      batch: the batch that the episodes were packed into.
    """
    counted_ExS = np.asarray(step_mask(batch))
    array_ExS = np.full(counted_ExS.shape, fill, dtype)
    for row, values in zip(array_ExS, rows):
        row[: len(values)] = values
    return np.where(counted_ExS, array_ExS, np.array(fill, dtype))


def equal_ids(keys: Sequence[Sequence[Hashable | None]], group_id: Sequence[int]) -> list[list[int]]:
    """Numbers equal keys of a group alike.

    Args:
      keys: a key for each step of each episode; None belongs to no other.
      group_id: the group of each episode.

    Returns:
      The numbers 0, 1, 2 … in the order of appearance, which no two groups share; −1 for None.
    """
    known: dict[tuple[int, Hashable], int] = {}
    number = lambda group, key: -1 if key is None else known.setdefault((group, key), len(known))
    return [[number(group, key) for key in of_episode] for of_episode, group in zip(keys, group_id)]
