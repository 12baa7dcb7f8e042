"""Sorts tokens by time for either packing: rows may be whole episodes or single steps, in any order."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
from flax import struct

from stepreward.kernels.inputs import as_bool

Array = jax.Array


@struct.dataclass
class TokenStream:
    """All tokens of a batch in one stream `[1, R·L]`, sorted by episode and, within an episode, by time.

    Attributes:
      order: int32 `[R·L]`, index of each entry of the stream in the flattened `[R, L]` array.
      mask: bool `[1, R·L]`; the False entries come last.
      step_end: bool `[1, R·L]`, True at the last token of each step.
      episode_end: bool `[1, R·L]`, True at the last token of each episode.
    """

    order: Array
    mask: Array
    step_end: Array
    episode_end: Array

    def take(self, x_RxL: Array) -> Array:
        """Reorders `[R, L]` into the stream `[1, R·L]`."""
        return x_RxL.reshape(-1)[self.order][None]

    def put(self, y_1xN: Array, shape: tuple[int, int]) -> Array:
        """Converts `[1, R·L]` back to `[R, L]`; the inverse of `take`."""
        return jnp.zeros(y_1xN.shape[1], y_1xN.dtype).at[self.order].set(y_1xN[0]).reshape(shape)


def token_stream(step_id_RxL: Array, mask_RxL: Array, max_steps: int) -> TokenStream:
    """Sorts the True tokens by episode, step and position in the row.

    Args:
      step_id_RxL: int32 `[R, L]`, `episode * max_steps + step` on action tokens. The tokens of a step must be in one row.
      mask_RxL: bool `[R, L]`, True only where `step_id` is not −1.
      max_steps: S, static.
    """
    chex.assert_rank([step_id_RxL, mask_RxL], 2)
    chex.assert_equal_shape([step_id_RxL, mask_RxL])
    mask_RxL = as_bool(mask_RxL)
    key = jnp.where(mask_RxL, step_id_RxL, jnp.iinfo(jnp.int32).max).reshape(-1)
    order = jnp.argsort(key, stable=True)
    key = key[order][None]
    following = jnp.pad(key[:, 1:], ((0, 0), (0, 1)), constant_values=-1)
    mask = mask_RxL.reshape(-1)[order][None]
    return TokenStream(
        order=order,
        mask=mask,
        step_end=mask & (following != key),
        episode_end=mask & (following // max_steps != key // max_steps),
    )
