"""The ALFWorld environment. A seed and a split select the game; an action is one sentence."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from stepreward.envs.alfworld import games, speed
from stepreward.envs.alfworld.engine import FAILURE, Engine, Turn
from stepreward.envs.alfworld.explorer import Explorer
from stepreward.envs.alfworld.games import Game
from stepreward.envs.alfworld.generate import generate
from stepreward.envs.alfworld.grammar import in_words_of, rewrite, without_arrival, wording
from stepreward.envs.alfworld.oracle import goal_of, plan
from stepreward.envs.alfworld.presets import Settings
from stepreward.envs.alfworld.presets import settings as preset_settings
from stepreward.envs.alfworld.subgoals import facts_of, subgoals
from stepreward.envs.automata import Automaton, check_enabled
from stepreward.envs.events import Events, Memory
from stepreward.envs.protocol import (
    ADMISSIBLE,
    AUTOMATON,
    AUTOMATON_STATE,
    DISTANCE,
    EVENTS,
    EXPERT,
    REPLAY,
    SNAPSHOT,
    TASKS,
    Observation,
)

_WELCOME = "-= Welcome to TextWorld, ALFRED! =-\n\n"
_TASK = re.compile(r"Your task is to: ([^\n]*)")
# Turns that an exploring expert may need at most: two for each place, and some for the task itself.
_LOOKAHEAD = 200


class Snapshot(NamedTuple):
    """The whole state of an episode, as small plain data that any environment with equal settings can restore.

    split, seed: the task. commands: the commands executed so far, in the game's wording, each with the engine's answer.
    events: what `Events` remembers. automaton: the automaton's state; −1 unless settings.automaton is set.
    """

    split: str
    seed: int
    commands: tuple[tuple[str, str], ...]
    steps: int
    over: bool
    events: Memory = Memory()
    automaton: int = -1


class AlfworldEnv:
    """One ALFWorld game in the stock engine; implements `stepreward.envs.protocol.Environment`.

    * Observation: {"text": the game's text, "turn": number of turns taken}; the first one describes the room and the task.
    * Actions: the game's commands ("go to desk 1", "take mug 1 from desk 1", "move mug 1 to shelf 1", "open", "close",
      "use", "heat/cool/clean ... with ...", "slice", "examine", "look", "inventory", "help"), in either wording of
      grammar.py. For any other string, or None, the observation is "Nothing happens."; it counts as a turn.
    * Reward: settings.won_reward for the step that solves the task, 0 otherwise.
    * `terminated` when the task is solved; otherwise `truncated` after settings.max_steps turns.
    * info: won, score (1.0 when won), executed (the engine ran the action), state_key, admissible (in the game's wording,
      sorted), task (the sentence after "Your task is to:"), and after a step events; with settings.automaton also automaton_state, the
      state of the automaton of subgoals.py.
    * capabilities: replay, admissible, expert, distance, events and snapshot; tasks if settings.data is set; automaton with its
      setting. A snapshot is the list of commands: taking it is free, restoring it replays them.

    Raises ValueError when the packages are not installed, and the errors of `stepreward.envs.alfworld.games` for bad data.
    """

    def __init__(self, settings: Settings | None = None):
        self.settings = preset_settings("tiny") if settings is None else settings
        speed.install()
        offered = {SNAPSHOT, REPLAY, ADMISSIBLE, EXPERT, DISTANCE, EVENTS}
        if self.settings.data is not None:
            games.check(self.settings)
            offered.add(TASKS)
        if self.settings.automaton:
            offered.add(AUTOMATON)
        self.capabilities = frozenset(offered)
        self._engine: Engine | None = None
        self._game: Game | None = None
        self._over = True

    def num_tasks(self, split: str = "train") -> int:
        """Returns the number of games in the split. Raises ValueError for generated games, whose number is unlimited."""
        if self.settings.data is None:
            raise ValueError("the number of generated games is unlimited; set data= to play a fixed list of games")
        return len(games.load(self.settings, split))

    def reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        """Starts game `seed` of options["split"], which is "train" (the default) or "held_out".

        Without a seed, it draws one from the operating system. Raises ValueError for an unknown option or split,
        a negative seed, or a game that cannot be loaded.
        """
        options = {} if options is None else options
        unknown = sorted(set(options) - {"split"})
        if unknown:
            raise ValueError(f"unknown reset option {', '.join(unknown)}; the only option is split")
        seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else int(seed)
        start = subgoals().start if self.settings.automaton else -1
        self._enter(Snapshot(options.get("split", "train"), seed, (), 0, False, automaton=start))
        self._events = Events(self._key)
        text = self._turn.text if self.settings.welcome else self._turn.text.removeprefix(_WELCOME)
        return {"text": text, "turn": 0}, self._info(True)

    def step(self, action: str | None) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Takes one action. Raises RuntimeError only when no episode is running."""
        if self._over:
            raise RuntimeError("the episode is over or has not begun: call reset()")
        self._steps += 1
        command = in_words_of(action, self._form) if isinstance(action, str) else ""
        # A command that is not admissible changes nothing, so the engine need not run it.
        executed = command in self._turn.admissible
        text = FAILURE
        if executed:
            self._turn = self._engine.step(command)
            text = self._turn.text
            self._commands.append((command, text))
            self._key = self._engine.state_key()
        terminated = self._turn.won
        truncated = not terminated and self._steps >= self.settings.max_steps
        self._over = terminated or truncated
        reward = self.settings.won_reward if terminated else 0.0
        text = text if self.settings.arrival else without_arrival(text)
        info = self._info(executed) | {"events": self._events.after(self._key, executed)}
        return {"text": text, "turn": self._steps}, reward, terminated, truncated, info

    def close(self) -> None:
        """Releases the engine and its shared library; a later reset starts a new one."""
        if self._engine is not None:
            self._engine.close()
        self._engine, self._game, self._over = None, None, True

    def snapshot(self) -> Snapshot:
        """Returns the state of the episode for `restore`. Raises RuntimeError before the first reset."""
        self._require_game()
        return Snapshot(self._split, self._seed, tuple(self._commands), self._steps, self._over, self._events.saved(), self._q)

    def restore(self, state: Snapshot) -> None:
        """Continues from a snapshot, including its count of turns. Replays its commands unless the game is already in that state."""
        self._enter(state)

    def automaton(self) -> Automaton:
        """Returns the automaton of subgoals (subgoals.py). Raises ValueError unless settings.automaton is set."""
        check_enabled(self.settings.automaton)
        return subgoals()

    def distance(self) -> float:
        """Returns the number of actions that a player with full knowledge needs from here (the plan of oracle.py).

        It is 0 when solved, math.inf when unsolvable, and math.nan for a goal outside the six task types.
        """
        self._require_game()
        if self._turn.won:
            return 0.0
        if self._goal is None:
            return math.nan
        actions = plan(self._engine.facts(), self._goal)
        return math.inf if actions is None else float(len(actions))

    def expert(self, rng: np.random.Generator | None = None) -> list[str] | None:
        """Returns the actions by which settings.expert solves the task in the remaining turns, or None if it cannot.

        "explorer" plays ahead in the engine, which is then restored. Its search order is fixed, so `rng` is not used. "recorded"
        returns actions only if the episode has followed the recorded ones so far. Actions are in the game's wording.
        """
        self._require_game()
        if self._over:
            return None
        if self.settings.expert == "oracle":
            actions = None if self._goal is None else plan(self._engine.facts(), self._goal)
        elif self.settings.expert == "recorded":
            actions = self._recorded()
        else:
            actions = self._explore()
        if actions is None or len(actions) > self.settings.max_steps - self._steps:
            return None
        return [in_words_of(action, self._form) for action in actions]

    def _recorded(self) -> list[str] | None:
        recorded = [in_words_of(action, self._form) for action in self._game.recorded or ()]
        done = [command for command, _ in self._commands]
        return recorded[len(done) :] if recorded[: len(done)] == done and recorded else None

    def _explore(self) -> list[str] | None:
        try:
            explorer = Explorer(self._task, self._opening)
        except ValueError:  # a task in free human wording
            return None
        for command, text in self._commands:
            explorer.see(command, text)
        actions, turn = [], self._turn
        left = min(self.settings.max_steps - self._steps, _LOOKAHEAD)
        while not turn.won and len(actions) < left:
            action = explorer.act()
            if action is None:
                break
            actions.append(action)
            command = in_words_of(action, self._form)
            text = FAILURE
            if command in turn.admissible:
                turn = self._engine.step(command)
                text = turn.text
            explorer.see(action, text)
        self._turn = self._engine.go(self._game, [command for command, _ in self._commands])
        return actions if turn.won else None

    def _require_game(self) -> None:
        if self._game is None:
            raise RuntimeError("no game yet: call reset()")

    def _enter(self, snapshot: Snapshot) -> None:
        game = self._find(snapshot.split, snapshot.seed)
        if self.settings.grammar != "game":
            game = game._replace(grammar=rewrite(game.grammar, self.settings.grammar))
        if self._engine is None:
            self._engine = Engine(keep=self.settings.data is not None)
        self._over = True  # until the game is ready
        if game != self._game or not snapshot.commands:
            opening: Turn = self._engine.start(game)
            self._opening = opening.text
            found = _TASK.search(opening.text)
            self._task = found[1].strip() if found else ""
            self._goal = goal_of(game.problem)
            self._form = wording(game.grammar)
        self._game = game
        self._turn = self._engine.go(game, [command for command, _ in snapshot.commands])
        self._key = self._engine.state_key()
        self._split, self._seed, commands, self._steps, self._over, memory, self._q = snapshot
        self._commands, self._events = list(commands), Events.of(memory)

    def _find(self, split: str, seed: int) -> Game:
        if seed < 0:
            raise ValueError(f"seed={seed}: give a whole number, at least 0")
        if self.settings.data is None:
            return generate(self.settings, seed, split).game
        known = games.load(self.settings, split)
        return known[seed % len(known)]

    def _info(self, executed: bool) -> dict[str, Any]:
        won = self._turn.won
        info = {
            "won": won, "score": float(won), "executed": executed, "state_key": self._key,
            "admissible": self._turn.admissible, "task": self._task,
        }  # fmt: skip
        if self.settings.automaton:
            self._q = info[AUTOMATON_STATE] = subgoals().next(self._q, facts_of(self._engine.facts(), self._goal, won))
        return info


def make(preset: str = "tiny", *, max_steps: int | None = None, data: str | None = None, **overrides) -> Callable[[], AlfworldEnv]:
    """Returns a picklable function without arguments that makes environments of a preset; `overrides` replace fields of Settings.

    Raises ValueError for an unknown preset or setting, and lists the known ones; FileNotFoundError when `data` is not a folder of
    games. A missing package raises only when an environment is made.
    """
    if max_steps is not None:
        overrides["max_steps"] = max_steps
    if data is not None:
        overrides["data"] = data
    chosen = preset_settings(preset, **overrides)
    if chosen.data is not None:
        games.check(chosen)
    return functools.partial(AlfworldEnv, chosen)
