"""Plays episodes: one engine, many environments, two ways of showing history.

* `context="step"`: every turn is a new prompt with a window of history; a training row is one step.
* `context="episode"`: the conversation grows and its cache is kept; a training row is the whole episode.

An episode starts where its `Start` says: at the beginning of its task, or in the middle of an earlier episode, whose steps it keeps as
its prefix. The environment then restores a snapshot, or repeats the prefix's actions.

Finished episodes leave the device batch. When the others fit a smaller batch size, the batch shrinks to it.

On request, every turn also scores the environment's reference answer: the mean log-probability that the policy gives it in place of the
action, in one more pass over the kept cache (`Step.answer_log_prob`). What is sampled does not change.

With several processes, each plays its share of the episodes, in its own environments and its own rows of the batch. In the end every
process has all episodes.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from stepreward import processes
from stepreward.envs.automata import Automaton
from stepreward.envs.protocol import AUTOMATON, DISTANCE, EVENTS, IMAGE, REPLAY, SNAPSHOT, TURN_REWARD, Prompt
from stepreward.models.images import ImageReader
from stepreward.rollout.chat import Dialogue
from stepreward.rollout.demonstrating import demonstrate
from stepreward.rollout.engine import Engine
from stepreward.rollout.environment_host import EnvironmentFailure
from stepreward.rollout.environments import Call, Pool
from stepreward.rollout.episode import Episode, Start, Task
from stepreward.rollout.fitting import LONG_OBSERVATIONS
from stepreward.rollout.free_play import play_freely, row_keys
from stepreward.rollout.game import Game, gathered
from stepreward.rollout.losses import warn_of_losses, warn_of_unscored
from stepreward.rollout.player import Adviser, Player
from stepreward.rollout.prompting import PromptWriter
from stepreward.rollout.referee import Referee
from stepreward.rollout.reference import score_rows
from stepreward.rollout.starts import Seats, batches, check_starts

CONTEXTS = ("step", "episode")
SCHEDULES = ("free", "lockstep", "batch")


def possible(schedule: str, process_count: int, sees: bool, score_answers: bool = False) -> str:
    """The schedule that a rollout can have which is to have this one."""
    return "batch" if process_count > 1 or sees or score_answers else schedule


@dataclasses.dataclass
class Collector:
    """Everything a rollout needs besides parameters, tasks and a key.

    Attributes:
      engine: samples answers.
      pool: the environments.
      prompt: turns observations into messages, and answers into actions.
      chat: turns messages into tokens.
      context: "step" or "episode", see the module's docstring.
      history: with `context="step"`, how many (observation, answer) pairs a prompt shows.
      max_steps: the most steps of an episode.
      max_rows: how many episodes are decoded at once.
      reader: reads the images of observations, for a model that sees (the engine has the same reader); None: text only.
      invalid_penalty: subtracted from the reward of a step whose answer held no action.
      long_observation: what happens if an observation makes a prompt too long: "cut" shortens the observation visibly, "end" ends
        the episode.
      longest_answer: tokens of the longest answer, for messages about lengths and for the answers of a model that is the expert; 0: any.
      warned: the kinds of loss that were warned of already; each kind is warned of once.
      reuse_cache: with `context="episode"`, False prefills the whole conversation in every turn (for benchmarks).
      schedule: one of `SCHEDULES`. "free": no row waits for another, see `free_play`. "lockstep": every turn waits for the longest answer and the
        slowest environment; the episodes are the same, bit for bit. "batch": as "lockstep", in one program a turn, whose batch shrinks as
        episodes end; this one works with several processes, with pictures, and with `score_answers`, which all imply it.
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
    schedule: str = "batch"
    warned: set[str] = dataclasses.field(default_factory=set)

    def __post_init__(self):
        if self.long_observation not in LONG_OBSERVATIONS:
            raise ValueError(f"rollout.long_observation={self.long_observation!r} is not one of {', '.join(LONG_OBSERVATIONS)}.")
        if self.context not in CONTEXTS:
            raise ValueError(f"rollout.context={self.context!r} is not one of {', '.join(CONTEXTS)}.")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"rollout.schedule={self.schedule!r} is not one of {', '.join(SCHEDULES)}.")
        self._able = self.pool.capabilities()
        if self.reader is not None and (self.context != "step" or IMAGE not in self._able):
            raise ValueError(
                "images are shown one a turn, in whole prompts, by an environment that has them: set rollout.context='step', and a "
                "preset of the environment whose observations are images."
            )
        self._know_distance = DISTANCE in self._able
        self._seats = Seats(self.pool, self.max_rows // processes.count())
        self._writer = PromptWriter(
            self.engine,
            self.prompt,
            self.chat,
            self.context == "step",
            self.history,
            self.reader,
            self.long_observation,
            self.longest_answer,
        )
        self._referee = Referee(self.prompt, self.chat, self._writer, self.context, self.max_steps, self.invalid_penalty)

    def collect(self, params, tasks: Sequence[Task], key: jax.Array) -> list[Episode]:
        """Plays each task once, from its beginning; see `play`."""
        return self.play(params, [Start(task) for task in tasks], key)

    def play(
        self, params, starts: Sequence[Start], key: jax.Array, *, keep: bool = False, turns: int | None = None, score_answers: bool = False
    ) -> list[Episode]:
        """Plays an episode from each start and returns them in the order of `starts`.

        What an episode draws depends on `key`, its index in `starts` and its turn, not on its neighbours. Turns count from the
        beginning of the task, so the same key and index draw after a prefix what they drew in the episode that the prefix is from.
        `max_steps` counts the steps of the prefix too.

        An environment that cannot restore its snapshot, or whose replay raises, ends early or leads to another state, fails its own
        episode only.

        Args:
          params: as trained.
          starts: where the episodes start; the same one may appear several times.
          key: of all draws.
          keep: keep a snapshot of the environment before each new step (`Step.snapshot`), for `Start.before`. Where the environment
            offers replays only, nothing is kept, and later starts are replayed.
          turns: the most new turns of an episode. One that has not ended by then is `PAUSED`, and `Start.after` plays it on. None: every
            episode is played to its end.
          score_answers: score the reference answer before each new step (`Step.answer_log_prob`). The value is NaN where there is none,
            or where it has no room in the row or a prompt.

        Raises:
          ValueError: the environment cannot do what the starts or `keep` ask for; a prefix has more than `max_steps` steps; or the
            history that a prompt shows is not known, since steps before a snapshot were not kept.
        """
        return self.player(params, score_answers=score_answers)(starts, key, keep=keep, turns=turns)

    def player(self, params, *, score_answers: bool = False) -> Player:
        """`play` as a function of the starts, the key, `keep` and `turns`, for several calls: the parameters are prepared once."""
        return Player(self, self.engine.prepare(params), score_answers)

    def with_engine(self, engine: Engine) -> Collector:
        """A collector that samples with another engine."""
        return dataclasses.replace(self, engine=engine)

    def check_offers(self, needed: frozenset[str], why: str) -> None:
        """Raises ValueError where the environment does not declare one of the capabilities `needed`; the message says `why` it must."""
        if missing := sorted(needed - self._able):
            options = " and ".join(f"environment.options.{name}=True" for name in missing if name in (EVENTS, TURN_REWARD, AUTOMATON))
            hint = f" (some offer it with {options})" if options else ""
            raise ValueError(
                f"{why} needs {', '.join(map(repr, missing))}, which the environment {self.pool.name()} does not offer: choose an "
                f"environment that does{hint}, see docs/environments.md, or another method."
            )

    def automaton(self) -> Automaton:
        """Returns the environment's automaton of subgoals. Raises ValueError if no environment can give one."""
        found = self.pool.call_all([Call(0, "automaton")])[0]
        if isinstance(found, EnvironmentFailure):
            raise ValueError(f"the environment {self.pool.name()} has no automaton of subgoals: {found}")
        return found

    def check_restarts(self) -> None:
        """Raises ValueError where the environment offers neither snapshots nor replays, so that no episode can start in the middle."""
        if not self._able & {SNAPSHOT, REPLAY}:
            raise ValueError(
                f"the environment {self.pool.name()} offers neither {SNAPSHOT!r} nor {REPLAY!r}, and the strategy starts episodes in the "
                "middle: let the environment declare one of them (docs/environments.md), or choose a method whose strategy is 'chain'."
            )

    @property
    def pauses_freely(self) -> bool:
        """See `Player.pauses_freely`."""
        return self.context == "step" and SNAPSHOT in self._able

    def _play(
        self,
        params,
        starts: Sequence[Start],
        key: jax.Array,
        keep: bool,
        turns: int | None,
        score_answers: bool,
        indices: Sequence[int] | None = None,
    ) -> list[Episode]:
        if keep or any(start.prefix or start.snapshot is not None for start in starts):
            self.check_restarts()
        check_starts(starts, self.pool, self._able, turns, self.max_steps, self.history if self.context == "step" else 0)
        by_index = dict(zip(range(len(starts)) if indices is None else indices, starts, strict=True))
        if len(by_index) < len(starts):
            raise ValueError("two starts have the same index, and would draw the same.")
        keep, parts = keep and SNAPSHOT in self._able, processes.count()
        if self._schedule(score_answers) != "batch":
            games = play_freely(self, params, by_index, key, self._asks(keep), turns, self.schedule == "lockstep")
            episodes = self._finished(games, by_index)
            warn_of_losses(episodes, self.warned)
            return episodes
        # A conversation that joined others would pad a turn of theirs to the length of its first prompt, so these play in batches.
        together = self.max_rows if self.context == "episode" else max(1, len(starts))
        played: dict[int, Episode] = {}
        for some in batches(by_index, together, parts):
            played.update(zip(some, self._play_batch(params, some, key, keep, turns, score_answers)))
        episodes = [played[index] for index in by_index]
        if processes.is_writer():
            warn_of_losses(episodes, self.warned)
            if score_answers:
                warn_of_unscored(episodes, self.warned)
        return episodes

    def _play_batch(
        self, params, starts: Mapping[int, Start], key, keep: bool = False, turns: int | None = None, score_answers: bool = False
    ) -> list[Episode]:
        """Plays starts, by their index for the draws, in at most `max_rows` rows. Those without a row wait until an episode ends."""
        parts, asks, indices = processes.count(), self._asks(keep), list(starts)
        games = [Game.at(starts[indices[place]], -1, indices[place], asks, turns) for place in processes.share(len(indices))]
        waiting = deque(games)
        slots = self.engine.batch_rows(min(-(-len(starts) // parts) * parts, self.max_rows), self.max_rows) // parts
        self._seats.begin()
        state, rows = self.engine.start(slots * parts), self._fill([], waiting, slots)  # row -> game; finished games stay as idle rows
        if self.context == "episode" and self.reuse_cache and any(start.prefix for start in starts.values()):
            state = self._read_again(params, state, rows)
        while True:
            playing = [g for g in rows if not g.done]
            # The largest numbers of any process, since all run the same programs.
            left, most = (int(number) for number in processes.agree_max([len(waiting), len(playing)]))
            if not left and not most:
                break
            size = len(state.length) if left else self.engine.row_bucket(most * parts, self.max_rows) // parts
            if size < len(state.length):
                kept = [i for i, g in enumerate(rows) if not g.done]
                state = self.engine.select(state, np.array(kept + (kept[:1] or [0]) * (size - len(kept))))
                rows = playing
            if most:
                state = self._turn(params, state, rows, key, score_answers)
            rows = self._fill(rows, waiting, slots)
        self._seats.end(games)
        return self._finished(games, starts)

    def _schedule(self, score_answers: bool) -> str:
        """The schedule that this rollout can have."""
        return possible(self.schedule, processes.count(), self.reader is not None, score_answers)

    def _finished(self, games: Sequence[Game], starts: Mapping[int, Start]) -> list[Episode]:
        """The episodes of all processes, with their costs and prefixes."""
        for game in games:
            game.episode.cost = game.cost()
            del game.episode.steps[: game.episode.prefix]  # every process has them
        episodes = gathered(games)
        for episode, start in zip(episodes, starts.values()):
            episode.steps[:0] = start.prefix
        return episodes

    def _fill(self, rows: list[Game], waiting: deque[Game], slots: int) -> list[Game]:
        """Begins as many waiting games as have a free slot, and returns the games of the rows."""
        while waiting:
            playing = [game for game in rows if not game.done]
            joining = [waiting.popleft() for _ in range(min(len(waiting), slots - len(playing)))]
            if not joining:
                break
            self._seats.seat(joining, playing)
            self._begin(joining)  # those that fail at once leave their slots to others
            rows = playing + joining
        return rows

    def _turn(self, params, state, rows: list[Game], key, score_answers: bool):
        """Plays one turn of every row."""
        if self.context == "step" or not self.reuse_cache:
            state = self.engine.reset(state)
        new = [self._new_tokens(g, state.length[i]) for i, g in enumerate(rows)]
        new += [np.zeros(0, np.int32)] * (len(state.length) - len(new))
        place = [(g.index, len(g.episode.steps)) for g in rows] + [(0, 0)] * (len(state.length) - len(rows))
        shown = {}
        if self.reader is not None:
            idle = [None] * (len(state.length) - len(rows))
            shown["images"] = [None if g.done else g.images for g in rows] + idle
        length = state.length + np.array([len(tokens) for tokens in new], np.int32)
        state, answer = self.engine.turn(params, state, new, row_keys(key, np.array(place, np.uint32)), **shown)
        if score_answers:
            score_rows(self.engine, params, state, length, rows, self.prompt, self.chat)
        acting = [(i, game) for i, game in enumerate(rows) if not game.done]
        for i, game in acting:
            n = answer.count[i]
            sampled = (answer.tokens[i, :n].copy(), answer.log_prob[i, :n].copy(), answer.entropy[i, :n].copy())
            game.stopped = bool(answer.stopped[i])
            game.step = self._referee.answered(game, *sampled)
        self._act([game for _, game in acting])
        return state

    def _demonstrate(
        self,
        starts: Sequence[Start],
        keep: bool,
        turns: int | None = None,
        draws: Sequence[int] | None = None,
        adviser: Adviser | None = None,
    ) -> list[Episode]:
        """See `Player.expert` and `Player.advise`."""
        return demonstrate(self, starts, keep, turns, draws, adviser)

    def _asks(self, keep: bool) -> tuple[str, ...]:
        """The environment's methods that are called in each new state."""
        return (*(["distance"] if self._know_distance else []), *(["snapshot"] if keep else []))

    def _begin(self, games: Sequence[Game]) -> None:
        """Takes every game to its start and writes its first prompt."""
        for game in games:
            self._referee.start(game)
        self._referee.run(self.pool, games)

    def _act(self, games: Sequence[Game]) -> None:
        """Sends every game's action to its environment and writes the next prompts."""
        for game in games:
            self._referee.act(game)
        self._referee.run(self.pool, games)

    def _read_again(self, params, state, games: list[Game]):
        """Fills the cache with the conversations of the prefixes, up to the token that a turn sends again."""
        said = [game.tokens[: max(0, game.said - 1)] if not game.done else game.tokens[:0] for game in games]
        for game, tokens in zip(games, said):
            game.read_again = len(tokens)
        return self.engine.extend(params, state, said + [np.zeros(0, np.int32)] * (len(state.length) - len(said)))

    def _new_tokens(self, game, cached: int) -> np.ndarray:
        return np.zeros(0, np.int32) if game.done else game.tokens[cached:]
