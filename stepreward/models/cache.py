"""The keys and values of a decoder's conversations: what a rollout keeps between turns."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


class LayerCache(NamedTuple):
    """Keys and values of one layer, `[B, K, C, H]`: with rows and heads outermost, a decode step reads memory sequentially.

    Those of stacked layers are `[L, B, K, C, H]`, with the `layer` that runs.
    """

    key: Array
    value: Array
    layer: Array | None = None

    def write(self, key_BxKxTxH: Array, value_BxKxTxH: Array, start_B: Array) -> tuple[LayerCache, Array, Array]:
        """Writes T new slots of each row, starting at `start_B`. Returns the cache, and the layer's keys and values `[B, K, C, H]`.

        Slots past a row's true length hold padding until overwritten.
        """
        if self.layer is None:
            found = LayerCache(*(_write(old, new, start_B) for old, new in zip(self, (key_BxKxTxH, value_BxKxTxH))))
            return found, found.key, found.value
        rows, time = key_BxKxTxH.shape[0], key_BxKxTxH.shape[2]
        place = (self.layer, jnp.arange(rows)[:, None], slice(None), start_B[:, None] + jnp.arange(time))
        put = lambda old, new: old.at[place].set(jnp.moveaxis(new, 1, 2).astype(old.dtype), mode="drop")
        key, value = put(self.key, key_BxKxTxH), put(self.value, value_BxKxTxH)
        return LayerCache(key, value, self.layer), *(jax.lax.dynamic_index_in_dim(x, self.layer, keepdims=False) for x in (key, value))


class Tail(NamedTuple):
    """What one layer has decoded since its cache was last written: `key` and `value` `[B, K, S, H]`, a slot for each token of a chunk.

    All rows write to the same slot, and the cache is only read, so that a step of decoding copies nothing.
    """

    cache: LayerCache
    key: Array
    value: Array

    @classmethod
    def of(cls, cache: LayerCache, size: int) -> Tail:
        """An empty tail."""
        batch, groups, _, width = cache.key.shape
        empty = jnp.zeros((batch, groups, size, width), cache.key.dtype)
        return cls(cache, empty, empty)

    def write(self, key_BxKx1xH: Array, value_BxKx1xH: Array, index) -> tuple[Tail, tuple[Array, Array], tuple[Array, Array]]:
        """Writes the slot `index`. Returns the tail, and the pairs of keys and values that `attention.tail_attention` takes."""
        put = lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), index, axis=2)
        found = Tail(self.cache, put(self.key, key_BxKx1xH), put(self.value, value_BxKx1xH))
        return found, (self.cache.key, found.key), (self.cache.value, found.value)

    def joined(self, length_B: Array) -> LayerCache:
        """The cache with the tail behind the `length` tokens of each row."""
        return LayerCache(*(_write(old, new, length_B) for old, new in zip(self.cache, (self.key, self.value))))


class Piece(NamedTuple):
    """Some rows of one layer's cache, which read new tokens. The other rows stay where they are, and nothing but the new slots is written.

    Attributes:
      cache: of all rows.
      rows: int32 `[R]`; a row out of bounds is padding, and nothing is written for it.
    """

    cache: LayerCache
    rows: Array

    def write(self, key_RxKxTxH: Array, value_RxKxTxH: Array, start_R: Array) -> tuple[Piece, Array, Array]:
        """Writes T new slots of each row, starting at `start_R`. Returns the piece, and the keys and values of all rows."""
        there = self.rows < self.cache.key.shape[0]

        def write_row(index, whole):
            place = (self.rows[index], 0, start_R[index], 0)

            def put(old, new):
                new = jax.lax.dynamic_index_in_dim(new, index).astype(old.dtype)
                return jax.lax.dynamic_update_slice(old, jnp.where(there[index], new, jax.lax.dynamic_slice(old, place, new.shape)), place)

            return tuple(put(old, new) for old, new in zip(whole, (key_RxKxTxH, value_RxKxTxH)))

        found = LayerCache(*jax.lax.fori_loop(0, len(self.rows), write_row, tuple(self.cache[:2])))
        return Piece(found, self.rows), found.key, found.value


def _write(cache_BxKxCxH: Array, new_BxKxTxH: Array, start_B: Array) -> Array:
    def write_row(row, new, start):
        return jax.lax.dynamic_update_slice(row, new, (0, start, 0))

    return jax.vmap(write_row)(cache_BxKxCxH, new_BxKxTxH.astype(cache_BxKxCxH.dtype), start_B)


def empty_cache(config, batch: int, slots: int, dtype=None) -> tuple[LayerCache, ...] | LayerCache:
    """Zeroed key/value caches of a `DecoderConfig`: one `LayerCache` a layer, or a single one for stacked layers."""
    shape = (batch, config.num_kv_heads, slots, config.head_dim)
    zeros = lambda *shape: jnp.zeros(shape, dtype or config.compute_dtype)
    if config.scan_layers:
        return LayerCache(*(zeros(config.num_layers, *shape) for _ in range(2)))
    return tuple(LayerCache(zeros(*shape), zeros(*shape)) for _ in range(config.num_layers))


def cache_slots(caches) -> int:
    """The number of slots of a row."""
    return jax.tree.leaves(caches)[0].shape[-2]


def with_slots(caches, slots: int):
    """The caches with `slots` slots; the new ones are zero."""
    return jax.tree.map(lambda x: jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, slots - x.shape[-2]), (0, 0)]), caches)


def cached_rows(caches, index_R: Array, slots: int | None = None):
    """The rows `index` of caches, in their first slots."""
    part = jax.tree.map(lambda x: x[..., :slots, :], caches)
    return jax.tree.map(lambda x: x.at[(slice(None),) * (x.ndim - 4) + (index_R,)].get(mode="clip"), part)


def with_cached_rows(caches, index_R: Array, those):
    """Caches with the rows `index` replaced, in as many slots as `those` have; a row out of bounds is dropped."""

    def put(x, y):
        place = (slice(None),) * (x.ndim - 4) + (index_R, slice(None), slice(y.shape[-2]))
        return x.at[place].set(y, mode="drop")

    return jax.tree.map(put, caches, those)
