"""Adaptive Reward Design: an automaton of subgoals rewards the steps that come closer to acceptance, by distances that adapt."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax
import numpy as np

from stepreward.batch import Batch
from stepreward.credit.actor_critic import ActorCritic
from stepreward.credit.adaptation import Rules
from stepreward.credit.base import Credit, check_at_least, check_choice, check_share, register, step_mask
from stepreward.credit.host import step_array
from stepreward.credit.outcome import outcome_reward
from stepreward.envs.automata import Automaton
from stepreward.envs.protocol import AUTOMATON
from stepreward.kernels import hybrid_reward, masked_mean, progress_reward

Array = jax.Array


@register("ard")
@dataclasses.dataclass(frozen=True)
class ARD(ActorCritic):
    """Rewards from an automaton of subgoals, r_t = w·f(q_t, q_{t+1}), and the outcome R at the last step.

    q_t is the state of the environment's automaton before step t, and d(q) a state's distance to acceptance (`envs.automata`).

      progress  f = max(0, max(d_k(q) − d_k(q'), d_0(q) − d_0(q')))
      hybrid    f = (1 − η)·progress if q ≠ q', else −η·d_k(q)

    The distances adapt after every `every` episodes without a success:

      visits    d_{k+1}(q) = μ·d_k(q) + θ·(share of the steps of these episodes that led to q); the release's version 0
      rank      d_{k+1}(q) = d_k(q) + θ for the states that are no closer to acceptance, by d_0, than the best one that these episodes
                reached; the release's version 1

    and η becomes η/θ, so that the penalty does not grow with the distances. The auxiliary `subgoals` carries d_k, η and the counters. The
    outcome is this library's addition: the paper trains on the automaton's reward alone.

    Signals: `automaton_state`, `automaton_next` int32 `[E, S]`, the states before and after each step (`host_signals`);
    `automaton_distance` float32 `[2, Q]`, d_0 and d_k; `automaton_eta`, η. Advantages come from a critic by generalized advantage
    estimation, or from the group.

    Attributes:
      shaping: f, "progress" or "hybrid". The release's default is "progress".
      weight: w ≥ 0.
      adapt: "rank", "visits", or "none", which keeps d_0. Which one the paper recommends is not verified; the release's default is its
        version 1, "rank".
      every: the number of episodes in a row without a success after which the distances adapt, at least 1. The release takes 10,000 episodes
        of small grid worlds.
      mu: μ in [0, 1], for "visits". The release has 0.5 in one place and 1 in another.
      theta: θ ≥ 1; None: the sum of d_0 over all states, the release's default.
      eta: the first η in [0, 1], for "hybrid". The release has 0.001 in one place and 0.0001 in another.
      rules: "paper", as above; or "released": the distances may adapt at every `every`-th episode, if fewer than a tenth of the last 20
        succeeded, and at most as often as there are ranks besides acceptance. Visits are those of all episodes. By rank, the distances and η
        change only if the best rank changed. The penalty of staying is −η·max(d_k, d_0).
      baseline: "critic"; or "group", which needs no critic: return-to-go minus that of the others of the group at the same step.

    Raises:
      ValueError: at construction, on a value out of range.

    Source: Adaptive Reward Design (arXiv 2412.10917); the release is safe-autonomy-lab/AdaptiveRewardRL,
    `psltl/reward_functions/reward_function_standard.py`.
    """

    name: ClassVar[str] = "ard"
    # The host reads them.
    unscheduled: ClassVar[frozenset[str]] = frozenset({"mu", "theta", "eta"})
    capabilities: ClassVar[frozenset[str]] = frozenset({AUTOMATON})
    variants: ClassVar = {"paper": {}, "released": {"rules": "released"}}

    shaping: str = "progress"
    weight: float = 1.0
    adapt: str = "rank"
    every: int = 256
    mu: float = 0.5
    theta: float | None = None
    eta: float = 0.001
    rules: str = "paper"
    baseline: str = "critic"

    def __post_init__(self):
        super().__post_init__()
        check_choice(self, "shaping", ("progress", "hybrid"))
        check_choice(self, "adapt", ("rank", "visits", "none"))
        check_choice(self, "rules", ("paper", "released"))
        check_share(self, "mu", "eta")
        check_at_least(self, 0, "weight")
        check_at_least(self, 1, "every", "theta")
        if self.theta is not None and not math.isfinite(self.theta):
            raise ValueError(f"theta of '{self.name}' must be finite, not {self.theta!r}")

    @property
    def requires(self) -> frozenset[str]:
        return super().requires | {"automaton_state", "automaton_next", "automaton_distance", "automaton_eta"}

    def adaptation(self, automaton: Automaton) -> Rules:
        """The rules by which the distances of an automaton adapt."""
        theta = sum(automaton.distances()) if self.theta is None else self.theta
        return Rules(automaton, self.adapt, self.every, self.mu, theta, self.eta, self.rules)

    def host_signals(self, batch: Batch, episodes, rng: np.random.Generator) -> dict[str, np.ndarray]:
        states = [episode.automaton_states if episode.failure is None else [-1] for episode in episodes]
        signal = lambda rows: step_array(rows, batch, dtype=np.int32, fill=-1)
        return {"automaton_state": signal([row[:-1] for row in states]), "automaton_next": signal([row[1:] for row in states])}

    def reward_of_steps(self, batch: Batch) -> Array:
        """r_t = w·f(q_t, q_{t+1}), and R at the last step."""
        return self.weight * self._shaped(batch) + outcome_reward(batch)

    def _shaped(self, batch: Batch) -> Array:
        """float32 `[E, S]`: f of each step."""
        given, mask_ExS = batch.signals, step_mask(batch)
        arrays = (given["automaton_state"], given["automaton_next"], mask_ExS, *given["automaton_distance"])
        if self.shaping == "progress":
            return progress_reward(*arrays)
        return hybrid_reward(*arrays, eta=given["automaton_eta"], largest=self.rules == "released")

    def assign(self, batch: Batch) -> Credit:
        credit, mask_ExS = super().assign(batch), step_mask(batch)
        given, shaped_ExS = batch.signals, self._shaped(batch)
        metrics = {
            "subgoal_steps": masked_mean(shaped_ExS > 0, mask_ExS),
            "subgoal_reward": masked_mean(shaped_ExS, mask_ExS),
            "steps_without_automaton": masked_mean((given["automaton_state"] < 0) | (given["automaton_next"] < 0), mask_ExS),
        }
        return credit.replace(metrics=credit.metrics | metrics)
