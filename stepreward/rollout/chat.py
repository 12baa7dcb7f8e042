"""Turns as tokens, and nothing that re-tokenises what a model said.

    <|user|>board<|assistant|>up<|end|><|user|>board<|assistant|>…

Only what the environment says is tokenised (`user_turn`); what the model sampled is kept as the tokens that it sampled.
`Chat` is the form of the library's own tokenizers; `template_chat.TemplateChat` takes the form from a model's chat template.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from stepreward.models.tokenizer import Codec, TextCodec
from stepreward.text import RESERVED

IMAGE_MARKER = "<image>"  # stands for one image in a message that is told of its images
# A marker, in any case, or what the next text could complete to one.
_MARKER_LIKE = re.compile(r"<(?=image>|i?m?a?g?e?\Z)", re.IGNORECASE)


class Dialogue(Protocol):
    """What a rollout asks of a chat form."""

    @property
    def codec(self) -> Codec:
        """The tokenizer."""

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer."""

    def user_turn(self, text: str, *, first: bool, closes_answer: bool = False, image_tokens: Sequence[int] | None = None) -> np.ndarray:
        """The tokens that bring a user message and open the answer, int32 `[T]`.

        Args:
          text: the message.
          first: it opens the conversation; otherwise it follows an answer.
          closes_answer: the answer before it was cut without its end token, which is then supplied here; it is not an
            action token, since the policy did not sample it.
          image_tokens: how many tokens each `<image>` in the text stands for, in order; None for a message without
            images, in which `<image>` is a word like any other.

        Raises:
          ValueError: the numbers of markers and of images differ, the tokenizer knows no images, or the first message
            is to close an answer.
        """

    def answer(self, text: str) -> np.ndarray:
        """The tokens of a whole answer, end token included, int32 `[T]`: for demonstrations."""

    def text(self, tokens: np.ndarray) -> str:
        """What the sampled tokens say, without special tokens. Never raises."""


@dataclasses.dataclass(frozen=True)
class Chat:
    """Conversation pieces over a symbol tokenizer; a `Dialogue`. Every message has the same form, the first one too.

    An image of n tokens is `<|vision_start|>`, n × `<|image_pad|>`, `<|vision_end|>`, where the tokenizer was made with images.
    """

    codec: TextCodec

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        return (self.codec.end_id,)

    def user_turn(self, text: str, *, first: bool, closes_answer: bool = False, image_tokens: Sequence[int] | None = None) -> np.ndarray:
        """The tokens that bring a user message and open the answer, see `Dialogue`."""
        check_turn(first, closes_answer)
        codec, parts = self.codec, cut_at_images(text, image_tokens)
        if len(parts) > 1 and codec.image_ids is None:
            raise ValueError("the tokenizer has no tokens for images: use the environment's text prompt, or a model that sees.")
        pieces = [[codec.end_id, codec.user_id] if closes_answer else [codec.user_id], codec.encode(parts[0])]
        for count, part in zip(image_tokens or (), parts[1:], strict=True):
            start, placeholder, end = codec.image_ids
            pieces += [[start, *[placeholder] * count, end], codec.encode(part)]
        return np.concatenate([np.asarray(piece, np.int32) for piece in (*pieces, [codec.assistant_id])])

    def answer(self, text: str) -> np.ndarray:
        """The tokens of a whole answer, end token included: for demonstrations."""
        return np.append(self.codec.encode(text), np.int32(self.codec.end_id)).astype(np.int32)

    def text(self, tokens: np.ndarray) -> str:
        """What the sampled tokens say, without special tokens. Never raises."""
        return self.codec.decode(tokens)


def check_turn(first: bool, closes_answer: bool) -> None:
    """Raises ValueError when a conversation's first message is to close an answer."""
    if first and closes_answer:
        raise ValueError("the first message of a conversation has no answer to close: set closes_answer=False.")


def unmarked(value: Any) -> Any:
    """Returns a view, or an answer, that places no image wherever a prompt puts its text.

    Only the words of a prompt place images. An `<image>` that an environment or a model said gets the reserved character U+FDD0
    after its `<`, which no clean text holds (`text.clean`) and which `cut_at_images` takes out again.

    Args:
      value: clean text, or mappings, lists and tuples of it; anything else in them is left as it is.
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
    """The pieces of a message around its `<image>` markers; one piece when `image_tokens` is None.

    An `<image>` that `unmarked` has made plain text is no marker, and reads `<image>` in its piece.

    Raises:
      ValueError: there are more or fewer markers than images, or an image without tokens.
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
