"""Recorded episodes: `workdir/episodes/tick_000123.json`.

    {"tick": 123, "iteration": 121, "episodes": [
      {"task": "held_out seed 5", "success": true, "outcome": 10.4, "truncated": false, "end": "terminated",
       "steps": [{"observation": "board", "action": "up", "output": "raw model text", "reward": -0.1, "executed": true,
                  "step_reward": 0.013, "step_advantage": 0.8, "distance": 5.0}],
       "final_observation": "board", "final_distance": 0.0}]}

`observation` is what the agent saw before its action; `action` is null if the output contained none. An unknown number is null or
omitted. A distance of "inf" means that the task can no longer be solved from there. `end` is one of the reasons in
`rollout.episode`, and `needs` names the settings that would have had to be larger. If text was cut, a step has `cut`, the number of
characters of observations that were cut from its prompt, and `stopped` is false if its answer was cut. A step has `value`, that of the state
before it, if the rollout measured it; `exact_advantage`, if the run computed it (`credit.exact`); and `sampled` is false if the expert took it.

If the group was rolled out as a tree, the file also has `tree`, all segments of the group with their values; see
`rollout.strategies.segments.tree_record`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stepreward.metrics import to_json, write_atomically
from stepreward.text import cleaned

EPISODES_FOLDER = "episodes"


def write_episodes(
    workdir: str | os.PathLike,
    tick: int,
    iteration: int,
    episodes: Sequence[Mapping[str, Any]],
    tree: Mapping[str, Any] | None = None,
) -> Path:
    """Writes the episodes that were recorded at one tick, completely or not at all.

    Args:
      workdir: the run's folder.
      tick: int ≥ 0; a file of the same tick is replaced.
      iteration: int ≥ 0, how many iterations of reinforcement learning were finished then.
      episodes: dicts as the module's docstring shows; NumPy and JAX scalars are converted, `math.inf` as a distance is
        kept as "inf", and any other NaN or infinity becomes null.
      tree: the tree of the group that the episodes are from, plain JSON values; None if there is none.

    Returns:
      Path of the file.

    Raises:
      ValueError: if an episode has no list of `steps`, or a value is not a scalar.
    """
    stored = []
    for index, episode in enumerate(episodes):
        name = f"episodes[{index}]"
        if not isinstance(episode.get("steps"), (list, tuple)):
            raise ValueError(f"{name} has no list of `steps`.")
        steps = [_with_distance(step, "distance", f"{name}.steps[{s}]") for s, step in enumerate(episode["steps"])]
        rest = {key: value for key, value in episode.items() if key != "steps"}
        stored.append({**_with_distance(rest, "final_distance", name), "steps": steps})
    path = Path(workdir) / EPISODES_FOLDER / f"tick_{int(tick):06d}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"tick": int(tick), "iteration": int(iteration), "episodes": stored} | ({} if tree is None else {"tree": tree})
    write_atomically(path, json.dumps(cleaned(record), ensure_ascii=False, allow_nan=False, indent=1))
    return path


def read_episodes(path: str | os.PathLike) -> dict[str, Any]:
    """Reads one file of recorded episodes; distances of "inf" become `math.inf`.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the file is not JSON, or not in the format of this module.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No recorded episodes at {path}.")
    try:
        record = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}).") from error
    episodes = record.get("episodes") if isinstance(record, dict) else None
    well_formed = isinstance(episodes, list) and all(
        isinstance(episode, dict) and isinstance(episode.get("steps"), list) and all(isinstance(step, dict) for step in episode["steps"])
        for episode in episodes
    )
    if not well_formed or not isinstance(record.get("iteration"), int):
        raise ValueError(f"{path} holds no recorded episodes: it needs `iteration` and `episodes`, each with `steps`.")
    tree = record.get("tree")
    segments = tree.get("segments") if isinstance(tree, dict) else None
    needed = {"first": int, "last": int, "actions": list}
    if tree is not None and not (
        isinstance(segments, list)
        and all(isinstance(s, dict) and all(isinstance(s.get(key), kind) for key, kind in needed.items()) for s in segments)
    ):
        raise ValueError(f"{path} holds a tree without `segments`, each with `first`, `last` and `actions`.")
    for episode in episodes:
        for item, key in [(episode, "final_distance"), *((step, "distance") for step in episode["steps"])]:
            if item.get(key) == "inf":
                item[key] = math.inf
    return record


def list_episodes(workdir: str | os.PathLike) -> list[Path]:
    """Returns the files of recorded episodes, first tick first; empty where there are none."""
    paths = (Path(workdir) / EPISODES_FOLDER).glob("tick_*.json")
    return sorted(paths, key=lambda path: (len(path.name), path.name))


def drop_episodes(workdir: str | os.PathLike, after: int) -> None:
    """Removes the files of later ticks than `after`, which a resumed run makes again."""
    for path in list_episodes(workdir):
        number = path.stem.removeprefix("tick_")
        if number.isdigit() and int(number) > after:
            path.unlink()


def _with_distance(item: Mapping[str, Any], key: str, name: str) -> dict[str, Any]:
    stored = {field: to_json(value, f"{name}.{field}") for field, value in item.items()}
    if key in stored and stored[key] is None and item[key] is not None and float(item[key]) == math.inf:
        stored[key] = "inf"
    return stored


def telling(records: list[dict], count: int) -> list[dict]:
    """Picks at most `count` instructive episodes: successes (longest first) and failures in alternation, then the rest."""
    records = [r for r in records if r["steps"]]
    won = sorted((r for r in records if r["success"]), key=lambda r: -len(r["steps"]))
    lost = [r for r in records if not r["success"]]
    mixed = [r for pair in zip(won, lost) for r in pair]
    rest = [r for r in won + lost if not any(r is m for m in mixed)]
    return (mixed + rest)[:count]
