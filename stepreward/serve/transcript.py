"""An answer as it grows: what of its text may be shown already, and where a stop string ends it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # bytes of a character whose others are yet to come read so


class Transcript:
    """The text of sampled tokens, given out piece by piece.

    Args:
      text_of: the text of tokens, without special ones.
      stop: strings before which the answer ends.

    Attributes:
      tokens: sampled so far; none beyond the one that completed a stop string.
      stopped: a stop string ended the answer.
    """

    def __init__(self, text_of: Callable[[np.ndarray], str], stop: Sequence[str] = ()):
        self._text_of, self._stop = text_of, tuple(stop)
        self.tokens: list[int] = []
        self.stopped = False
        self._shown = ""

    def add(self, tokens: Sequence[int], *, last: bool) -> str:
        """Takes new tokens and returns the text that may be shown now.

        What may turn out to be part of a stop string, or of a character, is held back until the last tokens are there.
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
        """How many characters at the end may be the beginning of a stop string."""
        begun = (n for stop in self._stop for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n]))
        return max(begun, default=0)
