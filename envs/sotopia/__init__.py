"""SOTOPIA: conversations with private goals, in an embedded rule-based world or in the benchmark's own package with language models."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from stepreward.envs.sotopia.env import SocialEnv
from stepreward.envs.sotopia.presets import PRESETS, PackageSettings, Settings, settings
from stepreward.envs.sotopia.prompts import prompts

__all__ = ["POOL", "PRESETS", "PackageSettings", "Settings", "SocialEnv", "make", "pool", "prompts", "settings"]


def make(preset: str = "tiny", *, max_steps: int | None = None, data: Any = None, **overrides) -> Callable[[], Any]:
    """Returns a picklable function without arguments that makes environments of a preset; `overrides` replace fields of its settings.

    data: the benchmark's folder; only for the preset "sotopia". The other presets play the embedded world, which needs no data.
    Raises ValueError for an unknown preset or setting, and lists the known ones. The preset "sotopia" also raises the errors of
    `package.check_settings`: ValueError or FileNotFoundError for a missing setting, package or file.
    """
    if max_steps is not None:
        overrides["max_steps"] = max_steps
    if data is not None:
        if isinstance(PRESETS.get(preset), Settings):
            raise ValueError(
                f"data={str(data)!r}: the preset {preset!r} plays the embedded world and takes no data; "
                "leave data out, or use the preset 'sotopia'"
            )
        overrides["data"] = data
    chosen = settings(preset, **overrides)
    if isinstance(chosen, Settings):
        return functools.partial(SocialEnv, chosen)
    from stepreward.envs.sotopia.package import PackageEnv, check_settings  # imported late: it loads the optional package

    check_settings(chosen)
    return functools.partial(PackageEnv, chosen)


def pool(preset: str) -> str:
    """Returns the kind of pool for a preset: one thread per environment if steps wait for endpoints, else "inline"."""
    return "thread" if isinstance(PRESETS.get(preset), PackageSettings) else "inline"


POOL = pool
