"""The tasks of a run: those of each iteration, and the fixed held-out ones."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from stepreward import processes
from stepreward.errors import naming
from stepreward.rollout.environments import Pool
from stepreward.rollout.episode import Task
from stepreward.training import streams
from stepreward.training.held_out import choose_held_out

_SETS: dict[str, tuple[Task, ...]] = {}  # by environment; cached, since choosing held-out tasks resets environments


def training_tasks(
    seed: int,
    stream: str,
    index: int | tuple[int, ...],
    groups: int,
    group_size: int,
    first: int = 0,
    environments: Sequence[str] | None = None,
) -> list[Task]:
    """Returns the tasks of one iteration: `groups` training tasks, each `group_size` times.

    Args:
      stream: the random stream of the tasks, one of `streams.TASKS`.
      index: the iteration, or the indices in the stream.
      first: the number of the first group.
      environments: in a run of several environments, the name of each group's.
    """
    index = (index,) if isinstance(index, int) else index
    names = [""] * groups if environments is None else environments
    return [
        Task(streams.task(seed, stream, *index, g), "train", first + g, name)
        for g, name in zip(range(groups), names, strict=True)
        for _ in range(group_size)
    ]


def held_out_tasks(c, pool: Pool, episodes: int) -> list[Task]:
    """Returns the first tasks of the held-out set, which does not depend on the run's seed; see `held_out.choose_held_out`."""
    name = json.dumps(c.environment.to_dict(), sort_keys=True)
    return list(processes.on_writer(lambda: _held_out(name, pool, episodes)))


def held_out(c, parts, episodes: int) -> list[Task]:
    """Returns the first tasks of the held-out set of a run.

    In a run of several environments, each has ⌈episodes / environments⌉ tasks, so that all count alike.

    Args:
      c: the config.
      parts: the run's `setup.Parts`.
      episodes: the number of tasks.
    """
    if parts.mixture is None:
        return held_out_tasks(c, parts.collector.pool, episodes)
    entries, found = parts.mixture.entries, []
    for entry in entries:
        pool = parts.parts_of[entry.name].collector.pool
        with naming(entry.name):
            tasks = held_out_tasks(entry.view, pool, -(-episodes // len(entries)))
        found += [dataclasses.replace(task, group=len(found) + place, environment=entry.name) for place, task in enumerate(tasks)]
    return found


def _held_out(name: str, pool: Pool, episodes: int) -> tuple[Task, ...]:
    if len(_SETS.get(name, ())) < episodes:
        _SETS[name] = tuple(choose_held_out(pool, episodes, lambda index: streams.task(0, "held_out", index)))
    return _SETS[name][:episodes]
