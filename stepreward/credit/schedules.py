"""Schedules of coefficients: a coefficient of a credit method that changes while a run learns.

    make("istar", schedules={"alpha": "linear(1.0, 0.1, 100)"})

A schedule moves from `start` to `end`: value = start + (end − start)·share, with a share in [0, 1] that its kind computes from the
`Standing` of the run. To add a kind, write a subclass of `Schedule` as below; `parse` knows it by its name.
"""

from __future__ import annotations

import abc
import ast
import dataclasses
import math
from typing import ClassVar, NamedTuple

import numpy as np


class Standing(NamedTuple):
    """What the values of an iteration may depend on.

    Attributes:
      iteration: the number of finished iterations of reinforcement learning.
      successes: the training success of the last iterations, in [0, 1], the oldest first; empty before the first one.
      pair_accuracy: the process reward model's pair accuracy on the iteration's batch before it learns from it; 0.5 without a pair.
    """

    iteration: int = 0
    successes: tuple[float, ...] = ()
    pair_accuracy: float = 0.5


@dataclasses.dataclass(frozen=True)
class Schedule(abc.ABC):
    """The value of a coefficient over a run.

    Attributes:
      name: what `parse` knows it by.
      window: how many past iterations' successes it reads.
      reads_pairs: whether it reads the pair accuracy, which needs a process reward model.
      start: the value at share 0.
      end: the value at share 1.
    """

    name: ClassVar[str]
    window: ClassVar[int] = 0
    reads_pairs: ClassVar[bool] = False

    start: float
    end: float

    def __init_subclass__(cls, **keywords):
        super().__init_subclass__(**keywords)
        KINDS[cls.name] = cls

    @abc.abstractmethod
    def share(self, standing: Standing) -> float:
        """How far the value has moved from `start` to `end`, in [0, 1]."""

    def __call__(self, standing: Standing) -> np.float32:
        """Returns the value in an iteration."""
        return np.float32(self.start) + np.float32(self.end - self.start) * np.float32(np.clip(self.share(standing), 0.0, 1.0))

    def __str__(self) -> str:
        return f"{self.name}({', '.join(str(getattr(self, field.name)) for field in dataclasses.fields(self))})"


KINDS: dict[str, type[Schedule]] = {}


@dataclasses.dataclass(frozen=True)
class Linear(Schedule):
    """Moves by the same amount in each iteration: share = iteration / iterations, at most 1.

    Attributes:
      iterations: the iterations until `end` is reached, at least 1.
    """

    name: ClassVar[str] = "linear"

    iterations: int

    def __post_init__(self):
        if self.iterations < 1:
            raise ValueError(f"iterations must be at least 1, not {self.iterations}")

    def share(self, standing: Standing) -> float:
        return standing.iteration / self.iterations


@dataclasses.dataclass(frozen=True)
class Success(Schedule):
    """Moves with the mean training success of the last iterations: share = (success − low) / (high − low), between 0 and 1.

    The share is 0 before the first iteration. This is the decay of Task Phasing (arXiv 2210.10999), which lowers the weight of an auxiliary
    reward as the performance rises.

    Attributes:
      low, high: the successes, in [0, 1], at which the value is `start` and `end`.
      iterations: the number of past iterations that the mean is taken over, at least 1.
    """

    name: ClassVar[str] = "success"

    low: float
    high: float
    iterations: int = 10

    def __post_init__(self):
        if not 0 <= self.low < self.high <= 1:
            raise ValueError(f"low and high must satisfy 0 <= low < high <= 1, not low={self.low}, high={self.high}")
        if self.iterations < 1:
            raise ValueError(f"iterations must be at least 1, not {self.iterations}")

    @property
    def window(self) -> int:
        return self.iterations

    def share(self, standing: Standing) -> float:
        recent = standing.successes[-self.iterations :]
        return (float(np.mean(recent)) - self.low) / (self.high - self.low) if recent else 0.0


@dataclasses.dataclass(frozen=True)
class PairAccuracy(Schedule):
    """Moves with the accuracy of the process reward model: share = 2·(pair accuracy) − 1, at least 0.

    The share is 0 for a model that ranks the pairs of a new batch as chance does, and 1 for one that ranks all of them correctly.
    """

    name: ClassVar[str] = "pair_accuracy"
    reads_pairs: ClassVar[bool] = True

    def share(self, standing: Standing) -> float:
        return 2 * standing.pair_accuracy - 1


def parse(text: str) -> Schedule:
    """Reads a schedule such as "linear(1.0, 0.1, 100)" or "linear(start=1.0, end=0.1, iterations=100)".

    Raises:
      ValueError: the text is no schedule, or an argument is missing, unknown or of the wrong type.
    """
    try:
        call = ast.parse(str(text).strip(), mode="eval").body
        kind = KINDS[call.func.id]
        values = [ast.literal_eval(value) for value in call.args]
        named = {argument.arg: ast.literal_eval(argument.value) for argument in call.keywords}
        if len(values) > len(dataclasses.fields(kind)) or None in named:
            raise ValueError
    except (SyntaxError, AttributeError, KeyError, ValueError, TypeError, MemoryError, RecursionError):
        raise ValueError(f"{text!r} is not a schedule; write {' or '.join(map(form, KINDS.values()))}") from None
    given = dict(zip((field.name for field in dataclasses.fields(kind)), values))
    known = {field.name: field.type for field in dataclasses.fields(kind)}
    wrong = [name for name, value in (given | named).items() if name not in known or not _fits(value, known[name])]
    missing = [f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING and f.name not in given | named]
    if wrong or missing or set(given) & set(named):
        raise ValueError(f"{text!r} does not have the form {form(kind)}, with whole numbers for iterations and finite numbers otherwise")
    try:
        return kind(**given, **named)
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from None


def form(kind: type[Schedule]) -> str:
    """The way to write a schedule, such as "linear(start, end, iterations)"."""
    argument = lambda f: f.name if f.default is dataclasses.MISSING else f"{f.name}={f.default}"
    return f"{kind.name}({', '.join(map(argument, dataclasses.fields(kind)))})"


def _fits(value, annotation: str) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return isinstance(value, int) if annotation == "int" else math.isfinite(value)
