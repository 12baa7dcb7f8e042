"""Environments, presets and prompts by name, with one clear line for a name that is not there."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import pkgutil
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from stepreward import envs


def choose(what: str, name: str, there: Mapping[str, Any]) -> Any:
    """What `there` holds under `name`; ValueError lists the names when it holds nothing, with `what` as in "Sokoban preset"."""
    if name not in there:
        raise ValueError(f"unknown {what} {name!r}; the {what.rpartition(' ')[2]}s are {', '.join(there)}")
    return there[name]


def settings_of(environment: str, presets: Mapping[str, Any], preset: str, overrides: Mapping[str, Any]):
    """The settings of a preset, a dataclass, with `overrides` replacing fields of it.

    Raises ValueError that lists the presets, or the fields, when a name is unknown.
    """
    chosen = choose(f"{environment} preset", preset, presets)
    known = [field.name for field in dataclasses.fields(chosen)]
    unknown = sorted(set(overrides) - set(known))
    if unknown:
        raise ValueError(f"unknown {environment} setting {', '.join(unknown)}; the settings are {', '.join(known)}")
    return dataclasses.replace(chosen, **overrides)


def environment_module(name: str, key: str = "environment.name") -> ModuleType:
    """Imports the environment's module, which has `make(preset, **settings)` and `prompts(name)`.

    Args:
      name: a built-in environment ("sokoban"), an adapter ("adapters.gym"), or a module that Python can import.
      key: what the user calls the name, for the message.

    Raises:
      ValueError: no such module; the built-in ones are listed.
    """
    built_in = [m.name for m in pkgutil.iter_modules(envs.__path__) if m.ispkg]
    short = name.removeprefix("stepreward.").removeprefix("envs.")
    target = f"{envs.__name__}.{short}" if short.partition(".")[0] in built_in else name
    try:
        return importlib.import_module(target)
    except ModuleNotFoundError as error:
        if error.name and target.startswith(error.name):
            close = difflib.get_close_matches(name, built_in, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise ValueError(f"{key}={name!r} is unknown{hint}; built in: {', '.join(built_in)}, or a module of your own.") from error
        raise
