"""The update that auxiliaries with a loss over whole episodes or groups share.

The loss is the credit method's `Method.losses[name]`, a function of the model's outputs for the whole batch. It may couple rows of
different chunks; see `chunks.gradient_through_outputs`.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from stepreward.batch import Batch
from stepreward.credit.base import last_token, step_sum
from stepreward.models.adapters import join
from stepreward.training import chunks
from stepreward.training.state import TrainState, apply_gradients

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class LogProbs:
    """Outputs `[R, L]`: the log-probability of every action token, in nats.

    Attributes:
      temperature: the sampling temperature, by which logits are divided.
    """

    temperature: float

    def of_rows(self, graphdef, params, rows: dict, max_actions: int | None) -> Array:
        """Outputs `[r, L]` for one chunk, a dict of arrays as in `chunks.row_inputs`."""
        return chunks.token_log_probs_of(graphdef, params, rows, self.temperature, max_actions)[0]

    def of_batch(self, output_RxL: Array, batch: Batch) -> Array:
        """Converts the outputs of all rows to what the loss reads."""
        return output_RxL


@dataclasses.dataclass(frozen=True)
class StepOutputs:
    """Outputs `[E, S]`: the scalar head at the last action token of every step; 0 for padding and failed episodes."""

    def of_rows(self, graphdef, params, rows: dict, max_actions: int | None) -> Array:
        """Outputs `[r, L]` for one chunk, a dict of arrays as in `chunks.row_inputs`."""
        return chunks.head_outputs_of(graphdef, params, rows, max_actions, before=False)

    def of_batch(self, output_RxL: Array, batch: Batch) -> Array:
        """Converts the outputs of all rows to what the loss reads."""
        return step_sum(jnp.where(last_token(batch), output_RxL, 0.0), batch)


def auxiliary_gradient(params, batch: Batch, *, name, outputs, method, graphdef, chunk_rows, max_actions=None, base=None, dropout_key=None):
    """Gradient of `method.losses[name]` with respect to the model's parameters, and the metrics of the loss with `loss`.

    Args:
      params: the model's parameters.
      batch: whole groups or whole episodes, with the signals that the loss reads, and the values of scheduled coefficients.
      name: the auxiliary's name.
      outputs: which outputs of the model the loss reads, `LogProbs` or `StepOutputs`.
      base, dropout_key: see `policy_step`.
    """
    apply = lambda params, rows: outputs.of_rows(graphdef, join(base, params), rows, max_actions)
    loss = lambda output_RxL: method.with_coefficients(batch).losses[name](outputs.of_batch(output_RxL, batch), batch)
    return chunks.gradient_through_outputs(apply, loss, params, batch, chunk_rows, dropout_key)


@partial(
    jax.jit,
    static_argnames=("name", "outputs", "method", "graphdef", "optimizer", "chunk_rows", "max_actions"),
    donate_argnames="state",
)
def auxiliary_step(
    state: TrainState,
    batch: Batch,
    *,
    name,
    outputs,
    method,
    graphdef,
    optimizer,
    chunk_rows,
    max_actions=None,
    base=None,
    dropout_key=None,
) -> tuple[TrainState, dict[str, Array]]:
    """One update on one mini-batch; for the arguments see `auxiliary_gradient`."""
    grads, metrics = auxiliary_gradient(
        state.params,
        batch,
        name=name,
        outputs=outputs,
        method=method,
        graphdef=graphdef,
        chunk_rows=chunk_rows,
        max_actions=max_actions,
        base=base,
        dropout_key=dropout_key,
    )
    state, more = apply_gradients(state, grads, optimizer)
    return state, metrics | more
