"""Log-probabilities and entropies of given tokens, computed without storing logits `[R, L, V]`."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from stepreward.models.decoder import config_of, hidden_states
from stepreward.models.heads import action_positions, apply_head, predicted, scatter
from stepreward.parallel import constrain

Array = jax.Array


def token_log_probs(
    graphdef,
    params,
    tokens_RxL,
    positions_RxL,
    segment_ids_RxL,
    *,
    temperature: float = 1.0,
    chunk: int | None = None,
    action_mask_RxL: Array | None = None,
    max_actions: int | None = None,
    dropout_key: Array | None = None,
    vision=None,
) -> tuple[Array, Array]:
    """Log-probability of each token given the earlier tokens of its segment, and the entropy of the distribution it was drawn from.

    log p(xₗ | x_<ₗ) = zₗ[xₗ] − logsumexp(zₗ),  z = logits / temperature,  in fp32.

    Args:
      graphdef, params: the decoder's graph and parameters, see `decoder.build`.
      tokens_RxL, positions_RxL, segment_ids_RxL: int32 rows as in `Batch`.
      temperature: the sampling temperature, so that the result equals the sampler's own log-probabilities; 0 (greedy) counts as 1.
      chunk: the number of tokens whose logits exist at a time, rounded to at least one position of every row. The backward pass
        recomputes them. None uses `default_chunk`.
      action_mask_RxL, max_actions: if both are given, only the first `max_actions` action tokens of each row are computed and all
        other results are 0. This is cheaper if answers are short.
      dropout_key: PRNG key of the adapters' dropout in training; None applies no dropout.
      vision: `VisionInputs` of the rows, or None.

    Returns:
      `log_prob[R, L]` and `entropy[R, L]` in nats, fp32, aligned with `tokens`. Both are 0 at the first token of a segment, because
      nothing predicts it.
    """
    return log_probs_and_values(
        graphdef,
        params,
        None,
        tokens_RxL,
        positions_RxL,
        segment_ids_RxL,
        temperature=temperature,
        chunk=chunk,
        action_mask_RxL=action_mask_RxL,
        max_actions=max_actions,
        dropout_key=dropout_key,
        vision=vision,
    )[:2]


def log_probs_and_values(
    graphdef,
    params,
    head,
    tokens_RxL,
    positions_RxL,
    segment_ids_RxL,
    *,
    temperature: float = 1.0,
    chunk: int | None = None,
    action_mask_RxL: Array | None = None,
    max_actions: int | None = None,
    dropout_key: Array | None = None,
    vision=None,
) -> tuple[Array, Array, Array | None]:
    """`token_log_probs` and the outputs of a scalar head from one pass: `value[R, L]` reads the hidden state *before* each token.

    Args:
      graphdef, params: as in `token_log_probs`, like all arguments not listed here.
      head: parameters of the head (see `models.heads`); None returns None for the values.
    """
    length = tokens_RxL.shape[1]
    read = partial(hidden_states, graphdef, params, tokens_RxL, positions_RxL, segment_ids_RxL, dropout_key=dropout_key, vision=vision)
    if max_actions is None or action_mask_RxL is None or max_actions >= length - 1:
        hidden, vocabulary = read()
        hidden, targets = hidden[:, :-1], tokens_RxL[:, 1:]
        place = lambda x: jnp.pad(x, ((0, 0), (1, 0)))
    else:
        at_RxQ, kept_RxQ = action_positions(action_mask_RxL, max_actions)
        hidden, vocabulary = read(keep_RxQ=at_RxQ - 1)
        targets = jnp.take_along_axis(tokens_RxL, at_RxQ, axis=1)
        place = lambda x: scatter(x, at_RxQ, kept_RxQ, length)
    log_prob, entropy = _chunked_log_probs(hidden, targets, vocabulary, temperature, chunk, config_of(graphdef).mesh)
    put = lambda x: jnp.where(predicted(segment_ids_RxL), place(x), 0.0)
    return put(log_prob), put(entropy), None if head is None else put(apply_head(head, hidden))


def chosen_log_probs(hidden_RxQxD: Array, targets_RxQ: Array, head_DxV: Array, *, mesh=None) -> Array:
    """Log-probability of the token `targets[r, q]` in the distribution that `hidden[r, q]` predicts, `[R, Q]`, fp32, at temperature 1.

    Args:
      hidden_RxQxD, head_DxV: hidden states and the vocabulary head, as the functions of `decoder` return them.
      targets_RxQ: int32 tokens.
      mesh: the decoder's mesh.
    """
    return _chunked_log_probs(hidden_RxQxD, targets_RxQ, head_DxV, 1.0, None, mesh)[0]


def _chunked_log_probs(hidden_RxQxD, targets_RxQ, head_DxV, temperature, chunk, mesh) -> tuple[Array, Array]:
    """Log-probabilities of the targets and entropies, `[R, Q]`, with logits for about `chunk` tokens at a time. A chunk is a few
    positions of all rows, so that rows remain split over devices."""
    rows, asked, _ = hidden_RxQxD.shape
    chunk = chunk or default_chunk(head_DxV.shape[1], 1 if mesh is None else mesh.size)
    count = -(-asked // max(1, chunk // rows))
    one = partial(_chunk, head_DxV, temperature, mesh)
    if count == 1:
        return one((hidden_RxQxD, targets_RxQ))
    size = -(-asked // count)
    spare = count * size - asked
    parts = lambda x: jnp.moveaxis(x.reshape(rows, count, size, *x.shape[2:]), 1, 0)
    hidden = parts(jnp.pad(hidden_RxQxD, ((0, 0), (0, spare), (0, 0))))
    found = jax.lax.map(one, (hidden, parts(jnp.pad(targets_RxQ, ((0, 0), (0, spare))))))
    return tuple(jnp.moveaxis(x, 0, 1).reshape(rows, count * size)[:, :asked] for x in found)


def default_chunk(vocab_size: int, devices: int = 1) -> int:
    """Tokens in a chunk of logits: as many as 256 MiB of fp32 logits hold, but from 64 to 1,024, times the number of devices."""
    return devices * max(64, min(1024, 2**26 // vocab_size))


@partial(jax.checkpoint, static_argnums=(1, 2))
def _chunk(head_DxV, temperature, mesh, inputs):
    """log p = z_x − log Σ eᶻ and H = log Σ eᶻ − Σ p·z. Both need only sums over the vocabulary, which may be split over devices.
    Rows are then sent to the slices of the head, because the slices are larger."""
    hidden_RxQxD, targets_RxQ = inputs
    hidden_RxQxD = constrain(hidden_RxQxD, mesh, "vocab_rows")
    rows, asked, width = hidden_RxQxD.shape
    # One flat matrix product, as in the decoder.
    logits = hidden_RxQxD.reshape(rows * asked, width) @ head_DxV.astype(hidden_RxQxD.dtype)
    logits = constrain(logits.reshape(rows, asked, -1), mesh, "vocab_rows", None, "vocab")
    z = logits.astype(jnp.float32) / (temperature or 1.0)
    z -= jax.lax.stop_gradient(jnp.max(z, axis=-1, keepdims=True))
    exp = jnp.exp(z)
    total_RxQ = jnp.sum(exp, axis=-1)
    log_total_RxQ = jnp.log(total_RxQ)
    chosen = jax.lax.broadcasted_iota(jnp.int32, z.shape, 2) == targets_RxQ[..., None]
    log_prob = jnp.sum(jnp.where(chosen, z, 0.0), axis=-1) - log_total_RxQ
    return log_prob, log_total_RxQ - jnp.sum(exp * z, axis=-1) / total_RxQ


def log_softmax(hidden, head_DxV, temperature: float) -> Array:
    """Log-probabilities over the vocabulary, fp32, at the given temperature (0, greedy, counts as 1)."""
    logits = (hidden @ head_DxV.astype(hidden.dtype)).astype(jnp.float32)
    return jax.nn.log_softmax(logits / (temperature or 1.0), axis=-1)
