"""Looks up environments, presets and prompts by name. An unknown name raises an error of one clear line."""

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
    """Returns `there[name]`. For an unknown name, raises ValueError that lists the known ones; `what` reads like "Sokoban preset"."""
    if name not in there:
        raise ValueError(f"unknown {what} {name!r}; the {what.rpartition(' ')[2]}s are {', '.join(there)}")
    return there[name]


def settings_of(environment: str, presets: Mapping[str, Any], preset: str, overrides: Mapping[str, Any]):
    """Returns the settings of a preset, a dataclass, after replacing the fields in `overrides`.

    Raises:
      ValueError: an unknown preset (lists the presets), an unknown field (lists the fields and the nearest name), or a value of
        the wrong type (names the field).
    """
    return replaced(choose(f"{environment} preset", preset, presets), overrides, f"{environment} setting")


def replaced(settings: Any, overrides: Mapping[str, Any], what: str = "setting") -> Any:
    """Returns a dataclass with some fields replaced. Raises ValueError as `settings_of` does; `what` reads like "Sokoban setting"."""
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
    """Finds the first field whose value in `values` has the wrong type; returns its name and type, or None when all fit."""
    for field in dataclasses.fields(settings):
        # Under `from __future__ import annotations`, a field's type is its source text.
        annotation = field.type.__name__ if isinstance(field.type, type) else str(field.type).replace("collections.abc.", "")
        if field.name in values and not _is_of(values[field.name], annotation):
            return field.name, annotation
    return None


_TYPES = {"int": numbers.Integral, "float": numbers.Real, "bool": bool, "str": (str, os.PathLike), "None": type(None)}


def _is_of(value: Any, annotation: str) -> bool:
    """Whether a value has one of the types in an annotation such as `int | None`. Types outside `_TYPES` are not checked."""
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
      key: the config key that holds the name, for the error message.

    Raises:
      ValueError: there is no such module; the message lists the built-in environments.
    """
    built_in, short = _built_in(), _short(name)
    target = f"{envs.__name__}.{short}" if short.partition(".")[0] in built_in else name
    try:
        return importlib.import_module(target)
    except ModuleNotFoundError as error:
        if error.name and target.startswith(error.name):
            close = difflib.get_close_matches(name, built_in, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise ValueError(
                f"{key}={name!r} is unknown{hint}; give one of {', '.join(built_in)}, or a module that Python can import"
            ) from error
        raise


def built_in_module(name: str) -> ModuleType | None:
    """Imports the module of a built-in environment; None for any other name, or if a package that it needs is not installed."""
    if _short(name) not in _built_in():
        return None
    try:
        return importlib.import_module(f"{envs.__name__}.{_short(name)}")
    except ImportError:
        return None


def _built_in() -> list[str]:
    """The names of the built-in environments."""
    return [m.name for m in pkgutil.iter_modules(envs.__path__) if m.ispkg]


def _short(name: str) -> str:
    """The name of a built-in environment without its package."""
    return name.removeprefix("stepreward.").removeprefix("envs.")
