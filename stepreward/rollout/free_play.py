"""Plays episodes that wait for nobody: each row of the batch goes on when its own answer has ended and its own environment has answered.

A row whose answer has ended goes to its environment while other rows decode, and takes its next prompt when the environment has answered.
A row whose episode has ended goes to the next one. With `lockstep`, all rows wait for each other in every turn, and the episodes are the same,
bit for bit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from stepreward.rollout.episode import Start
from stepreward.rollout.game import Game
from stepreward.rollout.rows import Rows


class FreePlay:
    """One rollout.

    Args:
      collector: the `play.Collector` whose engine, environments and settings are used.
      params: as `Engine.prepare` returns them.
      key: of all draws.
      games: what to play, in the order in which they get a row.
      lockstep: whether all rows wait for each other.
    """

    def __init__(self, collector: Any, params, key: jax.Array, games: list[Game], lockstep: bool = False):
        self._collector, self._referee, self._pool, self._seats = collector, collector._referee, collector.pool, collector._seats
        self._key, self._lockstep = key, lockstep
        self._keeps = collector.context == "episode" and collector.reuse_cache
        self._waiting = deque(games)
        count = min(len(games), collector.max_rows)
        self._rows = Rows(collector.engine, params, collector.engine.batch_rows(count, collector.max_rows))
        self._games: dict[int, Game] = {}  # row -> game in play
        self._free = list(range(count))[::-1]
        self._calling: dict[int, tuple[int, bool]] = {}  # slot of an environment that was called -> row, and whether results are expected

    def run(self) -> None:
        """Plays all games to their ends."""
        try:
            while self._waiting or self._games:
                self._join()
                ready = self._hear()
                if self._lockstep:
                    while self._calling:
                        ready += self._hear()
                self._ask(ready)
                answered = list(self._rows.run())
                if self._lockstep:
                    while self._rows.busy:
                        answered += self._rows.run()
                for row, answer in answered:
                    game = self._games[row]
                    game.stopped = answer.stopped
                    game.step = self._referee.answered(game, answer.tokens, answer.log_prob, answer.entropy)
                    self._referee.act(game)
                self._call([row for row, _ in answered])
        finally:
            self._pool.abandon()  # nothing is running unless this is an interrupt

    def _join(self) -> None:
        """Gives waiting games the free rows, and takes them to their starts."""
        joining = [self._waiting.popleft() for _ in range(min(len(self._waiting), len(self._free)))]
        if not joining:
            return
        self._seats.seat(joining, list(self._games.values()))
        rows = [self._free.pop() for _ in joining]
        for row, game in zip(rows, joining):
            self._games[row] = game
            self._rows.forget(row)
            self._referee.start(game)
        self._call(rows)

    def _call(self, rows: list[int]) -> None:
        """Starts the calls that the games of these rows wait for."""
        calls = []
        for row in rows:
            game = self._games[row]
            while game.phase and not (some := self._referee.calls(game)):
                self._referee.take(game, [])
            if game.phase:
                calls.append(some)
                self._calling[game.slot] = row, True
            else:
                self._calling[game.slot] = row, False
        if calls:
            self._pool.begin(calls)

    def _hear(self) -> list[int]:
        """Takes what environments have answered; returns the rows whose games have a new prompt. Waits only if no row is answering."""
        found = {slot: None for slot, (_, expected) in self._calling.items() if not expected}
        found |= self._pool.arrived(wait=not found and (self._lockstep or not self._rows.busy))
        ready, again = [], []
        for slot in sorted(found, key=lambda slot: self._calling[slot][0]):
            row, expected = self._calling.pop(slot)
            game = self._games[row]
            if expected:
                self._referee.take(game, found[slot])
            if game.phase:
                again.append(row)
            elif game.done:
                del self._games[row]
                self._rows.forget(row)
                self._free.append(row)
            else:
                ready.append(row)
        if again:
            self._call(again)
        return ready

    def _ask(self, rows: list[int]) -> None:
        """Gives the prompts of games to their rows."""
        if not rows:
            return
        places = np.zeros((self._rows.count, 2), np.uint32)
        places[: len(rows)] = [(self._games[row].index, len(self._games[row].episode.steps)) for row in rows]
        keys = np.asarray(jax.random.key_data(row_keys(self._key, places)))
        for row, key in zip(rows, keys):
            game = self._games[row]
            if not self._keeps:
                self._rows.forget(row)
            elif game.said and not self._rows.length[row]:
                game.read_again = game.said - 1
            self._rows.ask(row, game.tokens[self._rows.length[row] :], key)


@jax.jit
def row_keys(key, place_Bx2):
    """A key for each row, by its index in the rollout and its turn."""
    return jax.vmap(lambda place: jax.random.fold_in(jax.random.fold_in(key, place[1]), place[0]))(place_Bx2)


def play_freely(
    collector: Any, params, starts: Mapping[int, Start], key, asks: tuple[str, ...], turns: int | None, lockstep: bool
) -> list[Game]:
    """Plays starts, by their index for the draws, in at most `max_rows` rows; returns their games, which have ended."""
    games = [Game.at(start, -1, index, asks, turns) for index, start in starts.items()]
    collector._seats.begin()
    FreePlay(collector, params, key, games, lockstep).run()
    collector._seats.end(games)
    return games
