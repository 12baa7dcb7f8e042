"""Environments of gymnasium's toy text, whose table of transitions is known: their state graphs, and FrozenLake with a map for each seed.

Such an environment has `P[state][action] = [(probability, next state, reward, terminated), …]` and its present state in `s`; it renders that
state as text.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from stepreward.envs.extras import require
from stepreward.envs.graphs import StateGraph, explore

MOST_STATES = 10_000  # of a graph
UNLIMITED = 1_000_000  # steps of an episode without a limit


def is_tabular(own: Any) -> bool:
    """Whether an environment has a table of transitions, and each action leads to one state."""
    table = getattr(own, "P", None)
    if not isinstance(table, Mapping):
        return False
    try:
        return all(len({after for p, after, _, _ in outcomes if p > 0}) == 1 for row in table.values() for outcomes in row.values())
    except (AttributeError, TypeError, ValueError):  # another thing with the name P
        return False


def state_graph(own: Any, actions: Mapping[str, Any], text: Callable[[], str], won: Callable[[bool, float], bool], **limits) -> StateGraph:
    """All states that can be reached from the present one.

    A rendered text may show the last action too. States with different texts count as different.

    Args:
      own: an environment for which `is_tabular` holds.
      actions: its actions by name.
      text: renders the present state.
      won: `(terminated, reward) -> bool`.
      limits: `idle_reward` and `max_steps` of the graph.

    Raises:
      ValueError: states that behave differently have the same text, or there are too many states.
    """
    kept = {name: getattr(own, name) for name in ("s", "lastaction") if hasattr(own, name)}
    first: dict[str, tuple] = {}  # the state that stands for each text

    def seen(state: int, last: Any) -> tuple:
        own.s = state
        if "lastaction" in kept:
            own.lastaction = last
        found = first.setdefault(text(), (state, last))
        if found[0] != state:
            raise ValueError("two states have the same text, so the text does not tell the state")
        return found

    def follow(state: tuple, action: str) -> tuple[tuple, float, bool, bool]:
        _, after, reward, over = next(outcome for outcome in own.P[state[0]][actions[action]] if outcome[0] > 0)
        return (state if over else seen(int(after), actions[action])), float(reward), bool(over), won(bool(over), float(reward))

    try:
        states, *arrays = explore(seen(int(own.s), kept.get("lastaction")), tuple(actions), follow, MOST_STATES)
    finally:
        for name, value in kept.items():
            setattr(own, name, value)
    texts = {state: key for key, state in first.items()}
    keys = tuple(texts[state] for state in states)
    views = tuple({"text": key, "admissible": tuple(actions)} for key in keys)
    return StateGraph(tuple(actions), keys, views, *arrays, **limits)


class FrozenLakes:
    """gymnasium's FrozenLake with a map for each seed. The text is the map with the player's cell in brackets, without the last action.

        --config.environment.name=adapters.gym --config.environment.preset=stepreward.envs.adapters.tabular:FrozenLakes

    Args:
      size: cells of a side.
      maps: number of different maps for training, and as many others for evaluation.
      slippery: whether a move slips aside with probability 2/3.
    """

    actions = ("left", "down", "right", "up")

    def __init__(self, size: int = 8, maps: int = 1_000_000, slippery: bool = False):
        if size < 2 or maps < 1:
            raise ValueError(f"size={size!r}, maps={maps!r}: give at least 2 cells and 1 map")
        self.size, self.maps, self.slippery = size, maps, slippery
        self.reset(seed=0)

    def reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> tuple[str, dict]:
        gymnasium = require("adapters", "gymnasium")
        from gymnasium.envs.toy_text.frozen_lake import generate_random_map

        seed = 0 if seed is None else seed
        number = seed // 2 % self.maps * 2 + seed % 2  # the adapter gives the splits even and odd seeds
        rows = generate_random_map(self.size, seed=number)
        self._lake = gymnasium.make("FrozenLake-v1", desc=rows, is_slippery=self.slippery, render_mode="ansi").unwrapped
        self._lake.reset(seed=number)
        return self.render(), {}

    def step(self, action: int) -> tuple[str, float, bool, bool, dict]:
        _, reward, terminated, _, _ = self._lake.step(action)
        return self.render(), reward, terminated, False, {}

    def render(self) -> str:
        self._lake.lastaction = None
        return self._lake.render().lstrip("\n")

    @property
    def P(self) -> Mapping:
        return self._lake.P

    @property
    def s(self) -> int:
        return int(self._lake.s)

    @s.setter
    def s(self, state: int) -> None:
        self._lake.s = state

    def expert(self, rng: np.random.Generator | None = None) -> list[str] | None:
        """A shortest way to the goal, as if no move slipped; with `rng`, each action is drawn among those on one. None if there is none."""
        state, moves, distance = self.s, [], self._distances()
        while distance.get(state, 0) > 0:
            best = [a for a in range(4) if distance.get(self._after(state, a)) == distance[state] - 1]
            action = best[0] if rng is None else int(rng.choice(best))
            moves.append(self.actions[action])
            state = self._after(state, action)
        return moves if state in distance else None

    def distance(self) -> float:
        """The number of moves to the goal, as if no move slipped; infinite in a hole."""
        return float(self._distances().get(self.s, np.inf))

    def _after(self, state: int, action: int) -> int:
        row, column = divmod(state, self.size)
        down, right = ((0, -1), (1, 0), (0, 1), (-1, 0))[action]
        at = min(max(row + down, 0), self.size - 1), min(max(column + right, 0), self.size - 1)
        return at[0] * self.size + at[1]

    def _distances(self) -> dict[int, int]:
        """The distance of every cell from which the goal can be reached."""
        open_cells = {i for i, cell in enumerate(self._lake.desc.reshape(-1)) if cell != b"H"}
        goal = self.size**2 - 1
        distance, queue = {goal: 0}, deque([goal])
        while queue:
            cell = queue.popleft()
            for before in {self._after(cell, action) for action in range(4)} & open_cells:
                if before not in distance:
                    distance[before] = distance[cell] + 1
                    queue.append(before)
        return distance
