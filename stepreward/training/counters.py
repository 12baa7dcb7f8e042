"""Where a run stands, and what it has counted."""

from __future__ import annotations

import dataclasses

from stepreward.errors import UserError


@dataclasses.dataclass
class Counters:
    """Where a run stands; saved as JSON.

    Attributes:
      stage: the name of the stage that the next tick belongs to; "done" when the run is finished.
      tick: ticks so far, over all stages: one line of metrics.jsonl each.
      iteration: finished iterations of reinforcement learning.
      env_steps: environment steps that the PRM's warm-up and reinforcement learning have played.
      taken: names of the stages whose output was there already.
      failed_episodes: training episodes whose environment failed.
      wall_s: seconds that the run has taken, in all its processes one after the other.
      count: what single stages count, by name; read it with `of`.
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
        """The counters among the facts of a checkpoint.

        Raises:
          UserError: another version of the library made the checkpoint.
        """
        if set(facts["counters"]) != {field.name for field in dataclasses.fields(cls)}:
            raise UserError("the checkpoint was made by an earlier version, whose runs this one cannot go on with: start in a new workdir.")
        return cls(**facts["counters"])

    def of(self, name: str) -> int:
        """What a stage has counted under a name; 0 before it began."""
        return self.count.get(name, 0)

    def add(self, name: str, number: int = 1) -> None:
        """Counts under a name."""
        self.count[name] = self.of(name) + number
