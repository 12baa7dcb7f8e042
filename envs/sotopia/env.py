"""The embedded social world: a conversation with a rule-based partner, scored by a rule-based judge at the end."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from stepreward.envs.protocol import ADMISSIBLE, EXPERT, REPLAY, SNAPSHOT, Observation
from stepreward.envs.sotopia import expert, partner
from stepreward.envs.sotopia.judge import DIMENSIONS, WON_ABOVE, judge
from stepreward.envs.sotopia.partner import State
from stepreward.envs.sotopia.presets import Settings
from stepreward.envs.sotopia.presets import settings as preset_settings
from stepreward.envs.sotopia.scenarios import Task, describe, task_for, topic_words
from stepreward.envs.sotopia.speech import NOTHING, hear

OFFERS = 6  # number of offers listed as admissible, from the player's best


class Snapshot(NamedTuple):
    """The whole state of an episode, as plain data."""

    task: Task
    state: State
    talk: tuple[tuple[str, str], ...]
    steps: int
    over: bool


class SocialEnv:
    """One conversation; implements `stepreward.envs.protocol.Environment`.

    * Observation: {"text": the partner's last words, "talk": all (speaker, words) so far, "you": the player's name,
      "turn": 1 … max_steps, "turns": max_steps}.
    * Actions: any utterance; speech.py recognises its acts. An utterance without a recognised act, or None, only costs a turn.
    * Reward: the judge's goal score, 0 … 10, in the last turn; settings.invalid_reward for a turn without a recognised act; else 0.
    * `terminated` after a deal or when somebody leaves; otherwise `truncated` after settings.max_steps turns. Both are judged.
    * info: won (goal > 6), score (goal / 10), executed (an act was recognised), state_key, task (scene, private goal and
      secret), admissible (some short forms that are understood; other utterances are, too), and in the last turn dimensions,
      the seven scores.
    * capabilities: snapshot, replay, expert, admissible.
    """

    capabilities = frozenset({SNAPSHOT, REPLAY, EXPERT, ADMISSIBLE})

    def __init__(self, settings: Settings | None = None):
        self.settings = preset_settings("tiny") if settings is None else settings
        self._task: Task | None = None
        self._over = True

    def reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        """Starts conversation `seed` of options["split"] (default "train"). Without a seed, it draws one.

        Raises ValueError for an unknown option or split, or a negative seed.
        """
        seed, split = seed_and_split(seed, options)
        task = task_for(seed, split, self.settings.scenarios)
        words = partner.speak(task, [(task.mood, {"label": task.ladder[-1]})], self.settings.style)
        self._enter(Snapshot(task, partner.opening(task), ((task.them, words),), 0, False))
        return self._observe(), self._info(executed=True)

    def step(self, action: str | None) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Says something. Raises RuntimeError only when no episode is running."""
        if self._over:
            raise RuntimeError("the episode is over or has not begun: call reset()")
        executed = self._say(action)
        terminated = bool(self._state.ended)
        truncated = not terminated and self._steps >= self.settings.max_steps
        self._over = terminated or truncated
        info = self._info(executed)
        reward = 0.0 if executed else self.settings.invalid_reward
        if self._over:
            scores = self._judge()
            info.update(dimensions=scores, won=scores["goal"] > WON_ABOVE, score=scores["goal"] / 10)
            reward += scores["goal"]
        return self._observe(), float(reward), terminated, truncated, info

    def close(self) -> None:
        """Does nothing: the environment holds no resources."""

    def snapshot(self) -> Snapshot:
        """Returns the state of the episode for `restore`. Raises RuntimeError before the first reset."""
        if self._task is None:
            raise RuntimeError("no conversation yet: call reset()")
        return Snapshot(self._task, self._state, self._talk, self._steps, self._over)

    def restore(self, state: Snapshot) -> None:
        """Continues from a snapshot. Any environment with equal settings may have taken it."""
        self._enter(state)

    def expert(self, rng: np.random.Generator | None = None) -> list[str] | None:
        """Returns the scripted player's utterances from here to the end of the conversation; None when it is over.

        The player decides turn by turn from its own goal and what it has heard, so a policy can learn to imitate it. It usually
        succeeds, but not always. With `rng`, it draws the first courtesy from two.
        """
        here, said = self.snapshot(), []
        try:
            while not self._over:
                left = self.settings.max_steps - self._steps
                said.append(expert.choose(self._task, self._state, left, self.settings.style, rng))
                self._say(said[-1])
                self._over = bool(self._state.ended) or self._steps >= self.settings.max_steps
        finally:
            self._enter(here)
        return said or None

    def _say(self, action: str | None) -> bool:
        """Adds one utterance and the partner's answer to the conversation; returns whether an act was recognised."""
        self._steps += 1
        acts = hear(action, self._task)
        said = action.strip() if isinstance(action, str) else ""
        self._state, lines = partner.respond(self._task, self._state, acts)
        if acts.relative is None and any(who == self._task.you and words == said for who, words in self._talk):
            self._state = self._state._replace(repeats=self._state.repeats + 1)
        answer = partner.speak(self._task, lines or [("pardon", {})], self.settings.style)
        self._talk = (*self._talk, (self._task.you, said), (self._task.them, answer))
        return acts != NOTHING

    def _judge(self) -> dict[str, int]:
        scores = judge(self._task, self._state)
        if self.settings.judge_noise:
            seed = zlib.crc32("\n".join(f"{who}: {words}" for who, words in self._talk).encode())
            error = self.settings.judge_noise * np.random.Generator(np.random.PCG64(seed)).standard_normal()
            low, high = DIMENSIONS["goal"]
            scores["goal"] = max(low, min(high, round(scores["goal"] + error)))
        return scores

    def _enter(self, snapshot: Snapshot) -> None:
        self._task, self._state, self._talk, self._steps, self._over = snapshot
        self._told = describe(self._task, self.settings.style)

    def _observe(self) -> Observation:
        turn, turns = min(self._steps + 1, self.settings.max_steps), self.settings.max_steps
        return {"text": self._talk[-1][1], "talk": self._talk, "you": self._task.you, "turn": turn, "turns": turns}

    def _info(self, executed: bool) -> dict[str, Any]:
        return {
            "won": False,
            "score": 0.0,
            "executed": executed,
            "state_key": ",".join(str(value) for value in self._state),
            "task": self._told,
            "admissible": () if self._over else _admissible(self._task),
        }


def seed_and_split(seed: int | None, options: Mapping[str, Any] | None) -> tuple[int, str]:
    """Returns the seed (drawn from the operating system if None) and the split. Raises ValueError for an unknown option."""
    options = {} if options is None else options
    unknown = sorted(set(options) - {"split"})
    if unknown:
        raise ValueError(f"unknown reset option {', '.join(unknown)}; the only option is split")
    seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
    return seed, options.get("split", "train")


def _admissible(task: Task) -> tuple[str, ...]:
    reasons = tuple(f"reason {word}" for word in topic_words(task))
    offers = tuple(f"offer {label}" for label in task.ladder[:OFFERS])
    ends = ("concede", "halfway", "agree", "no", "tell secret", "threaten", "leave")
    return ("hello", "thank", "ask why", *reasons, *offers, *ends)
