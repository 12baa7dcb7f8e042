"""The interface of the stages of a run.

A run is a sequence of ticks, and each tick belongs to one stage. What a tick does depends only on what a checkpoint holds, so that a run
that was killed repeats the ticks after its last checkpoint bit for bit.
"""

from __future__ import annotations

import abc
from typing import ClassVar, NamedTuple


class Progress(NamedTuple):
    """The progress of a stage, for the display.

    Attributes:
      words: the name of the stage in the display.
      done, total: units of work, such as updates, parts or environment steps.
    """

    words: str
    done: int
    total: int


class Stage(abc.ABC):
    """One stage of a run; `train.Runner` makes one object of each class in `stages.STAGES`.

    Attributes:
      name: the value of `stage` in metrics.jsonl.
      command: the stage that `--stage` names and whose output this one helps to make.
      decides: the config keys that affect the stage's output and that of all later ones; a key that ends in a dot stands for a group.
      borrows: the config keys that name a workdir whose output the run has read once this stage has begun.
      saves_every_tick: whether each tick ends with a checkpoint, whatever `checkpoint.every` says.
    """

    name: ClassVar[str]
    command: ClassVar[str] = ""
    decides: ClassVar[tuple[str, ...]] = ()
    borrows: ClassVar[tuple[str, ...]] = ()
    saves_every_tick: ClassVar[bool] = False

    def __init_subclass__(cls, **keywords):
        super().__init_subclass__(**keywords)
        cls.command = cls.__dict__.get("command") or cls.name

    def __init__(self, run):
        """A stage of `run`, a `train.Runner`."""
        self.run, self.c = run, run.c

    @property
    def counters(self):
        """The run's `Counters`."""
        return self.run.counters

    def wanted(self) -> bool:
        """Whether this run has the stage."""
        return True

    @staticmethod
    def absent(c) -> str:
        """Why a run with this config has no such stage."""
        return f"credit.method={c.credit.method} does not need it"

    def facts(self) -> dict:
        """What decides the stage's output besides config keys and the content that a run reads; plain JSON values."""
        return {}

    def take(self) -> set[str]:
        """Reuses the stage's output if it exists; returns the names of the stages that need not run then."""
        return set()

    def begin(self) -> None:  # noqa: B027, most stages begin with nothing
        """Called before the first tick, after the previous stages are finished."""

    @abc.abstractmethod
    def tick(self) -> dict:
        """Does one piece of the stage's work; returns metrics."""

    @property
    @abc.abstractmethod
    def finished(self) -> bool:
        """Whether the last tick was the stage's last."""

    def leave(self) -> dict:
        """Called when the stage is finished and the next one has begun; returns metrics of the last tick."""
        return {}

    def reopened(self) -> bool:
        """Whether a finished stage continues, because the config now asks for more work."""
        return False

    @abc.abstractmethod
    def progress(self) -> Progress:
        """Returns the progress of the stage."""
