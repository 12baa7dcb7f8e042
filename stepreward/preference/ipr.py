"""IPR: at every step of the expert, the policy acts too, and Monte Carlo values say which action was better."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

import jax

from stepreward.envs.protocol import EXPERT
from stepreward.preference.base import Collected, Preference, check_count, collected, register, same_answers
from stepreward.preference.rules import better, ipr_better
from stepreward.rollout.episode import Start
from stepreward.rollout.player import Player
from stepreward.rollout.strategies.base import check_choice

LEVELS = ("rest", "step")


@register("ipr")
@dataclasses.dataclass(frozen=True)
class IPR(Preference):
    """Iterative step-level process refinement.

    The policy plays on from every state of the expert's episode. At state t, the step reward of an action is the mean outcome of `n`
    episodes that the policy plays from the state behind it. The two actions form a pair where the outcomes of the two episodes differ by
    more than `final_threshold`, their step rewards by more than `value_threshold`, and both differences have the same sign. Whole
    episodes, the expert's and the policy's from the beginning, form a pair where their outcomes differ by more than `final_threshold`.

    Attributes:
      rounds, beta, sft: six rounds at most, β = 0.1, and imitation of the chosen steps with the weight 1 (equation 9).
      n: episodes for each step reward, at least 1.
      final_threshold, value_threshold: the release's pipeline sets both to 0.01; its scripts have 0.2 and 0.35 by default.
      level: what a pair at state t holds: the "rest" of both episodes from t on, or the "step" t alone.
      whole: whether whole episodes form pairs too.

    Source: IPR (arXiv 2406.11176); the release is WeiminXiong/IPR, commit 93335a3, `construct_preference_monte_carlo_webshop.py`.
    """

    needs: ClassVar[frozenset[str]] = frozenset({EXPERT})
    restarts: ClassVar[bool] = True
    rounds: int = 6
    sft: float = 1.0
    n: int = 5
    final_threshold: float = 0.01
    value_threshold: float = 0.01
    level: str = "rest"
    whole: bool = True

    def __post_init__(self):
        super().__post_init__()
        check_count("n", self.n)
        for name in ("final_threshold", "value_threshold"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0 and finite.")
        check_choice("level", self.level, LEVELS)

    def collect(self, player: Player, tasks: Sequence, key: jax.Array) -> Collected:
        to_the_end, continued = jax.random.split(key)
        experts = player.expert(tasks, keep=True)
        states = [(path, turn) for path in experts if path.failure is None for turn in range(len(path.steps))]
        agents = player([Start.before(path, turn) for path, turn in states], to_the_end, keep=True) if states else []
        acted = [(path, agent, turn) for (path, turn), agent in zip(states, agents, strict=True) if len(agent.steps) > turn]
        places = [(path, turn) for path, _, turn in acted] + [(agent, turn) for _, agent, turn in acted]
        values, branches = self.values_after(player, places, self.n, continued)
        pairs, whole = [], 0
        for index, (path, agent, turn) in enumerate(acted):
            finals = self.value(path), self.value(agent)
            ends = (turn + 1, turn + 1) if self.level == "step" else (len(path.steps), len(agent.steps))
            sides = (path, turn, ends[0]), (agent, turn, ends[1])
            sign = ipr_better(finals, (values[index], values[len(acted) + index]), self.final_threshold, self.value_threshold)
            if sign and not same_answers(path, agent, turn, ends):
                pairs.append(sides if sign > 0 else sides[::-1])
            sign = better(*finals, self.final_threshold)
            if self.whole and not turn and sign:
                whole += 1
                sides = (path, 0, len(path.steps)), (agent, 0, len(agent.steps))
                pairs.append(sides if sign > 0 else sides[::-1])
        return collected(pairs, [*experts, *agents, *branches], whole_pairs=float(whole), states=float(len(acted)))
