"""Model passes over many rows in fixed-size chunks, inside one jitted function.

Rows `[R, L]` are laid out as `[C, R / C, L]`; loops run over the first `used` chunks only, a traced number, so that one
compiled step serves any number of rows up to the capacity and pays for the rows that are there.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from stepreward.models.log_probs import token_log_probs

Array = jax.Array


def split(x_RxL: Array, chunk_rows: int) -> Array:
    """`[R, …]` to `[R / chunk_rows, chunk_rows, …]`."""
    if x_RxL.shape[0] % chunk_rows:
        raise ValueError(f"{x_RxL.shape[0]} rows do not divide into chunks of {chunk_rows}.")
    return x_RxL.reshape(-1, chunk_rows, *x_RxL.shape[1:])


def used_chunks(action_mask_RxL: Array, chunk_rows: int) -> Array:
    """How many leading chunks hold an action token (rows are filled from the front)."""
    used = split(action_mask_RxL, chunk_rows).any(axis=(1, 2))
    return jnp.max(jnp.where(used, jnp.arange(1, used.shape[0] + 1), 0))


def log_probs(graphdef, params, batch, chunk_rows: int, temperature: float, max_actions: int | None = None) -> tuple[Array, Array]:
    """`token_log_probs` of all rows, chunk by chunk; `log_prob[R, L]`, `entropy[R, L]`, 0 off the action mask."""
    inputs = [split(x, chunk_rows) for x in (batch.tokens, batch.positions, batch.segment_ids, batch.action_mask)]
    out = jnp.zeros((2, *inputs[0].shape), jnp.float32)

    def body(i, out):
        *rows, action_mask = (x[i] for x in inputs)
        log_prob, entropy = token_log_probs(
            graphdef, params, *rows, temperature=temperature, action_mask_RxL=action_mask, max_actions=max_actions
        )
        return out.at[0, i].set(log_prob).at[1, i].set(entropy)

    out = jax.lax.fori_loop(0, used_chunks(batch.action_mask, chunk_rows), body, out)
    out = jnp.where(batch.action_mask, out.reshape(2, *batch.tokens.shape), 0.0)
    return out[0], out[1]


def accumulate(loss_fn, params, chunked, used: Array):
    """Sums `value_and_grad` of `loss_fn(params, chunk) -> (loss, metrics)` over the first `used` chunks.

    Args:
      chunked: pytree of `[C, rows, …]` arrays.
      used: traced number of chunks to visit.

    Returns:
      Gradients, and the metrics (with `loss`) summed over chunks: a metric that is a mean must be given as its share of the
      whole, which is what an explicit denominator does.
    """
    value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
    shapes = jax.eval_shape(lambda c: value_and_grad(params, jax.tree.map(lambda x: x[0], c)), chunked)
    (loss_shape, metric_shapes), _ = shapes
    zeros = lambda tree: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), tree)
    start = (zeros(params), zeros(loss_shape), zeros(metric_shapes))

    def body(i, carry):
        grads, loss, metrics = carry
        (new_loss, new_metrics), new_grads = value_and_grad(params, jax.tree.map(lambda x: x[i], chunked))
        return jax.tree.map(jnp.add, (grads, loss, metrics), (new_grads, new_loss, new_metrics))

    grads, loss, metrics = jax.lax.fori_loop(0, used, body, start)
    return grads, {"loss": loss, **metrics}
