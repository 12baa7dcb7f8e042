"""Where episodes start: checks, the order in which they are played, and the environments that play them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from stepreward.envs.protocol import REPLAY, SNAPSHOT
from stepreward.rollout.environments import Pool
from stepreward.rollout.episode import Snapshot, Start
from stepreward.rollout.game import Game


def check_starts(starts: Sequence[Start], pool: Pool, able: frozenset[str], turns: int | None, max_steps: int, shown: int) -> None:
    """Raises ValueError where episodes cannot be played from `starts`.

    Args:
      starts: where the episodes start.
      pool: the environments, for messages.
      able: what they declare.
      turns: the most new turns of an episode, or None.
      max_steps: the most steps of an episode, those of its prefix included.
      shown: how many earlier steps a prompt shows.
    """
    if turns is not None and turns < 1:
        raise ValueError(f"turns={turns}: play at least 1 turn.")
    middle = [start for start in starts if start.prefix or start.snapshot is not None]
    if any(start.snapshot is not None for start in middle) and SNAPSHOT not in able:
        raise ValueError(f"the environment {pool.name()} offers no {SNAPSHOT!r}: give starts without a snapshot, to be replayed.")
    if any(start.snapshot is None for start in middle) and REPLAY not in able:
        raise ValueError(f"the environment {pool.name()} offers no {REPLAY!r}: play with keep=True, and start from a snapshot.")
    for start in middle:
        if len(start.prefix) > max_steps:
            raise ValueError(f"a start has a prefix of {len(start.prefix)} steps, more than rollout.max_steps={max_steps}.")
        if start.snapshot is not None and any(step.snapshot is None for step in start.prefix[-shown:] if shown):
            raise ValueError("a prompt shows what was observed before a snapshot, and that was not kept: play with keep=True.")


def batches(starts: Mapping[int, Start], size: int, parts: int) -> Iterator[dict[int, Start]]:
    """Divides starts into batches of `size`. Episodes that have as many turns left come together, the longest first.

    Each batch is in the order of `parts` processes: equal shares, with long and short episodes in each.
    """
    order = sorted(starts, key=lambda index: len(starts[index].prefix))
    for first in range(0, len(order), size):
        some = order[first : first + size]
        yield {index: starts[index] for part in range(parts) for index in some[part::parts]}


class Seats:
    """Gives each episode an environment of the pool, by its slot.

    The environment of an episode that was paused stays in its state until something else is called. An episode that starts from the
    snapshot of that state gets this environment, and nothing has to be restored.
    """

    def __init__(self, pool: Pool, slots: int):
        self._pool, self._slots = pool, slots
        self._paused: dict[int, Snapshot] = {}  # slot -> the state of its environment
        self._rounds = -1  # of the pool, when these states were noted

    def begin(self) -> None:
        """Forgets the paused environments if the pool was used since."""
        if self._rounds != self._pool.rounds:
            self._paused = {}

    def seat(self, joining: Sequence[Game], playing: Sequence[Game]) -> None:
        """Sets the slots of games that join others, and whether they are `in_place`."""
        waiting = {id(snapshot): slot for slot, snapshot in self._paused.items()}
        for game in joining:
            game.slot = waiting.pop(id(game.snapshot), -1)
            game.in_place = game.slot >= 0
        free = set(range(self._slots)) - {game.slot for game in [*playing, *joining]}
        rest = iter(sorted(free, key=lambda slot: (slot in self._paused, slot)))
        for game in joining:
            if not game.in_place:
                game.slot = next(rest)
            self._paused.pop(game.slot, None)

    def end(self, games: Sequence[Game]) -> None:
        """Notes the states of paused environments; `games` are in the order in which they were seated."""
        last = {game.slot: game.episode.pause for game in games}
        self._paused = {slot: pause.snapshot for slot, pause in last.items() if pause is not None and pause.snapshot is not None}
        self._rounds = self._pool.rounds
