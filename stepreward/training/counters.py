"""The position of a run among its stages, and its counters."""

from __future__ import annotations

import dataclasses

from stepreward.errors import UserError


@dataclasses.dataclass
class Counters:
    """The position of a run and its counters, which a checkpoint saves as JSON.

    Attributes:
      stage: the name of the stage that the next tick belongs to; "done" when the run is finished.
      tick: the number of ticks so far, over all stages; each tick is one line of metrics.jsonl.
      iteration: finished iterations of reinforcement learning.
      env_steps: environment steps played in the PRM's warm-up and in reinforcement learning.
      taken: names of the stages whose existing output was reused.
      failed_episodes: number of training episodes whose environment failed.
      wall_s: seconds that the run has taken, including those before it was resumed.
      count: counters of single stages, by name; read them with `of`.
    """

    stage: str = "sft"
    tick: int = 0
    iteration: int = 0
    env_steps: int = 0
    taken: list = dataclasses.field(default_factory=list)
    failed_episodes: int = 0
    wall_s: float = 0.0
    count: dict[str, int] = dataclasses.field(default_factory=dict)

    @classmethod
    def read(cls, facts: dict) -> Counters:
        """Reads the counters from the facts of a checkpoint.

        Raises:
          UserError: another version of the library made the checkpoint.
        """
        if set(facts["counters"]) != {field.name for field in dataclasses.fields(cls)}:
            raise UserError("an earlier version wrote the checkpoint, and this version cannot resume its runs: start in a new workdir.")
        return cls(**facts["counters"])

    def of(self, name: str) -> int:
        """Returns a counter of a stage; 0 before the stage has begun."""
        return self.count.get(name, 0)

    def add(self, name: str, number: int = 1) -> None:
        """Adds to a counter of a stage."""
        self.count[name] = self.of(name) + number
