"""StepAgent with its implicit reward: the expert's action against the policy's, in every state of the expert."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax

from stepreward.envs.protocol import EXPERT
from stepreward.preference.base import Collected, Preference, collected, register, same_answers
from stepreward.rollout.episode import Start
from stepreward.rollout.player import Player


@register("stepagent")
@dataclasses.dataclass(frozen=True)
class StepAgent(Preference):
    """Step-wise DPO on the expert's states: the loss of state t is

        −log σ(β · [log π/π_ref (a*_t | s_t) − log π/π_ref (â_t | s_t)])

    where a*_t is the expert's action and â_t one that the policy draws. Where both are the same text, there is no pair. The policy's
    actions are not judged, so nothing is played on. The other half of the method, inverse reinforcement learning, is the credit method
    `stepagent`.

    Source: StepAgent (arXiv 2411.03817). No code was found; β and the number of rounds are uncertain.
    """

    needs: ClassVar[frozenset[str]] = frozenset({EXPERT})
    restarts: ClassVar[bool] = True
    rounds: int = 3

    def collect(self, player: Player, tasks: Sequence, key: jax.Array) -> Collected:
        experts = player.expert(tasks, keep=True)
        states = [(path, turn) for path in experts if path.failure is None for turn in range(len(path.steps))]
        agents = player([Start.before(path, turn) for path, turn in states], key, turns=1) if states else []
        pairs = [
            ((path, turn, turn + 1), (agent, turn, turn + 1))
            for (path, turn), agent in zip(states, agents, strict=True)
            if agent.failure is None and len(agent.steps) > turn and not same_answers(path, agent, turn, (turn + 1, turn + 1))
        ]
        return collected(pairs, [*experts, *agents], states=float(len(states)))
