"""The compiled programs of `rows.Rows`: read prompts, copy conversations, decode some tokens. The whole model is in each, or one layer at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from stepreward.models import layerwise
from stepreward.models.cache import LayerCache, Tail, cached_rows, empty_cache, with_cached_rows
from stepreward.models.decoder import cached_hidden_states, config_of, decoded_hidden_states, merge, piece_hidden_states
from stepreward.models.layerwise import LayerParams, Layerwise
from stepreward.rollout.engine import Engine

Array = jax.Array


class Asked(NamedTuple):
    """What the rows of a batch are asked for; all `[B]`.

    Attributes:
      length: tokens in the cache.
      last: the token that was drawn last and is not in the cache; −1: the hidden state at the prompt's end predicts the next token.
      drawn: tokens of the answer so far.
      longest: most tokens of the answer.
      active: whether the row answers at all.
      draws: what the engine draws with, see `Engine.draws`.
    """

    length: Array
    last: Array
    drawn: Array
    longest: Array
    active: Array
    draws: Any


class Chunk(NamedTuple):
    """What a chunk has drawn so far.

    Attributes:
      token: the last token of each row.
      count: how many tokens are new.
      ran: how many tokens of the row were run, and so are behind its cache.
      stopped: whether the last one is a stop token.
      going: whether the row goes on.
      out: tokens, log-probabilities and entropies `[B, chunk + 1]`, of which the first `count` of a row are new.
    """

    token: Array
    count: Array
    ran: Array
    stopped: Array
    going: Array
    out: tuple[Array, Array, Array]


class RowPrograms(NamedTuple):
    """The programs of an engine.

    Attributes:
      split: makes what the others take of the parameters that `Engine.prepare` returns.
      empty: `(rows, slots) -> caches`.
      read: `(params, caches, hidden, place, tokens, count, length) -> caches, hidden`: new tokens of the rows `place`.
      copy: `(caches, hidden, source, target, slots) -> caches, hidden`.
      select: `(caches, hidden, index) -> caches, hidden` of the rows `index` alone.
      decode: `(params, caches, hidden, asked, slots) -> caches, chunk`; the first `slots` slots hold the longest row.
    """

    split: Callable
    empty: Callable
    read: Callable
    copy: Callable
    select: Callable
    decode: Callable


def programs_of(engine: Engine, params, chunk: int) -> RowPrograms:
    """The programs of an engine and parameters like these, made once for each length of a chunk."""
    made = engine.__dict__.setdefault("_row_programs", {})
    key = chunk, jax.tree.structure(params)
    if key not in made:
        caches, whole = engine.cache_sharding, engine.whole
        empty = jax.jit(partial(empty_cache, engine.layout, dtype=engine.cache_dtype), static_argnums=(0, 1), out_shardings=caches)
        copy = jax.jit(_copy, donate_argnums=(0, 1), static_argnums=4, out_shardings=(caches, whole))
        select = jax.jit(lambda caches, hidden, index: (cached_rows(caches, index), hidden[index]), out_shardings=(caches, whole))
        draw = _Draw(engine, chunk)
        if layerwise.suits(engine.config, engine.platform):
            one = _LayerPrograms(Layerwise(engine.graphdef, engine.config, params), draw)
            made[key] = RowPrograms(one.model.split, empty, one.read, copy, select, one.decode)
        else:
            tiled = engine.platform != "gpu"  # whose loops of unknown length wait for the host in every round
            read, decode = partial(_read, engine.graphdef, tiled), partial(_decode, engine.graphdef, tiled, draw)
            read = jax.jit(read, donate_argnums=(1, 2), out_shardings=(caches, whole))
            decode = jax.jit(decode, donate_argnums=1, static_argnums=4, out_shardings=(caches, whole))
            made[key] = RowPrograms(lambda params: params, empty, read, copy, select, decode)
    return made[key]


class _Draw:
    """Draws the next token of each row."""

    def __init__(self, engine: Engine, chunk: int):
        self.chunk, self._engine = chunk, type(engine)
        self._sampling, self._pad_id = engine.sampling, engine.pad_id

    def begin(self, asked: Asked, hidden_BxD: Array, head_DxV: Array) -> Chunk:
        """Draws the first token of the rows whose prompt's end predicts it."""
        rows = len(asked.last)
        none, fresh = jnp.zeros(rows, jnp.int32), asked.active & (asked.last < 0)
        real = jnp.zeros((rows, self.chunk + 1))
        out = jnp.full(real.shape, self._pad_id, jnp.int32), real, real
        chunk = Chunk(jnp.maximum(asked.last, 0), none, none, jnp.zeros(rows, bool), fresh, out)
        chunk = jax.lax.cond(jnp.any(fresh), lambda: self(asked, chunk, hidden_BxD, head_DxV), lambda: chunk)
        return chunk._replace(going=chunk.going | asked.active & ~fresh)

    def __call__(self, asked: Asked, chunk: Chunk, hidden_BxD: Array, head_DxV: Array) -> Chunk:
        """Draws a token of each row that is going."""
        log_p, token = self._engine.draw(hidden_BxD, head_DxV, self._engine.draws(asked.draws), asked.drawn + chunk.count, self._sampling)
        chosen = jnp.take_along_axis(log_p, token[:, None], axis=-1)[:, 0]
        entropy = -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)
        at, going = jnp.arange(len(token)), chunk.going
        new = zip(chunk.out, (token, chosen, entropy))
        out = tuple(o.at[at, chunk.count].set(jnp.where(going, v, o[at, chunk.count])) for o, v in new)
        stopped = going & jnp.any(token[:, None] == jnp.asarray(self._sampling.stop_ids, jnp.int32)[None], axis=-1)
        count = chunk.count + going
        goes_on = going & ~stopped & (asked.drawn + count < asked.longest)
        return Chunk(jnp.where(going, token, chunk.token), count, chunk.ran, chunk.stopped | stopped, goes_on, out)


def _read(graphdef, tiled: bool, params, caches, hidden_BxD, place_R, tokens_RxT, count_R, length_R):
    """Runs new tokens of the rows `place` (out of bounds: of none). Returns the caches, and the hidden state at the last new token of each row."""
    last = jnp.maximum(count_R - 1, 0)[:, None]
    if config_of(graphdef).mesh is None:
        found, caches = piece_hidden_states(graphdef, params, tokens_RxT, length_R, place_R, caches, last, tiled=tiled)
    else:  # the rows lie on several devices, so those that read are gathered first
        those = cached_rows(caches, place_R)
        found, _, those = cached_hidden_states(graphdef, params, tokens_RxT, length_R, those, last, tiled=tiled)
        caches = with_cached_rows(caches, place_R, those)
    return caches, hidden_BxD.at[place_R].set(found[:, 0], mode="drop")


def _copy(caches, hidden_BxD, source_R, target_R, slots: int):
    """Copies the first slots and the hidden state of the rows `source` to the rows `target` (out of bounds: to none)."""
    return with_cached_rows(caches, target_R, cached_rows(caches, source_R, slots)), hidden_BxD.at[target_R].set(
        hidden_BxD[source_R], mode="drop"
    )


def _decode(graphdef, tiled: bool, draw: _Draw, params, caches, hidden_BxD, asked: Asked, slots: int):
    """Draws up to `chunk` tokens of each active row, and one more where the prompt's end predicts the first one."""
    head = merge(graphdef, params).head_DxV()

    def body(carry):
        index, chunk, tails = carry
        hidden, tails = decoded_hidden_states(graphdef, params, chunk.token, asked.length, index, tails, tiled=tiled)
        return index + 1, draw(asked, chunk._replace(ran=chunk.ran + chunk.going), hidden, head), tails

    more = lambda carry: (carry[0] < draw.chunk) & jnp.any(carry[1].going)
    tails = tuple(Tail.of(LayerCache(*(x[:, :, :slots] for x in cache[:2])), draw.chunk) for cache in caches)
    _, chunk, tails = jax.lax.while_loop(more, body, (0, draw.begin(asked, hidden_BxD, head), tails))
    return tuple(tail._replace(cache=cache).joined(asked.length) for tail, cache in zip(tails, caches)), chunk


class _LayerPrograms:
    """The same calls, one layer at a time."""

    def __init__(self, model: Layerwise, draw: _Draw):
        self.model, self._draw = model, draw
        self._begin = jax.jit(lambda params, hidden, asked: draw.begin(asked, hidden, params.head_DxV()))
        self._next = jax.jit(self._one_more)
        self._keep = jax.jit(self._last, donate_argnums=1)

    def read(self, params: LayerParams, caches, hidden_BxD, place_R, tokens_RxT, count_R, length_R):
        outside = params._replace(layers=())
        place_R, length_R = jax.device_put((place_R, length_R))
        x, caches = self.model.read(params, self.model.enter(outside, tokens_RxT), caches, place_R, length_R)
        return caches, self._keep(outside, hidden_BxD, x, place_R, count_R)

    def decode(self, params: LayerParams, caches, hidden_BxD, asked: Asked, slots: int):
        asked, outside = jax.device_put(asked), params._replace(layers=())
        chunk, tails = self._begin(outside, hidden_BxD, asked), self.model.tails(caches, self._draw.chunk)
        for index in range(self._draw.chunk):
            if not np.asarray(chunk.going).any():
                break
            x = self.model.decode(params, self.model.enter(outside, chunk.token[:, None]), caches, tails, asked.length, jnp.int32(index))
            chunk = self._next(outside, x, asked, chunk)
        return self.model.joined(caches, tails, asked.length), chunk

    def _last(self, params, hidden_BxD, x_RxTxD, place_R, count_R):
        kept = jnp.take_along_axis(x_RxTxD, jnp.maximum(count_R - 1, 0)[:, None, None], axis=1)
        return hidden_BxD.at[place_R].set(self.model.normed(params, kept)[:, 0], mode="drop")

    def _one_more(self, params, x_Bx1xD, asked, chunk):
        hidden = self.model.normed(params, x_Bx1xD)[:, 0]
        return self._draw(asked, chunk._replace(ran=chunk.ran + chunk.going), hidden, params.head_DxV())
