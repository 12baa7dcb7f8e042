"""The package `sotopia`, loaded so that it runs offline and quietly, and its model calls led to our endpoints.

Facts of sotopia 0.1.5 that this deals with: importing it makes its storage under the home folder and prints; litellm fetches a
price list at import, and its logging task keeps `asyncio.run` from returning; the key is taken from a fixed variable; failures
of a partner become silence and those of a judge become scores of 0.
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

from stepreward.envs.extras import require
from stepreward.envs.sotopia.endpoint import Endpoint, EndpointError, words

REQUESTS = 64  # requests under way at once in one process
_STORAGE = "sotopia.database.storage_backend"


class Call:
    """The endpoint that the package's model calls go to in the current context, and what it raised."""

    def __init__(self, endpoint: Endpoint, accept: Callable[[str], str]):
        self.endpoint, self.accept = endpoint, accept
        self.error: EndpointError | None = None
        self.answered = False


_CALL: contextvars.ContextVar[Call] = contextvars.ContextVar("sotopia_call")
_LOCK = threading.Lock()
_loops: dict[int, tuple[asyncio.AbstractEventLoop, ThreadPoolExecutor]] = {}


def run(coroutine: Coroutine) -> Any:
    """Runs a coroutine on the one event loop of this process, which lives in a thread of its own, and waits for its result."""
    return asyncio.run_coroutine_threadsafe(coroutine, _loop()[0]).result()


async def asked(endpoint: Endpoint, accept: Callable[[str], str], make: Callable[[], Coroutine]) -> Any:
    """The result of a coroutine of the package whose model calls go to `endpoint`; raises that endpoint's error."""
    call = Call(endpoint, accept)
    token = _CALL.set(call)
    try:
        result = await make()
    finally:
        _CALL.reset(token)
    if call.error is not None:
        raise call.error
    if not call.answered:  # the package turns errors of its own into silence, too
        raise RuntimeError("the package sotopia failed before it asked its model; is it a version that this was written for?")
    return result


async def complete(endpoint: Endpoint, messages: list[dict[str, str]], accept: Callable[[str], str] = words) -> str:
    """`endpoint.complete` without holding the event loop."""
    loop, executor = _loop()
    return await loop.run_in_executor(executor, functools.partial(endpoint.complete, messages, accept))


def check() -> None:
    """Raises ValueError when the extra is not installed; imports nothing else of it."""
    if importlib.util.find_spec("sotopia") is None:
        require("sotopia", "sotopia")


@functools.cache
def package(storage: str | None = None) -> SimpleNamespace:
    """What is used of the package: its environment, agents, messages, evaluators, profiles, parser and version.

    storage: folder that it may write to; None makes a temporary one that goes with the process. The first call of a process
    decides. Raises ValueError when the extra is not installed, or the package is in use with Redis already.
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
            raise ValueError("sotopia was imported with its Redis storage: import it with SOTOPIA_STORAGE_BACKEND=local")
        generate.acompletion = _acompletion
        generate.log.setLevel(logging.CRITICAL)
        evaluators.print = lambda *_, **__: None  # it prints what went wrong; here it is raised
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
    """Stands in for litellm's: the current endpoint is asked, whatever model, key and format the package names."""
    call = _CALL.get()
    try:
        text = await complete(call.endpoint, messages, call.accept)
    except EndpointError as error:
        call.error = error
        raise
    call.answered = True
    return SimpleNamespace(choices=[SimpleNamespace(message=SimpleNamespace(content=text))])


def _private_storage(storage: str | None) -> None:
    """Loads the package's storage module before the package, and gives it our folder instead of the one under the home folder."""
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
