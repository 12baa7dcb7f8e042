"""Writes the prompt of an episode's next turn, as far as it has room."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np

from stepreward.envs.protocol import IMAGE, Prompt
from stepreward.models.images import ImageReader
from stepreward.rollout.chat import Dialogue
from stepreward.rollout.engine import Engine
from stepreward.rollout.episode import ROW_FULL, TOO_LONG
from stepreward.rollout.fitting import prompt_writer, room_of_a_turn, shorten
from stepreward.rollout.game import Game

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class PromptWriter:
    """Writes prompts. All attributes are those of `play.Collector`, except `by_step`, which is its `context == "step"`."""

    engine: Engine
    prompt: Prompt
    chat: Dialogue
    by_step: bool
    history: int
    reader: ImageReader | None
    long_observation: str
    longest_answer: int

    def write(self, game: Game, closes_answer: bool = False) -> str | None:
        """Writes the prompt of the next turn, and the tokens of the row with it.

        Args:
          game: the episode. Where a picture cannot be shown, it fails.
          closes_answer: the answer before was cut at its longest length, and the prompt ends it.

        Returns:
          Why the turn cannot be played, or None if it can or if the episode failed.
        """
        if self.reader is not None:
            try:
                game.images = self.reader.read(game.observation[IMAGE])
            except ValueError as error:
                _log.warning("a picture cannot be shown: %s", error)
                game.fail(str(error))
                return None
        later = bool(game.history)
        window = game.history[-self.history :] if self.history else []
        seen = None if game.images is None else self.reader.tokens(game.images)
        write = prompt_writer(self.prompt, self.chat, by_step=self.by_step, first=not later, closes_answer=closes_answer, image_tokens=seen)
        said, game.cut = game.tokens, 0
        game.prompt_tokens = write(game.view, window)
        game.wanted = len(game.prompt_tokens)
        self._say(game, said)
        reason = self._short_of(game)
        if reason != TOO_LONG or self.long_observation != "cut":
            return reason
        found = shorten(write, game.view, window, room_of_a_turn(self.engine, by_step=self.by_step, later=later))
        if found is None:
            return reason
        game.prompt_tokens, game.cut = found.tokens, found.cut
        self._say(game, said)
        return self._short_of(game)

    def messages(self, game: Game) -> list[dict[str, str]]:
        """The conversation of the next turn as chat messages, for a model behind an address; observations are shown whole."""
        user = lambda text: {"role": "user", "content": text}
        if self.by_step:
            return [user(self.prompt.window(game.view, game.history[-self.history :] if self.history else []))]
        views = [*(view for view, _ in game.history), game.view]
        said = [user(self.prompt.later(view) if place else self.prompt.first(view)) for place, view in enumerate(views)]
        for place, (_, answer) in reversed(list(enumerate(game.history))):
            said.insert(place + 1, {"role": "assistant", "content": answer})
        return said

    def _say(self, game: Game, said: np.ndarray) -> None:
        """Sets the tokens of the row: the conversation and the prompt, or the prompt alone."""
        game.tokens = game.prompt_tokens if self.by_step else np.concatenate([said, game.prompt_tokens])

    def _short_of(self, game: Game) -> str | None:
        """Returns why the next turn has no room, or None if it has; notes in the episode what it would need."""
        # A kept conversation also sends the last token of the answer again.
        new = len(game.prompt_tokens) + (1 if game.history and not self.by_step else 0)
        if self.engine.holds(len(game.tokens), new):
            return None
        too_long = self.by_step or not self.engine.holds(0, new)
        if not self.engine.holds(0, new):
            game.episode.need(max_prompt_tokens=len(game.prompt_tokens))
        if not self.engine.holds(len(game.tokens)):
            game.episode.need(max_row_tokens=len(game.tokens) + self.longest_answer)
        return TOO_LONG if too_long else ROW_FULL
