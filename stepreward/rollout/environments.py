"""Pools of environments: one environment in each slot, called in rounds.

An environment that raises, or that cannot be made, fails its own call only. The environment is dropped, and the slot's next call makes a
fresh one.

    with make_pool("process", sokoban.make("tiny"), timeout_s=10, reset_timeout_s=60) as pool:
        pool.call(0, "reset", seed=7)  # one call: its result, or EnvironmentFailure raised
        pool.call_all([Call(0, "step", ("up",)), Call(1, "reset")])  # one round: a list of results and EnvironmentFailures
        pool.call_all([[Call(0, "step", ("up",)), Call(0, "distance")]])  # several calls of a slot, one round trip: [[…, …]]
        pool.begin([Call(0, "step", ("up",))])  # starts a call and does not wait for it
        pool.arrived()  # {0: …}: what has been returned since

There are four kinds of pools with the same interface, see `pools.make_pool`. The two in this module run environments in this process. A
pool must be used from one thread only.
"""

from __future__ import annotations

import abc
import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from types import MappingProxyType
from typing import Any, NamedTuple

from stepreward.envs.protocol import Environment
from stepreward.errors import is_expected
from stepreward.rollout.environment_host import EnvironmentFailure, EnvironmentHost

__all__ = ["Call", "EnvironmentFailure", "EnvironmentPool", "Pool", "ThreadPool"]

_log = logging.getLogger(__name__)

_THREADS = 64  # the most calls of a round that a `ThreadPool` makes at the same time


class Call(NamedTuple):
    """A call of a slot's environment: `environment.method(*args, **kwargs)`. The name of a plain attribute reads that attribute."""

    slot: int
    method: str
    args: tuple = ()
    kwargs: Mapping[str, Any] = MappingProxyType({})


class Pool(abc.ABC):
    """The interface of all pools.

    Attributes:
      failures: number of calls that have failed so far.
      rounds: number of rounds of calls so far.
    """

    def __init__(self):
        self.failures = 0
        self.rounds = 0
        self._alone: dict[int, bool] = {}  # slot of a call that was begun -> whether it was a `Call` by itself

    def capabilities(self) -> frozenset[str]:
        """What the environments declare.

        Raises:
          ValueError: no environment can be made; the message says why.
        """
        found = self.call_all([Call(0, "capabilities")])[0]
        if isinstance(found, EnvironmentFailure):
            raise ValueError(f"no environment can be made: {found}")
        return found

    def name(self) -> str:
        """The class of the environments, for messages."""
        return re.sub(r"^<(?:.*\.)?(\w+) object at \w+>$", r"\1", str(self.call_all([Call(0, "__str__")])[0]))

    def call(self, slot: int, method: str, *args, **kwargs):
        """Calls a method of the slot's environment and returns its result.

        Raises:
          EnvironmentFailure: see `call_all`.
        """
        found = self.call_all([Call(slot, method, args, kwargs)])[0]
        if isinstance(found, EnvironmentFailure):
            raise found
        return found

    def call_all(self, calls: Sequence[Call | Sequence[Call]]) -> list:
        """Makes one round of calls to distinct slots, at the same time if the kind of pool can.

        Args:
          calls: each item is a `Call`, or a list of calls to one slot, which are made one after the other in a single round trip.

        Returns:
          In the order of `calls`, the result of each item (a list of results for a list of calls), or an `EnvironmentFailure`: the
          environment could not be made, raised, died, took too long, lacks the method, or returned what cannot be sent. A list of
          calls stops at its first failure, which replaces all of its results. The slot's next call makes a fresh environment, which
          must be reset.

        Raises:
          ValueError: a slot is named twice, or a list of calls is empty or names several slots.
        """
        if self._alone:
            raise ValueError("calls that `begin` has started are still running: take their results first, or abandon them")
        found: dict[int, Any] = {}
        slots = self.begin(calls)
        while self._alone:
            found |= self.arrived()
        return [found[slot] for slot in slots]

    def begin(self, calls: Sequence[Call | Sequence[Call]]) -> list[int]:
        """Starts calls without waiting for them; `arrived` returns their results.

        Args:
          calls: as in `call_all`. A slot must not be busy with an earlier call.

        Returns:
          The slot of each item.

        Raises:
          ValueError: a slot is named twice or is busy, or a list of calls is empty or names several slots.
        """
        slots, steps = _by_slot(calls)
        if busy := sorted(self._alone.keys() & set(slots)):
            raise ValueError(f"the slot {busy[0]} is busy: take the result of its call first")
        self.rounds += 1
        try:
            for slot, call, todo in zip(slots, calls, steps, strict=True):
                self._alone[slot] = isinstance(call, Call)
                self._send(slot, todo)
        except BaseException:
            self.abandon()
            raise
        return slots

    def arrived(self, *, wait: bool = True) -> dict[int, Any]:
        """Returns the results that have arrived, by slot; with `wait`, at least one if any slot is busy.

        A result is as in `call_all`: one, or a list of them for a list of calls, or an `EnvironmentFailure`.
        """
        if not self._alone:
            return {}
        try:
            found = self._take(wait)
        except BaseException:
            self.abandon()
            raise
        failures = Counter(f"{x}{x.where and f' ({x.where})'}" for x in found.values() if isinstance(x, EnvironmentFailure))
        self.failures += failures.total()
        for failure, times in failures.items():
            _log.warning("%s failed: %s", "environment" if times == 1 else f"{times} environments", failure)
        return {slot: x[0] if self._alone.pop(slot) and not isinstance(x, EnvironmentFailure) else x for slot, x in found.items()}

    def abandon(self) -> None:
        """Gives up all calls that are still running, as an interrupt must: a later call would take their answers for its own."""
        slots, self._alone = list(self._alone), {}
        self._drop_all(slots)

    @abc.abstractmethod
    def _send(self, slot: int, todo: list[tuple]) -> None:
        """Starts the steps `(method, args, kwargs)` of a slot."""

    @abc.abstractmethod
    def _take(self, wait: bool) -> dict[int, list | EnvironmentFailure]:
        """The lists of results, or failures, of the slots that have ended since; with `wait`, at least one."""

    @abc.abstractmethod
    def _drop_all(self, slots: list[int]) -> None:
        """Ends the environments of slots whose calls may still run."""

    @abc.abstractmethod
    def close(self) -> None:
        """Closes every environment. A closed pool can be called again, and then makes fresh environments."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class EnvironmentPool(Pool):
    """Environments in this process, called in a loop: the fastest pool if a step takes microseconds.

    There is no time limit. An environment that hangs or crashes hangs or crashes the process.

    Args:
      factory: makes a fresh environment.
    """

    def __init__(self, factory: Callable[[], Environment]):
        super().__init__()
        self._factory = factory
        self._hosts: list[EnvironmentHost] = []
        self._found: dict[int, list | EnvironmentFailure] = {}

    def capabilities(self) -> frozenset[str]:
        """What the environments declare.

        Raises:
          ValueError: no environment can be made, or it declares no set of names. An error that already explains itself to the user
            (`errors.is_expected`) is raised as it is.
        """
        try:
            return self._host(0).environment().capabilities
        except (Exception, SystemExit) as error:
            if is_expected(error):
                raise
            failure = error if isinstance(error, EnvironmentFailure) else f"{type(error).__name__}: {error}"
            raise ValueError(f"no environment can be made: {failure}") from error

    def close(self) -> None:
        """Closes every environment."""
        for host in self._hosts:
            host.close()

    def _send(self, slot, todo):
        self._found[slot] = _run(self._host(slot), todo)

    def _take(self, wait):
        found, self._found = self._found, {}
        return found

    def _drop_all(self, slots):
        self._found.clear()
        for slot in slots:
            self._hosts[slot].close()

    def _host(self, slot: int) -> EnvironmentHost:
        while len(self._hosts) <= slot:
            self._hosts.append(EnvironmentHost(self._factory))
        return self._hosts[slot]


class ThreadPool(EnvironmentPool):
    """Environments in this process, with a thread for each call of a round: for environments that wait for a server.

    There is no time limit other than the environment's own.
    """

    def __init__(self, factory: Callable[[], Environment]):
        super().__init__(factory)
        self._threads = ThreadPoolExecutor(max_workers=_THREADS, thread_name_prefix="environment")
        self._running: dict[Future, int] = {}

    def close(self) -> None:
        """Closes every environment."""
        self._threads.shutdown(wait=True)
        self._threads = ThreadPoolExecutor(max_workers=_THREADS, thread_name_prefix="environment")
        super().close()

    def _send(self, slot, todo):
        self._running[self._threads.submit(_run, self._host(slot), todo)] = slot

    def _take(self, wait):
        done = wait_for(self._running, None if wait else 0, FIRST_COMPLETED).done
        return {self._running.pop(future): future.result() for future in done}

    def _drop_all(self, slots):
        for future, slot in self._running.items():
            if future.cancel() or future.done():
                self._hosts[slot].close()
            else:  # a thread still uses the old one
                self._hosts[slot] = EnvironmentHost(self._factory)
        self._running.clear()


def _run(host: EnvironmentHost, todo: list[tuple]):
    try:
        return host.run(todo)
    except EnvironmentFailure as failure:
        return failure


def _by_slot(calls) -> tuple[list[int], list[list[tuple]]]:
    slots, steps = [], []
    for call in calls:
        group = [call] if isinstance(call, Call) else list(call)
        if len({one.slot for one in group}) != 1:
            raise ValueError("a list of calls must name one slot, and hold at least one call")
        slots.append(group[0].slot)
        steps.append([(one.method, tuple(one.args), dict(one.kwargs)) for one in group])
    if len(set(slots)) < len(slots):
        raise ValueError("a slot can be called once a round: put its calls into one list")
    return slots, steps
