"""A local web server: its socket, and how it starts and stops."""

from __future__ import annotations

import contextlib
import errno
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

from stepreward.errors import Terminated, UserError


def listen(host: str, port: int) -> tuple[socket.socket, str]:
    """Opens a socket that listens on an address.

    Args:
      host: a name or an IP address.
      port: 0 takes a free one.

    Returns:
      The socket, and its address as `http://host:port`.

    Raises:
      UserError: the address cannot be listened on.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(256)
        except BaseException:
            listening.close()
            raise
    except (OSError, OverflowError) as error:
        hint = "; --port=0 takes a free port" if getattr(error, "errno", None) == errno.EADDRINUSE else ""
        raise UserError(f"cannot listen on --host={host} --port={port}: {getattr(error, 'strerror', None) or error}{hint}") from None
    host, port = listening.getsockname()[:2]
    return listening, f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def web_server(application: Any, grace_s: int = 1) -> Any:
    """Returns a `uvicorn.Server` of an ASGI application that prints nothing and trusts no proxy.

    Args:
      grace_s: seconds that running requests get to finish when the server is asked to stop.
    """
    import uvicorn

    config = uvicorn.Config(
        application,
        lifespan="off",
        log_level="critical",
        access_log=False,
        ws="none",
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=grace_s,
    )
    return uvicorn.Server(config)


def stop_on_sigterm() -> None:
    """Lets SIGTERM raise `Terminated` in the main thread. uvicorn handles SIGINT and SIGTERM, and raises them again after it has stopped."""

    def stop(*_):
        raise Terminated

    signal.signal(signal.SIGTERM, stop)


@contextlib.contextmanager
def in_thread(server: Any, listening: socket.socket, name: str) -> Iterator[None]:
    """Runs a server in a thread of this process for the duration of the block."""
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name=name)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()
