"""Log-probabilities of a batch's tokens under a model."""

from __future__ import annotations

from functools import partial

import jax

from stepreward.batch import Batch
from stepreward.models.adapters import join
from stepreward.training import chunks

Array = jax.Array


@partial(jax.jit, static_argnames=("graphdef", "chunk_rows", "temperature", "max_actions"))
def score(params, batch: Batch, *, graphdef, chunk_rows, temperature, max_actions=None, base=None) -> tuple[Array, Array]:
    """Log-probabilities and entropies `[R, L]`, in nats, of the batch's action tokens under a model; 0 elsewhere."""
    return chunks.log_probs(graphdef, join(base, params), batch, chunk_rows, temperature, max_actions)


def needs_initial(c, method) -> bool:
    """Whether a batch needs log-probabilities under the policy that reinforcement learning started from."""
    return "log_prob_initial" in method.requires or c.policy.kl_coef != 0
