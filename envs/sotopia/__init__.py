"""SOTOPIA: social talks with private goals. An embedded world, or the benchmark's own package with language models around it."""

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

    data: the benchmark's folder, with the preset "sotopia" only; the others play the embedded world, which needs none.
    Raises ValueError that lists what there is when the preset or a setting is unknown; with the preset sotopia also
    what `package.check_settings` raises: ValueError or FileNotFoundError for what is missing.
    """
    if max_steps is not None:
        overrides["max_steps"] = max_steps
    if data is not None:
        if isinstance(PRESETS.get(preset), Settings):
            raise ValueError(f"data={str(data)!r}: preset {preset} plays the embedded world; the benchmark's data is for sotopia")
        overrides["data"] = data
    chosen = settings(preset, **overrides)
    if isinstance(chosen, Settings):
        return functools.partial(SocialEnv, chosen)
    from stepreward.envs.sotopia.package import PackageEnv, check_settings  # what it needs is loaded when it is asked for

    check_settings(chosen)
    return functools.partial(PackageEnv, chosen)


def pool(preset: str) -> str:
    """How many environments of a preset are run at once: in line, or where a step waits for endpoints, a thread each."""
    return "thread" if isinstance(PRESETS.get(preset), PackageSettings) else "inline"


POOL = pool
