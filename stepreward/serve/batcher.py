"""Decodes requests together. One thread owns the batch of `rollout.rows`; requests join it between two chunks and leave it when finished."""

from __future__ import annotations

import collections
import dataclasses
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np

from stepreward.rollout.rows import Rows
from stepreward.serve.engine import ServingEngine, row_sampling
from stepreward.serve.transcript import Transcript


class Overloaded(Exception):
    """The queue of waiting requests is full."""


class Closed(Exception):
    """The server is shutting down."""


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt and the settings of its answer.

    Attributes:
      prompt: int32 `[T]`, the conversation up to where the answer begins.
      max_tokens: most tokens of the answer.
      temperature, top_k, top_p: see `Sampling`.
      seed: seed of the sampling.
      stop: stop strings; the answer ends before the first one that it contains.
    """

    prompt: np.ndarray
    max_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Piece:
    """A piece of an answer's text. The last piece has the finish reason (`stop` or `length`) and the number of sampled tokens."""

    text: str
    finish_reason: str | None = None
    tokens: int = 0


@dataclasses.dataclass(frozen=True)
class Failure:
    """The error of a request that gets no answer."""

    error: Exception


class Ticket:
    """A submitted request; `cancel` frees its row at the next chunk."""

    def __init__(self, request: Request, tell: Callable[[Piece | Failure], None]):
        self.request, self.tell = request, tell
        self.cancelled = False

    def cancel(self) -> None:
        """Cancels the request: `tell` receives nothing more."""
        self.cancelled = True


class _Row:
    """A request in the batch."""

    def __init__(self, ticket: Ticket, transcript: Transcript):
        self.ticket, self.transcript = ticket, transcript
        self.taken = 0  # tokens of the answer that the transcript has been given


class Batcher:
    """Decodes the answers of many requests in one batch. As a context manager it closes its thread on exit.

    Args:
      engine: the engine that decodes.
      params: parameters as returned by `engine.prepare`.
      text_of: decodes sampled tokens to text.
      max_rows: most answers decoded at once.
      max_waiting: most requests that wait for a row.
    """

    def __init__(
        self, engine: ServingEngine, params: Any, text_of: Callable[[np.ndarray], str], *, max_rows: int = 8,
        max_waiting: int = 64,
    ):  # fmt: skip
        self.engine, self.params, self._text_of = engine, params, text_of
        self.max_rows = -(-max_rows // engine.rows_multiple) * engine.rows_multiple
        self.max_waiting = max_waiting
        self._waiting: collections.deque[Ticket] = collections.deque()
        self._rows: list[_Row | None] = []
        self._batch: Rows | None = None
        self._changed, self._closing = threading.Condition(), False
        self._thread = threading.Thread(target=self._work, name="batcher")
        self._thread.start()

    def submit(self, request: Request, tell: Callable[[Piece | Failure], None]) -> Ticket:
        """Adds a request to the queue. The batcher's thread calls `tell` with each piece of the answer; it must not block.

        Raises:
          Overloaded: if the queue is full.
          Closed: if the batcher is closed.
          ValueError: if the prompt is empty, or prompt and answer together are longer than the engine's `max_length`.
        """
        if not 0 < len(request.prompt) <= self.engine.max_length - request.max_tokens or request.max_tokens < 1:
            raise ValueError(
                f"a prompt of {len(request.prompt)} tokens and an answer of {request.max_tokens} tokens must each have at least 1 token, "
                f"and together at most the server's {self.engine.max_length}."
            )
        ticket = Ticket(request, tell)
        with self._changed:
            if self._closing or not self._thread.is_alive():
                raise Closed("the server is shutting down")
            self._forget_cancelled()
            if len(self._waiting) >= self.max_waiting:
                raise Overloaded(f"{len(self._waiting)} requests are already waiting")
            self._waiting.append(ticket)
            self._changed.notify()
        return ticket

    @property
    def load(self) -> tuple[int, int]:
        """The numbers of requests that are being answered and that are waiting."""
        return sum(row is not None for row in self._rows), len(self._waiting)

    def close(self) -> None:
        """Ends the thread after its current chunk; requests that are not finished by then fail with `Closed`."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def __enter__(self) -> Batcher:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    # --- The batcher's thread ---

    def _work(self) -> None:
        try:
            while self._admit():
                try:
                    self._chunk()
                except Exception as error:  # such as out of memory: these requests fail, and the next ones get a new cache
                    traceback.print_exc(file=sys.stderr)
                    self._fail([row.ticket for row in self._rows if row], error)
                    self._rows, self._batch = [], None
        finally:
            with self._changed:
                self._closing = True
                left = [*self._waiting, *(row.ticket for row in self._rows if row)]
                self._waiting.clear()
            self._rows, self._batch = [], None
            self._fail(left, Closed("the server is shutting down"))

    def _admit(self) -> bool:
        """Waits for requests and assigns them to rows; returns False when the batcher closes."""
        for index, row in enumerate(self._rows):
            if row and row.ticket.cancelled:
                self._leave(index)
        running = sum(row is not None for row in self._rows)
        with self._changed:
            self._forget_cancelled()
            while not (self._waiting or running or self._closing):
                self._rows, self._batch = [], None  # an idle server holds no cache
                self._changed.wait()
            if self._closing:
                return False
            new = [self._waiting.popleft() for _ in range(min(len(self._waiting), self.max_rows - running))]
        self._resize(running + len(new))
        free = [index for index, row in enumerate(self._rows) if row is None]
        for index, ticket in zip(free, new):
            asked = ticket.request
            self._rows[index] = _Row(ticket, Transcript(self._text_of, asked.stop))
            draws = row_sampling(asked.seed, asked.temperature, asked.top_k, asked.top_p)
            self._batch.ask(index, asked.prompt, draws, asked.max_tokens)
        return True

    def _resize(self, count: int) -> None:
        """Resizes the batch to the bucket for `count` requests, and moves running requests to its first rows."""
        size = self.engine.row_bucket(max(count, 1), self.max_rows)
        if size == len(self._rows):
            return
        held = [index for index, row in enumerate(self._rows) if row]
        if held:
            self._batch.resize(held, size)
        else:
            self._batch = self.engine.conversations(self.params, size)
        self._rows = [self._rows[i] for i in held] + [None] * (size - len(held))

    def _chunk(self) -> None:
        """Decodes one chunk of tokens for each row."""
        ended = dict(self._batch.run())
        for index, row in enumerate(self._rows):
            if row is None:
                continue
            answer = ended.get(index)
            tokens = self._batch.said(index) if answer is None else answer.tokens
            if self._take(row, tokens, answer is not None, answer is not None and answer.stopped):
                self._leave(index)

    def _leave(self, index: int) -> None:
        self._rows[index] = None
        self._batch.forget(index)

    def _take(self, row: _Row, tokens: np.ndarray, last: bool, stopped: bool) -> bool:
        """Passes a row's new text on; returns whether the answer is finished."""
        transcript = row.transcript
        text = transcript.add(tokens[row.taken :], last=last)
        row.taken = len(tokens)
        done = last or transcript.stopped
        if row.ticket.cancelled:
            return True
        reason = "stop" if stopped or transcript.stopped else "length"
        if done:
            row.ticket.tell(Piece(text, reason, len(transcript.tokens)))
        elif text:
            row.ticket.tell(Piece(text))
        return done

    def _forget_cancelled(self) -> None:
        self._waiting = collections.deque(ticket for ticket in self._waiting if not ticket.cancelled)

    def _fail(self, tickets: list[Ticket], error: Exception) -> None:
        for ticket in tickets:
            if not ticket.cancelled:
                ticket.tell(Failure(error))
