"""CSO: steps of failed episodes that the expert does better, verified by playing on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

import jax

from stepreward.envs.protocol import EXPERT
from stepreward.preference.base import Collected, Preference, check_count, collected, register
from stepreward.preference.rules import critical
from stepreward.rollout.episode import Episode, Start
from stepreward.rollout.player import Player
from stepreward.rollout.strategies.base import check_choice

SCORES = ("play", "judge")


@register("cso")
@dataclasses.dataclass(frozen=True)
class CSO(Preference):
    """Verified critical step optimisation.

    In each state of an episode that the policy failed, the expert proposes `alternatives` actions. The original action and its alternatives
    are scored. Where the original scores below `bad` and the best alternative above `good`, the step is a candidate: the policy plays on
    from the best alternative, and if that episode succeeds, the two steps form a pair.

    The expert is the environment's own, or a language model (`expert.kind`).

    Attributes:
      rounds, beta: two rounds, β = 0.5.
      alternatives: actions that the expert proposes in a state; equal ones count once. A scripted expert may have only one.
      score: "play": the success rate of `n` episodes that the policy plays on behind the action. "judge": the judge's score of the step, as
        in the paper, whose judge is a language model (`judge.kind`).
      n: episodes for each score, at least 1.
      bad, good: 0.45 and 0.65 in the paper; the release's script has 0.5 and 0.6 by default. Both are strict.
      verify: episodes that are played on from the best alternative; all of them must succeed.
      outcome: "success": whether an episode failed, and what its score is.

    Source: CSO (arXiv 2602.03412); the release is kiaia/CSO, commit 55e10b4, `scripts/data_processing/verify_and_generate_dpo.py`.
    """

    needs: ClassVar[frozenset[str]] = frozenset({EXPERT})
    restarts: ClassVar[bool] = True
    advised: ClassVar[bool] = True
    rounds: int = 2
    beta: tuple[float, ...] = (0.5,)
    alternatives: int = 5
    score: str = "play"
    n: int = 4
    bad: float = 0.45
    good: float = 0.65
    verify: int = 1
    outcome: str = "success"

    def __post_init__(self):
        super().__post_init__()
        for name in ("alternatives", "n", "verify"):
            check_count(name, getattr(self, name))
        check_choice("score", self.score, SCORES)
        if self.outcome != "success":
            raise ValueError(f"outcome={self.outcome!r}: CSO starts from failed episodes, so its outcome is 'success'.")

    @property
    def judged(self) -> bool:
        return self.score == "judge"

    def collect(self, player: Player, tasks: Sequence, key: jax.Array) -> Collected:
        draws = jax.random.split(key, 3)
        agents = player([Start(task) for task in tasks], draws[0], keep=True)
        states = [(e, turn) for e in agents if e.failure is None and not e.success for turn in range(len(e.steps))]
        asked = [(episode, turn, number) for episode, turn in states for number in range(self.alternatives)]
        starts = [Start.before(episode, turn) for episode, turn, _ in asked]
        proposed = player.advise(starts, keep=True, draws=[number for *_, number in asked]) if starts else []
        found: dict[tuple[int, int], list] = {}
        for (episode, turn, _), proposal in zip(asked, proposed, strict=True):
            known = found.setdefault((id(episode), turn), [])
            said = [episode.steps[turn].action] + [other.steps[turn].action for other in known]
            if proposal.failure is None and len(proposal.steps) > turn and proposal.steps[turn].action not in (None, *said):
                known.append(proposal)
        states = [(episode, turn) for episode, turn in states if found[id(episode), turn]]
        places = states + [(other, turn) for episode, turn in states for other in found[id(episode), turn]]
        scores, branches = self._scores(player, places, draws[1])
        candidates, place = [], len(states)
        for index, (episode, turn) in enumerate(states):
            others = found[id(episode), turn]
            best = critical(scores[index], scores[place : place + len(others)], self.bad, self.good)
            place += len(others)
            if best is not None:
                candidates.append((others[best], episode, turn))
        verified, checks = self._verified(player, candidates, draws[2])
        pairs = [((other, turn, turn + 1), (episode, turn, turn + 1)) for other, episode, turn in verified]
        played = [*agents, *proposed, *branches, *checks]
        counts = {
            "failed_states": len(states),
            "asked": len(asked),
            "unscored": sum(map(math.isnan, scores)),
            "candidates": len(candidates),
        }
        return collected(pairs, played, **{name: float(count) for name, count in counts.items()})

    def _scores(self, player: Player, places: Sequence[tuple[Episode, int]], key: jax.Array) -> tuple[list[float], list[Episode]]:
        """The scores of steps, NaN where there is none, and the episodes that were played to find them."""
        if not self.judged:
            return self.values_after(player, places, self.n, key)
        if player.judge is None:
            raise ValueError("score='judge': the player has no judge.")
        episodes = list({id(episode): episode for episode, _ in places}.values())
        found = dict(zip(map(id, episodes), player.judge(episodes) if episodes else ()))
        return [float(found[id(episode)][turn]) for episode, turn in places], []

    def _verified(self, player: Player, candidates: list, key: jax.Array) -> tuple[list, list]:
        """The candidates from which the policy succeeds, and the episodes that were played to see it."""
        if not candidates:
            return [], []
        open_ones = [candidate for candidate in candidates if candidate[0].pause is not None]
        starts = [Start.after(other) for other, *_ in open_ones for _ in range(self.verify)]
        checks = player(starts, key) if starts else []
        won = {id(other) for other, *_ in candidates if other.pause is None and other.success}
        for index, (other, *_) in enumerate(open_ones):
            if all(check.success and check.failure is None for check in checks[self.verify * index : self.verify * (index + 1)]):
                won.add(id(other))
        return [candidate for candidate in candidates if id(candidate[0]) in won], checks
