"""Environments of OpenEnv (package `openenv`): served by their own container or process, or made in this one.

    --config.environment.name=adapters.openenv --config.environment.preset=http://localhost:8000 --config.environment.options.field=message

A preset is

* the address of a served environment. Only OpenEnv's generic client runs here, so neither the environment's packages nor its code are needed;
* `package.module:Environment`: a class or function that makes an `openenv.core.env_server.Environment`, which runs in this process.

OpenEnv's actions and observations are records whose fields each environment chooses. `field` names the field of an action that takes the model's text.
`shown` names the fields of an observation that the model sees; by default it is the only field with text or, if there are several fields, all of them as JSON.
An action that does not fit the environment's type is a step without effect. The seed is passed to `reset`; whether it decides the episode depends on the environment,
so set `replay=True` if it does.

docs/environments/adapters.md has the packages to install.
"""

from __future__ import annotations

import functools
import json
import pkgutil
import re
import typing
from collections.abc import Callable, Mapping
from typing import Any

from stepreward.envs.adapters.prompts import prompts
from stepreward.envs.adapters.text_env import FACTORY, TextEnv, check_arguments, make_settings

__all__ = ["make", "prompts"]

_ADDRESS = re.compile(r"(https?|wss?)://\S+")
_OWN = ("done", "reward", "metadata")  # fields of every observation


class Refused(Exception):
    """An action does not fit the environment's type."""


class Served:
    """An environment behind an address, through OpenEnv's generic client."""

    def __init__(self, address: str, timeout_s: float):
        from openenv.core import GenericEnvClient

        self._client = GenericEnvClient(base_url=address, message_timeout_s=timeout_s).sync()
        try:
            self._client.connect()
        except Exception as error:  # of the client, of websockets, or of the system
            raise ValueError(f"environment.preset={address!r} does not answer: {' '.join(str(error).split())[:200]}") from error

    def reset(self, seed: int) -> tuple[dict, float, bool]:
        return _parts(self._client.reset(seed=seed))

    def step(self, action: dict) -> tuple[dict, float, bool]:
        try:
            return _parts(self._client.step(action))
        except RuntimeError as error:
            if "validation error" in str(error).lower() or "VALIDATION_ERROR" in str(error):
                raise Refused(str(error)) from error
            raise

    def close(self) -> None:
        self._client.close()


class InProcess:
    """An environment of this process. Its `step` names the type of its actions."""

    def __init__(self, make: Callable[[], Any]):
        self._environment = make()
        hints = typing.get_type_hints(type(self._environment).step)
        names = [name for name in hints if name not in ("return", "timeout_s")]
        if not names or not hasattr(hints[names[0]], "model_validate"):
            raise ValueError(f"{type(self._environment).__name__}.step names no type of action: annotate its first argument")
        self._action = hints[names[0]]

    def reset(self, seed: int) -> tuple[dict, float, bool]:
        return _parts(self._environment.reset(seed=seed))

    def step(self, action: dict) -> tuple[dict, float, bool]:
        from pydantic import ValidationError

        try:
            made = self._action.model_validate(action)
        except ValidationError as error:
            raise Refused(str(error)) from error
        return _parts(self._environment.step(made))

    def close(self) -> None:
        getattr(self._environment, "close", lambda: None)()


def _parts(result: Any) -> tuple[dict, float, bool]:
    """Fields of the observation, reward and end, of a client's result or of an environment's observation."""
    seen = getattr(result, "observation", result)
    fields = seen if isinstance(seen, Mapping) else seen.model_dump()
    return {k: v for k, v in fields.items() if k not in _OWN}, float(result.reward or 0.0), bool(result.done)


class Episodes:
    """Episodes with gymnasium's five-tuple.

    Args:
      connect: makes a `Served` or an `InProcess`.
      field: field of an action that takes the text.
      shown: fields of an observation that are shown; () for the default above.
    """

    def __init__(self, connect: Callable[[], Served | InProcess], field: str, shown: tuple[str, ...]):
        self._field, self._shown, self._environment = field, shown, connect()

    def reset(self, *, seed: int) -> tuple[str, dict]:
        self._text = self._written(self._environment.reset(seed)[0])
        return self._text, {}

    def step(self, action: str | Mapping) -> tuple[str, float, bool, bool, dict]:
        if isinstance(action, str):  # half of an emoji cannot be sent
            action = {self._field: action.encode("utf-8", "replace").decode("utf-8")}
        try:
            fields, reward, done = self._environment.step(dict(action))
        except Refused:
            return self._text, 0.0, False, False, {"invalid": True}
        self._text = self._written(fields)
        return self._text, reward, done, False, {}

    def close(self) -> None:
        self._environment.close()

    def _written(self, fields: dict) -> str:
        if missing := [name for name in self._shown if name not in fields]:
            raise ValueError(f"shown={missing[0]!r}: an observation has the fields {', '.join(fields)}")
        texts = [value for value in fields.values() if isinstance(value, str)]
        if not self._shown and len(fields) != 1:
            return json.dumps(fields, ensure_ascii=False, default=str)
        chosen = [fields[name] for name in self._shown] if self._shown else texts or list(fields.values())
        return "\n".join(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str) for value in chosen)


def make(
    preset: str,
    *,
    max_steps: int | None = None,
    data: str | None = None,
    field: str = "message",
    shown: str | tuple[str, ...] = (),
    timeout_s: float = 60.0,
    kwargs: Mapping[str, Any] | None = None,
    **settings,
) -> Callable[[], TextEnv]:
    """Returns a function without arguments that makes environments of a preset.

    Args:
      preset: an address or a factory, as above.
      max_steps: turns after which an episode is truncated; None keeps the environment's own limit.
      data: must be None.
      field: field of an action that takes the model's text. With the setting `actions`, a word stands for a whole action, such as {"left": {"direction": 0}}.
      shown: fields of an observation that the model sees.
      timeout_s: seconds that a served environment may take to answer.
      kwargs: arguments of the factory.
      settings: fields of `text_env.Settings`.

    Raises:
      ValueError: an unknown environment or setting, or a package that is not installed.
    """
    check_arguments(data, kwargs)
    if not _ADDRESS.fullmatch(preset) and not FACTORY.fullmatch(preset):
        raise ValueError(f"environment.preset={preset!r}: give the address of a served environment, or package.module:Environment")
    defaults = {"state_key": "history", "replay": False}
    read = make_settings(None, **(defaults | settings | {"max_steps": max_steps or 0}))
    connect = functools.partial(_connect, preset, timeout_s, dict(kwargs or {}))
    fields = (shown,) if isinstance(shown, str) else tuple(shown)
    return functools.partial(TextEnv, functools.partial(Episodes, connect, field, fields), read)


def _connect(preset: str, timeout_s: float, kwargs: dict[str, Any]) -> Served | InProcess:
    try:
        if _ADDRESS.fullmatch(preset):
            return Served(preset, timeout_s)
        return InProcess(functools.partial(pkgutil.resolve_name(preset), **kwargs))
    except (ImportError, AttributeError) as error:
        if isinstance(error, ModuleNotFoundError) and not preset.startswith(str(error.name)):
            missing = f"environment.preset={preset!r} needs the package {error.name!r}, which is not installed"
            raise ValueError(f"{missing}; docs/environments/adapters.md has the command") from None
        raise ValueError(f"environment.preset={preset!r}: this environment cannot be imported: {error}") from None
