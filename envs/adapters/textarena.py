"""TextArena's games: for one player, or for one learning player against scripted opponents.

    --config.environment.name=adapters.textarena --config.environment.preset=GuessTheNumber-v0

A preset is a name for `textarena.make` (extra `adapters`); the game is made without TextArena's own wrappers (`…-raw`).
`info["task"]` has the rules. An observation is all that the game has sent to the player since its last action. Word games
(such as Wordle) download word lists when they are made; the other games need no network.
"""

from __future__ import annotations

import functools
import importlib
import random
import re
from collections.abc import Callable, Mapping
from typing import Any

from stepreward.envs.adapters.prompts import prompts
from stepreward.envs.adapters.text_env import Settings, TextEnv, make_settings
from stepreward.envs.extras import require

__all__ = ["make", "prompts", "random_move"]

_BRACKETS = re.compile(r"\[[^\[\]]+\]")


class Game:
    """A TextArena game with gymnasium's five-tuple. It calls the opponent when it is another player's turn.

    Reward: 0 while the game runs, then TextArena's own reward of the learning player (1 won, −1 lost, 0 drawn; in games for one
    player, the share that was solved). info: task, won (the reward is 1), score (the reward), invalid_move (the game refused the
    action).
    """

    def __init__(self, name: str, players: int, seat: int, opponent: Callable[[str, random.Random], str], kwargs: Mapping):
        self._arena = require("adapters", "textarena")
        if seat not in range(players):
            raise ValueError(f"seat={seat}: a game of {players} players has the seats 0 to {players - 1}")
        raw = name if name.endswith("-raw") else f"{name}-raw"
        try:
            self._game = self._arena.make(raw, **kwargs)
        except (ValueError, LookupError) as error:  # unknown, or a word list that could not be fetched
            raise ValueError(f"environment.preset={name!r}: {' '.join(str(error).split())[:200]}") from None
        self._players, self._seat, self._opponent = players, seat, opponent

    def reset(self, *, seed: int) -> tuple[str, dict]:
        self._game.reset(num_players=self._players, seed=seed)
        self._draws, self._told = random.Random(seed), {}
        self._others()
        messages = self._hear(self._seat)
        kinds = self._arena.ObservationType
        rules = "\n".join(text for _, text, kind in messages if kind == kinds.PROMPT)
        self._task = rules.strip()
        shown = self._said([m for m in messages if m[2] != kinds.PROMPT])
        return shown or self._task, {"task": self._task}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict]:
        done, refused = self._play(action)
        if not done:
            done = self._others()
        state = self._game.state
        reward = float((state.rewards or {}).get(self._seat, 0.0)) if done else 0.0
        refused = refused or bool(done and state.game_info[self._seat].get("invalid_move"))
        shown = self._said(self._hear(self._seat))
        if done:
            shown = "\n".join(filter(None, [shown, str(state.game_info[self._seat].get("reason") or "")]))
        info = {"task": self._task, "won": done and reward >= 1, "score": reward, "invalid_move": refused}
        return shown or "Your turn.", reward, done, False, info

    def close(self) -> None:
        """Does nothing: a game holds no resources."""

    def _play(self, action: str) -> tuple[bool, bool]:
        """Plays one action of the player to move. Returns (the game is over, the action was refused and the player may try again)."""
        turn = self._game.state.turn
        done, _ = self._game.step(action if _BRACKETS.search(action) else f"[{action}]")
        return bool(done), not done and self._game.state.turn == turn

    def _others(self) -> bool:
        """Lets the opponents play until it is the learner's turn. Returns whether the game is over."""
        while (player := self._game.state.current_player_id) != self._seat:
            heard = self._told[player] = self._told.get(player, "") + "\n" + self._said(self._hear(player))
            if self._play(self._opponent(heard.strip(), self._draws))[0]:
                return True
        return False

    def _hear(self, player: int) -> list[tuple]:
        """Returns the game's messages to a player since the last call for that player."""
        heard, self._game.state.observations[player] = self._game.state.observations[player], []
        own = (player, self._arena.GAME_ID)  # some games echo the player's own action
        return [m for m in heard if m[0] not in own or m[2] != self._arena.ObservationType.PLAYER_ACTION]

    def _said(self, messages: list[tuple]) -> str:
        """Joins messages to lines of text; a message of a player begins with the player's name."""
        names = self._game.state.role_mapping
        who = {sender: f"{names.get(sender, f'Player {sender}')}: " for sender, _, _ in messages} | {self._arena.GAME_ID: ""}
        return "\n".join(f"{who[sender]}{text.strip()}" for sender, text, _ in messages)


def random_move(heard: str, draws: random.Random) -> str:
    """An opponent that draws one of the bracketed moves in the game's latest list, as in `Available Moves: '[0]', '[3]'`."""
    lines = [line for line in heard.splitlines() if _BRACKETS.search(line)]
    offered = [line for line in lines if "vailable" in line] or lines[-1:]
    found = _BRACKETS.findall(offered[-1]) if offered else []
    return draws.choice(found) if found else "[pass]"


def make(
    preset: str,
    *,
    max_steps: int | None = None,
    data: str | None = None,
    players: int = 1,
    seat: int = 0,
    opponent: str | Callable[[str, random.Random], str] = random_move,
    kwargs: Mapping[str, Any] | None = None,
    **settings,
) -> Callable[[], TextEnv]:
    """Returns a function without arguments that makes environments of a TextArena game.

    Args:
      preset: the game's name.
      max_steps: turns of the learner after which an episode is truncated; None keeps the game's own limit.
      data: must be None; pass the game's arguments in `kwargs`.
      players: number of players; 2 for a game for two.
      seat: index of the learning player, from 0.
      opponent: the policy of the other players: a function of all text that the player has received and of the episode's random
        generator, which returns an action; or its name "package.module:function".
      kwargs: arguments of the game, such as {"max_turns": 8}.
      settings: fields of `text_env.Settings`.

    Raises:
      ValueError: an unknown game, seat, opponent or setting, or a package that is not installed.
    """
    if data:
        raise ValueError(f"data={data!r}: a game takes no data; pass its arguments in kwargs, under their own names")
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise ValueError(f"kwargs={kwargs!r}: give a dictionary of the game's arguments, such as {{'max_turns': 8}}")
    if isinstance(opponent, str):
        module, _, name = opponent.partition(":")
        try:
            opponent = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(f"opponent={opponent!r}: this function cannot be imported: {error}") from None
    defaults = {"global_random": True, "state_key": "history"}
    read: Settings = make_settings(None, **(defaults | settings | {"max_steps": max_steps or 0}))
    return functools.partial(TextEnv, functools.partial(Game, preset, players, seat, opponent, dict(kwargs or {})), read)
