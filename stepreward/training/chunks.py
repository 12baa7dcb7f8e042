"""Model passes over many rows in fixed-size chunks, inside one jitted function.

Rows `[R, L]` are reshaped to `[C, R / C, L]`. Loops run over the first `used` chunks, a traced number: one compiled step handles any
number of rows up to the capacity, and its time depends on the rows in use.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from stepreward.models.heads import head_outputs
from stepreward.models.log_probs import token_log_probs
from stepreward.training.state import widened

Array = jax.Array


def split(x_RxL: Array, chunk_rows: int) -> Array:
    """Reshapes `[R, …]` to `[R / chunk_rows, chunk_rows, …]`."""
    if x_RxL.shape[0] % chunk_rows:
        raise ValueError(f"{x_RxL.shape[0]} rows cannot be split into chunks of {chunk_rows} rows: use a multiple.")
    return x_RxL.reshape(-1, chunk_rows, *x_RxL.shape[1:])


def used_chunks(action_mask_RxL: Array, chunk_rows: int) -> Array:
    """Number of leading chunks up to the last one with an action token; later chunks are padding."""
    used = split(action_mask_RxL, chunk_rows).any(axis=(1, 2))
    return jnp.max(jnp.where(used, jnp.arange(1, used.shape[0] + 1), 0))


def map_rows(apply, batch, chunk_rows: int, outputs: int = 1, dropout_key: Array | None = None):
    """Runs `apply(rows) -> arrays [r, L]` over all rows, chunk by chunk.

    Args:
      apply: a function of a dict with `tokens`, `positions`, `segment_ids`, `action_mask` and, if the batch has images, `vision`;
        returns a tuple of `outputs` float arrays.

    Returns:
      float32 `[outputs, R, L]`, 0 off the action mask.
    """
    inputs = row_inputs(batch, chunk_rows, dropout_key)
    out = jnp.zeros((outputs, *inputs["tokens"].shape), jnp.float32)

    def body(i, out):
        return out.at[:, i].set(jnp.stack(apply(jax.tree.map(lambda x: x[i], inputs))))

    out = jax.lax.fori_loop(0, used_chunks(batch.action_mask, chunk_rows), body, out)
    return jnp.where(batch.action_mask, out.reshape(outputs, *batch.tokens.shape), 0.0)


def row_inputs(batch, chunk_rows: int, dropout_key: Array | None = None) -> dict[str, Array]:
    """Returns the model's inputs of all rows, split into chunks; with a dropout key, a key for each chunk."""
    rows = {name: split(getattr(batch, name), chunk_rows) for name in ("tokens", "positions", "segment_ids", "action_mask")}
    return rows | images(batch, chunk_rows) | dropout_keys(dropout_key, batch, chunk_rows)


def images(batch, chunk_rows: int) -> dict:
    """Returns the images as the entry `vision` of chunks; an empty dict for a batch of text."""
    return {} if batch.vision is None else {"vision": jax.tree.map(lambda x: split(x, chunk_rows), batch.vision)}


def dropout_keys(dropout_key: Array | None, batch, chunk_rows: int) -> dict[str, Array]:
    """Returns the entry `dropout_key` of chunks, which turns dropout on; an empty dict without a key."""
    if dropout_key is None:
        return {}
    return {"dropout_key": jax.random.split(dropout_key, batch.tokens.shape[0] // chunk_rows)}


def log_probs(graphdef, params, batch, chunk_rows: int, temperature: float, max_actions: int | None = None) -> tuple[Array, Array]:
    """Computes `token_log_probs` of all rows, chunk by chunk: `log_prob[R, L]`, `entropy[R, L]`, 0 off the action mask."""
    apply = lambda rows: token_log_probs_of(graphdef, params, rows, temperature, max_actions)
    log_prob, entropy = map_rows(apply, batch, chunk_rows, outputs=2)
    return log_prob, entropy


def token_log_probs_of(graphdef, params, rows, temperature, max_actions) -> tuple[Array, Array]:
    """Computes `token_log_probs` for one chunk, a dict of arrays as in `row_inputs`."""
    return token_log_probs(
        graphdef,
        params,
        rows["tokens"],
        rows["positions"],
        rows["segment_ids"],
        temperature=temperature,
        action_mask_RxL=rows["action_mask"],
        max_actions=max_actions,
        dropout_key=rows.get("dropout_key"),
        vision=rows.get("vision"),
    )


def head_outputs_of(graphdef, params, rows, max_actions, *, before: bool) -> Array:
    """Computes `head_outputs` for one chunk, a dict of arrays as in `row_inputs`."""
    return head_outputs(
        graphdef,
        params,
        rows["tokens"],
        rows["positions"],
        rows["segment_ids"],
        action_mask_RxL=rows["action_mask"],
        before=before,
        max_actions=max_actions,
        dropout_key=rows.get("dropout_key"),
        vision=rows.get("vision"),
    )


def gradient_through_outputs(apply, loss, params, batch, chunk_rows: int, dropout_key: Array | None = None):
    """Gradient of a loss that couples rows of different chunks, with the memory of one chunk.

    Three passes: compute the outputs of all rows; differentiate the loss with respect to these outputs, without the model; then compute
    the vector–Jacobian product through the model, chunk by chunk. By the chain rule, this is the exact gradient of the loss.

    Args:
      apply: `(params, rows) -> [r, L]`; for `rows` see `map_rows`.
      loss: `[R, L] -> (loss, metrics)`.

    Returns:
      Gradients with respect to `params`, and the metrics including `loss`.
    """
    if batch.tokens.shape[0] == chunk_rows:  # a single chunk needs only one forward pass
        rows = jax.tree.map(lambda x: x[0], row_inputs(batch, chunk_rows, dropout_key))
        whole = lambda params: loss(jnp.where(batch.action_mask, apply(params, rows), 0.0))
        (value, metrics), grads = jax.value_and_grad(whole, has_aux=True)(params)
        return widened(grads), {"loss": value, **metrics}
    output = map_rows(lambda rows: (apply(params, rows),), batch, chunk_rows, dropout_key=dropout_key)[0]
    (value, metrics), cotangent = jax.value_and_grad(loss, has_aux=True)(output)
    chunked = row_inputs(batch, chunk_rows, dropout_key) | {"cotangent": split(cotangent, chunk_rows)}

    def surrogate(params, c):
        return jnp.sum(jnp.where(c["action_mask"], apply(params, c) * c["cotangent"], 0.0)), {}

    grads, _ = accumulate(surrogate, params, chunked, used_chunks(batch.action_mask, chunk_rows))
    return grads, {"loss": value, **metrics}


def extreme(name: str):
    """Returns how an extreme metric is combined over chunks and updates, `jnp.maximum` or `jnp.minimum`; None for a mean or a sum."""
    return {"_max": jnp.maximum, "_min": jnp.minimum}.get(name[-4:])


def accumulate(loss_fn, params, chunked, used: Array):
    """Sums `value_and_grad` of `loss_fn(params, chunk) -> (loss, metrics)` over the first `used` chunks.

    Args:
      chunked: pytree of `[C, rows, …]` arrays.
      used: traced number of chunks to visit.

    Returns:
      Gradients in float32, whatever the parameters' dtype, and the metrics including `loss`, summed over chunks. To obtain a mean,
      `loss_fn` must divide each chunk's sum by the denominator of all chunks. For a metric whose name ends in `_max` or `_min`, the
      maximum or minimum over chunks is returned.
    """
    value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
    if jax.tree.leaves(chunked)[0].shape[0] == 1:  # a single chunk needs no second copy of the gradients for the sum
        (loss, metrics), grads = value_and_grad(params, jax.tree.map(lambda x: x[0], chunked))
        return widened(grads), {"loss": loss, **metrics}
    shapes = jax.eval_shape(lambda c: value_and_grad(params, jax.tree.map(lambda x: x[0], c)), chunked)
    (loss_shape, metric_shapes), _ = shapes
    zeros = lambda tree: jax.tree.map(lambda s: jnp.zeros(s.shape, jnp.promote_types(s.dtype, jnp.float32)), tree)
    least = {name: jnp.inf if extreme(name) is jnp.minimum else 0.0 for name in metric_shapes}
    start = (zeros(params), zeros(loss_shape), {name: zeros(shape) + least[name] for name, shape in metric_shapes.items()})

    def body(i, carry):
        grads, loss, metrics = carry
        (new_loss, new_metrics), new_grads = value_and_grad(params, jax.tree.map(lambda x: x[i], chunked))
        metrics = {name: (extreme(name) or jnp.add)(value, new_metrics[name]) for name, value in metrics.items()}
        return *jax.tree.map(jnp.add, (grads, loss), (new_grads, new_loss)), metrics

    grads, loss, metrics = jax.lax.fori_loop(0, used, body, start)
    return grads, {"loss": loss, **metrics}
