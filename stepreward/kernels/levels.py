"""The only two functions that cross levels: tokens to steps (segment sum) and steps to tokens (gather).

Shapes: `R` rows of `L` tokens; `E` episodes of at most `S` steps. `step_id` holds `episode * S + step` on action tokens
and -1 elsewhere, so neither function knows whether a row is an episode or a single step.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from stepreward.kernels.inputs import as_float32

Array = jax.Array


def tokens_to_steps(x_RxL: Array, step_id_RxL: Array, num_episodes: int, max_steps: int) -> Array:
    """Sums a token-level array over the tokens of each step.

    y[e, s] = Σ x[r, l] over the tokens with step_id[r, l] = e·S + s; tokens with step_id −1 are ignored.

    Args:
      x_RxL: `[R, L]`, any dtype, summed in float32 (True counts as 1). Values where `step_id` is −1 are ignored, NaN included.
      step_id_RxL: int32 `[R, L]` in `[-1, E·S)`.
      num_episodes: E, static.
      max_steps: S, static.

    Returns:
      float32 `[E, S]`, 0 where a step has no token.
    """
    chex.assert_rank([x_RxL, step_id_RxL], 2)
    chex.assert_equal_shape([x_RxL, step_id_RxL])
    segments = num_episodes * max_steps
    on_step = step_id_RxL >= 0
    values = jnp.where(on_step, as_float32(x_RxL), 0.0).reshape(-1)
    ids = jnp.where(on_step, step_id_RxL, segments).reshape(-1)  # index one past the end, dropped below
    return jax.ops.segment_sum(values, ids, num_segments=segments + 1)[:segments].reshape(num_episodes, max_steps)


def steps_to_tokens(x_ExS: Array, step_id_RxL: Array) -> Array:
    """Gives every action token the value of its step.

    y[r, l] = x.flat[step_id[r, l]], and 0 where step_id is −1.

    Args:
      x_ExS: `[E, S]`, any dtype.
      step_id_RxL: int32 `[R, L]` in `[-1, E·S)`.

    Returns:
      `[R, L]`, with the dtype of `x_ExS`.
    """
    chex.assert_rank([x_ExS, step_id_RxL], 2)
    on_step = step_id_RxL >= 0
    if not x_ExS.size:  # a gather from an empty array is an error; here no token belongs to a step
        return jnp.zeros(step_id_RxL.shape, x_ExS.dtype)
    gathered = x_ExS.reshape(-1)[jnp.where(on_step, step_id_RxL, 0)]
    return jnp.where(on_step, gathered, jnp.zeros((), x_ExS.dtype))
