"""The socket of a local web server."""

from __future__ import annotations

import errno
import socket

from stepreward.errors import UserError


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
