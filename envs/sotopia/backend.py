"""Loads the package `sotopia` so that it runs offline and silently, and sends its model calls to our endpoints.

This module works around these properties of sotopia 0.1.5: its import creates a storage folder in the home folder and prints;
litellm downloads a price list at import, and its logging task keeps `asyncio.run` from returning; the name of the key's
environment variable is fixed; a partner's failure becomes silence, and a judge's failure becomes scores of 0.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import contextvars
import functools
import importlib
import importlib.metadata
import importlib.util
import io
import logging
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from stepreward.envs.endpoint import Endpoint, EndpointError, words
from stepreward.envs.extras import require

REQUESTS = 64  # maximum number of concurrent requests in one process
_STORAGE = "sotopia.database.storage_backend"


class Call:
    """The endpoint for the package's model calls in the current context, and the error that it raised."""

    def __init__(self, endpoint: Endpoint, accept: Callable[[str], str]):
        self.endpoint, self.accept = endpoint, accept
        self.error: EndpointError | None = None
        self.answered = False


_CALL: contextvars.ContextVar[Call] = contextvars.ContextVar("sotopia_call")
_LOCK = threading.Lock()
_loops: dict[int, tuple[asyncio.AbstractEventLoop, ThreadPoolExecutor]] = {}


def run(coroutine: Coroutine) -> Any:
    """Runs a coroutine on this process's event loop, which has its own thread, and waits for the result."""
    return asyncio.run_coroutine_threadsafe(coroutine, _loop()[0]).result()


async def asked(endpoint: Endpoint, accept: Callable[[str], str], make: Callable[[], Coroutine]) -> Any:
    """Runs a coroutine of the package with its model calls sent to `endpoint`; returns its result or raises the endpoint's error."""
    call = Call(endpoint, accept)
    token = _CALL.set(call)
    try:
        result = await make()
    finally:
        _CALL.reset(token)
    if call.error is not None:
        raise call.error
    if not call.answered:  # the package swallows its own errors, too
        raise RuntimeError(
            "the package sotopia failed before it called its model; install the version in the extra 'sotopia' of this project"
        )
    return result


async def complete(endpoint: Endpoint, messages: list[dict[str, str]], accept: Callable[[str], str] = words) -> str:
    """Calls `endpoint.complete` without blocking the event loop."""
    loop, executor = _loop()
    return await loop.run_in_executor(executor, functools.partial(endpoint.complete, messages, accept))


def check() -> None:
    """Raises ValueError when the extra is not installed; does not import it otherwise."""
    if importlib.util.find_spec("sotopia") is None:
        require("sotopia", "sotopia")


@functools.cache
def package(storage: str | None = None) -> SimpleNamespace:
    """Imports the package; returns its environment, agents, messages, evaluators, profiles, parser and version.

    storage: folder that the package may write to; None makes a temporary one that is removed at exit. Only the first call in
    a process sets it. Raises ValueError when the extra is not installed, or when the package was imported with its Redis storage.
    """
    with _LOCK:
        check()
        os.environ["SOTOPIA_STORAGE_BACKEND"] = "local"
        os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        with contextlib.redirect_stdout(io.StringIO()):
            if _STORAGE not in sys.modules:
                _private_storage(storage)
            require("sotopia", "sotopia.database", "sotopia.envs.parallel")
            names = ("agents", "database", "envs.parallel", "envs.evaluators", "generation_utils.generate", "messages")
            modules = [importlib.import_module(f"sotopia.{name}") for name in names]
        agents, database, parallel, evaluators, generate, messages = modules
        if not database.is_local_backend():
            raise ValueError(
                "the package sotopia was imported with its Redis storage; set SOTOPIA_STORAGE_BACKEND=local before importing it"
            )
        generate.acompletion = _acompletion
        generate.log.setLevel(logging.CRITICAL)
        evaluators.print = lambda *_, **__: None  # it prints errors, which are raised here instead
    return SimpleNamespace(
        agents=agents,
        database=database,
        evaluators=evaluators,
        messages=messages,
        Env=parallel.ParallelSotopiaEnv,
        Parser=generate.PydanticOutputParser,
        version=importlib.metadata.version("sotopia"),
    )


async def _acompletion(*, messages: list[dict[str, str]], **_: Any) -> Any:
    """Replaces litellm's `acompletion`: asks the current endpoint and ignores the package's model, key and format."""
    call = _CALL.get()
    try:
        text = await complete(call.endpoint, messages, call.accept)
    except EndpointError as error:
        call.error = error
        raise
    call.answered = True
    return SimpleNamespace(choices=[SimpleNamespace(message=SimpleNamespace(content=text))])


def _private_storage(storage: str | None) -> None:
    """Loads the package's storage module before the package, with our folder instead of the one in the home folder."""
    if storage is None:
        storage = tempfile.mkdtemp(prefix="sotopia-")
        atexit.register(_remove, storage, os.getpid())
    file = Path(importlib.util.find_spec("sotopia").origin).parent / "database" / "storage_backend.py"
    spec = importlib.util.spec_from_file_location(_STORAGE, file)
    module: ModuleType = importlib.util.module_from_spec(spec)
    sys.modules[_STORAGE] = module
    try:
        spec.loader.exec_module(module)
        module._storage_backend = module.LocalJSONBackend(storage)
    except BaseException:
        del sys.modules[_STORAGE]
        raise


def _remove(folder: str, owner: int) -> None:
    if os.getpid() == owner:  # not in a forked child
        shutil.rmtree(folder, ignore_errors=True)


def _loop() -> tuple[asyncio.AbstractEventLoop, ThreadPoolExecutor]:
    with _LOCK:
        if os.getpid() not in _loops:  # a forked child has no threads of its parent
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="sotopia", daemon=True).start()
            _loops[os.getpid()] = (loop, ThreadPoolExecutor(REQUESTS, thread_name_prefix="sotopia"))
        return _loops[os.getpid()]
