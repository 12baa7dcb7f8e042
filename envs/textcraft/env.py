"""The TextCraft environment: craft a goal by recipes, from items that the world gives in any number."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from stepreward.envs.events import Events, Memory
from stepreward.envs.protocol import ADMISSIBLE, EVENTS, EXPERT, REPLAY, SNAPSHOT, TASKS, TURN_REWARD, Observation
from stepreward.envs.textcraft import tasks
from stepreward.envs.textcraft.expert import needed, plan
from stepreward.envs.textcraft.presets import Settings
from stepreward.envs.textcraft.presets import settings as preset_settings
from stepreward.envs.textcraft.recipes import Game, book

LONGEST = 300  # characters of an action; the longest recipe has fewer
_FAILED = ("Could not", "Wrong item format")
_INVENTORY = "inventory"


class Snapshot(NamedTuple):
    """The whole state of an episode, as plain data that can be pickled and restored in another environment.

    inventory: (item, count) in the order in which the items were first obtained. obtained: the needed items obtained so far.
    """

    goal: str
    inventory: tuple[tuple[str, int], ...] = ()
    obtained: frozenset[str] = frozenset()
    steps: int = 0
    over: bool = False
    won: bool = False
    events: Memory = Memory()


class TextCraftEnv:
    """One goal; implements `stepreward.envs.protocol.Environment`.

    * Observation: {"text": str}. First the recipes and the goal, then the benchmark's answer to each action; with
      settings.observation "short", what is held, after "no." if the action failed.
    * Actions: "get N ITEM", "craft N ITEM using N ITEM, N ITEM" and "inventory", in lower case. Any other string, or None, changes
      nothing and counts as a turn. The number before a crafted item has no effect: a recipe determines it.
    * Reward: settings.success_reward for the step that crafts the goal, 0 otherwise.
    * `terminated` when the goal is crafted; otherwise `truncated` after settings.max_steps turns.
    * info: won, score (1.0 when won), executed (the benchmark's answer reports no failure, and a get took at least one item),
      state_key (goal and inventory), task (recipes and goal), events after a step; admissible and turn_reward if the settings say so.
    * capabilities: snapshot, replay, tasks, expert and events; admissible; turn_reward. The turn reward is 1/n for each of the n
      items of the expert's plan that the step obtained for the first time in the episode.

    Raises ValueError when the package is not installed, or when the settings leave too few goals.
    """

    def __init__(self, settings: Settings | None = None):
        self.settings = chosen = preset_settings("tiny") if settings is None else settings
        self._goals = tasks.goals(chosen)
        offered = {SNAPSHOT, REPLAY, TASKS, EXPERT, EVENTS}
        offered |= {TURN_REWARD} if chosen.turn_reward else set()
        offered |= {ADMISSIBLE} if chosen.admissible != "none" else set()
        self.capabilities = frozenset(offered)
        self._game, self._task = Game(), None
        self._over = True

    def num_tasks(self, split: str = "train") -> int:
        """Returns the number of goals in a split. Raises ValueError for an unknown split."""
        return len(self._split(split))

    def reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        """Starts goal `seed mod num_tasks(split)` of options["split"] (default "train"), or the goal options["goal"] by its name.

        Without a seed, it draws one from the operating system. Raises ValueError for an unknown option, split or goal, or a
        negative seed.
        """
        options = {} if options is None else options
        unknown = sorted(set(options) - {"split", "goal"})
        if unknown:
            raise ValueError(f"unknown reset option {', '.join(unknown)}; the options are split, goal")
        chosen, goal = self._split(options.get("split", "train")), options.get("goal")
        if goal is None:
            seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
            if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
                raise ValueError(f"seed={seed!r}: give a whole number, at least 0")
            goal = chosen[int(seed) % len(chosen)]
        elif goal not in book().recipes:
            raise ValueError(f"goal={goal!r}: give the name of an item that has a recipe, such as {chosen[0]!r}")
        self.restore(Snapshot(goal))
        self._events = Events(self._key())
        return {"text": self._opening if self.settings.observation == "full" else self._held()}, self._info(True)

    def step(self, action: str | None) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Takes one action. Raises RuntimeError only when no episode is running."""
        if self._over:
            raise RuntimeError("the episode is over or has not begun: call reset()")
        self._steps += 1
        before = self._inventory
        text, executed = self._act(action)
        self._inventory = self._game.inventory()
        if executed and not text.startswith("Inventory:"):
            executed = self._inventory != before
        truncated = not self._won and self._steps >= self.settings.max_steps
        self._over = self._won or truncated
        new = (self._inventory.keys() - before.keys()) & (needed(self._task.goal) - self._obtained)
        self._obtained |= new
        info = self._info(executed)
        info["events"] = self._events.after(info["state_key"], executed)
        if self.settings.turn_reward:
            info["turn_reward"] = len(new) / len(needed(self._task.goal))
        if self.settings.observation == "short":
            text = self._held() if executed else f"no. {self._held()}"
        return {"text": text}, float(self.settings.success_reward * self._won), self._won, truncated, info

    def close(self) -> None:
        """Does nothing: the process keeps the recipes for its next environment."""

    def snapshot(self) -> Snapshot:
        """Returns the state of the episode for `restore`. Raises RuntimeError before the first reset."""
        self._require_task()
        held = tuple(self._inventory.items())
        return Snapshot(self._task.goal, held, self._obtained, self._steps, self._over, self._won, self._events.saved())

    def restore(self, state: Snapshot) -> None:
        """Continues from a snapshot, including its count of turns. Any environment with equal settings may have taken it."""
        goal, held, self._obtained, self._steps, self._over, self._won, memory = state
        self._task = tasks.task(goal, self.settings.distractors)
        self._inventory, self._events = dict(held), Events.of(memory)
        self._game.start(goal, self._inventory)
        lines = "\n".join(recipe.text for recipe in self._task.shown)
        short = self.settings.observation == "short"
        self._opening = f"goal: {goal}\n{lines}" if short else f"Crafting commands:\n{lines}\n\nGoal: craft {goal}."

    def expert(self, rng: np.random.Generator | None = None) -> list[str] | None:
        """Returns the actions that craft the goal from here; None if they are more than the turns that are left. `rng` is not used."""
        self._require_task()
        if self._over:
            return None
        actions = plan(self._task.goal, self._inventory)
        return actions if len(actions) <= self.settings.max_steps - self._steps else None

    def _split(self, split: str) -> tuple[str, ...]:
        if split not in tasks.SPLITS:
            raise ValueError(f"unknown split {split!r}; the splits are {', '.join(tasks.SPLITS)}")
        return self._goals[split]

    def _require_task(self) -> None:
        if self._task is None:
            raise RuntimeError("no task yet: call reset()")

    def _act(self, action: str | None) -> tuple[str, bool]:
        """Takes an action in the engine; returns its answer, and whether that reports no failure."""
        if not isinstance(action, str) or len(action) > LONGEST:  # the engine reads numbers of any length
            return "Could not execute that.", False
        text, self._won = self._game.step(action.strip())
        return text.strip(), not text.startswith(_FAILED)

    def _held(self) -> str:
        return f"have {', '.join(f'{count} {item}' for item, count in self._inventory.items()) or 'nothing'}."

    def _key(self) -> str:
        return f"{self._task.goal}|" + ", ".join(f"{count} {item}" for item, count in sorted(self._inventory.items()))

    def _info(self, executed: bool) -> dict[str, Any]:
        info = {"won": self._won, "score": float(self._won), "executed": executed, "state_key": self._key(), "task": self._opening}
        if self.settings.admissible != "none":
            info["admissible"] = () if self._over else self._admissible()
        return info

    def _admissible(self) -> tuple[str, ...]:
        """Lists what the shown recipes allow: the gets of their inputs in their counts, the crafts that can be made now, "inventory"."""
        there, gets, crafts = book(), {}, {}
        for recipe in self._task.shown:
            used = []
            for name, count in recipe.inputs:
                items = there.items.get(name, (name,))
                gets |= {f"get {count} {item}": None for item in items if item not in there.recipes}
                used.append((next((item for item in items if self._inventory.get(item, 0) >= count), None), count))
            if all(item is not None for item, _ in used):
                crafts[recipe._replace(inputs=tuple(used)).text] = None
        return (*sorted(gets), *sorted(crafts), _INVENTORY)


def make(preset: str = "tiny", **overrides) -> Callable[[], TextCraftEnv]:
    """Returns a picklable function without arguments that makes environments of a preset; `overrides` replace fields of Settings.

    Raises ValueError for an unknown preset or setting, and lists the known ones.
    """
    return functools.partial(TextCraftEnv, preset_settings(preset, **overrides))
