"""Environments of the package `verifiers` (Prime Intellect), versions 0.1.x: single-turn, multi-turn and tool environments.

    --config.environment.name=adapters.verifiers --config.environment.preset=NAME

A preset is

* `wordle`, or `owner/wordle`: an installed environment, for `verifiers.load_environment`;
* `package.module:factory`: a function or class that makes a `verifiers.Environment`.

The library's own `rollout` runs the episode: it asks a client for the model's answer, and that client waits for `step`. An observation is the
text of the messages since the last answer. Rewards come from the environment's rubric, once, at the end of the episode: `score` is the rubric's
reward, and the task is solved (`won`) if it is at least `win_reward`. A seed selects a row of the data set; the held-out tasks are the evaluation
set or, if there is none, every second row.

docs/environments/adapters.md has the packages to install.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import pkgutil
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stepreward.envs.adapters.prompts import prompts
from stepreward.envs.adapters.text_env import FACTORY, SPLITS, TextEnv, check_arguments, make_settings

__all__ = ["make", "prompts"]


class Episodes:
    """Episodes of a `verifiers.Environment` with gymnasium's five-tuple.

    Args:
      create: makes the environment.

    info: task (the system message, if there is one), won and score (0 before the end), reward of each function of the rubric under `metrics`.
    """

    def __init__(self, create: Callable[[], Any], win_reward: float):
        self._loop = asyncio.new_event_loop()
        self._environment, self._win = create(), win_reward
        self._client = _waiting_client(self._loop)
        self._rows = {split: self._read(split) for split in SPLITS}
        self._running: asyncio.Task | None = None

    def reset(self, *, seed: int) -> tuple[str, dict]:
        """Starts the row that a seed selects; the lowest bit of a seed of `TextEnv` tells the split."""
        self._stop()
        rows = self._rows[SPLITS[seed % 2]]
        row = rows[seed // 2 % len(rows)]
        self._running, self._seen = self._loop.create_task(self._play(row)), 0
        self._advance()
        if self._running.done():
            raise ValueError(f"an episode ended before its first turn: {self._result().get('error') or 'the environment stopped it'}")
        messages = self._client.prompt
        system = "\n".join(_text(m) for m in messages if _role(m) == "system")
        self._task = {"task": system} if system else {}
        return self._shown(), self._task | {"won": False, "score": 0.0}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict]:
        self._client.answer.set_result(action)
        self._advance()
        if not self._running.done():
            return self._shown(), 0.0, False, False, self._task | {"won": False, "score": 0.0}
        state = self._result()
        reward = float(state["reward"] or 0.0)
        last = "\n".join(_text(m) for m in state.get("final_env_response") or ())
        cut = state.get("stop_condition") in ("max_turns_reached", "timeout_reached") and not last
        info = {"won": reward >= self._win, "score": reward, "metrics": dict(state.get("metrics") or {})}
        return last or "The episode is over.", reward, not cut, cut, self._task | info

    def close(self) -> None:
        self._stop()
        if not self._loop.is_closed():
            self._loop.close()

    async def _play(self, row: Mapping[str, Any]) -> Any:
        """Plays and scores one episode; returns the library's state of it."""
        own = self._environment
        state = await own.rollout(row, self._client, "stepreward", {})
        if state.get("error") is None:
            await own.rubric.score_rollout(state)
        await own.rubric.cleanup(state)
        return state

    def _advance(self) -> None:
        """Runs the episode until it asks for an answer or is over."""
        asked = self._client.ask()
        self._loop.run_until_complete(asyncio.wait({self._running, asked}, return_when=asyncio.FIRST_COMPLETED))
        if not asked.done():
            asked.cancel()

    def _result(self) -> Any:
        state = self._running.result()  # raises what the environment raised
        if state.get("error") is not None:
            raise RuntimeError(f"verifiers: {type(state['error']).__name__}: {state['error']}")
        return state

    def _shown(self) -> str:
        """The text of the messages that are new since the last answer, except the system's."""
        messages, seen = self._client.prompt, self._seen
        self._seen = len(messages)
        return "\n".join(_text(m) for m in messages[seen:] if _role(m) not in ("system", "assistant"))

    def _read(self, split: str) -> Sequence[Mapping[str, Any]]:
        own = self._environment
        own.build_eval_dataset()
        if own.eval_dataset is not None:
            rows = own.get_eval_dataset() if split == "held_out" else own.get_dataset()
            return rows
        rows = own.get_dataset()
        if len(rows) < 2:
            raise ValueError("this environment has one task and no evaluation set, so nothing can be held out")
        return rows.select(range(SPLITS.index(split), len(rows), 2))

    def _stop(self) -> None:
        if self._running is not None and not self._running.done():
            self._running.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                self._loop.run_until_complete(self._running)


def _waiting_client(loop: asyncio.AbstractEventLoop) -> Any:
    """A client of verifiers whose answers come from outside: `ask()` is done when `prompt` waits for `answer`."""
    from verifiers.clients import Client
    from verifiers.types import Response, ResponseMessage

    class Waiting(Client):
        def __init__(self):
            super().__init__(None)

        def ask(self) -> asyncio.Future:
            self._asked = loop.create_future()
            return self._asked

        async def get_response(self, prompt, model, sampling_args, tools=None, **_):
            self.prompt, self.answer = list(prompt), loop.create_future()
            self._asked.set_result(None)
            text = await self.answer
            message = ResponseMessage(content=text, finish_reason="stop", is_truncated=False)
            return Response(id="", created=int(time.time()), model=model, message=message)

        def setup_client(self, config):
            return None

        async def to_native_tool(self, tool):
            return tool

        async def to_native_prompt(self, messages):
            return messages, {}

        async def get_native_response(self, prompt, model, sampling_args, tools=None, **_):
            raise NotImplementedError  # the base class asks for it, but only its own get_response would call it

        async def raise_from_native_response(self, response):
            return None

        async def from_native_response(self, response):
            return response

        async def close(self):
            return None

    return Waiting()


def _role(message: Any) -> str:
    return message["role"] if isinstance(message, Mapping) else message.role


def _text(message: Any) -> str:
    """The text of a message; pictures and other parts are left out."""
    content = message["content"] if isinstance(message, Mapping) else message.content
    if content is None or isinstance(content, str):
        return content or ""
    parts = [part if isinstance(part, Mapping) else part.model_dump() for part in content]
    return "\n".join(part["text"] for part in parts if isinstance(part.get("text"), str))


def make(
    preset: str, *, max_steps: int | None = None, data: str | None = None, kwargs: Mapping[str, Any] | None = None, **settings
) -> Callable[[], TextEnv]:
    """Returns a function without arguments that makes environments of a preset.

    Args:
      preset: the environment's name, in one of the forms above.
      max_steps: turns after which an episode is truncated; None keeps the environment's own limit. Such an episode is not scored.
      data: must be None; pass paths in `kwargs`.
      kwargs: arguments of `load_environment` or of the factory.
      settings: fields of `text_env.Settings`.

    Raises:
      ValueError: an unknown environment or setting, or a package that is not installed.
    """
    check_arguments(data, kwargs, ", such as {'max_turns': 8}")
    defaults = {"state_key": "history"}
    read = make_settings(None, **(defaults | settings | {"max_steps": max_steps or 0}))
    create = functools.partial(_create, preset, dict(kwargs or {}))
    return functools.partial(TextEnv, functools.partial(Episodes, create, read.win_reward), read)


def _create(preset: str, kwargs: dict[str, Any]) -> Any:
    try:
        import verifiers
        from datasets import disable_progress_bars
        from verifiers.envs.environment import Environment
    except ModuleNotFoundError as error:
        missing = f"environment.preset={preset!r} needs the package {error.name!r}, which is not installed"
        raise ValueError(f"{missing}; docs/environments/adapters.md has the command") from None
    disable_progress_bars()  # there is one for every map of every environment of the pool
    try:
        if FACTORY.fullmatch(preset):
            made = pkgutil.resolve_name(preset)(**kwargs)
        else:
            made = verifiers.load_environment(preset, **kwargs)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"environment.preset={preset!r}: this environment cannot be imported: {error}") from None
    if not isinstance(made, Environment):
        raise ValueError(f"environment.preset={preset!r} made a {type(made).__name__}, not a verifiers.Environment")
    return made
