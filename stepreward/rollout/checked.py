"""Checks what an environment returns, in the process where the environment runs, for every kind of pool.

    make_pool("process", checked(sokoban.make("tiny")))

A result that breaks the protocol (`stepreward.envs.protocol`) is a failure of that call, as if the environment had raised. So callers
never see a missing key, a NaN or a tuple of four; each of these costs one episode.
"""

from __future__ import annotations

import functools
import math
import pickle
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from stepreward.envs.automata import Automaton
from stepreward.envs.graphs import StateGraph
from stepreward.envs.protocol import AUTOMATON_STATE, EVENT_NAMES, EVENTS, IMAGE, REFERENCE, TURN_REWARD, Environment
from stepreward.rollout.environment_host import EnvironmentFailure

# Rewards are summed and squared in float32, whose largest number is 3.4e38.
LARGEST_REWARD = 1e18
_STEP = "(observation, reward, terminated, truncated, info)"
_OLD = "environment.name=adapters.gym adapts an environment that has the form of gym before 0.26"


def checked(factory: Callable[[], Environment]) -> Callable[[], Environment]:
    """Wraps a factory so that its environments are checked; the result can be pickled if `factory` can."""
    return functools.partial(CheckedEnvironment, factory)


class CheckedEnvironment:
    """Wraps an environment and raises `EnvironmentFailure` when that returns what the protocol does not allow.

    Results hold plain Python values (floats, bools, lists, tuples and dicts); images are not changed. A missing `score` becomes 1.0 if
    the task is won and 0.0 otherwise; `admissible`, `task` and other optional keys are left out if they are None. A snapshot is returned as bytes.

    Args:
      factory: makes the wrapped environment.
    """

    def __init__(self, factory: Callable[[], Environment]):
        self._environment = factory()

    @functools.cached_property
    def capabilities(self) -> frozenset[str]:
        """What the environment declares."""
        found = self._environment.capabilities
        found = found() if callable(found) else found
        if isinstance(found, (str, Mapping)) or not isinstance(found, Iterable):
            raise EnvironmentFailure(f"capabilities is {_shown(found)}, not a set of names")
        found = frozenset(found)
        wrong = [name for name in found if not isinstance(name, str)]
        if wrong:
            raise EnvironmentFailure(f"capabilities holds {_shown(wrong[0])}, not only names")
        return found

    def reset(self, **arguments) -> tuple[dict, dict]:
        """The environment's `reset`."""
        found = self._environment.reset(**arguments)
        if not isinstance(found, (tuple, list)) or len(found) != 2:
            raise EnvironmentFailure(f"reset returned {_shown(found)}, not (observation, info); {_OLD}")
        return self._observation("reset", found[0]), _info("reset", found[1])

    def step(self, *action, **arguments) -> tuple[dict, float, bool, bool, dict]:
        """The environment's `step`."""
        found = self._environment.step(*action, **arguments)
        if not isinstance(found, (tuple, list)) or len(found) != 5:
            old = f"; {_OLD}" if isinstance(found, (tuple, list)) and len(found) == 4 else ""
            raise EnvironmentFailure(f"step returned {_shown(found)}, not {_STEP}{old}")
        observation, reward, terminated, truncated, info = found
        reward = _number("the reward of step", reward)
        if abs(reward) > LARGEST_REWARD:
            raise EnvironmentFailure(f"the reward of step is {reward:g}: give one between ±{LARGEST_REWARD:g}")
        ends = _flag("terminated of step", terminated), _flag("truncated of step", truncated)
        return self._observation("step", observation), reward, *ends, _info("step", info)

    def expert(self, *arguments, **more) -> list[str] | None:
        """The environment's `expert`."""
        found = self._environment.expert(*arguments, **more)
        return None if found is None else list(_texts("what expert returned", found))

    def distance(self) -> float:
        """The environment's `distance`."""
        found = self._environment.distance()
        if _is_nan(found):
            return math.nan  # unknown
        found = _number("distance", found, infinite=True)
        if found < 0:
            raise EnvironmentFailure(
                f"distance is {found:g}: give at least 0, inf where success is out of reach, nan where it is not known"
            )
        return found

    def num_tasks(self, *split, **arguments) -> int:
        """The environment's `num_tasks`."""
        found = self._environment.num_tasks(*split, **arguments)
        if isinstance(found, bool) or not hasattr(found, "__index__") or int(found) < 1:
            raise EnvironmentFailure(f"num_tasks returned {_shown(found)}, not a whole number of at least 1")
        return int(found)

    def automaton(self) -> Automaton:
        """The environment's `automaton`."""
        found = self._environment.automaton()
        if not isinstance(found, Automaton):
            raise EnvironmentFailure(f"automaton returned {_shown(found)}, not an automaton: make one with envs.automata.automaton(data)")
        return found

    def transitions(self) -> StateGraph:
        """The environment's `transitions`."""
        found = self._environment.transitions()
        if not isinstance(found, StateGraph):
            raise EnvironmentFailure(f"transitions returned {_shown(found)}, not a state graph: make an envs.graphs.StateGraph")
        if not np.isfinite(found.reward).all() or not math.isfinite(found.idle_reward):
            raise EnvironmentFailure("a reward of transitions is not finite")
        return found

    def snapshot(self) -> bytes:
        """The environment's `snapshot`, pickled: later steps cannot change it, and other processes can hold it."""
        found = self._environment.snapshot()
        try:
            return pickle.dumps(found, protocol=5)
        except Exception as error:
            raise EnvironmentFailure(f"what snapshot returned cannot be pickled: {type(error).__name__}: {error}") from error

    def restore(self, state: bytes) -> None:
        """The environment's `restore`; takes what `snapshot` returned, here or in another environment of equal settings."""
        self._environment.restore(pickle.loads(state))

    def __str__(self) -> str:
        return type(self._environment).__name__

    def __getattr__(self, name: str) -> Any:
        if name == "_environment":  # the factory raised
            raise AttributeError(name)
        return getattr(self._environment, name)

    def _observation(self, method: str, found: Any) -> dict[str, Any]:
        if not isinstance(found, Mapping):
            raise EnvironmentFailure(f"the observation of {method} is {_shown(found)}, not a mapping with 'text'")
        found = dict(found)
        if "text" not in found:
            raise EnvironmentFailure(f"the observation of {method} lacks 'text'; it has {_names(found)}")
        found["text"] = _text(f"observation['text'] of {method}", found["text"])
        if IMAGE in self.capabilities:
            if IMAGE not in found:
                raise EnvironmentFailure(f"the observation of {method} lacks {IMAGE!r}; it has {_names(found)}")
            shape = getattr(found[IMAGE], "shape", None)
            if str(getattr(found[IMAGE], "dtype", "")) != "uint8" or len(shape) != 3 or shape[2] != 3 or 0 in shape:
                raise EnvironmentFailure(f"observation['image'] of {method} is {_shown(found[IMAGE])}, not uint8 [H, W, 3]")
        return found


def _info(method: str, found: Any) -> dict[str, Any]:
    if not isinstance(found, Mapping):
        raise EnvironmentFailure(f"the info of {method} is {_shown(found)}, not a mapping")
    found = dict(found)
    for name in ("won", "executed", "state_key"):
        if name not in found:
            raise EnvironmentFailure(f"the info of {method} lacks {name!r}; it has {_names(found)}")
    what = f"info[{{!r}}] of {method}".format
    found["won"], found["executed"] = (_flag(what(name), found[name]) for name in ("won", "executed"))
    found["state_key"] = _text(what("state_key"), found["state_key"])
    found["score"] = _number(what("score"), found["score"]) if "score" in found else float(found["won"])
    for name, read in (
        ("admissible", _texts),
        ("task", _text),
        (REFERENCE, _text),
        (EVENTS, _events),
        (TURN_REWARD, _number),
        (AUTOMATON_STATE, _state),
    ):
        if name in found:
            value = found.pop(name)
            found |= {} if value is None else {name: read(what(name), value)}
    return found


def _events(what: str, value: Any) -> tuple[str, ...]:
    found = _texts(what, value)
    if unknown := sorted(set(found) - set(EVENT_NAMES)):
        raise EnvironmentFailure(f"{what} holds {_shown(unknown[0])}; the names of events are {', '.join(EVENT_NAMES)}")
    return found


def _number(what: str, value: Any, infinite: bool = False) -> float:
    try:
        found = math.nan if isinstance(value, (str, bytes)) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if math.isnan(found) or (math.isinf(found) and not infinite):
        raise EnvironmentFailure(f"{what} is {_shown(value)}, not a {'' if infinite else 'finite '}number")
    return found


def _state(what: str, value: Any) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__") or int(value) < 0:
        raise EnvironmentFailure(f"{what} is {_shown(value)}, not the number of a state")
    return int(value)


def _is_nan(value: Any) -> bool:
    try:
        return math.isnan(value)
    except (TypeError, ValueError, OverflowError):
        return False


def _flag(what: str, value: Any) -> bool:
    try:
        if not isinstance(value, (str, bytes)) and value in (0, 1):
            return bool(value)
    except (TypeError, ValueError):  # an array of several values has no truth
        pass
    raise EnvironmentFailure(f"{what} is {_shown(value)}, not True or False")


def _text(what: str, value: Any) -> str:
    if not isinstance(value, str):
        raise EnvironmentFailure(f"{what} is {_shown(value)}, not a str")
    return str(value)


def _texts(what: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise EnvironmentFailure(f"{what} is {_shown(value)}, not a sequence of str")
    return tuple(_text(f"an item of {what}", item) for item in value)


def _names(found: Mapping) -> str:
    return ", ".join(map(repr, found)) or "nothing"


def _shown(value: Any) -> str:
    """Describes a value in a few words: the value itself if it is simple, else its type, length and shape."""
    if value is None or isinstance(value, (bool, int, float)):
        return repr(value)
    if isinstance(value, (str, bytes)):
        return f"the {type(value).__name__} {value[:40]!r}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype} {list(value.shape)}" + (f" {value}" if not len(value.shape) else "")
    return f"a {type(value).__name__}"
