"""A batch of conversations in which each row goes on at its own time.

    rows = Rows(engine, params, 32)
    rows.ask(3, prompt, key)            # row 3: new tokens, and the key of its answer's draws
    for row, answer in rows.run():      # decodes some tokens of every row that was asked, and yields the answers that ended
        …

Prompts are read a few rows at a time and in pieces of limited length, and answers are decoded in chunks, so that rows join and leave between
two calls of `run`. Rows that begin a conversation with the same prompt read it once: the others copy the cache.

What a row answers depends on its tokens, its key and the place in its answer. The other rows and the order of calls change no bit of it: the
shapes of all programs that compute it depend on the row's own prompt, on the number of rows and on the engine's limits alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from stepreward import parallel
from stepreward.models.attention import TILE
from stepreward.models.cache import empty_cache
from stepreward.programs import Program
from stepreward.rollout.engine import Engine
from stepreward.rollout.row_programs import Asked, programs_of

CHUNK = 8  # tokens decoded before rows can join or leave
PIECE = 256  # tokens of a prompt that are read at once
BLOCK = 8  # rows whose prompts are read together on a CPU
_BLOCK_TOKENS = 2048  # tokens that are read together on an accelerator


class RowAnswer(NamedTuple):
    """An answer that has ended: int32 `tokens`, float32 `log_prob` and `entropy`, all `[A]`; and whether it ended by itself (see `engine.Answer`)."""

    tokens: np.ndarray
    log_prob: np.ndarray
    entropy: np.ndarray
    stopped: bool


@dataclasses.dataclass
class _Asked:
    """What a row has been asked.

    Attributes:
      draws: what the engine draws its answer with, see `Engine.draws`.
      longest: most tokens of the answer.
      prompt: tokens that are still to be read.
      parts: for each chunk, its tokens, log-probabilities and entropies.
      drawn: number of tokens drawn.
      last: the token drawn last, which the cache does not hold yet; −1 if the prompt's end predicts the next token.
    """

    draws: Any
    longest: int
    prompt: np.ndarray
    parts: list[tuple[np.ndarray, ...]] = dataclasses.field(default_factory=list)
    drawn: int = 0
    last: int = -1


class Rows:
    """Conversations of one process, each in a row.

    Args:
      engine: its model, sampling, limits and buckets are used. It has no reader, and its mesh, if it has one, belongs to this process alone.
      params: as `engine.prepare` returns them.
      count: number of rows, a multiple of the engine's `rows_multiple`.
      chunk: tokens that are decoded at a time.

    Attributes:
      length: host int32 `[count]`, the tokens of each conversation that the cache holds.
    """

    def __init__(self, engine: Engine, params, count: int, *, chunk: int = CHUNK):
        self.engine, self.count = engine, count
        self.length = np.zeros(count, np.int32)
        self._chunk = min(chunk, engine.sampling.max_answer_tokens)
        self._asked: dict[int, _Asked] = {}
        self._programs = programs_of(engine, params, self._chunk)
        self._params = self._programs.split(params)
        self._slots = slots_of(engine, chunk)
        self._caches = self._programs.empty(count, self._slots)
        self._hidden = jnp.zeros((count, engine.config.embed_dim), engine.config.compute_dtype)

    @property
    def busy(self) -> bool:
        """Whether any row is answering."""
        return bool(self._asked)

    def forget(self, row: int) -> None:
        """Begins a new conversation in a row; an answer that it was giving is dropped."""
        self.length[row] = 0
        self._asked.pop(row, None)

    def ask(self, row: int, tokens: np.ndarray, draws: Any, longest: int | None = None) -> None:
        """Appends tokens to a row, and asks for an answer.

        Args:
          tokens: int32, all tokens of the conversation that the cache does not hold, at least one. The last token of an answer is among them.
          draws: what the engine draws the answer with: for `Engine` the data of a PRNG key, uint32.
          longest: most tokens of the answer; the engine's by default.

        Raises:
          ValueError: the row is still answering, there are no tokens, or the conversation has no room for an answer.
        """
        held, longest = int(self.length[row]), self.engine.sampling.max_answer_tokens if longest is None else longest
        if row in self._asked:
            raise ValueError(f"the row {row} is still answering.")
        if not len(tokens) or held + len(tokens) + longest > self.engine.max_length:
            raise ValueError(
                f"{len(tokens)} tokens behind {held} and an answer of {longest} must be some, and fit max_length={self.engine.max_length}."
            )
        self._asked[row] = _Asked(draws, longest, np.asarray(tokens, np.int32))

    def said(self, row: int) -> np.ndarray:
        """The tokens that a row has answered so far."""
        return np.concatenate([np.zeros(0, np.int32), *(tokens for tokens, *_ in self._asked[row].parts)])

    def resize(self, held: Sequence[int], count: int) -> None:
        """Changes the number of rows. The rows `held` become the first ones, and all others are forgotten. Answers may change by rounding."""
        index = np.asarray([*held, *[0] * (count - len(held))])
        self._caches, self._hidden = self._programs.select(self._caches, self._hidden, index)
        self.length = np.where(np.arange(count) < len(held), self.length[index], 0).astype(np.int32)
        self._asked = {new: self._asked[old] for new, old in enumerate(held) if old in self._asked}
        self.count = count

    def run(self) -> Iterator[tuple[int, RowAnswer]]:
        """Reads the prompts of all rows that were asked, decodes a chunk of each, and yields the rows whose answers have ended."""
        self.engine.check_halted()
        self._read([row for row, asked in self._asked.items() if len(asked.prompt)])
        return iter(self._decode() if self._asked else ())

    def _read(self, rows: list[int]) -> None:
        """Reads prompts. Of rows that begin with the same prompt, the first reads it."""
        alike: dict[object, list[int]] = {}
        for row in rows:
            prompt = self._asked[row].prompt
            alike.setdefault(row if self.length[row] else prompt.tobytes(), []).append(row)
        while left := [row for row, *_ in alike.values() if len(self._asked[row].prompt)]:
            widths: dict[int, list[int]] = {}
            for row in left:  # rows of a block have the same width, so that it depends on none of the others
                widths.setdefault(self._width(row), []).append(row)
            for width, those in widths.items():
                block = block_rows(self.engine, self.count, width)
                for first in range(0, len(those), block):
                    self._read_pieces(those[first : first + block], width, block)
        if pairs := [(rows[0], row) for rows in alike.values() for row in rows[1:]]:
            self._copy(pairs)

    def _width(self, row: int) -> int:
        """The padded length of the next piece of a row's prompt."""
        room, tokens = self._slots - int(self.length[row]), len(self._asked[row].prompt)
        sizes = [size for size in self.engine.buckets if size <= min(room, PIECE)] or [min(room, PIECE)]
        return next((size for size in sizes if size >= tokens), sizes[-1])

    def _reach(self, tokens: int) -> int:
        """Slots of the cache that hold so many tokens, of few sizes, because each compiles a program."""
        if self.engine.platform == "tpu":
            return self._slots  # memory is fast there, and compilation slow
        return min(self._slots, max(TILE, 1 << (tokens - 1).bit_length()))

    def _read_pieces(self, rows: list[int], width: int, block: int) -> None:
        tokens = np.full((block, width), self.engine.pad_id, np.int32)
        count, length = np.zeros((2, block), np.int32)
        place = np.full(block, self.count, np.int32)  # out of bounds: nothing is written
        for at, row in enumerate(rows):
            piece, self._asked[row].prompt = np.split(self._asked[row].prompt, [width])
            tokens[at, : len(piece)], count[at], length[at], place[at] = piece, len(piece), self.length[row], row
        self._caches, self._hidden = self._programs.read(self._params, self._caches, self._hidden, place, tokens, count, length)
        self.length[rows] += count[: len(rows)]

    def _copy(self, pairs: list[tuple[int, int]]) -> None:
        """Copies the conversations of rows that have been read to others: pairs (from, to)."""
        size = min(self.count, 1 << (len(pairs) - 1).bit_length())  # few sizes, because each compiles a program
        source, target = np.zeros(size, np.int32), np.full(size, self.count, np.int32)
        for at, (one, other) in enumerate(pairs):
            source[at], target[at] = one, other
            self.length[other], self._asked[other].prompt = self.length[one], self._asked[one].prompt
        slots = self._reach(int(self.length[source[: len(pairs)]].max()))
        self._caches, self._hidden = self._programs.copy(self._caches, self._hidden, source, target, slots)

    def _decode(self) -> list[tuple[int, RowAnswer]]:
        rows = sorted(self._asked)
        last, drawn, longest = np.full(self.count, -1, np.int32), *np.zeros((2, self.count), np.int32)
        active = np.zeros(self.count, bool)
        draws = jax.tree.map(lambda x: np.zeros((self.count, *np.shape(x)), np.asarray(x).dtype), self._asked[rows[0]].draws)
        for row in rows:
            asked = self._asked[row]
            last[row], drawn[row], longest[row], active[row] = asked.last, asked.drawn, asked.longest, True
            jax.tree.map(lambda x, y: x.__setitem__(row, y), draws, asked.draws)
        asked = Asked(self.length, last, drawn, longest, active, draws)
        slots = self._reach(int(self.length.max())) if self.engine.platform == "gpu" else self._slots
        self._caches, chunk = self._programs.decode(self._params, self._caches, self._hidden, asked, slots)
        chunk = jax.device_get(chunk)
        self.length, ended = self.length + chunk.ran, []
        for row in rows:
            asked, n = self._asked[row], int(chunk.count[row])
            asked.parts.append(tuple(part[row, :n] for part in chunk.out))
            asked.drawn, asked.last = asked.drawn + n, int(chunk.out[0][row, n - 1])
            if chunk.stopped[row] or asked.drawn == asked.longest:
                del self._asked[row]
                ended.append((row, RowAnswer(*(np.concatenate(part) for part in zip(*asked.parts)), bool(chunk.stopped[row]))))
        return ended


def slots_of(engine: Engine, chunk: int = CHUNK) -> int:
    """Slots of a row's cache: whole tiles, or less than one. The last piece of a full row may be padded, and so is its last chunk."""
    most = engine.max_length + max(min(PIECE, engine.buckets[0]), min(chunk, engine.sampling.max_answer_tokens))
    return most if most <= TILE else -(-most // TILE) * TILE


def block_rows(engine: Engine, count: int, width: int) -> int:
    """How many of `count` rows read `width` tokens together; fewer rows are padded to this number."""
    block = BLOCK if engine.platform == "cpu" else max(BLOCK, _BLOCK_TOKENS // width)
    return min(count, -(-block // engine.rows_multiple) * engine.rows_multiple)


def programs(engine: Engine, params, rows: int, *, turns: int, batches: int) -> Iterator[Program]:
    """The programs of a rollout on a mesh at their largest shapes.

    Args:
      params: shapes of the parameters that `Engine.prepare` takes.
      rows: how many conversations there are at once.
      turns: how many turns each conversation has.
      batches: how many batches of `rows` conversations a rollout has.
    """
    prepare, prepared = engine.preparation(params)
    if prepare is not None:
        yield prepare
    chunk = min(CHUNK, engine.sampling.max_answer_tokens)
    made, slots, width = programs_of(engine, prepared, chunk), slots_of(engine), min(PIECE, engine.buckets[-1])
    config, whole = engine.config, engine.whole
    host = lambda shape, dtype=jnp.int32: jax.ShapeDtypeStruct(shape, dtype, sharding=whole)
    caches = parallel.place(jax.eval_shape(lambda: empty_cache(engine.layout, rows, slots, engine.cache_dtype)), engine.cache_sharding)
    hidden, block = host((rows, config.embed_dim), config.compute_dtype), block_rows(engine, rows, width)
    pieces, chunks = -(-engine.buckets[-1] // PIECE), -(-engine.sampling.max_answer_tokens // chunk)
    few = host((block,))
    reads = turns * batches * -(-rows // block) * pieces
    yield Program("rollout/read", made.read, (prepared, caches, hidden, few, host((block, width)), few, few), times=reads)
    yield Program("rollout/copy", made.copy, (caches, hidden, host((rows,)), host((rows,)), slots), times=batches)
    row = host((rows,))
    asked = Asked(row, row, row, row, host((rows,), jnp.bool_), host((rows, *jax.random.key_data(jax.random.key(0)).shape), jnp.uint32))
    yield Program("rollout/decode", made.decode, (prepared, caches, hidden, asked, slots), times=turns * batches * chunks, trips=chunk)
