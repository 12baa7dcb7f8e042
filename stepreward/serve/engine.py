"""An engine with separate sampling settings for each row, so that different requests share one batch and one compiled program."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from stepreward.models.log_probs import log_softmax
from stepreward.rollout.engine import Engine
from stepreward.rollout.sampling import Sampling

Array = jax.Array

GREEDY = 1e-5  # lower temperatures count as 0, because dividing by them would overflow
CHUNK = 16  # tokens decoded before requests can join or leave the batch


class RowSampling(NamedTuple):
    """Sampling settings of each row; `Engine.turn` takes it in place of its PRNG keys.

    Attributes:
      keys: PRNG keys `[B]`, one a row.
      temperature: float32 `[B]`; 0 is greedy.
      top_k: int32 `[B]`; 0 keeps all tokens.
      top_p: float32 `[B]`; 1 keeps all tokens.
    """

    keys: Array
    temperature: np.ndarray
    top_k: np.ndarray
    top_p: np.ndarray


def row_keys(seeds: list[tuple[int, int]]) -> Array:
    """One PRNG key for each `(seed of the request, index of its chunk)`, so that a row's samples do not depend on the other rows."""
    words = [np.random.SeedSequence(seed).generate_state(2, np.uint32) for seed in seeds]
    return jax.random.wrap_key_data(jnp.asarray(np.stack(words)), impl="threefry2x32")


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
        keys = jax.vmap(jax.random.fold_in, (0, None))(rows.keys, index)
        return jnp.where(greedy, likeliest, jax.vmap(jax.random.categorical)(keys, kept).astype(jnp.int32))

    return scaled, jax.lax.cond(jnp.all(greedy), lambda: likeliest, sampled)


class ServingEngine(Engine):
    """Decodes one chunk a turn, each row with its own settings: `turn` takes a `RowSampling` in place of its keys.

    If a chunk did not end the answer, the next turn gets its last token as the only new token. Bucket sizes are few, because each
    costs a compilation.
    """

    draw = staticmethod(draw_rows)

    def __post_init__(self):
        super().__post_init__()
        most = self.slot_buckets[-1]
        self.slot_buckets = tuple(sorted({-(-most // part) for part in (4, 2, 1)}))


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
    widths = [max_length]  # numbers of new tokens in a turn: a prompt's, or the single token that continues an answer
    while widths[-1] > 256:
        widths.append(-(-widths[-1] // 4))
    return ServingEngine(
        graphdef, config, Sampling(stop_ids, chunk), max_length=max_length, buckets=(1, *widths), pad_id=pad_id, **settings
    )
