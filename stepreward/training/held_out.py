"""Resets environments before a run begins, to choose the held-out tasks and to find the sizes of pictures."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np

from stepreward.envs.protocol import IMAGE, TASKS
from stepreward.rollout.environments import Call, EnvironmentFailure, Pool
from stepreward.rollout.episode import Task

_log = logging.getLogger(__name__)
_AT_ONCE = 32  # environments that are reset at the same time
_MOST_RESETS = 20  # maximum number of resets per requested task
_PICTURES = 64  # tasks of each split whose first pictures are measured
_PATIENCE = 64  # minimum number of consecutive resets without a new state before the search stops


def choose_held_out(pool: Pool, episodes: int, seed_of: Callable[[int], int]) -> list[Task]:
    """Chooses the first tasks of the held-out split with different initial states; the first n tasks do not depend on `episodes`.

    If the environment numbers its tasks (capability "tasks"), they are tasks 0 to episodes − 1, without a reset. Otherwise seeds are tried
    in order, and those whose reset fails are left out. The search stops after 20 · episodes resets, or after max(64, 20 · d) consecutive
    resets without a new state, where d states were found: with d + 1 equally likely states, a new one would have been found with a
    probability above 1 − 2e-8. The remaining tasks then use the seeds from index 20 · episodes on, without a reset, and repeat states.

    Args:
      pool: the environments of the run.
      episodes: the number of tasks.
      seed_of: function from an index to the seed of a task.

    Raises:
      ValueError: every environment failed on the first tasks, or on all that were tried.
    """
    if TASKS in pool.capabilities():
        return [Task(seed, "held_out", seed) for seed in range(episodes)]
    seeds: list[int] = []
    seen: set[str] = set()
    failed, tried, repeats, failure = 0, 0, 0, None
    while len(seeds) < episodes and tried < _MOST_RESETS * episodes and repeats < max(_PATIENCE, _MOST_RESETS * len(seen)):
        asked = [seed_of(index) for index in range(tried, min(tried + _AT_ONCE, _MOST_RESETS * episodes))]
        calls = [Call(slot, "reset", (), {"seed": seed, "options": {"split": "held_out"}}) for slot, seed in enumerate(asked)]
        for seed, found in zip(asked, pool.call_all(calls), strict=True):
            if len(seeds) == episodes or repeats >= max(_PATIENCE, _MOST_RESETS * len(seen)):
                break  # the result is the same as with one reset at a time
            tried += 1
            if isinstance(found, EnvironmentFailure):
                failed, failure = failed + 1, failure or found
            elif (key := found[1]["state_key"]) in seen:
                repeats += 1
            else:
                seen.add(key)
                seeds.append(seed)
                repeats = 0
        if failed == tried:  # later tasks would most likely fail too
            raise ValueError(f"the environment failed on all of the first {tried} held-out tasks: {failure}")
    if failed:
        _log.warning("%d of %d held-out tasks were left out, because their environments failed: %s", failed, tried, failure)
    if len(seeds) < episodes:
        _log.warning(
            "%d resets found only %d different held-out tasks; %d of the %d evaluation tasks repeat their initial states",
            tried,
            len(seeds),
            episodes - len(seeds),
            episodes,
        )
        seeds += [seed_of(_MOST_RESETS * episodes + extra) for extra in range(episodes - len(seeds))]
    return [Task(seed, "held_out", place) for place, seed in enumerate(seeds)]


def first_pictures(pool: Pool, seed_of: Callable[[int], int]) -> list[np.ndarray]:
    """Returns one initial picture of each size among 64 tasks of each split, in the order in which they were found.

    Args:
      pool: the environments of the run, which have pictures.
      seed_of: function from an index to the seed of a task.

    Raises:
      ValueError: every environment failed.
    """
    found: dict[tuple, np.ndarray] = {}
    tried, failure = 0, None
    for split in ("train", "held_out"):
        for first in range(0, _PICTURES, _AT_ONCE):
            seeds = [seed_of(first + slot) for slot in range(_AT_ONCE)]
            calls = [Call(slot, "reset", (), {"seed": seed, "options": {"split": split}}) for slot, seed in enumerate(seeds)]
            for result in pool.call_all(calls):
                if isinstance(result, EnvironmentFailure):
                    failure = failure or result
                else:
                    found.setdefault(result[0][IMAGE].shape, result[0][IMAGE])
            tried += len(calls)
            if not found:  # later tasks would most likely fail too
                raise ValueError(f"the environment failed on all of the first {tried} tasks: {failure}")
    return list(found.values())
