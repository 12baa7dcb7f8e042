"""Recordings: the episodes of a policy's exploration with their sampled tokens, stored for later training.

The folder is written in parts, so that an interrupted exploration loses no finished part. `metadata.json` says what produced the
episodes and how many parts there will be. Each part is a separate TFDS dataset, either complete or absent.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stepreward import __version__
from stepreward.data.demonstrations import check_metadata
from stepreward.data.storage import METADATA, damaged, plain, read_dataset, read_header, scratch, write_dataset, write_header
from stepreward.envs.protocol import EVENT_NAMES

_WHAT = "recorded episodes"
_FINISH = "with --stage=explore in that workdir"
_WHOLE = ("seed", "group", "final_automaton_state")
_STRINGS = ("observations", "outputs", "actions", "state_keys")
_PER_STEP = {
    "rewards": np.float64, "executed": np.bool_, "distances": np.float64, "cut": np.int64, "stopped": np.bool_,
    "turn_rewards": np.float64, "answer_log_probs": np.float64, "automaton_states": np.int64,
}  # fmt: skip
# Fields with one array of any length for each step: its dtype, and the name under which the lengths are stored.
_RAGGED = {
    "prompt_tokens": (np.int32, "prompt_lengths"),
    "action_tokens": (np.int32, "action_lengths"),
    "log_prob": (np.float32, "action_lengths"),
    "entropy": (np.float32, "action_lengths"),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Recording:
    """One episode of `S` steps; `S` may be 0. Every number comes back bit for bit.

    Attributes:
      seed, split, group: the task: its seed, "train" or "held_out", and the group of episodes that share it.
      success, truncated, score: how the episode ended.
      failure: what the environment raised, or None.
      end, needs: why it ended, and which limits would have had to be larger (see `rollout.episode.Episode`).
      final_observation, final_distance: after the last action. A distance is NaN if unknown, inf if success is out of reach.
      prompt_tokens: `S` int32 arrays, the tokens before each answer.
      action_tokens, log_prob, entropy: `S` arrays `[A]` each, int32 / float32 / float32; `A` is the length of the answer.
      observations: the text before each action.
      outputs: the model's answers as text.
      actions: the parsed actions; None if the answer contained none.
      rewards: float64 `[S]`, the environment's rewards.
      executed: bool `[S]`, the action was understood, ran and took effect.
      state_keys: the state before each action.
      distances: float64 `[S]`, steps to success before each action.
      cut: int64 `[S]`, characters of observations that were cut from each prompt.
      stopped: bool `[S]`, the answer ended with a stop token and not at the length limit.
      events: names of the events of each step (`envs.protocol.EVENT_NAMES`).
      turn_rewards: float64 `[S]`, the partial progress that each step made; 0 if the environment measures none.
      answer_log_probs: float64 `[S]`, mean log-probability of the reference answer before each action; NaN if it was not scored.
      reference: a right final answer, or None if the environment has none.
      automaton_states: int64 `[S]`, states of the automaton of subgoals before each action; −1 if there is none.
      final_automaton_state: after the last action.
    """

    seed: int
    split: str
    group: int
    success: bool
    truncated: bool
    score: float
    failure: str | None
    end: str
    needs: dict[str, int]
    final_observation: str
    final_distance: float
    prompt_tokens: list[np.ndarray]
    action_tokens: list[np.ndarray]
    log_prob: list[np.ndarray]
    entropy: list[np.ndarray]
    observations: list[str]
    outputs: list[str]
    actions: list[str | None]
    rewards: np.ndarray
    executed: np.ndarray
    state_keys: list[str]
    distances: np.ndarray
    cut: np.ndarray
    stopped: np.ndarray
    events: list[tuple[str, ...]]
    turn_rewards: np.ndarray
    answer_log_probs: np.ndarray
    reference: str | None
    automaton_states: np.ndarray
    final_automaton_state: int


def begin_recording(path: str | os.PathLike, metadata: Mapping[str, Any], parts: int) -> int:
    """Creates the folder `path` for `parts` parts, or opens one that an earlier run has begun.

    Args:
      path: the folder; its parents are created.
      metadata: what produces the episodes, such as the policy and the tokenizer; plain JSON values.
      parts: the number of parts of the finished folder, at least 1.

    Returns:
      The number of finished parts, which is the index of the part to write next.

    Raises:
      ValueError: if the metadata is not JSON; if the folder was begun with other metadata or another number of parts (the message
        names the first key that differs and both values); if it is not a folder of recordings; or if it is damaged.
    """
    path = Path(path)
    if parts < 1:
        raise ValueError(f"parts must be at least 1; got {parts}")
    header = {"stepreward": __version__, "parts": parts, "metadata": plain(metadata, _WHAT)}
    if not path.exists():
        with scratch(path) as temporary:
            folder = temporary / path.name
            folder.mkdir()
            write_header(folder, header)
            folder.rename(path)
        return 0
    found = _header(path)
    check_metadata(found["metadata"], header["metadata"], _WHAT, whole=True)
    check_metadata({"parts": found["parts"]}, {"parts": parts}, _WHAT)
    return _finished(path, parts)


def write_part(path: str | os.PathLike, index: int, recordings: Iterable[Recording]) -> None:
    """Writes one part in `path`, completely or not at all.

    Args:
      path: a folder that `begin_recording` created.
      index: the index of the part, from 0.
      recordings: its episodes, at least one; their order is kept.

    Raises:
      ValueError: if `path` is not a folder of recordings or has no such part, the part exists, there are no episodes, or a field
        has the wrong type or length.
    """
    path = Path(path)
    parts = _header(path)["parts"]
    if not 0 <= index < parts:
        raise ValueError(f"{str(path)!r} has parts 0 to {parts - 1}; got part {index}")
    part = path / _name(index)
    if part.exists():
        raise ValueError(f"{str(part)!r} already exists; delete it or write another part")
    rows = [_row(place, recording) for place, recording in enumerate(recordings)]
    if not rows:
        raise ValueError(f"no episodes to write to {str(part)!r}")
    write_dataset(part, rows, {"count": len(rows)}, "Recordings")


def read_recordings(path: str | os.PathLike) -> tuple[list[Recording], dict[str, Any]]:
    """Reads a finished folder of recordings.

    Returns:
      The episodes of all parts in the order written, and the metadata, whose tuples come back as lists.

    Raises:
      FileNotFoundError: if there is no such folder.
      ValueError: if the folder holds no recordings, or parts are missing or damaged.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"no recordings folder {str(path)!r}")
    header = _header(path)
    parts, finished = header["parts"], _finished(path, header["parts"])
    if finished < parts:
        raise ValueError(f"{str(path)!r} is unfinished: it holds {finished} of {parts} parts; finish it {_FINISH}")
    # Parts are written in order, so those after a deleted part must be deleted too.
    remedy = f"and the parts after it, and finish it {_FINISH}"
    recordings: list[Recording] = []
    for index in range(parts):
        part = path / _name(index)
        try:
            count = read_header(part)["count"]
            found = [_recording(row) for row in read_dataset(part)]
        except Exception as error:
            raise damaged(_WHAT, part, error, remedy) from error
        if len(found) != count:
            raise damaged(_WHAT, part, f"{len(found)} of {count} episodes", remedy)
        recordings += found
    return recordings, header["metadata"]


def _name(index: int) -> str:
    return f"part-{index:05d}"


def _finished(path: Path, parts: int) -> int:
    return sum(1 for _ in itertools.takewhile(lambda index: (path / _name(index)).is_dir(), range(parts)))


def _header(path: Path) -> dict[str, Any]:
    if not (path / METADATA).is_file():
        raise ValueError(f"{str(path)!r} is not a folder of recordings: it holds no {METADATA}")
    try:
        header = read_header(path)
        return {"parts": int(header["parts"]), "metadata": dict(header["metadata"])}
    except Exception as error:
        raise damaged(_WHAT, path, error) from error


def _row(place: int, recording: Recording) -> dict[str, Any]:
    """Converts a recording to a dict of the stored types; raises ValueError naming a field of the wrong type or length."""
    row: dict[str, Any] = {name: int(getattr(recording, name)) for name in _WHOLE}
    row |= {"success": bool(recording.success), "truncated": bool(recording.truncated)}
    row |= {name: np.float64(getattr(recording, name)) for name in ("final_distance", "score")}
    for name in ("split", "final_observation", "end", "failure", "reference"):
        row[name] = value = getattr(recording, name)
        if not isinstance(value, str) and not (value is None and name in ("failure", "reference")):
            raise ValueError(f"recording {place}: {name} must be a str; got {type(value).__name__}")
    row |= {name: json.dumps(getattr(recording, name)) for name in ("failure", "needs", "reference")}

    steps = len(recording.observations)
    for name in (*_STRINGS, "events", *_PER_STEP, *_RAGGED):
        if len(getattr(recording, name)) != steps:
            raise ValueError(f"recording {place}: {name} has {len(getattr(recording, name))} items for {steps} observations")
    for name in _STRINGS:
        for item in getattr(recording, name):
            if not isinstance(item, str) and not (item is None and name == "actions"):
                raise ValueError(f"recording {place}: {name} must hold str; got {type(item).__name__}")
        row[name] = json.dumps(list(getattr(recording, name)))
    for name in sorted({name for names in recording.events for name in names} - set(EVENT_NAMES)):
        raise ValueError(f"recording {place}: events must hold the names {', '.join(EVENT_NAMES)}; got {name!r}")
    row["events"] = json.dumps([list(names) for names in recording.events])
    for name, dtype in _PER_STEP.items():
        row[name] = _array(f"recording {place}: {name}", getattr(recording, name), dtype)
    for name, (dtype, lengths) in _RAGGED.items():
        arrays = [_array(f"recording {place}: {name}", item, dtype) for item in getattr(recording, name)]
        length = np.array([len(item) for item in arrays], np.int32)
        if (row.setdefault(lengths, length) != length).any():
            raise ValueError(f"recording {place}: {name} and action_tokens have different lengths")
        row[name] = np.concatenate([np.zeros(0, dtype), *arrays])
    return row


def _array(where: str, values: np.ndarray, dtype) -> np.ndarray:
    # The array must already have the stored dtype; a cast here would change the values that are read back.
    if not isinstance(values, np.ndarray) or values.dtype != dtype or values.ndim != 1:
        got = f"{values.dtype} {list(values.shape)}" if isinstance(values, np.ndarray) else type(values).__name__
        raise ValueError(f"{where} must be a one-dimensional array of {np.dtype(dtype)}; got {got}")
    return values


def _recording(row: dict[str, Any]) -> Recording:
    steps = len(row["rewards"])  # fields that earlier versions did not store get defaults
    without = {"end": b"", "needs": "{}", "cut": np.zeros(steps, np.int64), "stopped": np.ones(steps, bool)}
    without |= {"events": json.dumps([()] * steps), "turn_rewards": np.zeros(steps), "reference": "null"}
    row = {
        **without,
        "answer_log_probs": np.full(steps, np.nan),
        "automaton_states": np.full(steps, -1),
        "final_automaton_state": -1,
        **row,
    }
    fields: dict[str, Any] = {name: int(row[name]) for name in _WHOLE}
    fields |= {name: bool(row[name]) for name in ("success", "truncated")}
    fields |= {name: row[name].decode() for name in ("split", "final_observation", "end")}
    fields |= {name: json.loads(row[name]) for name in ("failure", "needs", "reference", *_STRINGS)}
    fields["events"] = [tuple(names) for names in json.loads(row["events"])]
    fields |= {name: float(row[name]) for name in ("final_distance", "score")}
    # Copied because TFDS returns read-only views of its buffers.
    fields |= {name: np.array(row[name]) for name in _PER_STEP}
    for name, (_, lengths) in _RAGGED.items():
        ends = np.cumsum(row[lengths])
        fields[name] = np.split(np.array(row[name]), ends)[:-1]
    return Recording(**fields)
