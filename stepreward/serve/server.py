"""The web server: OpenAI's chat completions interface over a batcher.

GET /health    GET /v1/models    GET /v1/models/MODEL    POST /v1/chat/completions
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hmac
import json
import secrets
import sys
import time
import traceback
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any

from stepreward.envs.extras import install_command
from stepreward.errors import UserError
from stepreward.listening import in_thread, listen, stop_on_sigterm, web_server
from stepreward.serve.batcher import Batcher, Closed, Failure, Overloaded, Piece, Ticket
from stepreward.serve.models import Served
from stepreward.serve.protocol import Asked, Refused, parse, unknown_model

MOST_BYTES = 4 * 2**20  # largest body of a request
READ_SECONDS = 30.0  # time limit for the body to arrive
RETRY_SECONDS = 1
_CHAT = "/v1/chat/completions"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of a server.

    Attributes:
      host, port: the address to listen on; port 0 picks a free port.
      api_key: the key that clients must send, or None.
      max_rows: most answers decoded at once.
      max_waiting: most requests in the queue; further requests are refused with status 503.
      timeout: seconds that a request may take, including waiting.
      grace: seconds that running requests get to finish when the server is asked to stop.
      ignore_format: treat requests for JSON output as requests for text.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    max_rows: int = 8
    max_waiting: int = 64
    timeout: float = 600.0
    grace: float = 30.0
    ignore_format: bool = False


def serve(served: Served, settings: Settings = Settings()) -> None:
    """Serves requests until SIGINT or SIGTERM, then finishes the running ones.

    Raises:
      UserError: if a package is missing, or the server cannot listen on the address.
      KeyboardInterrupt: after a clean stop by SIGINT; after SIGTERM, its subclass `Terminated`.
    """
    stop_on_sigterm()
    with _prepared(served, settings) as (server, listening, address):
        print(f"serving {served.name} on {address}/v1", flush=True)
        server.run(sockets=[listening])


@contextlib.contextmanager
def running(served: Served, settings: Settings = Settings(port=0)) -> Iterator[str]:
    """Runs a server in a thread of this process for the duration of the block; yields its address, `http://host:port`."""
    with _prepared(served, settings) as (server, listening, address):
        with in_thread(server, listening, "web server"):
            yield address


@contextlib.contextmanager
def _prepared(served: Served, settings: Settings):
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(f"serving needs {error.name}: {install_command('serve')}") from None
    listening, address = listen(settings.host, settings.port)
    batcher = Batcher(served.engine, served.params, served.text_of, max_rows=settings.max_rows, max_waiting=settings.max_waiting)
    with contextlib.closing(listening), batcher:
        yield web_server(application(served, batcher, settings), max(1, round(settings.grace))), listening, address


def application(served: Served, batcher: Batcher, settings: Settings):
    """Makes the ASGI application.

    Raises:
      ModuleNotFoundError: if starlette is not installed.
    """
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import JSONResponse, Response, StreamingResponse
    from starlette.routing import Route

    card = {"id": served.name, "object": "model", "created": int(time.time()), "owned_by": "stepreward"}
    card["max_model_len"] = served.engine.max_length

    async def health(request: Request) -> Response:
        active, waiting = batcher.load
        return JSONResponse({"status": "ok", "model": served.name, "active": active, "waiting": waiting})

    async def models(request: Request) -> Response:
        _check_key(request.headers.get("authorization"), settings.api_key)
        return JSONResponse({"object": "list", "data": [card]})

    async def model(request: Request) -> Response:
        _check_key(request.headers.get("authorization"), settings.api_key)
        if request.path_params["name"] != served.name:
            raise unknown_model(request.path_params["name"], served)
        return JSONResponse(card)

    async def completions(request: Request) -> Response:
        _check_key(request.headers.get("authorization"), settings.api_key)
        _check_content(request.headers)
        body = await _read(request)
        asked = await asyncio.to_thread(parse, body, served, ignore_format=settings.ignore_format)
        answer = _Answer(batcher, asked, settings.timeout)
        reply = _Reply(served.name, asked)
        # Waiting for the first piece lets a stream that fails before it return an HTTP error status.
        wanted = anext(answer) if asked.stream else _whole(answer)
        found = await _unless_gone(request, wanted, answer)
        if asked.stream:
            return StreamingResponse(_events(reply, found, answer), media_type="text/event-stream")
        return JSONResponse(reply.whole(*found))

    async def refused(request: Request, error: Exception) -> Response:
        if isinstance(error, ClientDisconnect):
            return Response(status_code=499)
        if isinstance(error, HTTPException):
            error = _not_here(request, error.status_code, error.detail)
        headers = {"Retry-After": str(RETRY_SECONDS)} if error.status == 503 else {}
        headers |= {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
        return JSONResponse(error.body, status_code=error.status, headers=headers)

    async def broken(request: Request, error: Exception) -> Response:
        traceback.print_exception(error, file=sys.stderr)  # uvicorn's own log is off
        return await refused(request, Refused(500, "internal server error; see the server's log"))

    return Starlette(
        routes=[
            Route("/health", health),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", model),
            Route(_CHAT, completions, methods=["POST"]),
        ],
        exception_handlers={Refused: refused, HTTPException: refused, ClientDisconnect: refused, Exception: broken},
    )


def _check_key(header: str | None, api_key: str | None) -> None:
    if api_key is not None and not hmac.compare_digest((header or "").encode(), f"Bearer {api_key}".encode()):
        raise Refused(401, "the API key is missing or wrong: send it as 'Authorization: Bearer KEY'", code="invalid_api_key")


def _check_content(headers) -> None:
    """Raises Refused if the headers say that the body is not plain JSON. A missing type is accepted, and so is the form type that curl
    and urllib send by default."""
    kind = headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind not in ("application/json", "application/x-www-form-urlencoded") and not kind.endswith("+json"):
        raise Refused(415, f"the body's Content-Type is {kind[:100]!r}: send JSON as 'Content-Type: application/json'")
    coding = headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("", "identity"):
        raise Refused(415, f"the body's Content-Encoding is {coding[:100]!r}: send it uncompressed")


def _not_here(request, status: int, detail: str) -> Refused:
    """The error for a path or method that the server does not have."""
    path = request.url.path[:200]
    there = f"this server has POST {_CHAT}, GET /v1/models and GET /health"
    if status == 404:
        return Refused(404, f"there is no path {path}: {there}", code="not_found")
    if status == 405:
        return Refused(405, f"{path} does not support the method {request.method}: {there}", code="method_not_allowed")
    return Refused(status, f"{request.method} {path}: {detail}")


async def _read(request) -> bytes:
    parts, size = [], 0
    told = request.headers.get("content-length", "")
    if told.isdigit() and int(told) > MOST_BYTES:  # refuse it before it arrives
        raise Refused(413, f"the body is larger than {MOST_BYTES} bytes")
    try:
        async with asyncio.timeout(READ_SECONDS):
            async for part in request.stream():
                parts.append(part)
                size += len(part)
                if size > MOST_BYTES:
                    raise Refused(413, f"the body is larger than {MOST_BYTES} bytes")
    except TimeoutError:
        raise Refused(408, f"the body did not arrive within {READ_SECONDS:.0f} s") from None
    return b"".join(parts)


async def _unless_gone(request, wanted: Coroutine, answer: _Answer) -> Any:
    """Returns the result of `wanted`, unless the client disconnects first.

    Raises:
      ClientDisconnect: if the client disconnected; its answer is cancelled.
    """
    from starlette.requests import ClientDisconnect

    left, found = asyncio.ensure_future(_disconnected(request)), asyncio.ensure_future(wanted)
    try:
        await asyncio.wait({left, found}, return_when=asyncio.FIRST_COMPLETED)
        if not found.done():
            raise ClientDisconnect
        return found.result()
    except BaseException:
        answer.cancel()
        raise
    finally:
        left.cancel()
        found.cancel()


async def _disconnected(request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _Answer:
    """Passes the pieces of an answer from the batcher's thread to this event loop; `cancel` frees the answer's row."""

    def __init__(self, batcher: Batcher, asked: Asked, timeout: float):
        loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[Piece | Failure] = asyncio.Queue()
        self._deadline, self._timeout = loop.time() + timeout, timeout

        def tell(piece: Piece | Failure) -> None:
            with contextlib.suppress(RuntimeError):  # the event loop has ended, so nobody waits for the answer
                loop.call_soon_threadsafe(self._pieces.put_nowait, piece)

        try:
            self._ticket: Ticket = batcher.submit(asked.request, tell)
        except Overloaded as error:
            raise Refused(503, f"{error}: try again later", code="overloaded") from None
        except Closed as error:
            raise Refused(503, str(error), code="closing") from None

    def cancel(self) -> None:
        """Cancels the answer; calling it twice is allowed."""
        self._ticket.cancel()

    def __aiter__(self) -> _Answer:
        return self

    async def __anext__(self) -> Piece:
        try:
            async with asyncio.timeout_at(self._deadline):
                piece = await self._pieces.get()
        except BaseException as error:
            self.cancel()
            if isinstance(error, TimeoutError):
                raise Refused(504, f"no answer within {self._timeout:g} s", code="timeout") from None
            raise
        if isinstance(piece, Failure):
            if isinstance(piece.error, Closed):
                raise Refused(503, str(piece.error), code="closing")
            raise Refused(500, f"decoding failed ({type(piece.error).__name__}); see the server's log")
        return piece


async def _whole(answer: _Answer) -> tuple[str, Piece]:
    text = ""
    async for piece in answer:
        text += piece.text
        if piece.finish_reason:
            return text, piece
    raise AssertionError("an answer ended without a finish reason")


async def _events(reply: _Reply, first: Piece, answer: _Answer) -> AsyncIterator[str]:
    """Yields server-sent events; an error after the first piece is also sent as an event."""
    try:
        piece, role = first, {"role": "assistant"}
        while True:
            if piece.text or role:
                yield reply.event({**role, "content": piece.text})
            role = {}
            if piece.finish_reason:
                break
            piece = await anext(answer)
        yield reply.event({}, piece)
        if reply.asked.usage:
            yield reply.usage_event(piece)
        yield "data: [DONE]\n\n"
    except Refused as error:
        yield f"data: {json.dumps(error.body)}\n\n"
    finally:
        answer.cancel()


class _Reply:
    """Builds OpenAI's response objects for one answer."""

    def __init__(self, model: str, asked: Asked):
        self.asked = asked
        self._head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}

    def whole(self, text: str, end: Piece) -> dict[str, Any]:
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": end.finish_reason, "logprobs": None}
        return {**self._head, "object": "chat.completion", "choices": [choice], "usage": self._usage(end)}

    def event(self, delta: dict[str, str], end: Piece | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": end.finish_reason if end else None, "logprobs": None}
        return self._chunk([choice])

    def usage_event(self, end: Piece) -> str:
        return self._chunk([], usage=self._usage(end))

    def _chunk(self, choices: list, **more) -> str:
        return f"data: {json.dumps({**self._head, 'object': 'chat.completion.chunk', 'choices': choices, **more})}\n\n"

    def _usage(self, end: Piece) -> dict[str, int]:
        asked = len(self.asked.request.prompt)
        return {"prompt_tokens": asked, "completion_tokens": end.tokens, "total_tokens": asked + end.tokens}
