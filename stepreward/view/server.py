"""The viewer's web server. It reads only the runs that it was started with, and only tells this machine's browser by default.

GET /    GET /api/state    /api/curves?key=K&key=…    /api/index?run=R    /api/episodes?run=R&of=FILE/NUMBER&of=…    /api/tree?run=R&file=F
/api/details?run=R
"""

from __future__ import annotations

import contextlib
import importlib.util
import ipaddress
import os
import socket
import sys
import threading
import traceback
import webbrowser
from collections.abc import Iterator

from stepreward.envs.extras import install_command
from stepreward.errors import UserError
from stepreward.listening import in_thread, listen, stop_on_sigterm, web_server
from stepreward.view.content import MOST_EPISODES, Content
from stepreward.view.page import page, policy

MOST_KEYS = 1000  # in one request


def check_installed() -> None:
    """Raises UserError, which has the command to install, if a package of the server is missing."""
    for package in ("starlette", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"the viewer needs {package}: {install_command('serve')}; --html=FILE.html works without it")


def serve_view(content: Content, host: str = "127.0.0.1", port: int = 8010, *, browser: bool = True) -> None:
    """Serves the page until SIGINT or SIGTERM, and prints its address.

    Args:
      content: the runs.
      host, port: the address to listen on; port 0 takes a free one.
      browser: open the page in a browser, if this machine has a screen.

    Raises:
      UserError: a package is missing, or the address cannot be listened on.
      KeyboardInterrupt: after a clean stop by SIGINT; after SIGTERM, its subclass `Terminated`.
    """
    stop_on_sigterm()
    with _prepared(content, host, port) as (server, listening, address):
        print(f"viewer on {address} (stop with Ctrl-C)", flush=True)
        if not is_local(host):
            print("everyone who can reach this machine can read these runs; without --host, only this machine can", file=sys.stderr)
        if browser and (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or sys.platform in ("darwin", "win32")):
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
        server.run(sockets=[listening])


@contextlib.contextmanager
def viewing(content: Content) -> Iterator[str]:
    """Serves the page in a thread of this process for the duration of the block; yields its address, `http://127.0.0.1:port`."""
    with _prepared(content, "127.0.0.1", 0) as (server, listening, address):
        with in_thread(server, listening, "viewer"):
            yield address


@contextlib.contextmanager
def _prepared(content: Content, host: str, port: int):
    check_installed()
    listening, address = listen(host, port)
    with contextlib.closing(listening):
        yield web_server(application(content, host)), listening, address


def application(content: Content, host: str = "127.0.0.1"):
    """Makes the ASGI application.

    Raises:
      ModuleNotFoundError: if starlette is not installed.
    """
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse
    from starlette.routing import Route

    # Handlers are plain functions, which starlette runs in threads: reading files does not hold up other requests.
    def index(request: Request):
        return HTMLResponse(page())

    def answer(make):
        def handler(request: Request):
            try:
                return JSONResponse(make(request.query_params))
            except (KeyError, ValueError):  # a run, file or number that is not there
                raise HTTPException(404, "there is no such run or recording") from None

        return handler

    def place(text: str) -> tuple[str, int]:
        name, _, number = text.rpartition("/")
        if not (number.isascii() and number.isdigit()):
            raise KeyError(text)
        return name, int(number[:9])

    routes = {
        "state": lambda asked: content.state(),
        "curves": lambda asked: content.curves(asked.getlist("key")[:MOST_KEYS]),
        "index": lambda asked: content.index(asked["run"]),
        "episodes": lambda asked: content.episodes(asked["run"], [place(text) for text in asked.getlist("of")[:MOST_EPISODES]]),
        "tree": lambda asked: content.tree(asked["run"], asked["file"]),
        "details": lambda asked: content.details(asked["run"]),
    }

    def refused(request: Request, error: HTTPException):
        return PlainTextResponse(error.detail, status_code=error.status_code)

    def broken(request: Request, error: Exception):
        traceback.print_exception(error, file=sys.stderr)  # uvicorn's own log is off
        return PlainTextResponse("internal error; see the viewer's terminal", status_code=500)

    return Starlette(
        routes=[Route("/", index), *(Route(f"/api/{name}", answer(make)) for name, make in routes.items())],
        middleware=[Middleware(_Guard, host=host)],
        exception_handlers={HTTPException: refused, Exception: broken},
    )


class _Guard:
    """Refuses requests for another host, which a page elsewhere could make by pointing its own name here, and adds the security headers."""

    def __init__(self, app, host: str):
        self._app, self._host = app, host
        self._headers = [
            (b"content-security-policy", f"{policy()}; frame-ancestors 'none'".encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"no-referrer"),
            (b"cross-origin-resource-policy", b"same-origin"),
            (b"cache-control", b"no-store"),
        ]

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return

        async def with_headers(message):
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *self._headers]}
            await send(message)

        host = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), "")
        if not accepts(host, self._host):
            from starlette.responses import PlainTextResponse

            text = f"the viewer does not answer for the host {host[:100]!r}: open the address that it printed"
            await PlainTextResponse(text, status_code=403)(scope, receive, with_headers)
            return
        await self._app(scope, receive, with_headers)


def accepts(header: str, host: str) -> bool:
    """Whether the viewer that listens on `host` answers a request with this Host header.

    An IP address and "localhost" cannot be another site's name. Names of this machine count if it listens on more than loopback.
    """
    name = header.strip().lower()
    name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
    if name in ("localhost", host.lower()):
        return True
    try:
        ipaddress.ip_address(name)
        return True
    except ValueError:
        return not is_local(host) and name in {socket.gethostname().lower(), socket.getfqdn().lower()}


def is_local(host: str) -> bool:
    """Whether an address is reachable from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
