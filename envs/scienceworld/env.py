"""The ScienceWorld environment. A seed and a split select a variation of a task; an action is one short sentence."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from stepreward.envs.events import Events
from stepreward.envs.protocol import ADMISSIBLE, EVENTS, EXPERT, REPLAY, TASKS, TURN_REWARD, Observation
from stepreward.envs.scienceworld import texts
from stepreward.envs.scienceworld.presets import Settings
from stepreward.envs.scienceworld.presets import settings as preset_settings
from stepreward.envs.scienceworld.simulator import Simulator
from stepreward.envs.scienceworld.tasks import SPLITS, Task, split_tasks

WON = 100


class ScienceWorldEnv:
    """One experiment in the simulator; implements `stepreward.envs.protocol.Environment`.

    * Observation: {"text": the simulator's answer, its lists in alphabetical order}; the first one describes the room.
    * Actions: "go to kitchen", "pick up thermometer", "use thermometer on water", "focus on water", "look around" and so on. Any other
      string, or None, changes nothing. Every action counts as a turn, also those that take no time in the simulated world.
    * Reward: with settings.reward "score", the change of the benchmark's score divided by 100. The score at the reset (8 in some tasks)
      is no step's merit, so the rewards sum to (last score − first score) / 100. With "success", 10 for the step that reaches score 100.
    * `terminated` when the task is completed, or when the agent focuses on a wrong object, which makes the score −100; otherwise
      `truncated` after settings.max_steps turns.
    * info: won (the score is 100), score (the benchmark's, from 0 to 100, or −100), executed (the simulator's answer refuses nothing),
      state_key, task (the description), events after a step; admissible and turn_reward if the settings say so.
    * state_key: a digest of the task, what the agent sees and holds, the score, and a pending question. Equal states have equal
      keys. States that differ only in what is out of sight may have equal keys too.
    * capabilities: replay, tasks, expert and events; admissible; turn_reward. There are no snapshots, as the state is in the simulator.

    Raises ValueError when the package or Java is not installed, and the errors of `split_tasks` for bad data.
    """

    def __init__(self, settings: Settings | None = None):
        self.settings = chosen = preset_settings("tiny") if settings is None else settings
        offered = {REPLAY, TASKS, EXPERT, EVENTS}
        offered |= {TURN_REWARD} if chosen.turn_reward else set()
        offered |= {ADMISSIBLE} if chosen.admissible != "none" else set()
        self.capabilities = frozenset(offered)
        self._simulator = Simulator(chosen.memory_mb)
        try:
            self._tasks = split_tasks(chosen, self._simulator.counts())
        except BaseException:
            self._simulator.close()
            raise
        self._task: Task | None = None
        self._gold: dict[Task, tuple[str, ...]] = {}
        self._over = True

    def num_tasks(self, split: str = "train") -> int:
        """Returns the number of variations in a split. Raises ValueError for an unknown split."""
        return len(self._split(split))

    def reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        """Starts variation `seed mod num_tasks(split)` of options["split"] (default "train").

        Without a seed, it draws one from the operating system. Raises ValueError for an unknown option or split, or a negative seed.
        """
        options = {} if options is None else options
        unknown = sorted(set(options) - {"split"})
        if unknown:
            raise ValueError(f"unknown reset option {', '.join(unknown)}; the only option is split")
        chosen = self._split(options.get("split", "train"))
        seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
            raise ValueError(f"seed={seed!r}: give a whole number, at least 0")
        self._over = True  # until the simulator is ready
        self._task = chosen[int(seed) % len(chosen)]
        text = self._load()
        self._description = " ".join(self._simulator.task().removeprefix("Task Description:").split())
        self._actions: list[str] = []
        self._steps, self._over, self._score = 0, False, self._simulator.score()
        info = self._info(text, True)
        self._events = Events(info["state_key"])
        return {"text": self._shown(text)}, info

    def step(self, action: str | None) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Takes one action. Raises RuntimeError only when no episode is running."""
        if self._over:
            raise RuntimeError("the episode is over or has not begun: call reset()")
        self._steps += 1
        before = self._score
        action = action.strip() if isinstance(action, str) else ""
        text = self._send(action)
        self._actions.append(action)
        self._score = self._simulator.score()
        terminated = self._simulator.completed() or self._score < 0
        truncated = not terminated and self._steps >= self.settings.max_steps
        self._over = terminated or truncated
        executed = not texts.refused(text)
        info = self._info(text, executed)
        info["events"] = self._events.after(info["state_key"], executed)
        change = (self._score - before) / WON
        if self.settings.turn_reward:
            info["turn_reward"] = change
        reward = change if self.settings.reward == "score" else 10.0 * (terminated and info["won"])
        return {"text": self._shown(text)}, float(reward), terminated, truncated, info

    def close(self) -> None:
        """Ends the simulator's Java process."""
        self._over = True
        self._simulator.close()

    def expert(self, rng: np.random.Generator | None = None) -> list[str] | None:
        """Returns the rest of the simulator's gold path, if the episode has followed it so far and enough turns are left; else None.

        The path is made at the first call for a variation, in some seconds, and may differ in another environment. It ends with the
        action that completes the task; with settings.short_expert, it has no refused actions and no looks, if it wins without them.
        `rng` is not used.
        """
        if self._task is None:
            raise RuntimeError("no task yet: call reset()")
        if self._over:
            return None
        gold, done = self._gold_path(), self._actions
        left = gold[len(done) :]
        return list(left) if left and list(gold[: len(done)]) == done and len(left) <= self.settings.max_steps - self._steps else None

    def _gold_path(self) -> tuple[str, ...]:
        """Makes the gold path of the task, tries it, and returns to the state of the episode; () if the path does not win."""
        if self._task not in self._gold:
            path = self._simulator.gold(*self._task, self.settings.simplifications)
            taken, useful = self._tried(path)
            if useful != taken and self.settings.short_expert:
                taken = self._tried(useful)[0] or taken
            self._gold[self._task] = tuple(taken)
            self._load()
            for action in self._actions:
                self._send(action)
        return self._gold[self._task]

    def _tried(self, path: Sequence[str]) -> tuple[list[str], list[str]]:
        """Plays a path from the start to its end; returns the actions up to the end, and those that did something; [] if it does not win."""
        self._load()
        taken, useful = [], []
        for action in path:
            if self._simulator.completed():
                break
            text = self._send(action)
            taken.append(action)
            if not texts.refused(text) and action != "look around":
                useful.append(action)
        return (taken, useful) if self._simulator.score() == WON else ([], [])

    def _send(self, action: str) -> str:
        """Takes an action in the simulator; returns its answer. The numbers of a question are those of the text that the agent sees."""
        text, self._numbers = texts.question(self._simulator.act(self._numbers.get(action, action)))
        return text

    def _load(self) -> str:
        # Without the gold path: with it, the same actions can lead to other states.
        self._numbers = {}
        return self._simulator.load(*self._task, self.settings.simplifications)

    def _split(self, split: str) -> tuple[Task, ...]:
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; the splits are {', '.join(SPLITS)}")
        return self._tasks[split]

    def _shown(self, text: str) -> str:
        text = texts.ordered(text.strip())
        return texts.short(text) if self.settings.observation == "short" else text

    def _info(self, text: str, executed: bool) -> dict[str, Any]:
        asked = text if text.startswith(texts.AMBIGUOUS) else ""
        look, held = self._simulator.look(), self._simulator.inventory()
        info = {
            "won": self._score == WON,
            "score": float(self._score),
            "executed": executed,
            "state_key": texts.key(repr(tuple(self._task)), look, held, str(self._score), asked),
            "task": self._description,
        }
        if self.settings.admissible != "none":
            info["admissible"] = tuple(sorted(set(self._simulator.valid()))) if not self._over else ()
        return info


def make(preset: str = "tiny", **overrides) -> Callable[[], ScienceWorldEnv]:
    """Returns a picklable function without arguments that makes environments of a preset; `overrides` replace fields of Settings.

    Raises ValueError for an unknown preset or setting, and lists the known ones. A missing package, or no Java, raises only when an
    environment is made.
    """
    return functools.partial(ScienceWorldEnv, preset_settings(preset, **overrides))
