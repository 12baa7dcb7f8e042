"""The automaton of subgoals of a run: the distances of its states, which adapt while the policy does not succeed. It has no parameters."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import numpy as np

from stepreward.batch import Batch
from stepreward.credit.adaptation import Adaptation, Rules, ranks_of
from stepreward.programs import Program
from stepreward.training.auxiliaries.base import AFTER_CREDIT, Auxiliary, Lesson
from stepreward.training.layout import Layout


class Subgoals(Auxiliary):
    """Gives the credit method the distances d_0 and d_k and the share η, and adapts d_k and η after the credit of each iteration.

    Every episode that was played and did not fail counts, those that a filter left out included, in the order of the rollout. The method
    has `adaptation(automaton)`, its rules (`credit.adaptation.Rules`).

    Attributes:
      rules: of the adaptation; None before `open`.
      state: what is carried from iteration to iteration, and saved in checkpoints; None before `open`.
    """

    name = "subgoals"
    title = "automaton of subgoals"
    order = 0
    provides = frozenset({"automaton_distance", "automaton_eta"})
    configured = False
    trains = False
    when = AFTER_CREDIT

    def __init__(self, c, parts, layout: Layout, key: jax.Array):
        self._method, self._collector = parts.method, parts.collector
        self.rules: Rules | None = None
        self.state: Adaptation | None = None

    def open(self) -> None:
        """Asks an environment for its automaton."""
        if self.rules is None:
            self.rules = self._method.adaptation(self._collector.automaton())
            self.state = self.state or self.rules.begin()

    def look(self, batch: Batch) -> tuple[dict, dict]:
        """Returns the distances and η that hold for this batch, and metrics of them."""
        distances = np.array([self.rules.automaton.distances(), self.state.distance], np.float32)
        signals = {"automaton_distance": distances, "automaton_eta": np.float32(self.state.eta)}
        metrics = {"eta": self.state.eta, "adaptations": self.state.updates, "distance_change": np.abs(distances[1] - distances[0]).mean()}
        return signals, {f"subgoals/{name}": float(value) for name, value in metrics.items()}

    def learn(self, lesson: Lesson) -> dict:
        """Counts the iteration's episodes and adapts; returns the share of episodes that reached each rank, or a better one."""
        ranks, best = ranks_of(self.rules.automaton.distances()), []
        for episode in lesson.episodes:
            if episode.counts and all(0 <= q < len(ranks) for q in episode.automaton_states):
                best.append(min(ranks[q] for q in episode.automaton_states))
                self.state = self.rules.after(self.state, episode.automaton_states[1:], episode.success)
        shares = {rank: np.mean([own <= rank for own in best]) for rank in range(max(ranks) + 1)} if best else {}
        return {f"subgoals/reached_rank_{rank}": float(share) for rank, share in shares.items()}

    def programs(self, stage: str) -> Iterator[Program]:
        return iter(())

    def saved(self) -> tuple[dict, dict]:
        return {}, {} if self.state is None else self.state.to_json()

    def load(self, saved: dict, facts: dict) -> None:
        if facts:
            self.state = Adaptation.from_json(facts)
