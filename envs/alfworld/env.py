"""The ALFWorld environment: household games by seed, split and text, one sentence an action."""

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
from stepreward.envs.protocol import ADMISSIBLE, DISTANCE, EXPERT, REPLAY, SNAPSHOT, TASKS, Observation

_WELCOME = "-= Welcome to TextWorld, ALFRED! =-\n\n"
_TASK = re.compile(r"Your task is to: ([^\n]*)")
# What an exploring expert may need at most: two turns a place, and a task.
_LOOKAHEAD = 200


class Snapshot(NamedTuple):
    """All that an episode consists of; small plain data, to be restored in this or another environment of equal settings.

    split, seed: the task. commands: what changed the state so far, in the game's wording, each with the engine's answer.
    """

    split: str
    seed: int
    commands: tuple[tuple[str, str], ...]
    steps: int
    over: bool


class AlfworldEnv:
    """One ALFWorld game, as `stepreward.envs.protocol.Environment`, played by the stock engine.

    * Observation: {"text": what the game says, "turn": how many turns were taken}; the first one describes the room and the task.
    * Actions: the game's commands ("go to desk 1", "take mug 1 from desk 1", "move mug 1 to shelf 1", "open", "close",
      "use", "heat/cool/clean ... with ...", "slice", "examine", "look", "inventory", "help"), in either wording of
      grammar.py. Any other string, and None, answers "Nothing happens." and counts as a turn.
    * Reward: settings.won_reward for the step that solves the task, 0 otherwise.
    * `terminated` when the task is solved; otherwise `truncated` after settings.max_steps turns.
    * info: won, score (1.0 when won), executed (the engine ran the action), state_key, admissible (in the game's wording,
      sorted) and task (the sentence after "Your task is to:").
    * capabilities: replay, admissible, expert, distance and snapshot; tasks where settings.data names games. A snapshot
      is the list of commands: taking it is free, restoring it plays them again.

    Raises ValueError when the packages are not installed, and what `stepreward.envs.alfworld.games` raises for bad data.
    """

    def __init__(self, settings: Settings | None = None):
        self.settings = preset_settings("tiny") if settings is None else settings
        speed.install()
        offered = {SNAPSHOT, REPLAY, ADMISSIBLE, EXPERT, DISTANCE}
        if self.settings.data is not None:
            games.check(self.settings)
            offered.add(TASKS)
        self.capabilities = frozenset(offered)
        self._engine: Engine | None = None
        self._game: Game | None = None
        self._over = True

    def num_tasks(self, split: str = "train") -> int:
        """How many games the split has. Raises ValueError for generated games, which have no end."""
        if self.settings.data is None:
            raise ValueError("generated games have no end: give data= to play a list of games")
        return len(games.load(self.settings, split))

    def reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        """Starts the game that `seed` names in options["split"], "train" (unless given) or "held_out".

        Without a seed, it draws one from the operating system. Raises ValueError for an unknown option or split,
        a negative seed, or a game that cannot be loaded.
        """
        options = {} if options is None else options
        unknown = sorted(set(options) - {"split"})
        if unknown:
            raise ValueError(f"unknown reset option {', '.join(unknown)}; the only option is split")
        seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else int(seed)
        self._enter(Snapshot(options.get("split", "train"), seed, (), 0, False))
        text = self._turn.text if self.settings.welcome else self._turn.text.removeprefix(_WELCOME)
        return {"text": text, "turn": 0}, self._info(True)

    def step(self, action: str | None) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Takes one action. Raises RuntimeError only when no episode is running."""
        if self._over:
            raise RuntimeError("the episode is over or has not begun: call reset()")
        self._steps += 1
        command = in_words_of(action, self._form) if isinstance(action, str) else ""
        # What is not admissible changes nothing in the engine either: it need not be asked.
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
        return {"text": text, "turn": self._steps}, reward, terminated, truncated, self._info(executed)

    def close(self) -> None:
        """Gives back the engine and its shared library; a later reset starts a new one."""
        if self._engine is not None:
            self._engine.close()
        self._engine, self._game, self._over = None, None, True

    def snapshot(self) -> Snapshot:
        """Returns the state of the episode for `restore`. Raises RuntimeError before the first reset."""
        self._require_game()
        return Snapshot(self._split, self._seed, tuple(self._commands), self._steps, self._over)

    def restore(self, state: Snapshot) -> None:
        """Continues from a snapshot, its count of turns included; plays its commands again unless the game stands there."""
        self._enter(state)

    def distance(self) -> float:
        """How many actions a player who sees everything needs from here, by the plan of oracle.py.

        0 when solved, math.inf when it cannot be solved, math.nan for a goal that is not of the six task types.
        """
        self._require_game()
        if self._turn.won:
            return 0.0
        if self._goal is None:
            return math.nan
        actions = plan(self._engine.facts(), self._goal)
        return math.inf if actions is None else float(len(actions))

    def expert(self, rng: np.random.Generator | None = None) -> list[str] | None:
        """The actions from here by which settings.expert solves the task in the turns that are left; None where it does not.

        "explorer" is played ahead and taken back; it has one order of search, so `rng` is not used. "recorded" goes on
        only where the episode has followed the recorded actions. Actions are in the game's wording.
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
        except ValueError:  # a human's words for the task
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
        self._over = True  # until the game stands
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
        self._split, self._seed, commands, self._steps, self._over = snapshot
        self._commands = list(commands)

    def _find(self, split: str, seed: int) -> Game:
        if seed < 0:
            raise ValueError(f"seed={seed}: give a whole number, at least 0")
        if self.settings.data is None:
            return generate(self.settings, seed, split).game
        known = games.load(self.settings, split)
        return known[seed % len(known)]

    def _info(self, executed: bool) -> dict[str, Any]:
        won = self._turn.won
        return {
            "won": won, "score": float(won), "executed": executed, "state_key": self._key,
            "admissible": self._turn.admissible, "task": self._task,
        }  # fmt: skip


def make(preset: str = "tiny", *, max_steps: int | None = None, data: str | None = None, **overrides) -> Callable[[], AlfworldEnv]:
    """Returns a picklable function without arguments that makes environments of a preset; the rest replaces fields of Settings.

    Raises ValueError that lists what there is when the preset or a setting is unknown; FileNotFoundError when `data`
    is not a folder of games. Whether the packages are installed is asked when an environment is made.
    """
    if max_steps is not None:
        overrides["max_steps"] = max_steps
    if data is not None:
        overrides["data"] = data
    chosen = preset_settings(preset, **overrides)
    if chosen.data is not None:
        games.check(chosen)
    return functools.partial(AlfworldEnv, chosen)
