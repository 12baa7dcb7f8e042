"""An environment that speaks gymnasium's five-tuple in text, made into one of `stepreward.envs.protocol`."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from stepreward.envs.adapters.randomness import OwnRandomness
from stepreward.envs.choosing import replaced
from stepreward.envs.protocol import ADMISSIBLE, DISTANCE, EXPERT, IMAGE, REPLAY, Observation

SPLITS = ("train", "held_out")
_COLOURED = re.compile(r"\x1b\[[\d;]*[1-9]m(.*?)\x1b\[0?m", re.DOTALL)
_ESCAPES = re.compile(r"\x1b\[[\d;]*[A-Za-z]")
_KEYS = ("text", "history")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How an environment is read. What its `info` says under these names comes first, else the rules beside them.

    Attributes:
      max_steps: turns after which an episode is truncated; 0: the environment's own limit alone.
      actions: words and what the environment takes for them, such as {"left": 0}; other words are then not understood. None:
        it takes the text itself.
      template: how an action is written for an environment of text, such as "[{}]"; an action that has that form already stays.
      render: the text is what `render()` returns (of an environment made with render_mode="ansi"); what it colours comes
        as `[x]`.
      image: observations are mappings that carry an "image", uint8 `[H, W, 3]`.
      first_is_task: the first observation says what is asked; it becomes info["task"], which prompts can show at every turn.
      won: names whose truth means success; else: terminated with a last reward of at least `win_reward`.
      score: else 1.0 when won and 0.0 otherwise.
      executed: whether an action took effect; else: not `invalid`.
      invalid: names whose truth means that it did not; else: it did.
      admissible: the actions that would be executed; else the words of `actions`, if given.
      task: what is asked.
      state_key: a name in `info`; else "text" (the observation; equal texts must mean equal states) or "history" (all texts
        and actions so far, where an observation does not tell the state).
      win_reward: see `won`.
      invalid_reward: of an action that is none of `actions`, and of None.
      global_random: the environment draws from the modules `random` or `numpy.random`: it gets states of its own.
      replay: the environment repeats itself after a seeded reset, so that a replay leads to the same state.
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
            raise ValueError(f"max_steps={self.max_steps!r}: give a whole number; 0 leaves the limit to the environment")
        if self.actions is not None and (not isinstance(self.actions, Mapping) or not self.actions):
            raise ValueError(f"actions={self.actions!r}: give words and what they stand for, such as {{'left': 0}}")
        if self.template and self.template.count("{}") != 1:
            raise ValueError(f"template={self.template!r}: write the action's place once as {{}}, as in '[{{}}]'")
        for name in ("won", "score", "executed", "invalid", "admissible", "task"):
            names = getattr(self, name)
            if not isinstance(names, (str, tuple, list)):
                raise ValueError(f"{name}={names!r}: give names that `info` may have, such as ('{name}',)")
            object.__setattr__(self, name, (names,) if isinstance(names, str) else tuple(names))


class TextEnv:
    """A text environment as `stepreward.envs.protocol.Environment`.

    The environment has `reset(seed=…) -> (observation, info)` and `step(action) -> (observation, reward, terminated,
    truncated, info)`, or the forms of gym before 0.26: `reset() -> observation`, `seed(seed)` and `step(action) -> (observation, reward,
    done, info)`; an info of None is an empty one. Observations are strings, or mappings with "text" and perhaps "image". Its methods `expert(rng)` and
    `distance()`, if it has them, are offered too. A split has seeds of its own: even ones in training, odd ones held out.

    Args:
      factory: makes the environment.
      settings: how it is read.
      changes: fields of `Settings` instead.

    Raises:
      ValueError: an unknown field, an observation that is no text, or a reset that takes no seed.
    """

    def __init__(self, factory: Callable[[], Any], settings: Settings | None = None, **changes):
        self.settings = make_settings(settings, **changes)
        self._own = OwnRandomness() if self.settings.global_random else None
        with self._randomness():
            self._environment = factory()
        offered = {
            EXPERT: callable(self._method("expert")), DISTANCE: callable(self._method("distance")), IMAGE: self.settings.image,
            REPLAY: self.settings.replay, ADMISSIBLE: self.settings.actions is not None,
        }  # fmt: skip
        self.capabilities = frozenset(name for name, there in offered.items() if there)
        self._over = True

    def reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        """Starts the episode of a seed in options["split"] ("train" unless given); other options go to the environment."""
        others = dict(options or {})
        split = others.pop("split", "train")
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; the splits are {', '.join(SPLITS)}")
        if seed is None:
            seed = int(np.random.SeedSequence().generate_state(1)[0])
        if seed < 0:
            raise ValueError(f"seed={seed!r}: give a whole number, at least 0")
        own_seed = int(np.random.SeedSequence(seed).generate_state(1)[0]) // 2 * 2 + SPLITS.index(split)
        if self._own is not None:
            self._own.seed(own_seed)
        with self._randomness():
            observation, info = _pair(self._reset(own_seed, **({"options": others} if others else {})))
            seen = self._see(observation)
        self._over, self._steps, self._history = False, 0, hashlib.sha1()
        self._task = self._said(info, self.settings.task, seen["text"] if self.settings.first_is_task else None)
        return self._enter(seen, info, False, True, "")

    def step(self, action: str | None) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Takes one action; raises RuntimeError where there is no episode to act in, and what the environment itself raises."""
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
                        f"the environment takes {numbered} and not words: give environment.options.actions={{'WORD': NUMBER, …}}"
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
        """What the environment's own `expert` says."""
        return self._method("expert")(rng)

    def distance(self) -> float:
        """What the environment's own `distance` says."""
        return float(self._method("distance")())

    def close(self) -> None:
        """Closes the environment, where it can be closed."""
        getattr(self._environment, "close", lambda: None)()

    def _reset(self, seed: int, **more) -> Any:
        """The environment's reset, with the seed given as it takes it: in `reset`, in the method `seed` of gym before 0.26, or in the
        global generators."""
        try:
            names = inspect.signature(self._environment.reset).parameters
        except (TypeError, ValueError):  # it does not say
            return self._environment.reset(seed=seed, **more)
        if "seed" in names or any(p.kind is p.VAR_KEYWORD for p in names.values()):
            return self._environment.reset(seed=seed, **more)
        if callable(seeded := self._method("seed")):
            seeded(seed)
        elif not self.settings.global_random:
            raise ValueError(
                f"reset of {type(self._environment).__name__} takes no seed, so that episodes of one group would not begin alike: give it "
                "the argument seed=None, or set environment.options.global_random=True if it draws from the modules random or "
                "numpy.random, or not at all."
            )
        return self._environment.reset(**more)

    def _enter(self, seen: dict, info: Mapping, won: bool, executed: bool, action: str) -> tuple[dict, dict[str, Any]]:
        s, self._seen, self._info, self._won = self.settings, seen, info, won
        if executed:
            self._history.update(f"{action}\n{seen['text']}\n".encode("utf-8", "replace"))
        found = {"won": won, "score": float(self._said(info, s.score, won)), "executed": executed}
        if s.state_key not in _KEYS and s.state_key not in info:
            raise ValueError(f"state_key={s.state_key!r} is no {' or '.join(_KEYS)}, and not in info, which has {sorted(info)}")
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
                f"an observation is {type(observation).__name__}, not text: have it rendered as text "
                "(environment.options.kwargs={'render_mode': 'ansi'}), or wrap it so that it says what it sees."
            )
        kept = {"text": _ESCAPES.sub("", _COLOURED.sub(r"[\1]", seen["text"]))}
        if self.settings.image:
            if "image" not in seen:
                raise ValueError(f"image=True: an observation has {', '.join(map(str, seen))}, and no image")
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

    def _method(self, name: str) -> Any:
        own = getattr(self._environment, "unwrapped", self._environment)
        return getattr(own, name, None)

    def _randomness(self):
        return contextlib.nullcontext() if self._own is None else self._own.active()


def _pair(found: Any) -> tuple[Any, Mapping]:
    """What reset returned as (observation, info); gym before 0.26 returns the observation alone."""
    pair = isinstance(found, tuple) and len(found) == 2 and (found[1] is None or isinstance(found[1], Mapping))
    observation, info = found if pair else (found, None)
    return observation, {} if info is None else info


def _five(found: Any) -> tuple[Any, Any, Any, Any, Mapping]:
    """What step returned as a five-tuple; gym before 0.26 returns (observation, reward, done, info)."""
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


def make_settings(settings: Settings | None = None, **changes) -> Settings:
    """Settings with some fields changed; ValueError when one is unknown, with the nearest name, or of another type."""
    return replaced(Settings() if settings is None else settings, changes)
