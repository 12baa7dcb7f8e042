"""ETO: the expert's episodes against the policy's own failures."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax

from stepreward.envs.protocol import EXPERT
from stepreward.preference.base import Collected, Preference, check_count, collected, register
from stepreward.preference.rules import better, eto_end
from stepreward.rollout.episode import Start
from stepreward.rollout.player import Player


@register("eto")
@dataclasses.dataclass(frozen=True)
class ETO(Preference):
    """Exploration-based trajectory optimisation.

    The policy plays each task, and its episode is compared with the expert's: the one with the higher outcome is chosen, whichever it is,
    and equal ones form no pair. The rejected episode is cut at the length of the expert's and `extra_messages` more.

    Attributes:
      rounds, beta, rate: three rounds; β = 0.1 in the first and 0.5 later, with half the learning rate (1e-6 and 5e-7 in the release).
      samples: episodes of the policy for each task, each of which may form a pair.
      extra_messages: messages of the rejected episode beyond the number of those of the expert; a step has two.

    Source: ETO (arXiv 2403.02502); the release is Yifan-Song793/ETO, commit a2fc5da, `construct_preference.py`, `run_eto.sh`.
    """

    needs: ClassVar[frozenset[str]] = frozenset({EXPERT})
    rounds: int = 3
    beta: tuple[float, ...] = (0.1, 0.5)
    rate: tuple[float, ...] = (1.0, 0.5)
    samples: int = 1
    extra_messages: int = 10

    def __post_init__(self):
        super().__post_init__()
        check_count("samples", self.samples)
        check_count("extra_messages", self.extra_messages, 0)

    def collect(self, player: Player, tasks: Sequence, key: jax.Array) -> Collected:
        experts = player.expert(tasks)
        agents = player([Start(task) for task in tasks for _ in range(self.samples)], key)
        pairs, reversed_pairs = [], 0
        for index, agent in enumerate(agents):
            expert = experts[index // self.samples]
            sign = better(self.value(expert), self.value(agent))
            if not sign:
                continue
            chosen, rejected = (expert, agent) if sign > 0 else (agent, expert)
            reversed_pairs += sign < 0
            end = eto_end(len(expert.steps), len(rejected.steps), self.extra_messages)
            pairs.append(((chosen, 0, len(chosen.steps)), (rejected, 0, end)))
        return collected(pairs, [*experts, *agents], reversed=float(reversed_pairs))
