"""Tracks a growing answer: which part of its text can be shown already, and whether a stop string ends it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # decoded from the first bytes of a character whose other bytes are not sampled yet


class Transcript:
    """Releases the text of sampled tokens piece by piece.

    Args:
      text_of: decodes tokens to text without special tokens.
      stop: stop strings; the answer ends before the first one that it contains.

    Attributes:
      tokens: the tokens sampled so far, up to the one that completed a stop string.
      stopped: whether a stop string ended the answer.
    """

    def __init__(self, text_of: Callable[[np.ndarray], str], stop: Sequence[str] = ()):
        self._text_of, self._stop = text_of, tuple(stop)
        self.tokens: list[int] = []
        self.stopped = False
        self._shown = ""

    def add(self, tokens: Sequence[int], *, last: bool) -> str:
        """Adds new tokens and returns the text that can now be shown.

        Text that may be the beginning of a stop string, or of a character, is held back until later tokens decide.

        Args:
          tokens: the new token ids.
          last: whether these are the last tokens; then nothing is held back.
        """
        before = len(self.tokens)
        self.tokens += map(int, tokens)
        text = self._read(len(self.tokens))
        end = self._first_stop(text)
        if end is not None:
            self.stopped = True
            count = next(n for n in range(before + 1, len(self.tokens) + 1) if self._first_stop(self._read(n)) is not None)
            del self.tokens[count:]
            text = text[:end]
        elif not last:
            text = text.rstrip(_UNFINISHED)
            text = text[: len(text) - self._begun(text)]
        piece = text[len(self._shown) :]
        self._shown += piece
        return piece

    def _read(self, count: int) -> str:
        return self._text_of(np.asarray(self.tokens[:count], np.int32))

    def _first_stop(self, text: str) -> int | None:
        return min((place for place in map(text.find, self._stop) if place >= 0), default=None)

    def _begun(self, text: str) -> int:
        """The number of characters at the end of the text that may be the beginning of a stop string."""
        begun = (n for stop in self._stop for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n]))
        return max(begun, default=0)
