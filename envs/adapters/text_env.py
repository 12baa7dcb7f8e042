"""Adapts an environment with gymnasium's five-tuple and text observations to `stepreward.envs.protocol`."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from stepreward.envs.adapters import tabular
from stepreward.envs.adapters.randomness import OwnRandomness
from stepreward.envs.choosing import replaced
from stepreward.envs.graphs import StateGraph
from stepreward.envs.protocol import ADMISSIBLE, DISTANCE, EXPERT, IMAGE, REPLAY, TRANSITIONS, Observation

SPLITS = ("train", "held_out")
_COLOURED = re.compile(r"\x1b\[[\d;]*[1-9]m(.*?)\x1b\[0?m", re.DOTALL)
_ESCAPES = re.compile(r"\x1b\[[\d;]*[A-Za-z]")
_KEYS = ("text", "history")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How the adapter reads an environment.

    `won`, `score`, `executed`, `invalid`, `admissible` and `task` are keys of the environment's `info`. The adapter uses the first
    key that `info` has, and the fallback given below if it has none.

    Attributes:
      max_steps: turns after which an episode is truncated; 0 keeps only the environment's own limit.
      actions: maps words to the environment's actions, such as {"left": 0}; any other word is then an invalid action. None passes
        the text itself to the environment.
      template: format in which a text environment expects an action, such as "[{}]". An action in that format is passed unchanged.
      render: whether observations are what `render()` returns (of an environment made with render_mode="ansi"). Coloured text
        `x` becomes `[x]`.
      image: whether observations are mappings with a key "image", uint8 `[H, W, 3]`.
      first_is_task: whether the first observation states the task. It becomes info["task"], which prompts can show at every turn.
      won: the task is solved. Fallback: the episode terminated with a last reward of at least `win_reward`.
      score: the score. Fallback: 1.0 when won and 0.0 otherwise.
      executed: the action took effect. Fallback: the opposite of `invalid`.
      invalid: the action took no effect. Fallback: False.
      admissible: the actions that would be executed. Fallback: the words of `actions`, if given.
      task: the task's description. Fallback: none.
      state_key: a key of `info`, "text" (the observation; equal texts must mean equal states) or "history" (a digest of all texts
        and actions so far, for observations that do not determine the state).
      win_reward: least last reward of a solved task; see `won`.
      invalid_reward: reward of a turn whose action is None or not one of `actions`.
      global_random: whether the environment draws from the modules `random` or `numpy.random`. It then gets private random states.
      replay: whether the same actions after the same seeded reset lead to the same state.
    """

    max_steps: int = 0
    actions: Mapping[str, Any] | None = None
    template: str = ""
    render: bool = False
    image: bool = False
    first_is_task: bool = False
    won: tuple[str, ...] = ("won", "success", "is_success", "correct")
    score: tuple[str, ...] = ("score",)
    executed: tuple[str, ...] = ("executed",)
    invalid: tuple[str, ...] = ("invalid", "invalid_action", "invalid_move")
    admissible: tuple[str, ...] = ("admissible", "admissible_commands")
    task: tuple[str, ...] = ("task",)
    state_key: str = "text"
    win_reward: float = 1.0
    invalid_reward: float = 0.0
    global_random: bool = False
    replay: bool = True

    def __post_init__(self):
        if isinstance(self.max_steps, bool) or not isinstance(self.max_steps, int) or self.max_steps < 0:
            raise ValueError(f"max_steps={self.max_steps!r}: give a whole number, at least 0; 0 keeps the environment's own limit")
        if self.actions is not None and (not isinstance(self.actions, Mapping) or not self.actions):
            raise ValueError(f"actions={self.actions!r}: give a dictionary from words to the environment's actions, such as {{'left': 0}}")
        if self.template and self.template.count("{}") != 1:
            raise ValueError(f"template={self.template!r}: mark the place of the action by exactly one {{}}, as in '[{{}}]'")
        for name in ("won", "score", "executed", "invalid", "admissible", "task"):
            names = getattr(self, name)
            if not isinstance(names, (str, tuple, list)):
                raise ValueError(f"{name}={names!r}: give keys of info, such as ('{name}',)")
            object.__setattr__(self, name, (names,) if isinstance(names, str) else tuple(names))


class TextEnv:
    """Adapts a text environment to `stepreward.envs.protocol.Environment`.

    The environment has `reset(seed=…) -> (observation, info)` and `step(action) -> (observation, reward, terminated,
    truncated, info)`, or the signatures of gym before 0.26: `reset() -> observation`, `seed(seed)` and `step(action) ->
    (observation, reward, done, info)`. An info of None counts as empty. Observations are strings, or mappings with "text" and
    optionally "image". The adapter also offers the environment's methods `expert(rng)` and `distance()`, if it has them, and `transitions()`,
    if the environment has a table of transitions that leaves nothing to chance and is rendered as text (`tabular`). The splits
    use different seeds of the environment: "train" even ones, "held_out" odd ones.

    Args:
      factory: makes the environment.
      settings: how the adapter reads it; None for the defaults.
      changes: fields of `Settings` to replace.

    Raises:
      ValueError: an unknown field, an observation that is not text, or a reset that takes no seed.
    """

    def __init__(self, factory: Callable[[], Any], settings: Settings | None = None, **changes):
        self.settings = make_settings(settings, **changes)
        self._generators = OwnRandomness() if self.settings.global_random else None
        with self._randomness():
            self._environment = factory()
        offered = {
            EXPERT: callable(self._method("expert")), DISTANCE: callable(self._method("distance")), IMAGE: self.settings.image,
            REPLAY: self.settings.replay, ADMISSIBLE: self.settings.actions is not None, TRANSITIONS: self._is_tabular(),
        }  # fmt: skip
        self.capabilities = frozenset(name for name, there in offered.items() if there)
        self._over = True

    def reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        """Starts the episode of a seed in options["split"] (default "train"); passes all other options to the environment."""
        others = dict(options or {})
        split = others.pop("split", "train")
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; the splits are {', '.join(SPLITS)}")
        if seed is None:
            seed = int(np.random.SeedSequence().generate_state(1)[0])
        if seed < 0:
            raise ValueError(f"seed={seed!r}: give a whole number, at least 0")
        own_seed = int(np.random.SeedSequence(seed).generate_state(1)[0]) // 2 * 2 + SPLITS.index(split)
        if self._generators is not None:
            self._generators.seed(own_seed)
        with self._randomness():
            observation, info = _pair(self._reset(own_seed, **({"options": others} if others else {})))
            seen = self._see(observation)
        self._over, self._steps, self._history = False, 0, hashlib.sha1()
        self._task = self._said(info, self.settings.task, seen["text"] if self.settings.first_is_task else None)
        return self._enter(seen, info, False, True, "")

    def step(self, action: str | None) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Takes one action. Raises RuntimeError when no episode is running; errors of the environment itself pass through."""
        if self._over:
            raise RuntimeError("the episode is over or has not begun: call reset()")
        s = self.settings
        self._steps += 1
        late = 0 < s.max_steps <= self._steps
        if action is None or (s.actions is not None and action not in s.actions):
            self._over = late
            seen, info = self._enter(self._seen, self._info, self._won, False, "")
            return seen, s.invalid_reward, False, late, info
        with self._randomness():
            try:
                found = self._environment.step(self._written(action))
            except Exception as error:
                if s.actions is None and type(numbered := getattr(self._environment, "action_space", None)).__name__ == "Discrete":
                    raise ValueError(
                        f"the environment takes {numbered}, not words: set environment.options.actions={{'WORD': NUMBER, …}}"
                    ) from error
                raise
            observation, reward, terminated, truncated, info = _five(found)
            seen = self._see(observation)
        if reward is None or isinstance(reward, str):
            raise ValueError(f"step returned the reward {reward!r}, not a number")
        reward, terminated, truncated = float(reward), bool(terminated), bool(truncated)
        won = bool(self._said(info, s.won, terminated and reward >= s.win_reward))
        executed = bool(self._said(info, s.executed, not self._said(info, s.invalid, False)))
        truncated = truncated or (late and not terminated)
        self._over = terminated or truncated
        seen, info = self._enter(seen, info, won, executed, action)
        return seen, reward, terminated, truncated, info

    def expert(self, rng: np.random.Generator | None = None) -> list[str] | None:
        """Calls the environment's own `expert`."""
        return self._method("expert")(rng)

    def distance(self) -> float:
        """Calls the environment's own `distance`."""
        return float(self._method("distance")())

    def transitions(self) -> StateGraph:
        """All states that can be reached from here, of an environment with a table of transitions (`tabular.is_tabular`)."""
        s, spec = self.settings, getattr(self._environment, "spec", None)
        limits = [limit for limit in (s.max_steps, getattr(spec, "max_episode_steps", None)) if limit]
        return tabular.state_graph(
            self._own,
            s.actions,
            lambda: self._see(None)["text"],
            lambda terminated, reward: terminated and reward >= s.win_reward,
            idle_reward=s.invalid_reward,
            max_steps=min(limits, default=tabular.UNLIMITED) - self._steps,
        )

    def close(self) -> None:
        """Closes the environment if it has a method `close`."""
        getattr(self._environment, "close", lambda: None)()

    def _reset(self, seed: int, **more) -> Any:
        """Resets the environment. Passes the seed to `reset`, to the method `seed` of gym before 0.26, or to the global generators."""
        try:
            names = inspect.signature(self._environment.reset).parameters
        except (TypeError, ValueError):  # it has no readable signature
            return self._environment.reset(seed=seed, **more)
        if "seed" in names or any(p.kind is p.VAR_KEYWORD for p in names.values()):
            return self._environment.reset(seed=seed, **more)
        if callable(seeded := self._method("seed")):
            seeded(seed)
        elif not self.settings.global_random:
            raise ValueError(
                f"reset of {type(self._environment).__name__} takes no seed, so the episodes of a group would start differently: add the "
                "argument seed=None to it, or, if it draws from the modules random or numpy.random or draws nothing, set "
                "environment.options.global_random=True"
            )
        return self._environment.reset(**more)

    def _enter(self, seen: dict, info: Mapping, won: bool, executed: bool, action: str) -> tuple[dict, dict[str, Any]]:
        s, self._seen, self._info, self._won = self.settings, seen, info, won
        if executed:
            self._history.update(f"{action}\n{seen['text']}\n".encode("utf-8", "replace"))
        found = {"won": won, "score": float(self._said(info, s.score, won)), "executed": executed}
        if s.state_key not in _KEYS and s.state_key not in info:
            raise ValueError(f"state_key={s.state_key!r}: give {' or '.join(map(repr, _KEYS))} or a key of info, which has {sorted(info)}")
        keys = {"text": seen["text"], "history": self._history.hexdigest()}
        found["state_key"] = keys[s.state_key] if s.state_key in keys else str(info[s.state_key])
        admissible = self._said(info, s.admissible, s.actions)
        if admissible is not None:
            found["admissible"] = tuple(map(str, admissible))
        if self._task is not None:
            found["task"] = str(self._task)
        return seen, found

    def _see(self, observation: Any) -> dict[str, Any]:
        if self.settings.render:
            observation = self._environment.render()
        seen = dict(observation) if isinstance(observation, Mapping) else {"text": observation}
        if not isinstance(seen.get("text"), str):
            raise ValueError(
                f"an observation is {type(observation).__name__}, not text: render it as text "
                "(environment.options.kwargs={'render_mode': 'ansi'}), or wrap the environment so that it returns text"
            )
        kept = {"text": _ESCAPES.sub("", _COLOURED.sub(r"[\1]", seen["text"]))}
        if self.settings.image:
            if "image" not in seen:
                raise ValueError(f"image=True, but an observation has no key 'image'; its keys are {', '.join(map(str, seen))}")
            kept["image"] = seen["image"]
        return kept

    def _written(self, action: str) -> Any:
        s = self.settings
        if s.actions is not None:
            return s.actions[action]
        before, _, after = s.template.partition("{}")
        formed = not s.template or re.search(f"{re.escape(before)}.*?{re.escape(after)}", action, re.DOTALL)
        return action if formed else f"{before}{action}{after}"

    @staticmethod
    def _said(info: Mapping, names: tuple[str, ...], otherwise: Any) -> Any:
        return next((info[name] for name in names if name in info), otherwise)

    @property
    def _own(self) -> Any:
        """The environment without wrappers."""
        return getattr(self._environment, "unwrapped", self._environment)

    def _method(self, name: str) -> Any:
        return getattr(self._own, name, None)

    def _is_tabular(self) -> bool:
        s = self.settings
        return s.actions is not None and s.render and s.state_key == "text" and tabular.is_tabular(self._own)

    def _randomness(self):
        return contextlib.nullcontext() if self._generators is None else self._generators.active()


def _pair(found: Any) -> tuple[Any, Mapping]:
    """Converts the return value of reset to (observation, info); gym before 0.26 returns the observation alone."""
    pair = isinstance(found, tuple) and len(found) == 2 and (found[1] is None or isinstance(found[1], Mapping))
    observation, info = found if pair else (found, None)
    return observation, {} if info is None else info


def _five(found: Any) -> tuple[Any, Any, Any, Any, Mapping]:
    """Converts the return value of step to a five-tuple; gym before 0.26 returns (observation, reward, done, info)."""
    if isinstance(found, tuple) and len(found) == 4:
        observation, reward, done, info = found
        late = bool((info or {}).get("TimeLimit.truncated", False))
        found = observation, reward, done and not late, late, info
    if not isinstance(found, tuple) or len(found) != 5:
        size = f" of {len(found)}" if isinstance(found, tuple) else ""
        raise ValueError(f"step returned a {type(found).__name__}{size}, not (observation, reward, terminated, truncated, info)")
    info = {} if found[4] is None else found[4]
    if not isinstance(info, Mapping):
        raise ValueError(f"the info of step is a {type(info).__name__}, not a mapping")
    return (*found[:4], info)


FACTORY = re.compile(r"[\w.]+:[A-Za-z_]\w*")  # package.module:factory; gymnasium's names end in -v0


def check_arguments(data: str | None, kwargs: Mapping[str, Any] | None, example: str = "") -> None:
    """Checks the arguments of an adapter's `make` that all adapters treat alike.

    Args:
      data: must be None or "".
      kwargs: arguments of the environment, a mapping or None.
      example: words behind the error about `kwargs`.

    Raises:
      ValueError: data is given, or kwargs is no mapping.
    """
    if data:
        raise ValueError(f"data={data!r}: an adapter takes no data; pass paths in kwargs, under the environment's own argument names")
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise ValueError(f"kwargs={kwargs!r}: give a dictionary of the environment's arguments{example}")


def make_settings(settings: Settings | None = None, **changes) -> Settings:
    """Returns settings with some fields replaced. Raises ValueError for an unknown field (with the nearest name) or a wrong type."""
    return replaced(Settings() if settings is None else settings, changes)
