"""Turns as tokens: the chat form of the library's own tokenizers, and nothing that re-tokenises what a model said.

    <|user|>board<|assistant|>up<|end|><|user|>board<|assistant|>…

Only what the environment says is tokenised (`user_turn`); what the model sampled is kept as the tokens that it sampled.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from stepreward.models.tokenizer import TextCodec


@dataclasses.dataclass(frozen=True)
class Chat:
    """Conversation pieces over one tokenizer."""

    codec: TextCodec

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        return (self.codec.end_id,)

    def user_turn(self, text: str, *, closes_answer: bool = False) -> np.ndarray:
        """The tokens that bring a user message and open the answer.

        Args:
          text: the message.
          closes_answer: the answer before it was cut without its end token, which is then supplied here; it is not an
            action token, since the policy did not sample it.
        """
        codec = self.codec
        before = [codec.end_id, codec.user_id] if closes_answer else [codec.user_id]
        return np.concatenate([np.array(before, np.int32), codec.encode(text), np.array([codec.assistant_id], np.int32)])

    def answer(self, text: str) -> np.ndarray:
        """The tokens of a whole answer, end token included: for demonstrations."""
        return np.append(self.codec.encode(text), np.int32(self.codec.end_id)).astype(np.int32)

    def text(self, tokens: np.ndarray) -> str:
        """What the sampled tokens say, without special tokens. Never raises."""
        return self.codec.decode(tokens)
