"""TextArena's games: alone, or as one player against scripted ones.

    --config.environment.name=adapters.textarena --config.environment.preset=GuessTheNumber-v0

A preset is a name that `textarena.make` takes (extra `adapters`); its game is made without TextArena's own wrappers (`…-raw`).
The rules come as `info["task"]`, an observation is what the game has said since the player's last action. Games of words
(Wordle and others) fetch word lists over the network when they are made; the rest need none.
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
    """A TextArena game as five-tuples of text, the other players being called where it is their turn.

    Reward: 0 while the game goes on, then TextArena's own for the learning player (1 won, −1 lost, 0 drawn, a share of what was
    done in games of one). info: task, won (its reward is 1), score (the reward), invalid_move (the game refused the action).
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
        """Nothing is held."""

    def _play(self, action: str) -> tuple[bool, bool]:
        """One action of the player whose turn it is: (the game is over, the action was refused and may be put right)."""
        turn = self._game.state.turn
        done, _ = self._game.step(action if _BRACKETS.search(action) else f"[{action}]")
        return bool(done), not done and self._game.state.turn == turn

    def _others(self) -> bool:
        """Lets the others play until it is the learner's turn; whether the game is over then."""
        while (player := self._game.state.current_player_id) != self._seat:
            heard = self._told[player] = self._told.get(player, "") + "\n" + self._said(self._hear(player))
            if self._play(self._opponent(heard.strip(), self._draws))[0]:
                return True
        return False

    def _hear(self, player: int) -> list[tuple]:
        """What the game has said to a player since it was asked last."""
        heard, self._game.state.observations[player] = self._game.state.observations[player], []
        own = (player, self._arena.GAME_ID)  # some games say back what they were told
        return [m for m in heard if m[0] not in own or m[2] != self._arena.ObservationType.PLAYER_ACTION]

    def _said(self, messages: list[tuple]) -> str:
        """Messages as lines; those of other players begin with their names."""
        names = self._game.state.role_mapping
        who = {sender: f"{names.get(sender, f'Player {sender}')}: " for sender, _, _ in messages} | {self._arena.GAME_ID: ""}
        return "\n".join(f"{who[sender]}{text.strip()}" for sender, text, _ in messages)


def random_move(heard: str, draws: random.Random) -> str:
    """An opponent that draws one of the moves in brackets that it heard of last, as in `Available Moves: '[0]', '[3]'`."""
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
    """A function without arguments that makes environments of a TextArena game.

    Args:
      preset: the game.
      max_steps: turns of the learner after which an episode is truncated; None leaves it to the game.
      data: not used: a game is made with `kwargs`.
      players: how many play; a game for two is given 2.
      seat: which of them learns.
      opponent: what the others write, from all that they have heard and a generator of the episode's; or its
        "package.module:function".
      kwargs: what the game is made with, such as {"max_turns": 8}.
      settings: fields of `text_env.Settings`.

    Raises:
      ValueError: an unknown game, seat, opponent or setting; the package is not installed.
    """
    if data:
        raise ValueError(f"data={data!r}: a game is made with kwargs, under its own names")
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise ValueError(f"kwargs={kwargs!r}: give a dictionary of what the game is made with, such as {{'max_turns': 8}}")
    if isinstance(opponent, str):
        module, _, name = opponent.partition(":")
        try:
            opponent = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(f"opponent={opponent!r} names no function: {error}") from None
    defaults = {"global_random": True, "state_key": "history"}
    read: Settings = make_settings(None, **(defaults | settings | {"max_steps": max_steps or 0}))
    return functools.partial(TextEnv, functools.partial(Game, preset, players, seat, opponent, dict(kwargs or {})), read)
