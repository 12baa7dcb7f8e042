"""The implicit process reward model's update, and scoring.

The loss compares whole episodes (all success × failure pairs of a group), whose rows may lie in different chunks. So a step
takes three turns: log-probabilities of all rows; the loss's gradient with respect to them, on arrays alone; then the
vector–Jacobian product through the model, chunk by chunk. The result is the exact gradient of the loss over the whole
mini-batch, with the memory of one chunk.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from stepreward.batch import Batch
from stepreward.models.log_probs import token_log_probs
from stepreward.training import chunks
from stepreward.training.state import TrainState, apply_gradients

Array = jax.Array


@partial(jax.jit, static_argnames=("graphdef", "chunk_rows", "temperature", "max_actions"))
def score(params, batch: Batch, *, graphdef, chunk_rows, temperature, max_actions=None) -> tuple[Array, Array]:
    """Log-probabilities and entropies `[R, L]` of the batch's action tokens under a model; 0 elsewhere."""
    return chunks.log_probs(graphdef, params, batch, chunk_rows, temperature, max_actions)


def prm_gradient(params, batch: Batch, *, graphdef, method, chunk_rows, temperature, max_actions=None):
    """Gradient of `method.prm_loss` with respect to the PRM's parameters, and the loss's metrics.

    Args:
      params: of the PRM.
      batch: whole groups; carries the reference log-probabilities that the method names in `requires`.
      method: has `prm_loss(log_prob_RxL, batch) -> (loss, metrics)`.
    """
    log_prob, _ = chunks.log_probs(graphdef, params, batch, chunk_rows, temperature, max_actions)
    (loss, metrics), cotangent = jax.value_and_grad(method.prm_loss, has_aux=True)(log_prob, batch)
    names = ("tokens", "positions", "segment_ids", "action_mask")
    chunked = {n: chunks.split(getattr(batch, n), chunk_rows) for n in names}
    chunked["cotangent"] = chunks.split(cotangent, chunk_rows)

    def surrogate(params, c):
        log_prob, _ = token_log_probs(
            graphdef, params, c["tokens"], c["positions"], c["segment_ids"], temperature=temperature,
            action_mask_RxL=c["action_mask"], max_actions=max_actions,
        )  # fmt: skip
        return jnp.sum(jnp.where(c["action_mask"], log_prob * c["cotangent"], 0.0)), {}

    grads, _ = chunks.accumulate(surrogate, params, chunked, chunks.used_chunks(batch.action_mask, chunk_rows))
    return grads, {"loss": loss, **metrics}


@partial(
    jax.jit,
    static_argnames=("graphdef", "optimizer", "method", "chunk_rows", "temperature", "max_actions"),
    donate_argnames="state",
)
def prm_step(
    state: TrainState, batch: Batch, *, graphdef, optimizer, method, chunk_rows, temperature, max_actions=None
) -> tuple[TrainState, dict[str, Array]]:
    """One PRM update on one mini-batch of whole groups.

    With `prm_frozen`, the gradient is exactly zero and the parameters stay as they are.
    """
    grads, metrics = prm_gradient(
        state.params, batch, graphdef=graphdef, method=method, chunk_rows=chunk_rows, temperature=temperature,
        max_actions=max_actions,
    )  # fmt: skip
    state, more = apply_gradients(state, grads, optimizer)
    return state, metrics | more
