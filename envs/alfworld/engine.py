"""The stock ALFWorld engine: TextWorld's PDDL engine inside the benchmark's own wrappers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from stepreward.envs.alfworld import speed
from stepreward.envs.alfworld.games import Game
from stepreward.envs.extras import require

FAILURE = "Nothing happens."
# Predicates that an action can change and a later turn can notice. "checked" is absent: it only records that the agent looked.
_CHANGING = frozenset(("atlocation", "opened", "inreceptacle", "holds", "isclean", "ishot", "iscool", "ison", "istoggled", "issliced"))


class Turn(NamedTuple):
    """The engine's result of a command. `ran`: the command was executed; `won`: the goal holds; `admissible`: possible commands."""

    text: str
    ran: bool
    won: bool
    admissible: tuple[str, ...]


# Copies of the planner's shared library that closed engines have released. They are never unloaded: the copies share
# symbols, and unloading one would crash the process at exit.
_libraries: list[object] = []


class Engine:
    """One instance of the engine. It owns a copy of the planner's shared library (about 2 MB) until `close`.

    Args:
      keep: whether to keep the translations of its games on disk (translations.py).

    Raises ValueError when the packages are not installed.
    """

    def __init__(self, keep: bool = False):
        speed.install()
        require("alfworld", "textworld", "fast_downward", "alfworld")
        from alfworld.agents.environment.alfred_tw_env import AlfredDemangler, AlfredInfos
        from textworld.core import EnvInfos
        from textworld.envs.pddl import PddlEnv

        self._keep = keep
        self._stock = _stock(PddlEnv, EnvInfos(won=True, admissible_commands=True))
        self._wrapped = AlfredInfos(AlfredDemangler(self._stock))
        self._game: Game | None = None
        self._commands: list[str] = []
        self._turn: Turn | None = None

    def start(self, game: Game) -> Turn:
        """Starts a game; does not reload the game that was played last. Raises ValueError for a game that cannot be loaded."""
        with speed.kept_on_disk(self._keep):
            if game != self._game:
                self._game = None
                content = {"pddl_domain": game.domain, "pddl_problem": game.problem, "grammar": game.grammar}
                try:
                    self._wrapped.load(content)
                except (SystemExit, Exception) as error:  # the PDDL parser exits the process on a syntax error
                    raise ValueError(f"the game {game.name} cannot be loaded: {type(error).__name__}: {error}") from None
                self._game = game
            self._commands = []
            self._turn = self._read(self._wrapped.reset(), True)
        return self._turn

    def step(self, command: str) -> Turn:
        """Runs one command, in the wording of the game."""
        state, _, _ = self._wrapped.step(command)
        self._commands.append(command)
        self._turn = self._read(state, self._stock._last_action is not None)
        return self._turn

    def go(self, game: Game, commands: Sequence[str]) -> Turn:
        """Restarts `game` and runs `commands`, unless the engine is already in that state."""
        if game == self._game and list(commands) == self._commands and self._turn is not None:
            return self._turn
        turn = self.start(game)
        for command in commands:
            turn = self.step(command)
        return turn

    def facts(self) -> list[tuple[str, ...]]:
        """Returns the true facts, unordered, each as (predicate, names of its arguments as in the text)."""
        names = {name: info.name.strip() for name, info in self._stock._entity_infos.items()}
        return [
            (fact.name, *(names.get(argument.name, argument.name) for argument in fact.arguments)) for fact in self._stock._pddl_state.facts
        ]

    def state_key(self) -> str:
        """Returns a digest of the true state: equal for equal states of a game, on any machine."""
        changing = sorted(
            " ".join((fact.name, *(argument.name for argument in fact.arguments)))
            for signature, facts in self._stock._pddl_state._facts.items()
            if signature.name in _CHANGING
            for fact in facts
        )
        return hashlib.blake2b("\n".join(changing).encode(), digest_size=12).hexdigest()

    def close(self) -> None:
        """Releases the shared library for the next engine. This engine cannot be used afterwards."""
        if self._stock is not None:
            self._stock.downward_lib.cleanup()
            _libraries.append(self._stock.downward_lib)
        self._stock = self._wrapped = self._game = self._turn = None

    def _read(self, state, ran: bool) -> Turn:
        return Turn(state.feedback, ran, bool(state["won"]), tuple(state["admissible_commands"]))


def _stock(environment, infos):
    """Makes a stock environment, with a released copy of the library if there is one."""
    import fast_downward

    load = fast_downward.load_lib
    if _libraries:
        fast_downward.load_lib = _libraries.pop
    try:
        return environment(infos)
    finally:
        fast_downward.load_lib = load
