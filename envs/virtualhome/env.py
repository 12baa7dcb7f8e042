"""The VirtualHome environment: household tasks in a simulated home, with actions in natural language."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from stepreward.envs.automata import Automaton, check_enabled, countdown
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
    TURN_REWARD,
    Observation,
)
from stepreward.envs.virtualhome import observe, spa_files, tasks
from stepreward.envs.virtualhome.admissible import admissible
from stepreward.envs.virtualhome.game import Game, Position, lines
from stepreward.envs.virtualhome.presets import Settings
from stepreward.envs.virtualhome.presets import settings as preset_settings
from stepreward.envs.virtualhome.tasks import Task

# Packaged tasks without a goal: their program only changes where the agent stands and looks.
WITHOUT_GOAL = (
    "1035_1", "113_2", "137_2", "224_2", "287_1", "319_2", "38_1", "402_1", "416_2", "471_2", "502_1", "549_2", "656_1", "664_1",
    "692_2", "955_2",
)  # fmt: skip
# Packaged tasks whose program the simulator refuses, because it grabs an object that is already held.
REFUSED = ("624_1", "688_1")
# Packaged tasks whose annotated goal already holds at the start.
ANNOTATED_DONE = ("339_1", "627_1", "84_1", "93_1")
# The automaton of subgoals counts at most this many missing parts. The goals of 7 of the 500 packaged tasks have more.
COUNTED = 12


@functools.lru_cache(maxsize=32)
def task_lists(settings: Settings) -> dict[str, tuple[Task, ...]]:
    """Returns the tasks of each split for some settings. Raises ValueError and FileNotFoundError as the readers of the files do."""
    if settings.data is None and settings.goal == "annotated":
        found = tasks.playable(tasks.annotated(), (*REFUSED, *ANNOTATED_DONE))
    elif settings.data is None:
        found = tasks.playable(tasks.packaged(), (*REFUSED, *WITHOUT_GOAL))
    elif settings.data.endswith((".jsonl", ".json")):
        found = spa_files.read(settings.data, settings.graphs, settings.scenes)
    else:
        found = tuple(task for task in tasks.programs(settings.data) if tasks.load(task).goal.size)
    longest = float("inf") if settings.max_program is None else settings.max_program
    known = sorted({task.title for task in found})
    unknown = [title for title in settings.titles if title not in known]
    if unknown:
        raise ValueError(f"no VirtualHome task has the title {unknown[0]!r}; the titles are {', '.join(known)}")
    titles = settings.titles or known
    found = tuple(task for task in found if task.title in titles and settings.min_program <= len(task.program) <= longest)
    if not found:
        raise ValueError(
            f"no VirtualHome task is left with data={settings.data!r}, min_program={settings.min_program}, "
            f"max_program={settings.max_program}; widen min_program and max_program, or use other data"
        )
    return tasks.split(found, settings.split_by, settings.split_seed)


class Snapshot(NamedTuple):
    """The whole state of an episode. It is valid only in this process, because it shares the simulator's states.

    automaton: the automaton's state; −1 unless settings.automaton is set.
    """

    task: Task
    game: Game
    at: Position
    left: tuple[tuple[str, tuple[int, ...]], ...]
    steps: int
    over: bool
    events: Memory = Memory()
    automaton: int = -1


class VirtualHomeEnv:
    """One household task; implements `stepreward.envs.protocol.Environment`.

    * Observation: {"text": the visible objects close to the agent, and those it holds}; "Nothing happens." after an action that was
      not executed.
    * Actions: the 42 forms of `stepreward.envs.virtualhome.actions`, such as "put plate on table"; "sink (42)" names an instance.
    * Reward: settings.success_reward · [goal reached] + settings.progress_reward · (share of the goal reached after − before).
    * `terminated` when every part of the goal is reached; otherwise `truncated` after settings.max_steps turns.
    * info: won; score (share of the goal's parts that are reached); executed (the simulator executed the action); state_key; task
      (title and description); admissible, unless settings.admissible is "none"; after a step events, and with
      settings.turn_reward also turn_reward (share of the goal reached after − before); with settings.automaton also automaton_state,
      which counts the goal's parts that are not reached.
    * capabilities: snapshot, replay, tasks, expert, distance (number of the goal's parts that are not reached), events;
      admissible, turn_reward and automaton with their settings.
    * The attributes `task`, `game` and `at` hold the task, its rules and the position, for uses that need more than text.

    Raises ValueError when the simulator is not installed or the data is malformed, FileNotFoundError when data is missing.
    """

    def __init__(self, settings: Settings | None = None):
        self.settings = preset_settings("tiny") if settings is None else settings
        self._tasks = task_lists(self.settings)
        offered = {SNAPSHOT, REPLAY, TASKS, EXPERT, DISTANCE, EVENTS}
        if self.settings.admissible != "none":
            offered.add(ADMISSIBLE)
        if self.settings.turn_reward:
            offered.add(TURN_REWARD)
        if self.settings.automaton:
            offered.add(AUTOMATON)
        self.capabilities = frozenset(offered)
        self.game: Game | None = None
        self._over = True
        self._q = -1

    def num_tasks(self, split: str = "train") -> int:
        """Returns the number of tasks in a split."""
        return len(self._split(split))

    def reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        """Starts task `seed mod num_tasks(split)` of options["split"] (default "train").

        The seed also selects the instance of a name when nothing else does. Without a seed, it draws one from the operating system.
        Raises ValueError for an unknown option or split, an empty split, or a negative seed.
        """
        options = {} if options is None else options
        unknown = sorted(set(options) - {"split"})
        if unknown:
            raise ValueError(f"unknown reset option {', '.join(unknown)}; the only option is split")
        chosen = self._split(options.get("split", "train"))
        if not chosen:
            raise ValueError(f"the {options.get('split', 'train')} split has no task; widen the settings that select tasks")
        seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
            raise ValueError(f"seed={seed!r}: give a whole number, at least 0")
        self.task = chosen[int(seed) % len(chosen)]
        scene, goal = tasks.load(self.task)
        self.game = Game(scene, goal, int(seed))
        self.at = self.game.start(dict(self.task.objects) if self.settings.gold_memory else None)
        self._left, self._steps, self._over = tuple(lines(self.task.program)), 0, False
        if self.settings.automaton:
            self._q = self.automaton().start
        info = self._info(self.game.missing(self.at), True)
        self._events = Events(info["state_key"])
        return {"text": self._text()}, info

    def step(self, action: str | None) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Takes one action. Raises RuntimeError only when no episode is running."""
        if self._over:
            raise RuntimeError("the episode is over or has not begun: call reset()")
        game, settings = self.game, self.settings
        before = game.missing(self.at)
        after = game.take(self.at, action)
        self._steps += 1
        missing = before
        if after is not None:
            self._note(action)
            self.at = after
            missing = game.missing(after)
        won = missing == 0
        reward = settings.progress_reward * (before - missing) / game.goal.size + settings.success_reward * won
        truncated = not won and self._steps >= settings.max_steps
        self._over = won or truncated
        text = self._text() if after is not None else observe.NOTHING
        info = self._info(missing, after is not None)
        info["events"] = self._events.after(info["state_key"], info["executed"])
        if settings.turn_reward:
            info["turn_reward"] = (before - missing) / game.goal.size
        return {"text": text}, float(reward), won, truncated, info

    def close(self) -> None:
        """Does nothing: the environment holds no resources."""

    def snapshot(self) -> Snapshot:
        """Returns the state of the episode for `restore` in this process. It is free, because states are immutable."""
        self._require_task()
        return Snapshot(self.task, self.game, self.at, self._left, self._steps, self._over, self._events.saved(), self._q)

    def restore(self, state: Snapshot) -> None:
        """Continues from a snapshot, including its count of turns. Any environment with equal settings may have taken it."""
        self.task, self.game, self.at, self._left, self._steps, self._over, memory, self._q = state
        self._events = Events.of(memory)

    def automaton(self) -> Automaton:
        """Returns the automaton of subgoals: in state "k left", k of the goal's parts are not reached, in "12 left" 12 or more. Raises
        ValueError unless settings.automaton is set."""
        check_enabled(self.settings.automaton)
        return countdown(COUNTED)

    def distance(self) -> float:
        """Returns the number of the goal's parts (facts about the home, and required actions) that are not reached; 0 when won."""
        self._require_task()
        return float(self.game.missing(self.at))

    def expert(self, rng: np.random.Generator | None = None) -> list[str] | None:
        """Returns the actions by which the task's own program reaches the goal from here; None if it cannot. `rng` is not used.

        If the episode has followed the program so far, these are the remaining lines; otherwise the whole program without the lines
        that cannot be executed. Lines that the goal does not need are dropped if too few turns are left or settings.short_expert is
        set. A person who knew the home wrote the program.
        """
        self._require_task()
        game, at = self.game, self.at
        whole = lines(self.task.program)
        for program in (self._left, whole):
            texts = game.solution(at, program)
            if texts is None:
                continue
            if self.settings.short_expert or len(texts) > self.settings.max_steps - self._steps:
                texts = game.solution(at, game.shortened(at, program))
            if len(texts) <= self.settings.max_steps - self._steps:
                return texts
        return None

    def _split(self, split: str) -> tuple[Task, ...]:
        if split not in self._tasks:
            raise ValueError(f"unknown split {split!r}; the splits are {', '.join(tasks.SPLITS)}")
        return self._tasks[split]

    def _require_task(self) -> None:
        if self.game is None:
            raise RuntimeError("no task yet: call reset()")

    def _note(self, action: str) -> None:
        """Drops the program's lines up to and including the first that gives this action."""
        for index, line in enumerate(self._left):
            if self.game.say(self.at, *line) == action:
                self._left = self._left[index + 1 :]
                return

    def _text(self) -> str:
        if self.settings.observation == "short":
            return observe.short(self.game.scene, self.at.state)
        return observe.full(self.game.scene, self.at.state, self.settings.show_room) or observe.EMPTY

    def _info(self, missing: int, executed: bool) -> dict[str, Any]:
        game, size = self.game, self.game.goal.size
        info = {
            "won": missing == 0,
            "score": (size - missing) / size,
            "executed": executed,
            "state_key": game.key(self.at),
            "task": self.task.text,
        }
        if self.settings.automaton:
            self._q = info[AUTOMATON_STATE] = self.automaton().next(self._q, {"left": min(missing, COUNTED)})
        if self.settings.admissible != "none":
            objects = [number for _, number in self.task.objects]
            objects += [end for fact in game.goal.facts for end in (fact.start, fact.end)]
            known = dict.fromkeys(number for number in objects if number in game.scene.names)
            info["admissible"] = admissible(game, self.at, tuple(known), self.settings.admissible == "all")
        return info


def make(preset: str = "tiny", **overrides) -> Callable[[], VirtualHomeEnv]:
    """Returns a function without arguments that makes environments of a preset; `overrides` replace fields of Settings.

    Raises ValueError for an unknown preset or setting, and lists the known ones.
    """
    return functools.partial(VirtualHomeEnv, preset_settings(preset, **overrides))
