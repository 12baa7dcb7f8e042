"""The Sokoban environment. A seed and a split, or a text, select the room; an action is one word."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from stepreward.envs.automata import Automaton, check_enabled, countdown
from stepreward.envs.events import Events, Memory
from stepreward.envs.graphs import StateGraph, explore
from stepreward.envs.protocol import (
    AUTOMATON,
    AUTOMATON_STATE,
    DISTANCE,
    EVENTS,
    EXPERT,
    IMAGE,
    REPLAY,
    SNAPSHOT,
    TRANSITIONS,
    TURN_REWARD,
    Observation,
)
from stepreward.envs.sokoban import boxoban, core, render, solve
from stepreward.envs.sokoban.core import ACTIONS, Room, State
from stepreward.envs.sokoban.generate import room_for
from stepreward.envs.sokoban.presets import Settings
from stepreward.envs.sokoban.presets import settings as preset_settings

_ACTIONS = frozenset(ACTIONS)
_OPTIONS = ("split", "room")


class Snapshot(NamedTuple):
    """The whole state of an episode, as plain data that can be pickled and restored in another environment.

    events: what `Events` remembers; empty unless settings.events is set. automaton: its state; −1 unless settings.automaton is set.
    """

    room: Room
    state: State
    steps: int
    over: bool
    events: Memory = Memory()
    automaton: int = -1


class _Node:
    """A state, its text, and the transitions from it that have been computed so far."""

    __slots__ = ("state", "text", "won", "edges")

    def __init__(self, room: Room, state: State):
        self.state = state
        self.text = core.to_text(room, state)
        self.won = core.is_solved(room, state)
        self.edges: dict[str, tuple[_Node, float, bool, bool]] = {}


@lru_cache(maxsize=512)
def _nodes(room: Room) -> dict[State, _Node]:
    """The known states of a room; environments that play the same room share them."""
    return {}


class SokobanEnv:
    """One Sokoban game; implements `stepreward.envs.protocol.Environment`.

    * Observation: {"text": the board, one line a row, in core.SYMBOLS}; with settings.observation "image" also
      {"image": uint8[16·height, 16·width, 3]}.
    * Actions: "up", "down", "left", "right"; they move the player and push a box that is in the way. Any other
      string, or None, changes nothing, earns settings.invalid_reward and counts as a turn.
    * Reward: −0.1 a step, ±1 for a box that enters or leaves a target, +10 when the last box enters a target.
    * `terminated` when every box is on a target; otherwise `truncated` after settings.max_steps turns.
    * info: won, score (1.0 when won), executed (the state changed), state_key (the board's text); after a step also events with
      settings.events, and turn_reward (the change of the share of boxes on targets) with settings.turn_reward; with settings.automaton
      also automaton_state, which counts the boxes that are not on targets.
    * capabilities: snapshot, replay and expert; distance and transitions if the room is small enough for exact tables; image with
      settings.observation "image"; events, turn_reward and automaton with the settings of these names.
    """

    def __init__(self, settings: Settings | None = None):
        self.settings = preset_settings("tiny") if settings is None else settings
        self._levels = None if self.settings.data is None else boxoban.load(self.settings.data)
        offered = {SNAPSHOT, EXPERT, REPLAY}
        inside = (self.settings.height - 2) * (self.settings.width - 2)
        if self._levels is None and solve.placements(inside, self.settings.boxes) <= solve.TABLE_STATES:
            offered |= {DISTANCE, TRANSITIONS}
        self._image = self.settings.observation == "image"
        if self._image:
            offered.add(IMAGE)
        self._tells = self.settings.events or self.settings.turn_reward or self.settings.automaton
        self._automaton = self._q = None
        if self.settings.events:
            offered.add(EVENTS)
        if self.settings.turn_reward:
            offered.add(TURN_REWARD)
        if self.settings.automaton:
            offered.add(AUTOMATON)
            self._automaton = countdown(self.settings.boxes if self._levels is None else self._levels.boxes)
        self.capabilities = frozenset(offered)
        self._room: Room | None = None
        self._over = True

    def reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        """Starts room `seed` of options["split"] (default "train"), or the board in options["room"].

        Without a seed, it draws one from the operating system. Raises ValueError for an unknown option or
        split, a negative seed, or a malformed or already solved room.
        """
        options = {} if options is None else options
        unknown = sorted(set(options) - set(_OPTIONS))
        if unknown:
            raise ValueError(f"unknown reset option {', '.join(unknown)}; the options are {', '.join(_OPTIONS)}")
        if options.get("room") is not None:
            room, state = core.from_text(options["room"])
            if core.is_solved(room, state):
                raise ValueError("the room is already solved: every box is on a target")
        else:
            seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
            split = options.get("split", "train")
            if self._levels is not None:
                room, state = self._levels.room_for(seed, split)
            else:
                room, state = room_for(self.settings, seed, split)
        self._enter(Snapshot(room, state, 0, False))
        self._events = Events(self._node.text) if self.settings.events else None
        info = {"won": False, "score": 0.0, "executed": True, "state_key": self._node.text}
        if self._automaton is not None:
            self._q = self._automaton.start
            self._read(info)
        return self._observe(), info

    def step(self, action: str | None) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Takes one action. Raises RuntimeError only when no episode is running."""
        if self._over:
            raise RuntimeError("the episode is over or has not begun: call reset()")
        self._steps += 1
        before = self._node
        if action in _ACTIONS:
            edge = before.edges.get(action)
            self._node, reward, terminated, executed = self._follow(action) if edge is None else edge
        else:
            reward, terminated, executed = self.settings.invalid_reward, False, False
        truncated = not terminated and self._steps >= self.settings.max_steps
        self._over = terminated or truncated
        node = self._node
        observation = {"text": node.text} if not self._image else self._observe()
        info = {"won": node.won, "score": float(node.won), "executed": executed, "state_key": node.text}
        if self._tells:
            self._tell(info, before, executed)
        return observation, reward, terminated, truncated, info

    def close(self) -> None:
        """Does nothing: the environment holds no resources."""

    def snapshot(self) -> Snapshot:
        """Returns the state of the episode for `restore`. Raises RuntimeError before the first reset."""
        self._require_room()
        memory = self._events.saved() if self._events is not None else Memory()
        return Snapshot(self._room, self._node.state, self._steps, self._over, memory, -1 if self._q is None else self._q)

    def restore(self, state: Snapshot) -> None:
        """Continues from a snapshot, including its count of turns. Any environment with equal settings may have taken it."""
        self._enter(state)

    def automaton(self) -> Automaton:
        """Returns the automaton of subgoals, whose state "k left" means that k boxes are not on targets. Raises ValueError unless
        settings.automaton is set."""
        check_enabled(self.settings.automaton)
        return self._automaton

    def distance(self) -> float:
        """Returns the exact number of actions to a solution; math.inf when there is none.

        Raises solve.SearchLimit when the room is too large for the exact table and the search reached its limit.
        """
        self._require_room()
        return solve.distance(self._room, self._node.state)

    def transitions(self) -> StateGraph:
        """Returns all states that can be reached from here, with what each action leads to.

        Raises:
          TooManyStates: there are more than exact tables may hold (`solve.TABLE_STATES`).
        """
        self._require_room()
        room = self._room

        def follow(state: State, action: str) -> tuple[State, float, bool, bool]:
            after, reward, done, _ = core.step(room, state, action)
            return after, reward, done, done

        states, *arrays = explore(self._node.state, ACTIONS, follow, solve.TABLE_STATES)
        texts = tuple(self._at(state).text for state in states)
        left = self.settings.max_steps - self._steps
        return StateGraph(ACTIONS, texts, tuple({"text": text} for text in texts), *arrays, self.settings.invalid_reward, left)

    def expert(self, rng: np.random.Generator | None = None) -> list[str] | None:
        """Returns a shortest solution from here; with `rng`, draws each action among the optimal ones.

        Returns None in a dead end, or when the search of a large room reached its limit.
        """
        self._require_room()
        try:
            return solve.solve(self._room, self._node.state, rng)
        except solve.SearchLimit:
            return None

    def _require_room(self) -> None:
        if self._room is None:
            raise RuntimeError("no room yet: call reset()")

    def _enter(self, snapshot: Snapshot) -> None:
        self._room, state, self._steps, self._over, memory, self._q = snapshot
        self._nodes = _nodes(self._room)
        self._node = self._at(state)
        self._events = Events.of(memory) if self.settings.events else None

    def _at(self, state: State) -> _Node:
        node = self._nodes.get(state)
        if node is None:
            node = self._nodes[state] = _Node(self._room, state)
        return node

    def _follow(self, action: str) -> tuple[_Node, float, bool, bool]:
        after, reward, done, executed = core.step(self._room, self._node.state, action)
        edge = self._node.edges[action] = (self._at(after), reward, done, executed)
        return edge

    def _tell(self, info: dict[str, Any], before: _Node, executed: bool) -> None:
        """Adds the events and the turn reward of a step to its info."""
        if self._events is not None:
            info["events"] = self._events.after(self._node.text, executed)
        if self.settings.turn_reward:
            targets, boxes = self._room.targets, self._node.state.boxes
            placed = len(targets.intersection(boxes)) - len(targets.intersection(before.state.boxes))
            info["turn_reward"] = placed / len(boxes)
        if self._automaton is not None:
            self._read(info)

    def _read(self, info: dict[str, Any]) -> None:
        """Lets the automaton read the state, and adds its own state to the info."""
        boxes = self._node.state.boxes
        left = len(boxes) - len(self._room.targets.intersection(boxes))
        self._q = self._automaton.next(self._q, {"left": min(left, len(self._automaton.states) - 1)})
        info[AUTOMATON_STATE] = self._q

    def _observe(self) -> Observation:
        if not self._image:
            return {"text": self._node.text}
        grid = core.to_grid(self._room, self._node.state)
        return {"text": self._node.text, "image": render.rgb(grid[None])[0]}


def make(preset: str = "tiny", **overrides) -> Callable[[], SokobanEnv]:
    """Returns a function without arguments that makes environments of a preset; `overrides` replace fields of Settings.

    Raises ValueError for an unknown preset or setting, and lists the known ones.
    """
    return functools.partial(SokobanEnv, preset_settings(preset, **overrides))


def random_play_success(settings: Settings, rooms: int = 2000, seed: int = 0, split: str = "train") -> float:
    """Returns the share of rooms, in [0, 1], that uniformly random actions solve within max_steps.

    The rooms have the seeds seed … seed + rooms − 1 in `split`; `seed` also seeds the actions.
    """
    environment = SokobanEnv(settings)
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))
    won = 0
    for room in range(rooms):
        environment.reset(seed=seed + room, options={"split": split})
        for draw in generator.integers(len(ACTIONS), size=settings.max_steps).tolist():
            _, _, terminated, truncated, _ = environment.step(ACTIONS[draw])
            if terminated or truncated:
                won += terminated
                break
    return won / rooms
