"""A decoder with a cache, one compiled program for all of its layers.

A program with 30 layers takes half a minute to compile on a CPU; one layer takes a second, and 30 calls of it are as fast, because the weights
are read from memory either way. On an accelerator a call costs more than a layer, so there the whole model is one program.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from stepreward.models.attention import piece_attention, tail_attention
from stepreward.models.cache import LayerCache, Piece, Tail
from stepreward.models.decoder import DecoderConfig, merge
from stepreward.models.rotary import rotary_angles

Array = jax.Array

MANY = 8  # layers from which on a CPU runs them one by one; fewer compile fast enough together


def suits(config: DecoderConfig, platform: str) -> bool:
    """Whether a model is better run layer by layer: it is deep, and runs on one CPU."""
    return config.num_layers >= MANY and config.mesh is None and platform == "cpu"


class LayerParams(NamedTuple):
    """The parameters of a model, apart: those of each layer; the embedding; the final norm's; the head if it is not the embedding's transpose."""

    layers: tuple[Any, ...]
    embedding: Array
    norm: Any
    head: Array | None

    def head_DxV(self) -> Array:
        return self.embedding.T if self.head is None else self.head


class Layerwise:
    """Runs a decoder layer by layer.

    Args:
      graphdef: of listed layers, without adapters.
      config: of the decoder.
      params: as `Engine.prepare` returns them. Other parameters of the same kind can be run too.
    """

    def __init__(self, graphdef, config: DecoderConfig, params):
        self._graphdef, self._config = graphdef, config
        model = merge(graphdef, params)
        self._layer, self._norm = nnx.split(model.layers[0])[0], nnx.split(model.final_norm)[0]
        self.enter = jax.jit(lambda params, tokens: params.embedding[tokens].astype(config.compute_dtype))
        self._token = jax.jit(self._run_token, donate_argnums=(3, 4))
        self._rows = jax.jit(self._run_rows, donate_argnums=2)
        self._empty = jax.jit(lambda cache, size: Tail.of(cache, size)[1:], static_argnums=1)
        self._join = jax.jit(lambda cache, tail, length: Tail(cache, *tail).joined(length), donate_argnums=0)

    def split(self, params) -> LayerParams:
        """The parameters that the other calls take; no array is copied."""
        model = merge(self._graphdef, params)
        head = None if self._config.tie_embeddings else model.head[...]
        return LayerParams(tuple(nnx.split(layer)[1] for layer in model.layers), model.embedding[...], nnx.split(model.final_norm)[1], head)

    def read(self, params: LayerParams, x_RxTxD: Array, caches: tuple[LayerCache, ...], place_R, length_R):
        """All layers over new tokens of the rows `place` of the caches (out of bounds: of none). Returns the hidden states before the final norm,
        and the caches, which are donated."""
        found = []
        for layer, cache in zip(params.layers, caches):
            x_RxTxD, cache = self._rows(layer, x_RxTxD, cache, place_R, length_R)
            found.append(cache)
        return x_RxTxD, tuple(found)

    def tails(self, caches: tuple[LayerCache, ...], size: int) -> list[tuple[Array, Array]]:
        """The keys and values of an empty `Tail` for each layer."""
        return [self._empty(cache, size) for cache in caches]

    def decode(self, params: LayerParams, x_Bx1xD: Array, caches: tuple[LayerCache, ...], tails: list, length_B, index) -> Array:
        """All layers over one token of every row, see `decoder.decoded_hidden_states`. Replaces the tails."""
        for place, (layer, cache) in enumerate(zip(params.layers, caches)):
            x_Bx1xD, tails[place] = self._token(layer, x_Bx1xD, cache, *tails[place], length_B, index)
        return x_Bx1xD

    def joined(self, caches: tuple[LayerCache, ...], tails: list, length_B) -> tuple[LayerCache, ...]:
        """The caches with their tails; the caches are donated."""
        return tuple(self._join(cache, tail, length_B) for cache, tail in zip(caches, tails))

    def normed(self, params: LayerParams, x: Array) -> Array:
        """The final norm, inside jit."""
        return nnx.merge(self._norm, params.norm)(x)

    def _angles(self, positions_BxT):
        c = self._config
        return rotary_angles(positions_BxT, c.head_dim, c.rope_theta, c.rope_scaling, c.mrope_sections)

    def _run_token(self, state, x_Bx1xD, cache: LayerCache, key, value, length_B, index):
        attend = partial(tail_attention, length_B=length_B, index=index, tiled=True)
        angles = self._angles(length_B[:, None] + index)
        x_Bx1xD, tail = nnx.merge(self._layer, state)(x_Bx1xD, angles, attend, Tail(cache, key, value), index, None)
        return x_Bx1xD, (tail.key, tail.value)

    def _run_rows(self, state, x_RxTxD, cache: LayerCache, place_R, length_R):
        positions = length_R[:, None] + jnp.arange(x_RxTxD.shape[1])[None]
        attend = partial(piece_attention, rows_R=place_R, positions_RxT=positions, tiled=True)
        x_RxTxD, piece = nnx.merge(self._layer, state)(x_RxTxD, self._angles(positions), attend, Piece(cache, place_R), length_R, None)
        return x_RxTxD, piece.cache
