"""Prompts that are longer than a turn may be: their observations are cut, visibly, so that the episode can go on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from stepreward.envs.protocol import Prompt
from stepreward.rollout.chat import Dialogue, unmarked
from stepreward.rollout.engine import Engine

LONG_OBSERVATIONS = ("cut", "end")  # what happens to one: it is cut, or the episode ends
MARKER = "[… {:,} characters cut …]"
_MOST_CHARACTERS = 64  # kept of a text for each token of room, so that the search stays short whatever an environment says

View = Mapping[str, Any]
History = Sequence[tuple[View, str]]


@dataclasses.dataclass(frozen=True)
class Shown:
    """A prompt as it is shown.

    Attributes:
      tokens: int32 `[T]`.
      cut: characters of observations that it leaves out.
    """

    tokens: np.ndarray
    cut: int = 0


def cut_text(text: str, kept: int) -> str:
    """The first two thirds and the last third of `kept` characters, with a marker between that counts the others; `text` itself where
    it has no more than that."""
    if len(text) <= kept:
        return text
    tail = kept // 3
    return text[: kept - tail] + MARKER.format(len(text) - kept) + text[len(text) - tail :]


def prompt_writer(
    prompt: Prompt, chat: Dialogue, *, by_step: bool, first: bool, closes_answer: bool = False, image_tokens: Sequence[int] | None = None
) -> Callable[[View, History], np.ndarray]:
    """The function that makes a turn's tokens of what it shows and of the earlier turns that it shows.

    Args:
      prompt, chat: of the run.
      by_step: a whole prompt each turn; else what a conversation gains.
      first, closes_answer, image_tokens: see `Dialogue.user_turn`.
    """
    if by_step and image_tokens is not None:

        def write(view: View, history: History) -> np.ndarray:
            # An <image> that the environment or the model said is text.
            said = [(unmarked(before), unmarked(answer)) for before, answer in history]
            return chat.user_turn(prompt.window(unmarked(view), said), first=True, image_tokens=image_tokens)

        return write
    if by_step:
        return lambda view, history: chat.user_turn(prompt.window(view, history), first=True)
    say = prompt.first if first else prompt.later
    return lambda view, history: chat.user_turn(say(view), first=first, closes_answer=closes_answer)


def room_of_a_turn(engine: Engine, *, by_step: bool, later: bool) -> int:
    """Most tokens of a prompt: a conversation that goes on also sends the last token of its answer again."""
    widest = engine.buckets[-1]
    return min(widest, engine.max_length - engine.sampling.max_answer_tokens) if by_step else widest - later


def shorten(write: Callable[[View, History], np.ndarray], view: View, history: History, most: int) -> Shown | None:
    """A prompt of at most `most` tokens, made by cutting as few characters as that takes.

    Earlier observations go first: all that are longer than some length are cut to it, the largest that fits. Where even nothing of
    them fits beside the present observation, the history is left out, and the present observation is cut.

    Args:
      write: makes the tokens of a prompt, int32 `[T]`, of what it shows now and of earlier turns; a ValueError (the marker of an
        image was cut away) says that it cannot.
      view: the present observation, with its `text`.
      history: the earlier ones and what was answered, oldest first.
      most: tokens that the prompt may have.

    Returns:
      The prompt, or None when the words around the observation are too long already.
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
    """The tokens that fit with the largest number of kept characters below `longest`, and that number; None where 0 is too many."""
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
