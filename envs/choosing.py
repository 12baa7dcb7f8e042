"""Environments, presets and prompts by name, with one clear line for a name that is not there."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import numbers
import os
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

    Raises ValueError that lists the presets, or the fields with the nearest name, when a name is unknown, and that names a field whose
    value is of another type.
    """
    return replaced(choose(f"{environment} preset", preset, presets), overrides, f"{environment} setting")


def replaced(settings: Any, overrides: Mapping[str, Any], what: str = "setting") -> Any:
    """A dataclass with some fields replaced; ValueError as in `settings_of`, with `what` as in "Sokoban setting"."""
    known = [field.name for field in dataclasses.fields(settings)]
    unknown = sorted(set(overrides) - set(known))
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown {what} {', '.join(unknown)}; the settings are {', '.join(known)}{hint}")
    found = dataclasses.replace(settings, **overrides)
    if wrong := misfit(found, {name: getattr(found, name) for name in overrides}):
        name, annotation = wrong
        raise ValueError(f"{what} {name}={overrides[name]!r}: give a value of type {annotation}")
    return found


def misfit(settings: Any, values: Mapping[str, Any]) -> tuple[str, str] | None:
    """The first field of a dataclass for which `values` holds a value of another type, and the field's type; None where all fit."""
    for field in dataclasses.fields(settings):
        # A type, or its text in a module that has `from __future__ import annotations`.
        annotation = field.type.__name__ if isinstance(field.type, type) else str(field.type).replace("collections.abc.", "")
        if field.name in values and not _is_of(values[field.name], annotation):
            return field.name, annotation
    return None


_TYPES = {"int": numbers.Integral, "float": numbers.Real, "bool": bool, "str": (str, os.PathLike), "None": type(None)}


def _is_of(value: Any, annotation: str) -> bool:
    """Whether a value is of one of the types in `int | None` and the like; other types are taken for right."""
    for name in annotation.split(" | "):
        kind = name.partition("[")[0]
        if kind in ("tuple", "Mapping"):
            fits = isinstance(value, {"tuple": (tuple, list), "Mapping": Mapping}[kind])
            fits = fits and (name != "tuple[str, ...]" or all(isinstance(item, str) for item in value))
        elif isinstance(value, bool):
            fits = kind not in ("int", "float", "str", "None")
        else:
            fits = kind not in _TYPES or isinstance(value, _TYPES[kind])
        if fits:
            return True
    return False


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
