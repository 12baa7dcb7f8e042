"""Looks for everything in which an environment breaks the protocol, before a run meets it.

    for breach in breaches(lambda: MyEnvironment()):
        print(breach)

It plays some episodes twice, with actions that the environment lists, with actions of its expert, and with what a model may say: nothing, and
text that is no action. What each call returns is checked as in a run (`checked.CheckedEnvironment`); the rest of
`stepreward.envs.protocol` is checked here.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from stepreward.envs.protocol import ADMISSIBLE, DISTANCE, EXPERT, REPLAY, SNAPSHOT, TASKS, Environment, replay_prefix
from stepreward.rollout.checked import CheckedEnvironment
from stepreward.rollout.environment_host import EnvironmentFailure

NONSENSE = ("", "no such action", "\N{SNOWMAN} \x00 \ud83d", "a" * 10_000)  # what a model may say
SPLITS = ("train", "held_out")


def breaches(
    factory: Callable[[], Environment], *, seeds: Sequence[int] = (0, 1, 2), steps: int = 30, actions: Sequence[str] = ()
) -> list[str]:
    """Returns a sentence for each breach of the protocol, each once; an empty list if none was found.

    Args:
      factory: makes the environment.
      seeds: the tasks that are played, in both splits.
      steps: longest episode that is played.
      actions: actions to try, for an environment that lists none in `info["admissible"]` and has no expert.
    """
    return list(dict.fromkeys(_Check(factory, steps, tuple(actions)).all(seeds)))


class _Check:
    def __init__(self, factory: Callable[[], Environment], steps: int, actions: tuple[str, ...]):
        self._factory, self._steps, self._actions = factory, steps, actions
        self._found: list[str] = []

    def all(self, seeds: Sequence[int]) -> Iterator[str]:
        environment = self._call("the factory", CheckedEnvironment, self._factory)
        if environment is None or self._call("capabilities", lambda: environment.capabilities) is None:
            yield from self._found
            return
        self._can = environment.capabilities
        for split in SPLITS:
            self._tasks(environment, split)
            for seed in seeds:
                self._episodes(environment, seed, split)
        self._nonsense(environment, seeds[0])
        self._snapshots(environment, seeds[0])
        self._experts(environment, seeds[0])
        self._call("close", environment.close)
        yield from self._found

    def _say(self, sentence: str) -> None:
        self._found.append(sentence)

    def _call(self, what: str, function: Callable, *arguments, **more) -> Any:
        """What a call returns; None after a breach, which is noted."""
        try:
            return function(*arguments, **more)
        except EnvironmentFailure as failure:  # the message says what is wrong
            self._say(str(failure))
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            self._say(f"{what} raised {type(error).__name__}: {error} (line {place.lineno} of {place.filename})")
        return None

    def _reset(self, environment, seed: int, split: str = "train"):
        return self._call("reset", environment.reset, seed=seed, options={"split": split})

    def _episodes(self, environment, seed: int, split: str) -> None:
        """Plays a task twice, here and in a new environment: the second time it must be the same."""
        first = self._play(environment, seed, split)
        if not first:
            return
        other = self._call("the factory", CheckedEnvironment, self._factory)
        if other is None:
            return
        again = self._play(other, seed, split)
        self._call("close", other.close)
        for turn, (one, two) in enumerate(zip(first, again)):
            for name in one:
                if not _same(one[name], two[name]):
                    self._say(
                        f"the same seed and actions gave another {name} at turn {turn} of a second episode: draw everything from the seed"
                    )
                    return
        if len(first) != len(again):
            self._say(f"the same seed and actions ended the episode after {len(first) - 1} and {len(again) - 1} steps")

    def _play(self, environment, seed: int, split: str) -> list[dict]:
        """Plays random listed actions; returns what was seen at each turn."""
        found = self._reset(environment, seed, split)
        if found is None:
            return []
        observation, info = found
        rng, seen, tasks = np.random.default_rng(seed), [_seen(observation, 0.0, info)], {info.get("task")}
        if not info["executed"]:
            self._say("info['executed'] is False at reset, where no action was taken: give True")
        for _ in range(self._steps):
            listed = info.get("admissible", ()) or self._actions
            if ADMISSIBLE in self._can and "admissible" not in info:
                self._say(f"capabilities has {ADMISSIBLE!r}, but info lacks it")
            action = listed[rng.integers(len(listed))] if listed else None
            found = self._call(f"step({action!r})", environment.step, action)
            if found is None:
                return []
            observation, reward, terminated, truncated, info = found
            seen.append(_seen(observation, reward, info))
            tasks.add(info.get("task"))
            if action is not None and "admissible" in seen[-2]["info"] and not info["executed"]:
                self._say(f"step({action!r}) has executed=False, but info['admissible'] listed that action")
            if info["won"] and not (terminated or truncated):
                self._say("info['won'] is True, but the episode goes on: terminate it")
            self._distance(environment, info)
            if terminated or truncated:
                break
        if len(tasks) > 1:
            self._say("info['task'] changed within an episode: it is the same at every turn")
        return seen

    def _distance(self, environment, info: dict) -> None:
        if DISTANCE in self._can:
            found = self._call("distance", environment.distance)
            if found is not None and info["won"] and found not in (0.0, math.inf) and not math.isnan(found):
                self._say(f"distance is {found:g} where the task is won: it is 0 there")

    def _tasks(self, environment, split: str) -> None:
        if TASKS not in self._can:
            return
        count = self._call("num_tasks", environment.num_tasks, split)
        if count is None:
            return
        one, other = self._reset(environment, 0, split), self._reset(environment, count, split)
        if one and other and one[0]["text"] != other[0]["text"]:
            self._say(
                f"num_tasks({split!r}) is {count}, but the seeds 0 and {count} begin different tasks: seed s selects task s mod num_tasks"
            )

    def _nonsense(self, environment, seed: int) -> None:
        """No answer of a model is an error: it is a step that does nothing."""
        for action in (None, *NONSENSE):
            shown = repr(action) if action is None or len(action) < 40 else f"a text of {len(action):,} characters"
            if self._reset(environment, seed) is None:
                return
            found = self._call(f"step({shown})", environment.step, action)
            if found is not None and action is None and found[-1]["executed"]:
                self._say("step(None) has executed=True: None means that the answer held no action")

    def _snapshots(self, environment, seed: int) -> None:
        """From a snapshot, and by the same actions after a reset, the environment goes on as it did."""
        begun = self._reset(environment, seed)
        if begun is None:
            return
        actions = [next(iter(begun[1].get("admissible", ()) or self._actions), None)]
        first = self._call("step", environment.step, actions[0])
        if first is None or first[2] or first[3]:
            return
        listed = tuple(first[-1].get("admissible", ())) or self._actions
        for after in listed if SNAPSHOT in self._can else ():
            self._snapshot(environment, seed, actions[0], after)
        if REPLAY in self._can:
            found = self._call("replay", replay_prefix, environment, actions, seed=seed, options={"split": "train"})
            if found is not None and found[1]["state_key"] != first[-1]["state_key"]:
                self._say("the same action after the same reset led to another state_key, but capabilities has 'replay'")

    def _snapshot(self, environment, seed: int, first: str | None, after: str) -> None:
        if self._reset(environment, seed) is None or self._call("step", environment.step, first) is None:
            return
        state, other = self._call("snapshot", environment.snapshot), CheckedEnvironment(self._factory)
        expected = self._call("step", environment.step, after)
        for where, one in (("the same", environment), ("another", other)) if state is not None and expected is not None else ():
            self._call(f"restore in {where} environment", one.restore, state)
            found = self._call(f"step({after!r}) after restore", one.step, after)
            if found is not None and (found[0]["text"], found[-1]["state_key"]) != (expected[0]["text"], expected[-1]["state_key"]):
                self._say(f"after restore in {where} environment, the same action led to another observation or state_key")
        self._call("close", other.close)

    def _experts(self, environment, seed: int) -> None:
        """What the expert says solves the task."""
        if EXPERT not in self._can or self._reset(environment, seed) is None:
            return
        plan = self._call("expert", environment.expert)
        for place, action in enumerate(plan or ()):
            found = self._call(f"step({action!r})", environment.step, action)
            if found is None:
                return
            if not found[-1]["executed"]:
                self._say(f"action {place + 1} of the expert, {action!r}, has executed=False")
                return
            if found[2] or found[3]:
                break
        if plan and not found[-1]["won"] and not found[3]:  # a task may need more steps than an episode has
            self._say(f"the {len(plan)} actions of the expert do not solve the task of seed {seed}")


def _seen(observation: dict, reward: float, info: dict) -> dict:
    return {"text": observation["text"], "image": observation.get("image"), "reward": reward, "state_key": info["state_key"], "info": info}


def _same(one: Any, two: Any) -> bool:
    if isinstance(one, np.ndarray) or isinstance(two, np.ndarray):
        return np.array_equal(one, two)
    return one == two or (isinstance(one, float) and isinstance(two, float) and math.isnan(one) and math.isnan(two))
