"""A run's metrics: `workdir/metrics.jsonl`, and the confidence interval of a success rate.

A line of `metrics.jsonl` is one JSON object: `tick` (int; one sequence over all stages of the run), `iteration` (int; finished
iterations of reinforcement learning), `stage`, `env_steps`, `wall_s`, and measurements under `group/name`. A process or its machine
may stop at any byte. Every line reaches the disk before `write` returns, so only the last line can be incomplete, and readers drop it.
"""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple, Protocol

import numpy as np

METRICS_FILE = "metrics.jsonl"


def to_json(value: Any, name: str = "value") -> Any:
    """Converts `value` to types of strict JSON.

    NumPy and JAX scalars (arrays of one element) become Python numbers, exactly; NaN and ±infinity become None.

    Args:
      value: None, a string, a number, a one-element array, or mappings and sequences of these.
      name: the value's name in errors.

    Raises:
      ValueError: an array whose number of elements is not one.
      TypeError: any other type that JSON cannot represent.
    """
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): to_json(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item, f"{name}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "__array__"):
        array = np.asarray(value)
        if array.size != 1:
            raise ValueError(f"{name} is an array of shape {array.shape}, but a metric must be one number: reduce it first.")
        item = array.item()
        # Scalars of bfloat16 and other extension types are not Python numbers until they are cast.
        return to_json(item if isinstance(item, (bool, int, float, str)) else float(item), name)
    raise TypeError(f"{name} is a {type(value).__name__}, which JSON cannot represent; give a number or a string.")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes text (UTF-8) or bytes to `path` so that a reader sees either the old file or the new one, never a part of it."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Reads `metrics.jsonl` into one dict per line, in file order; drops an incomplete last line.

    Args:
      path: the file, or its workdir.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a line before the last one is not a JSON object; the message gives its number.
    """
    path = Path(path)
    if path.is_dir():
        path = path / METRICS_FILE
    if not path.is_file():
        raise FileNotFoundError(f"No metrics at {path}: the run has not started, or the path is not a workdir.")
    lines = path.read_bytes().split(b"\n")
    while lines and not lines[-1].strip():
        lines.pop()
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError("it is not a JSON object")
        except ValueError as error:
            if number == len(lines):
                break
            raise ValueError(f"{path}, line {number} of {len(lines)} is corrupt ({error}); remove that line to read the rest.") from error
        records.append(record)
    return records


class Tracker(Protocol):
    """Another place for metrics. Neither method raises."""

    def write(self, record: Mapping[str, Any]) -> None:
        """Takes a line as it is in the file; ignores one that it has."""

    def close(self) -> None:
        """Ends the tracker. It may be called twice."""


class MetricsWriter:
    """Appends records to `workdir/metrics.jsonl`, and sends them to a tracker if there is one.

    Only one process of a job may write. A run that resumes from the checkpoint of tick k repeats everything after k, so
    the writer first drops the lines of later ticks. Write the metrics of tick k before saving its checkpoint.

    Args:
      workdir: the run's folder; created if it does not exist.
      resume_tick: tick of the checkpoint from which the run continues; None for a run that starts at its beginning, which
        drops all earlier lines.
      tracker: gets every line that the file keeps or receives; closed with the file (`stepreward/tracking.py`).

    Raises:
      ValueError: the existing file has a corrupt line before its last one.
    """

    def __init__(self, workdir: str | os.PathLike, resume_tick: int | None = None, tracker: Tracker | None = None):
        self.path = Path(workdir) / METRICS_FILE
        self.path.parent.mkdir(parents=True, exist_ok=True)
        first = 0 if resume_tick is None else int(resume_tick) + 1
        kept = []
        if self.path.exists():
            kept = [] if resume_tick is None else [r for r in read_metrics(self.path) if _tick(r) < first]
            write_atomically(self.path, "".join(map(_line, kept)))
        self._file = open(self.path, "ab")
        self._tracker = tracker
        if tracker is not None:
            for record in kept:  # the tracker may have been chosen, or have failed, after these
                tracker.write(record)

    def write(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Appends one line.

        Args:
          record: `tick` (int ≥ 0) and any other names, with numbers, one-element arrays, strings or None. NaN and
            ±infinity are stored as null.

        Returns:
          The record as stored.

        Raises:
          ValueError: a missing or invalid `tick`, or an array whose number of elements is not one.
          TypeError: any other value that JSON cannot represent.
        """
        stored = {str(name): to_json(value, name) for name, value in record.items()}
        tick = stored.get("tick")
        if not isinstance(tick, int) or isinstance(tick, bool) or tick < 0:
            raise ValueError(f"A metrics record needs `tick`, an integer of at least 0; got {tick!r}.")
        self._file.write(_line(stored).encode())
        self._file.flush()
        os.fsync(self._file.fileno())
        if self._tracker is not None:
            self._tracker.write(stored)
        return stored

    def close(self) -> None:
        """Closes the file, and the tracker. It may be called twice."""
        self._file.close()
        if self._tracker is not None:
            self._tracker.close()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *exception) -> None:
        self.close()


@functools.lru_cache(maxsize=4096)
def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Returns the Wilson score interval of a success rate.

    (p̂ + z²/2n ± z √(p̂(1 − p̂)/n + z²/4n²)) / (1 + z²/n), with p̂ = successes / n. Unlike p̂ ± z √(p̂(1 − p̂)/n) it
    stays in [0, 1] and keeps its width at 0 and n successes.

    Args:
      successes: int in [0, n].
      n: number of independent episodes, at least 1.
      confidence: coverage, in (0, 1).

    Returns:
      (low, high), both in [0, 1].

    Raises:
      ValueError: n < 1 or successes outside [0, n].

    Source: Wilson (1927), "Probable inference, the law of succession, and statistical inference".
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"A success rate needs 0 ≤ successes ≤ n and n ≥ 1; got successes={successes}, n={n}.")
    # scipy.stats has it too, but takes up to a second to import, which is long for `stepreward play`.
    z, rate = NormalDist().inv_cdf(0.5 + confidence / 2), successes / n
    half = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    low, high = ((rate + z * z / (2 * n) + sign * half) / (1 + z * z / n) for sign in (-1, 1))
    return 0.0 if successes == 0 else low, 1.0 if successes == n else high


def series(records: Sequence[Mapping[str, Any]], name: str, x: str = "tick") -> tuple[np.ndarray, np.ndarray]:
    """Returns the finite values y of one metric and their positions x, float64 `[N]` each, in the order of the records."""
    pairs = [(record.get(x), record.get(name)) for record in records]
    pairs = [pair for pair in pairs if all(is_number(value) for value in pair)]
    points = np.asarray(pairs, np.float64).reshape(-1, 2)
    return points[:, 0], points[:, 1]


def is_number(value: Any) -> bool:
    """Returns whether `value` is a finite int or float, but not a bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"


def _tick(record: Mapping[str, Any]) -> float:
    """Returns a record's tick; infinity if it has none, so that a resumed run drops the record."""
    value = record.get("tick")
    return value if is_number(value) else math.inf


class Success(NamedTuple):
    """How many tasks were solved.

    Attributes:
      won: tasks that were solved.
      episodes: tasks that were played and whose environment did not fail; at least 1.
      low, high: the 95 % Wilson interval of the rate.
    """

    won: int
    episodes: int
    low: float
    high: float

    @classmethod
    def of(cls, won: int, episodes: int) -> Success:
        """The success with its interval."""
        return cls(won, episodes, *wilson_interval(won, episodes))

    @property
    def rate(self) -> float:
        return self.won / self.episodes

    def words(self, tasks: str = "") -> str:
        """Returns "80.1 % (78.3 to 81.8, 1,640 of 2,048)", with `tasks` behind the last number."""
        return f"{100 * self.rate:.1f} % ({100 * self.low:.1f} to {100 * self.high:.1f}, {self.won:,} of {self.episodes:,}{tasks})"

    def __str__(self) -> str:
        return self.words()
