"""Log-probabilities and entropies of given tokens, without ever holding `[R, L, V]`."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from stepreward.models.decoder import hidden_states

Array = jax.Array


def token_log_probs(
    graphdef,
    params,
    tokens_RxL,
    positions_RxL,
    segment_ids_RxL,
    *,
    temperature: float = 1.0,
    chunk: int = 1024,
    action_mask_RxL: Array | None = None,
    max_actions: int | None = None,
) -> tuple[Array, Array]:
    """Log-probability of each token given the earlier tokens of its segment, and the entropy it was drawn with.

    log p(xₗ | x_<ₗ) = zₗ[xₗ] − logsumexp(zₗ),  z = logits / temperature,  in fp32.

    Args:
      graphdef, params: the decoder, see `decoder.build`.
      tokens_RxL, positions_RxL, segment_ids_RxL: int32 rows as in `Batch`.
      temperature: the sampling temperature, so that these equal the sampler's own log-probabilities.
      chunk: logits are formed for this many tokens at a time (and again in the backward pass).
      action_mask_RxL, max_actions: with both, only the first `max_actions` action tokens of each row are computed, and all else
        is 0: cheaper where answers are short.

    Returns:
      `log_prob[R, L]` and `entropy[R, L]` in nats, fp32, aligned with `tokens`; 0 at the first token of a row.
    """
    rows, length = tokens_RxL.shape
    if max_actions is None or action_mask_RxL is None or max_actions >= length - 1:
        hidden, head = hidden_states(graphdef, params, tokens_RxL, positions_RxL, segment_ids_RxL)
        found = _flat_log_probs(hidden[:, :-1], tokens_RxL[:, 1:], head, temperature, chunk)
        return tuple(jnp.pad(x, ((0, 0), (1, 0))) for x in found)
    # Positions of the action tokens, in order; a row with fewer is filled up with others, which the mask drops again.
    order = jnp.where(action_mask_RxL, length - jnp.arange(length), 0)
    at_RxQ = jax.lax.top_k(order, max_actions)[1]
    kept_RxQ = jnp.take_along_axis(action_mask_RxL, at_RxQ, axis=1) & (at_RxQ > 0)
    at_RxQ = jnp.maximum(at_RxQ, 1)  # the first token, which nothing predicts, stands aside for the second
    hidden, head = hidden_states(graphdef, params, tokens_RxL, positions_RxL, segment_ids_RxL, at_RxQ - 1)
    targets = jnp.take_along_axis(tokens_RxL, at_RxQ, axis=1)
    found = _flat_log_probs(hidden, targets, head, temperature, chunk)
    row = jnp.arange(rows)[:, None]
    return tuple(jnp.zeros((rows, length)).at[row, at_RxQ].add(jnp.where(kept_RxQ, x, 0.0)) for x in found)


def _flat_log_probs(hidden_RxQxE, targets_RxQ, head_ExV, temperature, chunk) -> tuple[Array, Array]:
    """Chosen log-probabilities and entropies `[R, Q]`, with logits for at most `chunk` tokens at a time."""
    rows, asked, width = hidden_RxQxE.shape
    flat, targets = hidden_RxQxE.reshape(rows * asked, width), targets_RxQ.reshape(-1)
    size = min(chunk, rows * asked)
    padding = -(rows * asked) % size
    flat = jnp.pad(flat, ((0, padding), (0, 0))).reshape(-1, size, width)
    targets = jnp.pad(targets, (0, padding)).reshape(-1, size)
    found = jax.lax.map(partial(_chunk, head_ExV, temperature), (flat, targets))
    return tuple(x.reshape(-1)[: rows * asked].reshape(rows, asked) for x in found)


@partial(jax.checkpoint, static_argnums=1)
def _chunk(head_ExV, temperature, inputs):
    hidden, targets = inputs
    log_p = log_softmax(hidden, head_ExV, temperature)
    chosen = jnp.take_along_axis(log_p, targets[:, None], axis=-1)[:, 0]
    return chosen, -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


def log_softmax(hidden, head_ExV, temperature: float) -> Array:
    """Log-probabilities over the vocabulary, fp32, at the given temperature (0, greedy, counts as 1)."""
    logits = (hidden @ head_ExV.astype(hidden.dtype)).astype(jnp.float32)
    return jax.nn.log_softmax(logits / (temperature or 1.0), axis=-1)
