"""Environments of gymnasium, of GEM, or from your own factory, by name.

    --config.environment.name=adapters.gym --config.environment.preset=PRESET

A preset is

* `FrozenLake-v1`, or `package.module:Name-v0`: a name for `gymnasium.make` (extra `adapters`);
* `gem:game:GuessTheNumber-v0-easy`: a name for `gem.make` after the prefix `gem:` (package `gem-llm`). GEM draws from global
  random generators and states the rules in its first observation; the default settings allow for both;
* `package.module:factory`: a function or class that makes the environment, such as `stepreward.envs.adapters.tabular:FrozenLakes`.

The settings (`environment.options`) are the fields of `text_env.Settings`, and `kwargs`, the arguments of the environment.
"""

from __future__ import annotations

import functools
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any

from stepreward.envs.adapters.prompts import prompts
from stepreward.envs.adapters.text_env import FACTORY, TextEnv, check_arguments, make_settings
from stepreward.envs.extras import require

__all__ = ["make", "prompts"]

_GEM = "gem:"


def make(
    preset: str, *, max_steps: int | None = None, data: str | None = None, kwargs: Mapping[str, Any] | None = None, **settings
) -> Callable[[], TextEnv]:
    """Returns a function without arguments that makes environments of a preset.

    Args:
      preset: the environment's name, in one of the forms above.
      max_steps: turns after which an episode is truncated; None keeps the environment's own limit.
      data: must be None; pass paths in `kwargs`.
      kwargs: arguments of the environment's constructor.
      settings: fields of `text_env.Settings`.

    Raises:
      ValueError: an unknown environment or setting, or a package that is not installed.
    """
    check_arguments(data, kwargs, ", such as {'render_mode': 'ansi'}")
    gem = preset.startswith(_GEM)
    defaults = {"global_random": True, "first_is_task": True, "state_key": "history"} if gem else {}
    if kwargs and kwargs.get("render_mode") == "ansi":
        defaults["render"] = True
    read = make_settings(None, **(defaults | settings | {"max_steps": max_steps or 0}))
    if gem:
        create = functools.partial(_make_gem, preset.removeprefix(_GEM))
    elif FACTORY.fullmatch(preset):
        create = _imported(preset)
    else:
        create = functools.partial(_make_gymnasium, preset)
    return functools.partial(TextEnv, functools.partial(create, **(kwargs or {})), read)


def _imported(preset: str) -> Callable[..., Any]:
    try:
        return pkgutil.resolve_name(preset)
    except (ModuleNotFoundError, AttributeError) as error:
        raise ValueError(f"environment.preset={preset!r}: this factory cannot be imported: {error}") from None


def _make_gymnasium(name: str, **kwargs) -> Any:
    gymnasium = require("adapters", "gymnasium")
    try:
        return gymnasium.make(name, **kwargs)
    except gymnasium.error.UnregisteredEnv as error:
        raise ValueError(f"environment.preset={name!r}: {error}") from None


def _make_gem(name: str, **kwargs) -> Any:
    try:
        import gem
    except ModuleNotFoundError as error:
        missing = f"environment.preset='gem:{name}' needs the package {error.name!r}, which is not installed"
        raise ValueError(f"{missing}; run pip install gem-llm") from None
    return gem.make(name, **kwargs)
