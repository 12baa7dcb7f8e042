"""The server that environments are forked from. It has imported their module but not jax, and it ends its children.

It is a separate process, since a process with jax's threads must not fork. `multiprocessing`'s fork server is not used, since its
children import the main script again, and jax with it, and since an environment that hangs outlives a parent that is killed. Here one
rule ends everything. When the pool's end of the control socket closes, by `close()` or because the pool's process has ended, each child
has `grace_s` seconds to end by itself. Then its process group gets SIGTERM, and SIGKILL `KILL_S` seconds later. Then the server ends.

Records on the control socket are `RECORD`: a letter, the child's number, a value.
* To the server: S forks a child (sent with the child's end of a socket pair), E ends the child after `value` seconds.
* From the server: U says that the environment's module is imported, D that the child died (the value is its wait status), F that a fork
  failed (the value is the errno).
"""

from __future__ import annotations

import ctypes
import gc
import os
import pickle
import selectors
import signal
import socket
import struct
import sys
import time
from multiprocessing.connection import Connection

from stepreward.rollout.environment_host import RemoteHost

RECORD = struct.Struct("<cqd")
HEAD = struct.Struct("<qd")  # length of the pickled factory that follows it, grace_s
KILL_S = 1.0  # seconds between SIGTERM and SIGKILL
_SET_PDEATHSIG = 1


def main(descriptor: int) -> None:
    """Serves the control socket `descriptor` until its other end closes. In a child it returns when the child is done."""
    control = socket.socket(fileno=descriptor)
    length, grace_s = HEAD.unpack(_read(control, HEAD.size))
    factory = _read(control, length)
    # A job's manager may send SIGTERM to all processes of a job while the main process saves. Children end when their sockets close, so
    # these signals do nothing. They have empty handlers, since programs that an environment starts would inherit ignored signals.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, _nothing)
    try:
        pickle.loads(factory)
    except BaseException:  # each child raises it again and reports it
        pass
    gc.collect()
    gc.freeze()  # keeps pages shared, since the collector no longer writes to them
    control.sendall(RECORD.pack(b"U", 0, 0.0))
    connection = _Server(control, grace_s).run()
    if connection is not None:
        _serve(connection, factory)


class _Server:
    """Forks, ends and reaps children.

    A child is reaped only after its process group has been killed, so its number cannot belong to another process by then.
    """

    def __init__(self, control: socket.socket, grace_s: float):
        self._control, self._grace = control, grace_s
        self._pids: dict[int, int] = {}  # child's number -> process
        self._ends: dict[int, tuple[float, int]] = {}  # child's number -> when it gets which signal
        self._wake = os.pipe()
        for end in self._wake:
            os.set_blocking(end, False)
        signal.set_wakeup_fd(self._wake[1], warn_on_full_buffer=False)

    def run(self) -> Connection | None:
        """Returns None when the server is done; in a child, returns the child's connection."""
        open_ = True
        with selectors.DefaultSelector() as selector:
            selector.register(self._control, selectors.EVENT_READ)
            selector.register(self._wake[0], selectors.EVENT_READ)
            while open_ or self._pids:
                due = min((when for when, _ in self._ends.values()), default=None)
                ready = {key.fd for key, _ in selector.select(None if due is None else max(0.0, due - time.monotonic()))}
                if self._wake[0] in ready:
                    os.read(self._wake[0], 4096)
                if open_ and self._control.fileno() in ready:
                    found = self._listen()
                    if isinstance(found, Connection):
                        return found
                    if not found:
                        open_ = False
                        selector.unregister(self._control)
                        for child in self._pids:
                            self._end(child, self._grace)
                self._signal()
                self._reap()
        return None

    def _listen(self) -> bool | Connection:
        """Reads one record. Returns False if the pool has closed its end, and in a new child the child's connection."""
        try:
            record, handles, _, _ = socket.recv_fds(self._control, RECORD.size, 1)
        except ConnectionError:
            return False
        if not record:
            return False
        kind, child, value = RECORD.unpack(record)
        if kind == b"E":
            self._end(child, value)
            return True
        try:
            pid = os.fork()
        except OSError as error:
            self._tell(b"F", child, error.errno)
        else:
            if not pid:
                return self._become_child(handles[0])
            self._pids[child] = pid
        os.close(handles[0])
        return True

    def _become_child(self, handle: int) -> Connection:
        os.setsid()  # its own process group, which can be killed as a whole, and which a terminal's Ctrl-C does not reach
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for descriptor in (*self._wake, self._control.detach()):
            os.close(descriptor)
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_SET_PDEATHSIG, signal.SIGKILL)  # if the server is killed
            _write("/proc/self/oom_score_adj", "500")  # if memory runs out, Linux kills this process before the trainer
        return Connection(handle)

    def _end(self, child: int, after: float) -> None:
        if child in self._pids:
            when = time.monotonic() + after
            self._ends[child] = min(self._ends.get(child, (when, signal.SIGTERM)), (when, signal.SIGTERM))

    def _signal(self) -> None:
        now = time.monotonic()
        for child, (when, number) in list(self._ends.items()):
            if when <= now:
                _kill(self._pids[child], number)
                if number == signal.SIGTERM:
                    self._ends[child] = (now + KILL_S, signal.SIGKILL)
                else:
                    del self._ends[child]

    def _reap(self) -> None:
        for child, pid in list(self._pids.items()):
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                continue
            _kill(pid, signal.SIGKILL)  # processes that it started and did not end
            self._tell(b"D", child, os.waitpid(pid, 0)[1])
            del self._pids[child]
            self._ends.pop(child, None)

    def _tell(self, kind: bytes, child: int, value: int) -> None:
        try:
            self._control.sendall(RECORD.pack(kind, child, float(value)))
        except OSError:
            pass  # the pool has closed its end


def _serve(connection: Connection, factory: bytes) -> None:
    """Answers requests in a child until the pool closes the connection or the environment fails."""
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()  # otherwise all children would draw the same numbers
    host = RemoteHost(factory)
    try:
        while not host.failed:
            connection.send_bytes(host.answer(connection.recv_bytes()))
    except (EOFError, OSError):
        pass
    finally:
        host.close()


def _kill(pid: int, number: int) -> None:
    for kill in (os.killpg, os.kill):  # the second is for a child that has not made its group yet
        try:
            return kill(pid, number)
        except (ProcessLookupError, PermissionError):
            continue


def _read(control: socket.socket, size: int) -> bytes:
    parts = []
    while size:
        part = control.recv(min(size, 1 << 20))
        if not part:
            sys.exit()
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _write(path: str, text: str) -> None:
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(text)
    except OSError:
        pass


def _nothing(*_) -> None:
    pass
