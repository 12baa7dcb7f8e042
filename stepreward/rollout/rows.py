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
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from stepreward.models.attention import TILE
from stepreward.models.decoder import cached_hidden_states, empty_cache, merge
from stepreward.rollout.engine import Engine
from stepreward.rollout.sampling import Sampling

Array = jax.Array

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
      key: data of the PRNG key of its answer.
      prompt: tokens that are still to be read.
      parts: for each chunk, its tokens, log-probabilities and entropies.
      drawn: number of tokens drawn.
      last: the token drawn last, which the cache does not hold yet; −1 if the prompt's end predicts the next token.
    """

    key: np.ndarray
    prompt: np.ndarray
    parts: list[tuple[np.ndarray, ...]] = dataclasses.field(default_factory=list)
    drawn: int = 0
    last: int = -1


class Rows:
    """Conversations on one device, each in a row.

    Args:
      engine: its model, sampling, limits and buckets are used. It has no reader and no mesh.
      params: as `engine.prepare` returns them.
      count: number of rows.
      chunk: tokens that are decoded at a time.

    Attributes:
      length: host int32 `[count]`, the tokens of each conversation that the cache holds.
    """

    def __init__(self, engine: Engine, params, count: int, *, chunk: int = CHUNK):
        self.engine, self.params, self.count = engine, params, count
        self.length = np.zeros(count, np.int32)
        self._chunk = min(chunk, engine.sampling.max_answer_tokens)
        self._asked: dict[int, _Asked] = {}
        self._programs = _programs(engine, self._chunk)
        most = engine.max_length + min(PIECE, engine.buckets[0])  # the last piece of a full row may be padded
        self._slots = most if most <= TILE else -(-most // TILE) * TILE
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

    def ask(self, row: int, tokens: np.ndarray, key: np.ndarray) -> None:
        """Appends tokens to a row, and asks for an answer.

        Args:
          tokens: int32, all tokens of the conversation that the cache does not hold, at least one. The last token of an answer is among them.
          key: data of the PRNG key of the answer's draws, uint32.

        Raises:
          ValueError: the row is still answering, there are no tokens, or the conversation has no room for an answer.
        """
        held, longest = int(self.length[row]), self.engine.sampling.max_answer_tokens
        if row in self._asked:
            raise ValueError(f"the row {row} is still answering.")
        if not len(tokens) or held + len(tokens) + longest > self.engine.max_length:
            raise ValueError(
                f"{len(tokens)} tokens behind {held} and an answer of {longest} must be some, and fit max_length={self.engine.max_length}."
            )
        self._asked[row] = _Asked(np.asarray(key, np.uint32), np.asarray(tokens, np.int32))

    def run(self) -> Iterator[tuple[int, RowAnswer]]:
        """Reads the prompts of all rows that were asked, decodes a chunk of each, and yields the rows whose answers have ended."""
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
                block = self._block(width)
                for first in range(0, len(those), block):
                    self._read_pieces(those[first : first + block], width, block)
        if pairs := [(rows[0], row) for rows in alike.values() for row in rows[1:]]:
            self._copy(pairs)

    def _width(self, row: int) -> int:
        """The padded length of the next piece of a row's prompt."""
        room, tokens = self._slots - int(self.length[row]), len(self._asked[row].prompt)
        sizes = [size for size in self.engine.buckets if size <= min(room, PIECE)] or [min(room, PIECE)]
        return next((size for size in sizes if size >= tokens), sizes[-1])

    def _block(self, width: int) -> int:
        """How many rows are read together; fewer rows are padded to this number."""
        if jax.default_backend() == "cpu":
            return min(BLOCK, self.count)
        return min(self.count, max(BLOCK, _BLOCK_TOKENS // width))

    def _read_pieces(self, rows: list[int], width: int, block: int) -> None:
        tokens = np.full((block, width), self.engine.pad_id, np.int32)
        count, length = np.zeros((2, block), np.int32)
        place = np.full(block, self.count, np.int32)  # out of bounds: nothing is written
        for at, row in enumerate(rows):
            piece, self._asked[row].prompt = np.split(self._asked[row].prompt, [width])
            tokens[at, : len(piece)], count[at], length[at], place[at] = piece, len(piece), self.length[row], row
        self._caches, self._hidden = self._programs.read(self.params, self._caches, self._hidden, place, tokens, count, length)
        self.length[rows] += count[: len(rows)]

    def _copy(self, pairs: list[tuple[int, int]]) -> None:
        """Copies the conversations of rows that have been read to others: pairs (from, to)."""
        size = min(self.count, 1 << (len(pairs) - 1).bit_length())  # few sizes, because each compiles a program
        source, target = np.zeros(size, np.int32), np.full(size, self.count, np.int32)
        for at, (one, other) in enumerate(pairs):
            source[at], target[at] = one, other
            self.length[other], self._asked[other].prompt = self.length[one], self._asked[one].prompt
        self._caches, self._hidden = self._programs.copy(self._caches, self._hidden, source, target)

    def _decode(self) -> list[tuple[int, RowAnswer]]:
        rows, longest = sorted(self._asked), self.engine.sampling.max_answer_tokens
        last, drawn = np.full(self.count, -1, np.int32), np.zeros(self.count, np.int32)
        keys = np.zeros((self.count, *self._asked[rows[0]].key.shape), np.uint32)
        active = np.zeros(self.count, bool)
        for row in rows:
            asked = self._asked[row]
            last[row], drawn[row], keys[row], active[row] = asked.last, asked.drawn, asked.key, True
        self._caches, *found = self._programs.decode(self.params, self._caches, self._hidden, self.length, last, drawn, keys, active)
        tokens, log_prob, entropy, count, ran, stopped = jax.device_get(found)
        self.length, ended = self.length + ran, []
        for row in rows:
            asked, n = self._asked[row], int(count[row])
            asked.parts.append((tokens[row, :n], log_prob[row, :n], entropy[row, :n]))
            asked.drawn, asked.last = asked.drawn + n, int(tokens[row, n - 1])
            if stopped[row] or asked.drawn == longest:
                del self._asked[row]
                ended.append((row, RowAnswer(*(np.concatenate(part) for part in zip(*asked.parts)), bool(stopped[row]))))
        return ended


class _Programs(NamedTuple):
    empty: Callable
    read: Callable
    copy: Callable
    decode: Callable


def _programs(engine: Engine, chunk: int) -> _Programs:
    """The jitted programs of an engine, made once for each length of a chunk."""
    made = engine.__dict__.setdefault("_row_programs", {})
    if chunk not in made:
        decode = partial(_decode, engine.graphdef, engine.sampling, engine.pad_id, type(engine).draw, chunk)
        made[chunk] = _Programs(
            jax.jit(partial(empty_cache, engine.config, dtype=engine.cache_dtype), static_argnums=(0, 1)),
            jax.jit(partial(_read, engine.graphdef), donate_argnums=(1, 2)),
            jax.jit(_copy, donate_argnums=(0, 1)),
            jax.jit(decode, donate_argnums=1),
        )
    return made[chunk]


def _read(graphdef, params, caches, hidden_BxD, place_R, tokens_RxT, count_R, length_R):
    """Runs new tokens of the rows `place` (out of bounds: of none). Returns the caches, and the hidden state at the last new token of each row."""
    last = jnp.maximum(count_R - 1, 0)[:, None]
    those = jax.tree.map(lambda x: x.at[place_R].get(mode="clip"), caches)
    found, _, those = cached_hidden_states(graphdef, params, tokens_RxT, length_R, those, last, tiled=True)
    put = lambda x, y: x.at[place_R].set(y, mode="drop")
    return jax.tree.map(put, caches, those), put(hidden_BxD, found[:, 0])


def _copy(caches, hidden_BxD, source_R, target_R):
    """Copies the caches and hidden states of the rows `source` to the rows `target` (out of bounds: to none)."""
    copied = lambda x: x.at[target_R].set(x[source_R], mode="drop")
    return jax.tree.map(copied, caches), copied(hidden_BxD)


class _Answers(NamedTuple):
    """What a chunk has drawn: the last token of each row, how many tokens, whether the last is a stop token, whether the row goes on; and tokens,
    log-probabilities and entropies `[B, chunk + 1]`."""

    token: Array
    count: Array
    stopped: Array
    going: Array
    out: tuple[Array, Array, Array]


def _decode(
    graphdef, sampling: Sampling, pad_id: int, draw, chunk: int, params, caches, hidden_BxD, length_B, last_B, drawn_B, keys, active_B
):  # fmt: skip
    """Draws up to `chunk` tokens of each active row, and one more where the prompt's end predicts the first one.

    Args:
      last_B: the token that was drawn last and is not in the cache; −1: `hidden` predicts the next token.
      drawn_B: tokens of the answer so far.
      keys: data of PRNG keys, a row each.

    Returns:
      The caches; tokens, log-probabilities and entropies `[B, chunk + 1]`, of which the first `count` of a row are new; `count`; how many tokens
      were written to the cache; whether a stop token was drawn. All `[B]`.
    """
    rows, longest = len(last_B), sampling.max_answer_tokens
    stop, at = jnp.asarray(sampling.stop_ids, jnp.int32), jnp.arange(rows)
    keys, head = jax.random.wrap_key_data(keys), merge(graphdef, params).head_DxV()

    def drawn(hidden_BxD, a: _Answers) -> _Answers:
        log_p, token = draw(hidden_BxD, head, keys, drawn_B + a.count, sampling)
        chosen = jnp.take_along_axis(log_p, token[:, None], axis=-1)[:, 0]
        entropy = -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)
        out = tuple(o.at[at, a.count].set(jnp.where(a.going, v, o[at, a.count])) for o, v in zip(a.out, (token, chosen, entropy)))
        stopped = a.going & jnp.any(token[:, None] == stop[None], axis=-1)
        count = a.count + a.going
        going = a.going & ~stopped & (drawn_B + count < longest)
        return _Answers(jnp.where(a.going, token, a.token), count, a.stopped | stopped, going, out)

    def body(carry):
        index, ran, answers, caches = carry
        hidden, _, caches = cached_hidden_states(graphdef, params, answers.token[:, None], length_B + ran, caches, tiled=True)
        return index + 1, ran + answers.going, drawn(hidden[:, 0], answers), caches

    none, fresh = jnp.zeros(rows, jnp.int32), active_B & (last_B < 0)
    real = jnp.zeros((rows, chunk + 1))
    answers = _Answers(jnp.maximum(last_B, 0), none, jnp.zeros(rows, bool), fresh, (jnp.full(real.shape, pad_id, jnp.int32), real, real))
    answers = jax.lax.cond(jnp.any(fresh), lambda: drawn(hidden_BxD, answers), lambda: answers)
    answers = answers._replace(going=answers.going | active_B & ~fresh)
    more = lambda carry: (carry[0] < chunk) & jnp.any(carry[2].going)
    _, ran, answers, caches = jax.lax.while_loop(more, body, (0, none, answers, caches))
    return caches, *answers.out, answers.count, ran, answers.stopped
