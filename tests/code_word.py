"""A game with a reference answer: look under cups for the code word, then say it. Saying a word ends the episode."""

from __future__ import annotations

import functools
from types import MappingProxyType

WORDS = ("red", "blue", "green", "black")
CUPS = ("cup a", "cup b", "cup c")


class CodeWord:
    """`seed` hides a word under a cup. The game lasts `max_steps` turns; where the seed is odd, one less."""

    def __init__(self, max_steps=4, reference=True, capabilities=("reference_answer", "expert", "replay", "snapshot")):
        self.capabilities = frozenset(capabilities)
        self._max_steps, self._reference = max_steps, reference

    def reset(self, *, seed, options):
        self.word, self.cup = WORDS[seed % 4], CUPS[seed // 4 % 3]
        self.turn, self.seen, self.last = 0, "start", max(1, self._max_steps - seed % 2)
        return self._observe(True)

    def step(self, action):
        self.turn += 1
        won = action == self.word
        if action in CUPS:
            self.seen = self.word if action == self.cup else "empty"
        observation, info = self._observe(action in (*CUPS, *WORDS), won)
        return observation, float(won), action in WORDS, self.turn == self.last, info

    def expert(self, rng=None):
        return [self.cup, self.word]

    def snapshot(self):
        return self.word, self.cup, self.turn, self.seen, self.last

    def restore(self, state):
        self.word, self.cup, self.turn, self.seen, self.last = state

    def close(self):
        pass

    def _observe(self, executed, won=False):
        info = {"won": won, "executed": executed, "state_key": f"{self.seen} {self.turn}"}
        info |= {"reference_answer": self.word} if self._reference else {}
        return {"text": self.seen}, info


class Prompt:
    """An answer is an action. The reference is written behind "so:"."""

    def first(self, observation):
        return "find it: " + observation["text"]

    def later(self, observation):
        return observation["text"]

    def window(self, observation, history):
        return "".join(f"{seen['text']} {answer}, " for seen, answer in history) + observation["text"]

    def parse(self, text):
        return next((action for action in (*CUPS, *WORDS) if action in text), None)

    def answer(self, action):
        return action

    def reference(self, answer):
        return "so:", answer


def make(preset, *, max_steps=4, **settings):
    return functools.partial(CodeWord, max_steps=max_steps, **settings)


def prompts(name):
    return Prompt()


CONFIG = MappingProxyType(
    {
        "environment.name": "code_word", "rollout.max_steps": 4, "rollout.groups": 2, "rollout.max_prompt_tokens": 24,
        "rollout.max_answer_tokens": 2, "rollout.max_row_tokens": 32, "sft.episodes": 30, "sft.updates": 10, "sft.log_every": 10,
        "train.env_steps": 30, "eval.episodes": 4, "eval.every": 10,
    }
)  # fmt: skip
