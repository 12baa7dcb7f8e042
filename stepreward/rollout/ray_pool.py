"""Environments on other machines: an actor of a Ray cluster for each slot (the extra `ray`).

For environments that are too heavy for the machines with the accelerators. Every node of the cluster needs this package, the
environment's package and its data. On one machine, use `process_pool`: an actor takes seconds to start, tens of MB, and about ten
times as much CPU for each call.
"""

from __future__ import annotations

import logging
import os
import pickle
import socket
import sys
import time
from collections.abc import Callable

from stepreward.envs.extras import require
from stepreward.envs.protocol import Environment
from stepreward.rollout.environment_host import EnvironmentFailure, RemoteHost, read_answer, time_limit, too_long
from stepreward.rollout.environments import Pool
from stepreward.rollout.process_pool import pickled_factory

CONNECT_S = 5.0


class RayPool(Pool):
    """An actor for each slot, spread over the nodes.

    When an environment fails, its actor is killed and a new one takes its place. Processes that an environment started, and did not
    end in `close`, may outlive an actor that was killed.

    Args:
      factory: makes a fresh environment; picklable, from a module that every node can import.
      timeout_s: seconds that a call may take; then the actor is killed.
      reset_timeout_s: seconds that "reset" or "restore" may take, and starting an actor and making its environment, waiting for
        room on a node included.
      address: the cluster's "HOST:PORT", "auto" for the cluster that this machine belongs to, or "local" to start a cluster on this
        machine that ends with the pool. Empty: the value of RAY_ADDRESS. If this process is in a cluster already, that one is used.
      num_cpus: the share of a core that an actor reserves; steps are short, so many actors share a core.
      grace_s: seconds that environments have to close.

    Raises:
      ValueError: Ray is not installed, there is no address or no cluster there, or the factory cannot be pickled.
    """

    def __init__(
        self,
        factory: Callable[[], Environment],
        *,
        timeout_s: float = 60.0,
        reset_timeout_s: float = 300.0,
        address: str = "",
        num_cpus: float = 0.05,
        grace_s: float = 5.0,
    ):
        super().__init__()
        self._ray = require("ray", "ray")
        self._factory = pickled_factory(factory)
        self._timeout_s, self._reset_timeout_s, self._grace_s = timeout_s, reset_timeout_s, grace_s
        self._address = address
        self._joined = _join(self._ray, address)
        options = {"num_cpus": num_cpus, "max_restarts": 0, "max_task_retries": 0, "scheduling_strategy": "SPREAD"}
        self._actor_class = self._ray.remote(**options)(RemoteHost)
        self._actors: dict[int, object] = {}
        self._waiting: dict[object, tuple[int, list[tuple], float, float]] = {}  # an actor's answer -> (slot, steps, deadline, limit)
        self._found: dict[int, list | EnvironmentFailure] = {}

    def close(self) -> None:
        """Closes every environment, ends the actors, and leaves the cluster if the pool had joined it."""
        if self._actors and self._ray.is_initialized():
            closing = [actor.close.remote() for actor in self._actors.values()]
            self._ray.wait(closing, num_returns=len(closing), timeout=self._grace_s)
            for slot in list(self._actors):
                self._drop(slot)
        self._actors.clear()
        if self._joined:
            self._ray.shutdown()
            self._joined = False

    def _send(self, slot, todo):
        if not self._ray.is_initialized():
            self._joined = _join(self._ray, self._address)
        limit = time_limit(todo, slot not in self._actors, self._timeout_s, self._reset_timeout_s)
        try:
            self._waiting[self._request(slot, todo)] = slot, todo, time.monotonic() + limit, limit
        except Exception as error:  # the call cannot be pickled, or the cluster refuses the actor
            self._drop(slot)
            self._found[slot] = EnvironmentFailure(f"{type(error).__name__}: {error}")

    def _take(self, wait):
        while self._waiting:
            first = min(deadline for _, _, deadline, _ in self._waiting.values())
            patience = max(0.0, first - time.monotonic()) if wait and not self._found else 0.0
            self._ray.wait(list(self._waiting), num_returns=1, timeout=patience)
            for answer in self._ray.wait(list(self._waiting), num_returns=len(self._waiting), timeout=0)[0]:
                slot = self._waiting.pop(answer)[0]
                self._found[slot] = self._read(slot, answer)
            now = time.monotonic()
            for answer, (slot, todo, deadline, limit) in list(self._waiting.items()):
                if deadline <= now:
                    del self._waiting[answer]
                    self._drop(slot)
                    self._found[slot] = too_long(todo, limit)
            if self._found or not wait:
                break
        found, self._found = self._found, {}
        return found

    def _drop_all(self, slots):
        self._waiting.clear()
        self._found.clear()
        for slot in slots:
            self._drop(slot)

    def _request(self, slot: int, steps):
        request = pickle.dumps(steps, protocol=5)
        if slot not in self._actors:
            self._actors[slot] = self._actor_class.remote(self._factory)
        return self._actors[slot].answer.remote(request)

    def _read(self, slot: int, answer) -> list | EnvironmentFailure:
        try:
            return read_answer(self._ray.get(answer))
        except EnvironmentFailure as failure:
            self._drop(slot)
            return failure
        except self._ray.exceptions.RayError as error:
            self._drop(slot)
            return EnvironmentFailure(f"its process died: {_cause(error)}")

    def _drop(self, slot: int) -> None:
        actor = self._actors.pop(slot, None)
        if actor is None:
            return
        try:
            self._ray.kill(actor)
        except self._ray.exceptions.RayError:
            pass  # it never was


def _join(ray, address: str) -> bool:
    """Joins the cluster; returns False if this process is in a cluster already."""
    if ray.is_initialized():
        return False
    address = address or os.environ.get("RAY_ADDRESS", "")
    if not address:
        raise ValueError("no Ray cluster is named: give its address HOST:PORT, 'auto' for the one of this machine, or 'local' to start one")
    if address not in ("auto", "local"):
        _knock(address)
    own = {}
    if address == "local":  # other nodes have paths of their own
        own = {"include_dashboard": False, "runtime_env": {"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path)}}}
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False, logging_level=logging.ERROR, **own)
    except Exception as error:
        first = str(error).strip().partition("\n")[0]
        raise ValueError(f"the Ray cluster at {address!r} cannot be joined: {first}") from error
    return True


def _knock(address: str) -> None:
    """Raises ValueError if nothing listens there. Ray itself would try for minutes, and could then end the process."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"the address of a Ray cluster is HOST:PORT, 'auto' or 'local', not {address!r}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except OSError as error:
        raise ValueError(f"no Ray cluster answers at {address!r}: {error}") from None


def _cause(error: Exception) -> str:
    """The sentence of Ray's report that gives the reason."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "because" in line or "exit" in line.lower()), lines[0] if lines else repr(error))
