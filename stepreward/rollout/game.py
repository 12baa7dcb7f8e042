"""An episode while it is played: what `play` knows of it between two turns."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stepreward import processes
from stepreward.envs.protocol import prompt_view
from stepreward.models.vision_inputs import Images
from stepreward.rollout.episode import PAUSED, Cost, Episode, Pause, Snapshot, Start, Step
from stepreward.rollout.reference import Spoken


@dataclasses.dataclass
class Game:
    """An episode in play.

    Attributes:
      episode, slot, index: the episode, the slot of its environment, and its index in the rollout's starts.
      asks: methods of the environment that are called in each new state, "distance" and "snapshot".
      snapshot: before the game begins, that of its start; later that of the present state. None if there is none, or it is not kept.
      start_key: the state key of the start, if it is known.
      pause_at: the number of steps at which the episode is paused; None: it is played to its end.
      phase: what the game waits for, one of `referee`'s phases; "" if it waits for nothing.
      to_replay, replayed: how many actions of the prefix are still to be replayed, and how many were replayed.
      in_place: its environment is in the state of `snapshot` already.
      said, read_again: tokens of the prefix's conversation, and how many of them were read into the cache again.
      plan: the actions that the expert will take.
      saved: what the environment's `snapshot()` returned last.
      tokens, prompt_tokens: the conversation with the prompt at its end, and the prompt alone.
      spoken, spoken_answer: the reference answer as the model would write it, and the text that it was made from.
      scored: tokens of reference answers that were scored.
      answer_log_prob: of the reference answer before the present step; NaN if it was not scored.
      automaton_state: the present state of the environment's automaton of subgoals; −1 if it has none.
      cut, wanted: characters that the prompt leaves out, and tokens that the whole prompt has.
    """

    episode: Episode
    slot: int
    index: int
    asks: tuple[str, ...] = ()
    snapshot: Snapshot | None = None
    start_key: str | None = None
    pause_at: int | None = None
    phase: str = ""
    to_replay: int = 0
    replayed: int = 0
    in_place: bool = False
    said: int = 0
    read_again: int = 0
    done: bool = False
    observation: dict | None = None
    view: dict | None = None
    saved: object = None
    step: Step | None = None
    stopped: bool = True
    state_key: str = ""
    won: bool = False
    distance: float = float("nan")
    prompt_tokens: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))
    tokens: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))
    images: Images | None = None
    history: list = dataclasses.field(default_factory=list)
    spoken: Spoken | None = None
    spoken_answer: str | None = None
    scored: int = 0
    answer_log_prob: float = float("nan")
    automaton_state: int = -1
    plan: list[str] = dataclasses.field(default_factory=list)
    cut: int = 0
    wanted: int = 0

    @classmethod
    def at(cls, start: Start, slot: int, index: int, asks: tuple[str, ...], turns: int | None = None) -> Game:
        """A game that is to begin at `start`, and to be paused after that many turns."""
        episode = Episode(start.task, list(start.prefix), prefix=len(start.prefix))
        to_replay = 0 if start.snapshot is not None else episode.prefix
        pause_at = None if turns is None else episode.prefix + turns
        return cls(episode, slot, index, asks, start.snapshot, start.state_key, pause_at, to_replay=to_replay)

    def fail(self, reason: str) -> None:
        """Ends the episode as failed."""
        self.episode.failure, self.done = reason, True

    def end(self, why: str) -> None:
        """Ends the episode as its environment or a limit does."""
        self.episode.end, self.done = why, True

    def cut_short(self, why: str) -> None:
        """Ends the episode before its environment does."""
        self.episode.truncated = True
        self.end(why)

    def pause(self) -> None:
        """Stops the episode in a state that it can be played on from."""
        self.episode.pause = Pause(self.snapshot, self.state_key)
        self.end(PAUSED)

    def cost(self) -> Cost:
        """What the episode took, with the step in which its environment failed."""
        new = self.episode.steps[self.episode.prefix :]
        if self.step is not None and (not new or self.step is not new[-1]):
            new = [*new, self.step]
        sampled = sum(len(step.action_tokens) for step in new)
        return Cost(len(new), self.replayed, sampled, self.read_again + self.scored + sum(len(step.prompt_tokens) for step in new))


def view_of(step: Step) -> Mapping[str, Any]:
    """What prompts saw of the observation before a step; its text alone where it was not kept."""
    return {"text": step.observation} if step.snapshot is None else prompt_view(step.snapshot.observation, step.snapshot.info)


def gathered(games: Sequence[Game]) -> list[Episode]:
    """The episodes of all processes."""
    return [episode for share in processes.gather_objects([game.episode for game in games]) for episode in share]
