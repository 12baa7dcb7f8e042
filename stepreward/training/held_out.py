"""What a run learns from resetting its environments before it begins: its held-out tasks, and how large pictures are."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np

from stepreward.envs.protocol import IMAGE, TASKS
from stepreward.rollout.environments import Call, EnvironmentFailure, Pool
from stepreward.rollout.episode import Task

_log = logging.getLogger(__name__)
_AT_ONCE = 32  # environments that are reset side by side
_MOST_RESETS = 20  # for each task that is asked for
_PICTURES = 64  # first pictures of a split that say how large pictures are
_PATIENCE = 64  # resets, at least, that must show nothing new before the environment counts as repeating itself


def choose_held_out(pool: Pool, episodes: int, seed_of: Callable[[int], int]) -> list[Task]:
    """The first tasks of the held-out split whose initial states differ; the first n of them are the same whatever `episodes` is.

    Where the environment counts its tasks, they are the first ones, and nothing is reset. Else seeds are tried in order, and those
    whose reset fails are left out. An environment has run out of different states after max(64, 20 · d) resets in a row without a
    new one, d being the number found: d + 1 equally likely states would show all of themselves with a probability above 1 − 2e-8.
    From there on, and after 20 resets for each task, tasks repeat: seeds are taken without a reset, from number 20 · episodes on.

    Args:
      pool: the environments of the run.
      episodes: how many tasks.
      seed_of: index -> seed of a task.

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
                break  # as one reset after the other would end here
            tried += 1
            if isinstance(found, EnvironmentFailure):
                failed, failure = failed + 1, failure or found
            elif (key := found[1]["state_key"]) in seen:
                repeats += 1
            else:
                seen.add(key)
                seeds.append(seed)
                repeats = 0
        if failed == tried:  # nor will the others succeed
            raise ValueError(f"the environment failed on all of the first {tried} held-out tasks: {failure}")
    if failed:
        _log.warning("%d of %d held-out tasks were left out, because their environments failed: %s", failed, tried, failure)
    if len(seeds) < episodes:
        _log.warning(
            "%d resets showed %d different held-out tasks; %d of the %d tasks to evaluate repeat them",
            tried,
            len(seeds),
            episodes - len(seeds),
            episodes,
        )
        seeds += [seed_of(_MOST_RESETS * episodes + extra) for extra in range(episodes - len(seeds))]
    return [Task(seed, "held_out", place) for place, seed in enumerate(seeds)]


def first_pictures(pool: Pool, seed_of: Callable[[int], int]) -> list[np.ndarray]:
    """One picture of each size that the environment shows at the beginning of 64 tasks of either split, in the order met.

    Args:
      pool: the environments of the run, which have pictures.
      seed_of: index -> seed of a task.

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
            if not found:  # nor will the others succeed
                raise ValueError(f"the environment failed on all of the first {tried} tasks: {failure}")
    return list(found.values())
