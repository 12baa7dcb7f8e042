"""Online multi-turn DPO: whole episodes of the policy against each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax

from stepreward.preference.base import Collected, Preference, check_count, collected, register
from stepreward.preference.rules import better
from stepreward.rollout.episode import Start
from stepreward.rollout.player import Player
from stepreward.rollout.strategies.base import check_choice

PAIRS = ("best_worst", "all")


@register("online_dpo")
@dataclasses.dataclass(frozen=True)
class OnlineDPO(Preference):
    """The policy plays each task `samples` times, and better episodes are preferred to worse ones of the same task.

    It is the baseline of the methods that compare steps. It needs no expert and no restarts.

    Attributes:
      rounds: many, each on new tasks.
      samples: episodes of each task, at least 2.
      pairs: "best_worst": one pair a task, the episodes of the highest and the lowest outcome; "all": every two of different outcome.

    Source: DPO (arXiv 2305.18290), on the policy's own episodes.
    """

    rounds: int = 8
    samples: int = 8
    pairs: str = "best_worst"

    def __post_init__(self):
        super().__post_init__()
        check_count("samples", self.samples, 2)
        check_choice("pairs", self.pairs, PAIRS)

    def collect(self, player: Player, tasks: Sequence, key: jax.Array) -> Collected:
        agents = player([Start(task) for task in tasks for _ in range(self.samples)], key)
        pairs = []
        for first in range(0, len(agents), self.samples):
            group = [episode for episode in agents[first : first + self.samples] if episode.failure is None]
            group.sort(key=self.value)  # stable: the first of equal ones stays the first
            some = [(group[-1], group[0])] if group and self.pairs == "best_worst" else []
            if self.pairs == "all":
                some = [(one, other) for i, other in enumerate(group) for one in group[i + 1 :]]
            whole = lambda episode: (episode, 0, len(episode.steps))
            pairs += [(whole(one), whole(other)) for one, other in some if better(self.value(one), self.value(other)) > 0]
        return collected(pairs, agents)
