"""Presets and prompts by name, with one clear line for a name that is not there."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


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
