"""Environments in their own processes: slow ones run at the same time, and one that hangs or crashes costs one call.

A process is forked when its slot is first called. It is forked from a server that has imported the environment's module
(`fork_server`), so it starts in milliseconds and shares the module's memory. When an environment fails, its process ends and a new
one takes its place.

gymnasium's `AsyncVectorEnv` cannot be used here. It steps all environments or none, but episodes end at different turns. If one
environment raises or is late, all answers are lost, and the vector keeps a closed pipe, or an answer that is taken for the answer of
the next call.
"""

from __future__ import annotations

import errno
import os
import pickle
import selectors
import signal
import socket
import struct
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import NamedTuple

from stepreward.envs.protocol import Environment
from stepreward.rollout.environment_host import EnvironmentFailure, read_answer, time_limit, too_long
from stepreward.rollout.environments import Pool
from stepreward.rollout.fork_server import HEAD, KILL_S, RECORD

DEATH_S = 5.0  # for the server to say how a child died whose connection is gone
# Threads of the numeric libraries: environments share the cores already, and a thread does not survive a fork.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class ProcessPool(Pool):
    """A process for each slot; on Linux and macOS.

    No process outlives the pool, whether it ends by `close`, an interrupt, the end of the interpreter, or because its process is killed.
    The child processes of an environment end with it, unless they made their own session; the environment's `close` must end those.

    Args:
      factory: makes a fresh environment; picklable, from a module that can be imported (not the main script).
      timeout_s: wall-clock seconds that a call may take; then the process is killed.
      reset_timeout_s: seconds that "reset" or "restore" may take, and starting a process and making its environment.
      grace_s: seconds that an environment has to close.
      output: a file; what the environments print is appended to it.

    Raises:
      ValueError: the factory cannot be pickled.
    """

    def __init__(
        self,
        factory: Callable[[], Environment],
        *,
        timeout_s: float = 60.0,
        reset_timeout_s: float = 300.0,
        grace_s: float = 5.0,
        output: str = os.devnull,
    ):
        super().__init__()
        self._factory = pickled_factory(factory)
        self._timeout_s, self._reset_timeout_s, self._grace_s, self._output = timeout_s, reset_timeout_s, grace_s, output
        self._server: _Server | None = None
        self._children: dict[int, _Child] = {}  # slot -> its process
        self._waiting: dict[int, _Waiting] = {}  # slot -> the call that it has not answered
        self._found: dict[int, list | EnvironmentFailure] = {}

    def close(self) -> None:
        """Closes every environment and waits until all processes are gone."""
        for slot in list(self._children):
            self._drop(slot)
        if self._server is not None:
            self._server.close()
            self._server = None

    def _send(self, slot, todo):
        try:
            self._waiting[slot] = _Waiting(todo, *self._request(slot, todo))
        except EnvironmentFailure as failure:
            self._found[slot] = failure

    def _take(self, wait):
        while self._waiting:
            self._receive(wait and not self._found)
            now = time.monotonic()
            for slot in [slot for slot, one in self._waiting.items() if one.deadline <= now]:
                late = self._waiting.pop(slot)
                self._found[slot] = too_long(late.todo, late.limit)
                server = self._children[slot].server
                if not server.up:  # it hangs in the import of the environment's module
                    server.kill()
                self._drop(slot, after=0.0)
            if self._found or not wait:
                break
        found, self._found = self._found, {}
        return found

    def _drop_all(self, slots):
        self._waiting.clear()
        self._found.clear()
        for slot in slots:
            self._drop(slot, after=0.0)

    def _request(self, slot: int, steps) -> tuple[float, float]:
        """Starts a round trip; returns its deadline and limit."""
        fresh = slot not in self._children
        try:
            request = pickle.dumps(steps, protocol=5)
            if fresh:
                self._start(slot)
        except Exception as error:
            self._drop(slot)
            raise EnvironmentFailure(f"{type(error).__name__}: {error}") from error
        limit = time_limit(steps, fresh, self._timeout_s, self._reset_timeout_s)
        child = self._children[slot]
        child.limit_blocking(limit)
        try:
            child.connection.send_bytes(request)
        except BlockingIOError:
            self._drop(slot, after=0.0)
            raise too_long(steps, limit) from None
        except OSError:
            raise self._died(slot) from None
        return time.monotonic() + limit, limit

    def _receive(self, wait: bool) -> None:
        """Takes the answers that have arrived; with `wait`, waits for one, or until the first deadline."""
        waiting = self._waiting
        heard = [slot for slot in waiting if self._children[slot].gone]
        if not heard:
            patience = min(one.deadline for one in waiting.values()) - time.monotonic() if wait else 0.0
            for key, _ in self._server.selector.select(max(0.0, patience)):
                if key.data is None:
                    self._server.listen()
                elif key.data in waiting:
                    heard.append(key.data)
                else:  # the process died between two calls; the next call fails
                    self._server.selector.unregister(key.fileobj)
                    self._children[key.data].watched = False
        for slot in heard:
            del waiting[slot]
            self._found[slot] = self._answer(slot)

    def _answer(self, slot: int) -> list | EnvironmentFailure:
        child = self._children[slot]
        try:
            if child.gone and not child.connection.poll():
                return self._died(slot)  # a process that it started keeps the connection open
            return read_answer(child.connection.recv_bytes())
        except BlockingIOError:
            self._drop(slot, after=0.0)
            return EnvironmentFailure("it stopped in the middle of an answer")
        except (EOFError, OSError):
            return self._died(slot)
        except EnvironmentFailure as failure:
            self._drop(slot)
            return failure

    def _died(self, slot: int) -> EnvironmentFailure:
        """The failure of a slot whose connection is closed."""
        child = self._children[slot]
        deadline = time.monotonic() + DEATH_S
        while not child.gone and child.server.listen(max(0.0, deadline - time.monotonic())):
            pass
        self._drop(slot, after=0.0)
        return EnvironmentFailure(child.gone or "its process closed its connection")

    def _start(self, slot: int) -> None:
        if self._server is not None and self._server.gone:
            self._server.close()
            self._server = None
        if self._server is None:
            self._server = _Server(self._factory, self._grace_s, self._output)
        self._children[slot] = self._server.fork(slot)

    def _drop(self, slot: int, after: float | None = None) -> None:
        """Ends a slot's process: kills it after `after` seconds if it has not ended by itself."""
        child = self._children.pop(slot, None)
        if child is not None:
            child.server.end(child, self._grace_s if after is None else after)


class _Waiting(NamedTuple):
    """A call without an answer: its steps, when it must end, and how many seconds it had."""

    todo: list[tuple]
    deadline: float
    limit: float


@dataclass
class _Child:
    """A process. `gone` says how it died, as soon as that is known."""

    number: int
    server: _Server
    connection: Connection
    gone: str = ""
    watched: bool = True
    _limit: float = field(default=0.0)

    def limit_blocking(self, limit: float) -> None:
        """Makes reads and writes of the connection raise BlockingIOError if they stall for `limit` seconds."""
        if limit == self._limit:
            return
        self._limit = limit
        value = struct.pack("ll", int(limit), int(limit % 1 * 1e6) or int(limit < 1))
        with socket.socket(fileno=os.dup(self.connection.fileno())) as same:
            same.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)
            same.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)


class _Server:
    """A fork server, as its pool sees it.

    Attributes:
      selector: watches the server's records (data None) and the connections of its children (data: the slot).
      up: whether the server has imported the environment's module.
      gone: how the server died, and all its children with it; empty while it lives.
    """

    def __init__(self, factory: bytes, grace_s: float, output: str):
        self.up, self.gone, self._closed = False, "", False
        self.selector = selectors.DefaultSelector()
        self._control, far = socket.socketpair()
        self._children: dict[int, _Child] = {}  # by number; removed when it is known how they died
        self._started, self._buffer = 0, b""
        paths = [str(path) for path in sys.path]
        code = f"import sys; sys.path[:] = {paths!r}; from stepreward.rollout.fork_server import main; main({far.fileno()})"
        with far, open(output, "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                pass_fds=[far.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=ONE_THREAD | os.environ,
            )
        self._open: dict[int, Connection] = {}
        self._closer = weakref.finalize(self, _finish, self._open, self._control, self._process, grace_s + KILL_S + DEATH_S)
        self.selector.register(self._control, selectors.EVENT_READ, None)
        self._send(HEAD.pack(len(factory), grace_s) + factory)

    def fork(self, slot: int) -> _Child:
        """A fresh process for a slot."""
        near, far = socket.socketpair()
        self._started += 1
        child = self._children[self._started] = _Child(self._started, self, Connection(near.detach()))
        self._open[child.number] = child.connection
        self.selector.register(child.connection, selectors.EVENT_READ, slot)
        with far:
            self._send(RECORD.pack(b"S", child.number, 0.0), far.fileno())
        child.gone = child.gone or self.gone
        return child

    def end(self, child: _Child, after: float) -> None:
        """Closes the connection, and asks the server to kill the process after `after` seconds if it has not ended by itself."""
        if child.watched and not self._closed:
            self.selector.unregister(child.connection)
        self._open.pop(child.number).close()
        if not child.gone:
            self._send(RECORD.pack(b"E", child.number, after))

    def listen(self, timeout_s: float = 0.0) -> bool:
        """Reads the records that have arrived; returns False if none arrived in time."""
        if self.gone:
            return False
        self._control.settimeout(timeout_s)
        try:
            new = self._control.recv(1 << 16)
        except (TimeoutError, BlockingIOError):
            return False
        except OSError:
            new = b""
        finally:
            self._control.settimeout(None)
        if not new:
            self._lose()
            return True
        self._buffer += new
        while len(self._buffer) >= RECORD.size:
            kind, number, value = RECORD.unpack_from(self._buffer)
            self._buffer = self._buffer[RECORD.size :]
            if kind == b"U":
                self.up = True
                continue
            child = self._children.pop(number)
            child.gone = _death(int(value)) if kind == b"D" else f"no process could be started: {os.strerror(int(value))}"
        return True

    def kill(self) -> None:
        """Ends the server and its children at once."""
        self._lose()

    def close(self) -> None:
        """Closes the connections and waits until the server and all its children have ended."""
        self._closer()
        self.selector.close()
        self._closed = True

    def _send(self, data: bytes, handle: int | None = None) -> None:
        try:
            if handle is None:
                self._control.sendall(data)
            else:
                socket.send_fds(self._control, [data], [handle])
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.ECONNRESET, errno.EBADF):
                raise
            self._lose()
        self.listen()  # otherwise each end could fill the other's buffer and wait for it

    def _lose(self) -> None:
        if self.gone:
            return
        self._process.kill()
        self.gone = f"its process died: the server that it was forked from did ({_code(self._process.wait())})"
        self.selector.unregister(self._control)
        for child in self._children.values():
            child.gone = self.gone
        self._children.clear()


def pickled_factory(factory: Callable[[], Environment]) -> bytes:
    """Pickles the factory for another process.

    Raises:
      ValueError: the factory cannot be pickled, or only this process could unpickle it.
    """
    try:
        data = pickle.dumps(factory, protocol=5)
    except Exception as error:
        raise ValueError(f"environments in other processes need a factory that can be pickled, no lambda: {error}") from error
    if b"__main__" in data:
        raise ValueError("environments in other processes need a factory from a module that they can import, not the main script")
    return data


def _finish(connections: dict, control: socket.socket, process: subprocess.Popen, patience_s: float) -> None:
    for connection in connections.values():
        connection.close()
    control.close()
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:  # the server itself hangs
        process.kill()
        process.wait()


def _death(status: int) -> str:
    return f"its process died ({_code(os.waitstatus_to_exitcode(status))})"


def _code(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"
