"""Shortens prompts that are too long for a turn: their observations are cut, with a marker, so that the episode can go on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from stepreward.envs.protocol import Prompt
from stepreward.rollout.chat import Dialogue, unmarked
from stepreward.rollout.engine import Engine

LONG_OBSERVATIONS = ("cut", "end")  # a long observation is cut, or it ends the episode
MARKER = "[… {:,} characters cut …]"
_MOST_CHARACTERS = 64  # the most characters that are kept for each token of room: this bounds the search for texts of any length

View = Mapping[str, Any]
History = Sequence[tuple[View, str]]


@dataclasses.dataclass(frozen=True)
class Shown:
    """A prompt as it is shown.

    Attributes:
      tokens: int32 `[T]`.
      cut: how many characters of observations it leaves out.
    """

    tokens: np.ndarray
    cut: int = 0


def cut_text(text: str, kept: int) -> str:
    """Cuts the middle out of a text so that `kept` characters are left: two thirds from its beginning, and one third from its end.

    A marker in the middle counts the characters that were cut. A text of at most `kept` characters is returned as it is.
    """
    if len(text) <= kept:
        return text
    tail = kept // 3
    return text[: kept - tail] + MARKER.format(len(text) - kept) + text[len(text) - tail :]


def prompt_writer(
    prompt: Prompt, chat: Dialogue, *, by_step: bool, first: bool, closes_answer: bool = False, image_tokens: Sequence[int] | None = None
) -> Callable[[View, History], np.ndarray]:
    """Returns a function from a view and the earlier turns to the tokens of a turn's prompt.

    Args:
      prompt, chat: those of the run.
      by_step: whether each turn has a whole prompt; otherwise the tokens are what the turn adds to the conversation.
      first, closes_answer, image_tokens: see `Dialogue.user_turn`.
    """
    if by_step and image_tokens is not None:

        def write(view: View, history: History) -> np.ndarray:
            # An <image> in what the environment or the model said is plain text.
            said = [(unmarked(before), unmarked(answer)) for before, answer in history]
            return chat.user_turn(prompt.window(unmarked(view), said), first=True, image_tokens=image_tokens)

        return write
    if by_step:
        return lambda view, history: chat.user_turn(prompt.window(view, history), first=True)
    say = prompt.first if first else prompt.later
    return lambda view, history: chat.user_turn(say(view), first=first, closes_answer=closes_answer)


def room_of_a_turn(engine: Engine, *, by_step: bool, later: bool) -> int:
    """The most tokens that a prompt may have. A conversation that goes on also sends the last token of its answer again."""
    widest = engine.buckets[-1]
    return min(widest, engine.max_length - engine.sampling.max_answer_tokens) if by_step else widest - later


def shorten(write: Callable[[View, History], np.ndarray], view: View, history: History, most: int) -> Shown | None:
    """Shortens a prompt to at most `most` tokens by cutting as few characters as possible.

    Earlier observations are cut first: all longer ones are cut to one length, the largest that fits. If the prompt is too long even
    without their text, the history is left out and the present observation is cut.

    Args:
      write: returns the tokens of a prompt, int32 `[T]`, for a view and earlier turns; raises ValueError if it cannot, since the
        marker of an image was cut away.
      view: the present observation, with its `text`.
      history: the earlier observations and answers, oldest first.
      most: the most tokens that the prompt may have.

    Returns:
      The prompt, or None if the words around the observation are too long already.
    """
    lengths = [len(seen["text"]) for seen, _ in history]
    if history:
        earlier = lambda kept: write(view, [(_cut(seen, kept), answer) for seen, answer in history])
        found = _search(earlier, max(lengths), most)
        if found is not None:
            tokens, kept = found
            return Shown(tokens, sum(max(0, length - kept) for length in lengths))
        whole = write(view, [])
        if len(whole) <= most:
            return Shown(whole, sum(lengths))
    found = _search(lambda kept: write(_cut(view, kept), []), len(view["text"]), most)
    if found is None:
        return None
    tokens, kept = found
    return Shown(tokens, sum(lengths) + max(0, len(view["text"]) - kept))


def _cut(view: View, kept: int) -> View:
    return {**view, "text": cut_text(view["text"], kept)}


def _search(write: Callable[[int], np.ndarray], longest: int, most: int) -> tuple[np.ndarray, int] | None:
    """Finds the largest number of kept characters below `longest` that fits.

    Returns the tokens and that number, or None if even 0 is too many.
    """
    best, low, high = None, -1, min(longest, _MOST_CHARACTERS * most)
    while high - low > 1:  # `low` fits (or is −1), `high` does not
        middle = 0 if best is None else (low + high) // 2
        try:
            tokens = write(middle)
        except ValueError:
            tokens = None
        if tokens is not None and len(tokens) <= most:
            best, low = (tokens, middle), middle
        elif best is None:
            return None
        else:
            high = middle
    return best
