"""Conversations as tokens; what a model said is never tokenised again.

    <|user|>board<|assistant|>up<|end|><|user|>board<|assistant|>…

Only the environment's text is tokenised (`user_turn`). The model's answers stay the tokens that it sampled.
`Chat` is the format of the library's own tokenizers; `template_chat.TemplateChat` takes the format from a model's chat template.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from stepreward.models.tokenizer import Codec, TextCodec
from stepreward.text import RESERVED

IMAGE_MARKER = "<image>"  # stands for one image in a message with images
# A marker in upper or lower case, or the beginning of one at the end of a text, which the next text could complete.
_MARKER_LIKE = re.compile(r"<(?=image>|i?m?a?g?e?\Z)", re.IGNORECASE)


class Dialogue(Protocol):
    """What a rollout needs of a chat format."""

    @property
    def codec(self) -> Codec:
        """The tokenizer."""

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer."""

    def user_turn(self, text: str, *, first: bool, closes_answer: bool = False, image_tokens: Sequence[int] | None = None) -> np.ndarray:
        """The tokens of a user message and of the beginning of the answer, int32 `[T]`.

        Args:
          text: the message.
          first: whether the message opens the conversation; otherwise it follows an answer.
          closes_answer: whether the answer before the message was cut before its end token. The turn then begins with
            that token. It is no action token, since the policy did not sample it.
          image_tokens: how many tokens each `<image>` in the text stands for, in order; None: the message has no images,
            and `<image>` is an ordinary word.

        Raises:
          ValueError: the numbers of markers and images differ, the tokenizer has no image tokens, or `first` and
            `closes_answer` are both set.
        """

    def noted(self, turn: np.ndarray, text: str) -> np.ndarray:
        """The tokens that `user_turn` returned, with a plain text added to the end of the message, int32 `[T]`.

        Raises:
          ValueError: the format has no token of its own at the end of a message.
        """

    def answer(self, text: str) -> np.ndarray:
        """The tokens of a whole answer with its end token, int32 `[T]`; for demonstrations."""

    def text(self, tokens: np.ndarray) -> str:
        """What the sampled tokens say, without special tokens. Never raises."""


@dataclasses.dataclass(frozen=True)
class Chat:
    """The `Dialogue` of a symbol tokenizer. All messages have the same format, the first one included.

    An image of n tokens is `<|vision_start|>`, n × `<|image_pad|>`, `<|vision_end|>`, if the tokenizer was made with images.
    """

    codec: TextCodec

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        return (self.codec.end_id,)

    def user_turn(self, text: str, *, first: bool, closes_answer: bool = False, image_tokens: Sequence[int] | None = None) -> np.ndarray:
        """The tokens of a user message and of the beginning of the answer, see `Dialogue`."""
        check_turn(first, closes_answer)
        codec, parts = self.codec, cut_at_images(text, image_tokens)
        if len(parts) > 1 and codec.image_ids is None:
            raise ValueError("the tokenizer has no tokens for images: use the environment's text prompt, or a model that sees.")
        pieces = [[codec.end_id, codec.user_id] if closes_answer else [codec.user_id], codec.encode(parts[0])]
        for count, part in zip(image_tokens or (), parts[1:], strict=True):
            start, placeholder, end = codec.image_ids
            pieces += [[start, *[placeholder] * count, end], codec.encode(part)]
        return np.concatenate([np.asarray(piece, np.int32) for piece in (*pieces, [codec.assistant_id])])

    def noted(self, turn: np.ndarray, text: str) -> np.ndarray:
        """The tokens of a user turn with a text added to the end of the message, see `Dialogue`."""
        return np.concatenate([turn[:-1], self.codec.encode(text), turn[-1:]]).astype(np.int32)

    def answer(self, text: str) -> np.ndarray:
        """The tokens of a whole answer with its end token; for demonstrations."""
        return np.append(self.codec.encode(text), np.int32(self.codec.end_id)).astype(np.int32)

    def text(self, tokens: np.ndarray) -> str:
        """What the sampled tokens say, without special tokens. Never raises."""
        return self.codec.decode(tokens)


def check_turn(first: bool, closes_answer: bool) -> None:
    """Raises ValueError if the first message of a conversation is asked to close an answer."""
    if first and closes_answer:
        raise ValueError("the first message of a conversation has no answer to close: set closes_answer=False.")


def unmarked(value: Any) -> Any:
    """Returns a view, or an answer, in which no `<image>` is a marker.

    Only a prompt's own words place images. In what an environment or a model said, the reserved character U+FDD0 is put after
    the `<` of each `<image>`. Clean text (`text.clean`) holds no such character, and `cut_at_images` removes it again.

    Args:
      value: clean text, or mappings, lists and tuples of clean text; other values in them are not changed.
    """
    if isinstance(value, str):
        return _MARKER_LIKE.sub("<" + RESERVED, value)
    if isinstance(value, Mapping):
        return {key: unmarked(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [unmarked(item) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return value


def cut_at_images(text: str, image_tokens: Sequence[int] | None) -> list[str]:
    """Cuts a message at its `<image>` markers; returns one piece if `image_tokens` is None.

    An `<image>` that `unmarked` turned into plain text is no marker: its piece holds the word `<image>`.

    Raises:
      ValueError: the numbers of markers and images differ, or an image has no tokens.
    """
    if image_tokens is None:
        return [text]
    parts = [part.replace(RESERVED, "") for part in text.split(IMAGE_MARKER)]
    if len(parts) - 1 != len(image_tokens):
        raise ValueError(
            f"a message has {len(parts) - 1} {IMAGE_MARKER} markers and {len(image_tokens)} images: give each image one marker."
        )
    if any(count < 1 for count in image_tokens):
        raise ValueError(f"image_tokens={tuple(image_tokens)}: every image takes at least one token.")
    return parts
