"""Reference answers as a model would write them, whose log-probability says how much the conversation so far tells of the answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from stepreward.envs.protocol import Prompt
from stepreward.rollout.chat import Dialogue
from stepreward.rollout.episode import Episode
from stepreward.text import clean


class Spoken(NamedTuple):
    """A text that a model might write as its answer, of which only the end is scored.

    Attributes:
      tokens: int32 `[T]`, the lead-in and the scored text.
      scored: how many of the last tokens are scored.
    """

    tokens: np.ndarray
    scored: int


def spoken(prompt: Prompt, chat: Dialogue, answer: str) -> Spoken:
    """Returns the tokens of a reference answer.

    Lead-in and answer are tokenised one by one, so that no token belongs to both, and as plain text: what spells a control token or the
    marker of an image stays text. There is no end token, since the reward is about the answer alone.

    Args:
      prompt: of the run; its optional method `reference` says what is written before the answer, see `envs.protocol.Prompt`.
      chat: of the run.
      answer: the environment's reference answer.

    Raises:
      ValueError: `reference` returned anything but two strings.
    """
    reference = getattr(prompt, "reference", None)
    found = ("", prompt.answer(answer)) if reference is None else reference(answer)
    if not isinstance(found, tuple) or len(found) != 2 or not all(isinstance(part, str) for part in found):
        raise ValueError(f"{type(prompt).__name__}.reference returned {found!r}: it must return two strings, (lead-in, answer).")
    lead, said = (np.asarray(chat.codec.encode(clean(part)), np.int32) for part in found)
    return Spoken(np.concatenate([lead, said]), len(said))


def score_rows(engine, params, state, length: np.ndarray, rows: Sequence[Any], prompt: Prompt, chat: Dialogue) -> None:
    """Scores the reference answer of every game in play (`Game.answer_log_prob`), in one pass behind the prompts of this turn.

    Args:
      engine, params: what plays, and the parameters as `Engine.prepare` returns them.
      state: as `Engine.turn` has just returned it.
      length: int32 `[B]`, tokens of each conversation up to the end of this turn's prompt.
      rows: the games (`game.Game`), by row; the batch may have further rows.
      prompt, chat: of the run.
    """
    texts, last = [None] * len(length), np.zeros(len(length), np.int32)
    for i, game in enumerate(rows):
        answer = game.episode.reference
        if game.done or answer is None:
            continue
        if answer != game.spoken_answer:
            game.spoken, game.spoken_answer = spoken(prompt, chat, answer), answer
        if engine.fits(game.spoken, int(length[i])):
            texts[i], last[i] = game.spoken, game.tokens[-1]
            game.scored += len(game.spoken.tokens)
    for game, value in zip(rows, engine.mean_log_prob(params, state, length, last, texts)):
        game.answer_log_prob = float(value)


def answer_log_probs(episodes: Sequence[Episode], max_steps: int) -> np.ndarray:
    """The signal `answer_log_prob`, float32 `[E, S]` with S = `max_steps`: NaN at a step that was not scored, 0 after the last step."""
    found = np.zeros((len(episodes), max_steps), np.float32)
    for row, episode in zip(found, episodes):
        row[: len(episode.steps)] = [step.answer_log_prob for step in episode.steps]
    return found


def unscored(episodes: Sequence[Episode]) -> int:
    """The number of steps of the policy before which no reference answer was scored."""
    return int(sum(np.isnan(step.answer_log_prob) for episode in episodes for step in episode.steps if step.sampled))
