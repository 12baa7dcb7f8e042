"""Conversations for benchmarks: text boards of Sokoban's size, or a given number of random tokens.

Each source provides what a `Collector` needs: an environment that never ends (so that every episode plays all turns), a prompt and
a chat.
"""

from __future__ import annotations

import tempfile
from typing import NamedTuple

import numpy as np

from stepreward.envs import sokoban
from stepreward.models.tokenizer import train_symbol_tokenizer
from stepreward.rollout.chat import Chat

ACTIONS = ("up", "down", "left", "right")


class Source(NamedTuple):
    """A source of conversations.

    Attributes:
      environment: a function without arguments that makes an environment.
      prompt, chat: arguments of a `Collector`.
      first, later: number of tokens in the first user turn, and in each later one.
      answer: maximum number of tokens in an answer.
      closing: 1 if a truncated answer is closed by one more token, else 0.
      vocab: number of tokens that the chat knows; None if it accepts any token.
      pad_id: the padding token.
    """

    environment: object
    prompt: object
    chat: object
    first: int
    later: int
    answer: int
    closing: int
    vocab: int | None
    pad_id: int

    def length(self, turns: int) -> int:
        """Returns the number of tokens in a conversation of `turns` turns."""
        return self.first + (turns - 1) * (self.later + self.closing) + turns * self.answer


class Endless:
    """An environment that shows one text after another and never ends."""

    capabilities = frozenset()

    def __init__(self, texts):
        self._texts, self._next = texts, 0

    def reset(self, *, seed=None, options=None):
        self._next = seed
        return self._observe(), {"won": False, "executed": True, "state_key": ""}

    def step(self, action):
        self._next += 1
        return self._observe(), 0.0, False, False, {"won": False, "executed": action is not None, "state_key": ""}

    def close(self):
        """Does nothing: the environment holds no resources."""

    def _observe(self):
        return {"text": self._texts[self._next % len(self._texts)]}


def boards(count: int = 512, answer: int = 2) -> Source:
    """Returns a source of boards from random play, with a tokenizer of one token per symbol."""
    environment, rng, texts = sokoban.make("tiny")(), np.random.default_rng(0), []
    while len(texts) < count:
        observation, _ = environment.reset(seed=len(texts))
        over = False
        while not over:
            texts.append(observation["text"])
            observation, _, terminated, truncated, _ = environment.step(ACTIONS[rng.integers(4)])
            over = terminated or truncated
    texts = texts[:count]
    with tempfile.TemporaryDirectory() as folder:
        chat = Chat(train_symbol_tokenizer(texts, ACTIONS, folder))
    prompt = sokoban.prompts("compact")
    said = len(chat.user_turn(prompt.first({"text": texts[0]}), first=True))
    return Source(lambda: Endless(texts), prompt, chat, said, said, answer, 1, chat.codec.vocab_size, chat.codec.pad_id)


def random_tokens(prompt: int, answer: int, turns: int, batch: int, vocab: int) -> tuple[Source, np.ndarray]:
    """Returns a source of user turns with `prompt` random tokens, and those tokens `[turns, batch, prompt]` (never 0, the padding).

    There is no stop token, so every answer has exactly `answer` tokens.
    """
    said = np.random.default_rng(0).integers(1, vocab, (turns, batch, prompt)).astype(np.int32)
    # Episode e has the seed e · turns, so its turn t shows text e · turns + t.
    texts = [str(number) for number in range(batch * turns)]
    speech = _TokenSpeech(said.transpose(1, 0, 2).reshape(-1, prompt))
    return Source(lambda: Endless(texts), speech, speech, prompt, prompt, answer, 0, None, 0), said


class _TokenSpeech:
    """Both the prompt and the chat: a text is the index of a token sequence."""

    stop_ids = ()

    def __init__(self, sequences):
        self._sequences = sequences

    def first(self, observation):
        return observation["text"]

    later = first

    def window(self, observation, history):
        return observation["text"]

    def parse(self, text):
        return "on"

    def user_turn(self, text, *, first, closes_answer=False, image_tokens=None):
        return self._sequences[int(text)]

    def text(self, tokens):
        return ""
