"""Many requests to a language model at once, which stop soon where nobody answers."""

from __future__ import annotations

import concurrent.futures
import logging
import math
import threading
from collections.abc import Callable, Mapping
from typing import TypeVar

from stepreward.envs.endpoint import EndpointError

_log = logging.getLogger(__name__)
Request = TypeVar("Request")
Answer = TypeVar("Answer")


class Unreachable(Exception):
    """No request got an answer; the message says why."""


class _NotAsked(Exception):
    """A request was not sent, because earlier ones got no answer."""


def ask_all(
    ask: Callable[[Request], Answer], requests: Mapping[str, Request], keep: Callable[[str, Answer], None], *, parallel: int, whom: str
) -> set[str]:
    """Sends requests in threads, and keeps each answer as it comes.

    Args:
      ask: sends one request; raises `EndpointError` if there is no answer.
      requests: by key.
      keep: takes a key and its answer, in the caller's thread.
      parallel: how many requests may wait for an answer at the same time.
      whom: who is asked, for the warning that some did not answer.

    Returns:
      The keys of the requests without an answer, where at least one got an answer.

    Raises:
      Unreachable: no request got an answer. The last ones were then not sent.
    """
    unanswered: dict[str, str] = {}
    todo, answered = dict(requests), False
    while todo:
        stop, left = threading.Event(), {}

        def send(request: Request) -> Answer:
            if stop.is_set():
                raise _NotAsked
            return ask(request)

        with concurrent.futures.ThreadPoolExecutor(parallel, thread_name_prefix="ask") as threads:
            futures = {threads.submit(send, request): key for key, request in todo.items()}
            try:
                for future in concurrent.futures.as_completed(futures):
                    key = futures[future]
                    try:
                        keep(key, future.result())
                        answered = True
                    except _NotAsked:
                        left[key] = todo[key]
                    except EndpointError as error:
                        unanswered[key] = str(error)
                        if not answered and len(unanswered) >= 2 * parallel:
                            stop.set()  # nobody answers
            finally:
                stop.set()
        if unanswered and not answered:
            raise Unreachable(next(iter(unanswered.values())))
        todo = left
    if unanswered:
        _log.warning("%d of %d requests to %s got no answer: %s", len(unanswered), len(requests), whom, next(iter(unanswered.values())))
    return set(unanswered)


def check_endpoint(name: str, group, kinds: tuple[str, ...]) -> None:
    """Checks the config group of somebody who may be a language model behind an address.

    Args:
      name: the group's name.
      group: with kind, url, parallel, retries, timeout_s and temperature.
      kinds: what `kind` may be: one that needs no server, and "endpoint".

    Raises:
      ValueError: a value is not allowed; the message names the key.
    """
    if group.kind not in kinds:
        raise ValueError(f"{name}.kind={group.kind!r} is not one of {', '.join(kinds)}.")
    for key, least in (("parallel", 1), ("retries", 0)):
        if group[key] < least:
            raise ValueError(f"{name}.{key}={group[key]} must be at least {least}.")
    for key, fits in (("timeout_s", 0 < group.timeout_s < math.inf), ("temperature", 0 <= group.temperature < math.inf)):
        if not fits:
            raise ValueError(f"{name}.{key}={group[key]} must be a finite number, {'above' if key == 'timeout_s' else 'at least'} 0.")
    if group.kind == "endpoint" and not group.url.startswith(("http://", "https://")):
        raise ValueError(
            f"{name}.url={group.url!r}: {name}.kind='endpoint' needs the address of an OpenAI-compatible server, up to and including /v1, "
            f"such as http://127.0.0.1:8000/v1; {name}.kind={kinds[0]!r} needs none."
        )
