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

from stepreward.models.attention import cached_attention
from stepreward.models.cache import LayerCache, cached_rows, with_cached_rows
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
        self._over = jax.jit(self._run, donate_argnums=2)
        self._of_rows = jax.jit(self._run_rows, donate_argnums=2, static_argnums=5)

    def split(self, params) -> LayerParams:
        """The parameters that the other calls take; no array is copied."""
        model = merge(self._graphdef, params)
        head = None if self._config.tie_embeddings else model.head[...]
        return LayerParams(tuple(nnx.split(layer)[1] for layer in model.layers), model.embedding[...], nnx.split(model.final_norm)[1], head)

    def through(
        self, params: LayerParams, x_BxTxD: Array, caches: tuple[LayerCache, ...], length_B
    ) -> tuple[Array, tuple[LayerCache, ...]]:
        """All layers over new tokens of every row, behind the `length_B` tokens that its cache holds. The caches are donated."""
        found = []
        for layer, cache in zip(params.layers, caches):
            x_BxTxD, cache = self._over(layer, x_BxTxD, cache, length_B)
            found.append(cache)
        return x_BxTxD, tuple(found)

    def through_rows(self, params: LayerParams, x_RxTxD: Array, caches: tuple[LayerCache, ...], place_R, length_R, slots: int):
        """The same for the rows `place` of the caches (out of bounds: for none), of which the first `slots` slots are read and written."""
        found = []
        for layer, cache in zip(params.layers, caches):
            x_RxTxD, cache = self._of_rows(layer, x_RxTxD, cache, place_R, length_R, slots)
            found.append(cache)
        return x_RxTxD, tuple(found)

    def normed(self, params: LayerParams, x: Array) -> Array:
        """The final norm, inside jit."""
        return nnx.merge(self._norm, params.norm)(x)

    def _run(self, state, x_BxTxD, cache: LayerCache, length_B):
        c = self._config
        positions = length_B[:, None] + jnp.arange(x_BxTxD.shape[1])[None]
        angles = rotary_angles(positions, c.head_dim, c.rope_theta, c.rope_scaling, c.mrope_sections)
        attend = partial(cached_attention, positions_BxT=positions, tiled=True)
        return nnx.merge(self._layer, state)(x_BxTxD, angles, attend, cache, length_B, None)

    def _run_rows(self, state, x_RxTxD, cache: LayerCache, place_R, length_R, slots: int):
        x_RxTxD, those = self._run(state, x_RxTxD, cached_rows(cache, place_R, slots), length_R)
        return x_RxTxD, with_cached_rows(cache, place_R, those)
