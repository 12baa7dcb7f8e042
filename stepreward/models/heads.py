"""Scalar heads on a decoder's hidden states: the critic's value and the estimator's progress.

A model with a head is a dict `{"decoder": parameters, "scalar_head": head parameters}`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from stepreward.models.decoder import hidden_states

Array = jax.Array

HEADS = ("linear", "mlp")


def init_head(key: jax.Array, width: int, kind: str = "mlp") -> dict[str, Array]:
    """Parameters (fp32) of a head on hidden states of `width` channels: "linear", or "mlp" with one hidden GELU layer of that width.

    The last layer starts at zero, so that a fresh head outputs 0 everywhere.

    Raises:
      ValueError: if the kind is unknown.
    """
    if kind not in HEADS:
        raise ValueError(f"the head must be one of {', '.join(HEADS)}, not {kind!r}")
    last = {"weight": jnp.zeros((width,), jnp.float32), "bias": jnp.zeros((), jnp.float32)}
    if kind == "linear":
        return last
    first = {
        "hidden_weight": jax.random.normal(key, (width, width), jnp.float32) * width**-0.5,
        "hidden_bias": jnp.zeros((width,), jnp.float32),
    }
    return first | last


def with_head(decoder_params, key: jax.Array, width: int, kind: str) -> dict[str, Any]:
    """A decoder's parameters and a fresh head as one tree."""
    return {"decoder": decoder_params, "scalar_head": init_head(key, width, kind)}


def decoder_of(params):
    """The decoder's parameters of a model with or without a head."""
    return params["decoder"] if isinstance(params, dict) and "scalar_head" in params else params


def apply_head(head: dict[str, Array], hidden: Array) -> Array:
    """Applies a head to hidden states `[..., D]`; returns outputs `[...]`, fp32."""
    hidden = hidden.astype(jnp.float32)
    if "hidden_weight" in head:
        hidden = jax.nn.gelu(hidden @ head["hidden_weight"] + head["hidden_bias"])
    return hidden @ head["weight"] + head["bias"]


def head_outputs(
    graphdef,
    params: dict[str, Any],
    tokens_RxL: Array,
    positions_RxL: Array,
    segment_ids_RxL: Array,
    *,
    action_mask_RxL: Array,
    before: bool,
    max_actions: int | None = None,
    dropout_key: Array | None = None,
    vision=None,
) -> Array:
    """The head's output at every action token, float32 `[R, L]`, 0 elsewhere.

    Args:
      graphdef: the decoder's graph.
      params: a dict with the decoder's parameters and a head's, see `with_head`.
      tokens_RxL, positions_RxL, segment_ids_RxL: int32 rows as in `Batch`.
      action_mask_RxL: bool `[R, L]`, True at action tokens.
      before: True reads the hidden state that *predicts* the token (the value of a state); False reads the token's own hidden
        state, which depends on the token (the effect of an action). With True, the first token of a segment gets 0.
      max_actions: the largest number of action tokens in a row. If it is small, the last layer skips all other tokens.
      dropout_key: PRNG key of the adapters' dropout in training; None applies no dropout.
      vision: `VisionInputs` of the rows, or None.
    """
    rows, length = tokens_RxL.shape
    shift = int(before)
    read = partial(
        hidden_states,
        graphdef,
        params["decoder"],
        tokens_RxL,
        positions_RxL,
        segment_ids_RxL,
        dropout_key=dropout_key,
        vision=vision,
    )
    said_RxL = action_mask_RxL & predicted(segment_ids_RxL) if before else action_mask_RxL
    if max_actions is None or max_actions >= length - 1:
        hidden, _ = read()
        output = apply_head(params["scalar_head"], hidden[:, : length - shift])
        return jnp.where(said_RxL, jnp.pad(output, ((0, 0), (shift, 0))), 0.0)
    at_RxQ, kept_RxQ = action_positions(action_mask_RxL, max_actions)
    hidden, _ = read(keep_RxQ=at_RxQ - shift)
    output = apply_head(params["scalar_head"], hidden)
    return jnp.where(said_RxL, scatter(output, at_RxQ, kept_RxQ, length), 0.0)


def predicted(segment_ids_RxL: Array) -> Array:
    """bool `[R, L]`: True where the token before is in the same segment, so that its hidden state predicts this token."""
    return jnp.pad(segment_ids_RxL[:, 1:] == segment_ids_RxL[:, :-1], ((0, 0), (1, 0)))


def action_positions(action_mask_RxL: Array, max_actions: int) -> tuple[Array, Array]:
    """Positions of each row's first `max_actions` action tokens, int32 `[R, Q]`, and which of them are real, bool `[R, Q]`.

    Rows with fewer action tokens are filled with other positions. Position 0 is never returned because nothing predicts it;
    position 1 replaces it.
    """
    length = action_mask_RxL.shape[1]
    order = jnp.where(action_mask_RxL, length - jnp.arange(length), 0)
    at_RxQ = jax.lax.top_k(order, max_actions)[1]
    kept_RxQ = jnp.take_along_axis(action_mask_RxL, at_RxQ, axis=1) & (at_RxQ > 0)
    return jnp.maximum(at_RxQ, 1), kept_RxQ


def scatter(x_RxQ: Array, at_RxQ: Array, kept_RxQ: Array, length: int) -> Array:
    """Scatters `[R, Q]` back to `[R, L]`, with 0 at all other positions."""
    rows = x_RxQ.shape[0]
    return jnp.zeros((rows, length)).at[jnp.arange(rows)[:, None], at_RxQ].add(jnp.where(kept_RxQ, x_RxQ, 0.0))
