"""An engine with separate sampling settings for each row, so that different requests share one batch and one compiled program."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from stepreward.models.log_probs import log_softmax
from stepreward.rollout.engine import Engine
from stepreward.rollout.rows import PIECE, Rows
from stepreward.rollout.sampling import Sampling

Array = jax.Array

GREEDY = 1e-5  # lower temperatures count as 0, because dividing by them would overflow
CHUNK = 16  # tokens decoded before requests can join or leave the batch


class RowSampling(NamedTuple):
    """How the next token of each row is drawn.

    Attributes:
      keys: PRNG keys `[B]`, one a row; on the host, their data.
      temperature: float32 `[B]`; 0 is greedy.
      top_k: int32 `[B]`; 0 keeps all tokens.
      top_p: float32 `[B]`; 1 keeps all tokens.
    """

    keys: Any
    temperature: Any
    top_k: Any
    top_p: Any


def row_sampling(seed: int, temperature: float, top_k: int, top_p: float) -> RowSampling:
    """The settings of one row, on the host. A row's samples depend on the seed of its request alone, and not on the other rows."""
    words = np.random.SeedSequence((seed, 0)).generate_state(2, np.uint32)
    return RowSampling(words, np.float32(temperature), np.int32(top_k), np.float32(top_p))


def truncate_rows(log_p_BxV: Array, top_k_B: Array, top_p_B: Array) -> Array:
    """`sampling.truncate` with a top-k and a top-p for each row: removed tokens get −∞, and the most likely token is always kept."""
    size = log_p_BxV.shape[-1]
    ordered = jnp.sort(log_p_BxV, axis=-1, descending=True)
    kept_k = jnp.where(top_k_B > 0, jnp.minimum(top_k_B, size), size)[:, None]
    p = jax.nn.softmax(jnp.where(jnp.arange(size) < kept_k, ordered, -jnp.inf), axis=-1)
    before = jnp.cumsum(p, axis=-1) - p  # mass of strictly likelier tokens
    kept_p = jnp.sum(before < top_p_B[:, None], axis=-1, keepdims=True)
    kept = jnp.where(top_p_B[:, None] < 1, jnp.minimum(kept_k, kept_p), kept_k)
    threshold = jnp.take_along_axis(ordered, jnp.maximum(kept, 1) - 1, axis=-1)
    return jnp.where(log_p_BxV < threshold, -jnp.inf, log_p_BxV)


def draw_rows(hidden_BxD: Array, head_DxV: Array, rows: RowSampling, index, sampling: Sampling) -> tuple[Array, Array]:
    """`engine.draw_token` with the settings of each row; sorts the vocabulary only if some row truncates it."""
    del sampling  # each row has its own temperature and truncation
    log_p = log_softmax(hidden_BxD, head_DxV, 1.0)
    likeliest = jnp.argmax(log_p, axis=-1).astype(jnp.int32)
    greedy = rows.temperature < GREEDY
    scaled = jax.nn.log_softmax(log_p / jnp.where(greedy, 1.0, rows.temperature)[:, None], axis=-1)

    def sampled():
        cuts = jnp.any(~greedy & ((rows.top_k > 0) | (rows.top_p < 1)))
        kept = jax.lax.cond(cuts, lambda x: truncate_rows(x, rows.top_k, rows.top_p), lambda x: x, scaled)
        keys = jax.vmap(jax.random.fold_in)(rows.keys, jnp.broadcast_to(index, rows.keys.shape))
        return jnp.where(greedy, likeliest, jax.vmap(jax.random.categorical)(keys, kept).astype(jnp.int32))

    return scaled, jax.lax.cond(jnp.all(greedy), lambda: likeliest, sampled)


class ServingEngine(Engine):
    """An engine whose rows each have their own settings."""

    draw = staticmethod(draw_rows)

    @staticmethod
    def draws(rows: RowSampling) -> RowSampling:
        return rows._replace(keys=jax.random.wrap_key_data(rows.keys, impl="threefry2x32"))

    def conversations(self, params, count: int) -> Rows:
        """A batch of so many conversations."""
        return Rows(self, params, count, chunk=self.sampling.max_answer_tokens)


def make_engine(
    graphdef, config, stop_ids: tuple[int, ...], pad_id: int, max_length: int, *, chunk: int = CHUNK, **settings
) -> ServingEngine:
    """Makes the engine of a server.

    Args:
      graphdef, config: the decoder's graph and config.
      stop_ids, pad_id: stop tokens and padding token of its chat form.
      max_length: most tokens of a prompt and its answer together.
      chunk: tokens decoded at a time.
      **settings: further arguments of `Engine`.
    """
    widths = tuple(width for width in (16, 64) if width < max_length)  # of a prompt that is read in one piece; few, because each compiles
    return ServingEngine(
        graphdef,
        config,
        Sampling(stop_ids, chunk),
        max_length=max_length,
        buckets=(*widths, min(max_length, PIECE)),
        pad_id=pad_id,
        **settings,
    )
