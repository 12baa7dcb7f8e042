"""Plays episodes: one engine, many environments, two ways of showing history.

* `context="step"`: every turn is a fresh prompt holding a window of history; a training row is one step.
* `context="episode"`: the conversation grows and its cache is kept; a training row is the whole episode.

Finished episodes leave the device batch: when the rest fits a smaller batch size, the batch shrinks to it.

With several processes each plays its share of the episodes, in its own environments and its own rows of the batch; in the end all
have all episodes.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

import jax
import numpy as np

from stepreward import processes
from stepreward.envs.protocol import DISTANCE, IMAGE, Prompt, prompt_view
from stepreward.models.images import ImageReader
from stepreward.models.vision_inputs import Images
from stepreward.rollout.chat import Dialogue
from stepreward.rollout.engine import Engine
from stepreward.rollout.environments import Call, EnvironmentFailure, Pool
from stepreward.rollout.episode import ENVIRONMENT_LIMIT, ROW_FULL, STEP_LIMIT, TERMINATED, TOO_LONG, Episode, Step, Task
from stepreward.rollout.fitting import LONG_OBSERVATIONS, prompt_writer, room_of_a_turn, shorten
from stepreward.rollout.losses import advice, warn_of_losses
from stepreward.text import cleaned

CONTEXTS = ("step", "episode")
_log = logging.getLogger(__name__)


@dataclasses.dataclass
class Collector:
    """Everything a rollout needs besides parameters, tasks and a key.

    Attributes:
      engine: samples answers.
      pool: the environments.
      prompt: observations to messages, answers to actions.
      chat: messages to tokens.
      context: "step" or "episode", see the module's docstring.
      history: with `context="step"`, how many (observation, answer) pairs a prompt shows.
      max_steps: an episode is cut there even if its environment goes on.
      max_rows: episodes decoded at once.
      reader: of the observations' images, for a model that sees (the engine has the same); None shows text only.
      invalid_penalty: taken from the reward of a step whose answer held no action.
      long_observation: what becomes of an observation with which a prompt is too long: "cut" shortens it visibly, "end" ends the
        episode.
      longest_answer: tokens of the longest answer, for what is said about lengths.
      warned: the kinds of loss that were warned of already; one warning each.
      reuse_cache: with `context="episode"`, False prefills the whole conversation again each turn (for benchmarks).
    """

    engine: Engine
    pool: Pool
    prompt: Prompt
    chat: Dialogue
    context: str
    history: int
    max_steps: int
    max_rows: int
    reuse_cache: bool = True
    reader: ImageReader | None = None
    invalid_penalty: float = 0.0
    long_observation: str = "end"
    longest_answer: int = 0
    warned: set[str] = dataclasses.field(default_factory=set)

    def __post_init__(self):
        if self.long_observation not in LONG_OBSERVATIONS:
            raise ValueError(f"rollout.long_observation={self.long_observation!r} is not one of {', '.join(LONG_OBSERVATIONS)}.")
        if self.context not in CONTEXTS:
            raise ValueError(f"rollout.context={self.context!r} is not one of {', '.join(CONTEXTS)}.")
        able = self.pool.capabilities()
        if self.reader is not None and (self.context != "step" or IMAGE not in able):
            raise ValueError(
                "images are shown one a turn, in whole prompts, by an environment that has them: set rollout.context='step', and a "
                "preset of the environment whose observations are images."
            )
        self._know_distance = DISTANCE in able

    def collect(self, params, tasks: Sequence[Task], key: jax.Array) -> list[Episode]:
        """Plays each task once and returns the episodes in the order of `tasks`; `params` are as trained.

        An episode's draws depend on `key`, its index in `tasks` and its turn, not on its neighbours.
        """
        episodes, params = [], self.engine.prepare(params)
        for first in range(0, len(tasks), self.max_rows):
            chunk = tasks[first : first + self.max_rows]
            episodes += self._collect_chunk(params, chunk, key, first)
        if processes.is_writer():
            warn_of_losses(episodes, self.warned)
        return episodes

    def _collect_chunk(self, params, tasks, key, first_index) -> list[Episode]:
        parts = processes.count()
        games = [_Game(Episode(tasks[i]), slot, first_index + i) for slot, i in enumerate(processes.share(len(tasks)))]
        self._reset(games)
        rows: list[_Game] = games  # row -> game; finished games stay as idle rows until the batch shrinks
        state = self.engine.start(self.engine.row_bucket(-(-len(tasks) // parts) * parts, self.max_rows))
        for turn in range(self.max_steps):
            playing = [g for g in rows if not g.done]
            most = int(processes.agree_max(len(playing)))  # of any process: all run the same programs
            if not most:
                break
            size = self.engine.row_bucket(most * parts, self.max_rows) // parts
            if size < len(state.length):
                kept = [i for i, g in enumerate(rows) if not g.done]
                state = self.engine.select(state, np.array(kept + (kept[:1] or [0]) * (size - len(kept))))
                rows = playing
            if self.context == "step" or not self.reuse_cache:
                state = self.engine.reset(state)
            new = [self._new_tokens(g, state.length[i]) for i, g in enumerate(rows)]
            new += [np.zeros(0, np.int32)] * (len(state.length) - len(new))
            index = np.array([g.index for g in rows] + [0] * (len(state.length) - len(rows)), np.uint32)
            shown = {}
            if self.reader is not None:
                idle = [None] * (len(state.length) - len(rows))
                shown["images"] = [None if g.done else g.images for g in rows] + idle
            state, answer = self.engine.turn(params, state, new, _row_keys(key, index, turn), **shown)
            acting = [(i, game) for i, game in enumerate(rows) if not game.done]
            for i, game in acting:
                n = answer.count[i]
                sampled = (answer.tokens[i, :n].copy(), answer.log_prob[i, :n].copy(), answer.entropy[i, :n].copy())
                game.stopped = bool(answer.stopped[i])
                game.step = self._answered(game, *sampled)
            self._act([game for _, game in acting])
        for game in games:
            if not game.done:
                game.cut_short(STEP_LIMIT)
        return [episode for share in processes.gather_objects([game.episode for game in games]) for episode in share]

    def _reset(self, games: list[_Game]) -> None:
        """Starts every game; the environments work at the same time where the pool lets them."""
        calls = []
        for game in games:
            task = game.episode.task
            calls.append(Call(game.slot, "reset", (), {"seed": task.seed, "options": {"split": task.split}}))
        for game, (observation, info) in self._round(games, calls):
            self._enter(game, observation, info)
            too_long = self._prompt(game)
            if too_long is not None and not game.done:
                game.fail(f"the first prompt has {game.wanted} tokens: {advice(game.episode.needs)}")

    def _answered(self, game: _Game, tokens, log_prob, entropy) -> Step:
        """The step that an answer makes, before the environment has seen it."""
        output = self.chat.text(tokens)
        action = cleaned(self.prompt.parse(output))
        shown = (game.prompt_tokens, tokens, log_prob, entropy, game.view["text"], output, action)
        return Step(
            *shown,
            reward=0.0,
            executed=False,
            state_key=game.state_key,
            distance=game.distance,
            images=game.images,
            cut=game.cut,
            stopped=game.stopped,
        )

    def _act(self, games: list[_Game]) -> None:
        """Brings every game's answer to its environment and writes the next prompts."""
        calls = [Call(game.slot, "step", (game.step.action,)) for game in games]
        for game, (observation, reward, terminated, truncated, info) in self._round(games, calls):
            step, episode, before = game.step, game.episode, game.view
            penalty = self.invalid_penalty if step.action is None else 0.0
            step.reward, step.executed = float(reward) - penalty, bool(info["executed"])
            episode.steps.append(step)
            episode.success = bool(info["won"])
            self._enter(game, observation, info)
            game.tokens = np.concatenate([game.tokens, step.action_tokens])
            game.history.append((before, step.output))
            if terminated:
                game.end(TERMINATED)
            elif truncated:
                game.cut_short(STEP_LIMIT if len(episode.steps) == self.max_steps else ENVIRONMENT_LIMIT)
            elif len(episode.steps) < self.max_steps:  # else nothing follows that could be too long
                too_long = self._prompt(game, closes_answer=not game.stopped)
                if too_long is not None and not game.done:
                    game.cut_short(too_long)

    def _short_of(self, game: _Game) -> str | None:
        """Why the next turn cannot be played, or None when it can; what it would take is noted."""
        # A kept conversation also sends the last token of the answer again.
        new = len(game.prompt_tokens) + (1 if self.context == "episode" and game.history else 0)
        if self.engine.holds(len(game.tokens), new):
            return None
        too_long = self.context == "step" or not self.engine.holds(0, new)
        if not self.engine.holds(0, new):
            game.episode.need(max_prompt_tokens=len(game.prompt_tokens))
        if not self.engine.holds(len(game.tokens)):
            game.episode.need(max_row_tokens=len(game.tokens) + self.longest_answer)
        return TOO_LONG if too_long else ROW_FULL

    def _enter(self, game: _Game, observation, info) -> None:
        game.observation, game.view, game.state_key = observation, prompt_view(observation, info), info["state_key"]
        game.episode.score = float(info.get("score", info["won"]))
        game.episode.final_observation = observation["text"]

    def _round(self, games: list[_Game], calls: list[Call]):
        """One call a game, and how far success is then, where the environments know.

        Yields the games whose call went well, with its result. The episodes of the others have failed.
        """
        more = ["distance"] if self._know_distance else []
        for game, results in zip(games, self.pool.call_all([[call, *(Call(call.slot, name) for name in more)] for call in calls])):
            if isinstance(results, EnvironmentFailure):
                game.fail(str(results))
                continue
            if more:
                game.distance = game.episode.final_distance = float(results[1])
            yield game, results[0]

    def _prompt(self, game, closes_answer: bool = False) -> str | None:
        """Writes the next turn's prompt: a whole one, or what the conversation gains. Returns why it cannot be played, or None."""
        if self.reader is not None:
            try:
                game.images = self.reader.read(game.observation[IMAGE])
            except ValueError as error:
                _log.warning("a picture cannot be shown: %s", error)
                game.fail(str(error))
                return None
        by_step, later = self.context == "step", bool(game.history)
        window = game.history[-self.history :] if self.history else []
        seen = None if game.images is None else self.reader.tokens(game.images)
        write = prompt_writer(self.prompt, self.chat, by_step=by_step, first=not later, closes_answer=closes_answer, image_tokens=seen)
        said, game.cut = game.tokens, 0
        game.prompt_tokens = write(game.view, window)
        game.wanted = len(game.prompt_tokens)
        self._say(game, said)
        reason = self._short_of(game)
        if reason != TOO_LONG or self.long_observation != "cut":
            return reason
        found = shorten(write, game.view, window, room_of_a_turn(self.engine, by_step=by_step, later=later))
        if found is None:
            return reason
        game.prompt_tokens, game.cut = found.tokens, found.cut
        self._say(game, said)
        return self._short_of(game)

    def _say(self, game, said: np.ndarray) -> None:
        """The row is what was said and the prompt behind it; a step's row is its prompt alone."""
        game.tokens = game.prompt_tokens if self.context == "step" else np.concatenate([said, game.prompt_tokens])

    def _new_tokens(self, game, cached: int) -> np.ndarray:
        return np.zeros(0, np.int32) if game.done else game.tokens[cached:]


@dataclasses.dataclass
class _Game:
    """An episode in play: in which environment, and which of the rollout's tasks it is."""

    episode: Episode
    slot: int
    index: int
    done: bool = False
    observation: dict | None = None
    view: dict | None = None
    step: Step | None = None
    stopped: bool = True
    state_key: str = ""
    distance: float = float("nan")
    prompt_tokens: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))
    tokens: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))
    images: Images | None = None
    history: list = dataclasses.field(default_factory=list)
    cut: int = 0  # characters that the prompt leaves out
    wanted: int = 0  # tokens of the whole prompt

    def fail(self, reason: str) -> None:
        self.episode.failure, self.done = reason, True

    def end(self, why: str) -> None:
        self.episode.end, self.done = why, True

    def cut_short(self, why: str) -> None:
        self.episode.truncated = True
        self.end(why)


@jax.jit
def _row_keys(key, index, turn):
    key = jax.random.fold_in(key, turn)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, index)
