"""The units that get a process reward and that are compared with each other: steps, or tokens. Both classes offer the same operations.

An array over units has the shape `[E, S]` for steps and `[R, L]` for tokens, the same as `mask`.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from stepreward.batch import Batch
from stepreward.credit.base import first_step, first_token, step_mask, step_sum, to_tokens, token_count, token_mask
from stepreward.kernels import return_to_go, token_stream

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class StepUnits:
    """Each counted step is a unit: arrays `[E, S]`."""

    batch: Batch

    @property
    def mask(self) -> Array:
        """bool: the units that count."""
        return step_mask(self.batch)

    @property
    def group_id(self) -> Array:
        """int32: the group of each unit."""
        return jnp.broadcast_to(self.batch.group_id[:, None], self.batch.step_mask.shape)

    @property
    def group_and_index(self) -> Array:
        """int32 in `[0, E·S)`: a number for each pair of a group and a position in the episode."""
        return self.group_id * self.batch.max_steps + jnp.arange(self.batch.max_steps)

    @property
    def first(self) -> Array:
        """float32: 1 at the first unit of each episode, 0 elsewhere."""
        return first_step(self.mask).astype(jnp.float32)

    @property
    def count(self) -> Array:
        """`[E, S]`: the number of units in each step."""
        return self.mask

    def from_tokens(self, x_RxL: Array) -> Array:
        """Sums a token-level array over the tokens of each unit."""
        return step_sum(x_RxL, self.batch)

    def from_steps(self, x_ExS: Array) -> Array:
        """Gives each unit the value of its step."""
        return x_ExS

    def to_tokens(self, x: Array) -> Array:
        """`[R, L]`: gives each token the value of its unit."""
        return to_tokens(x, self.batch)

    def to_steps(self, x: Array) -> Array:
        """`[E, S]`: sums over the units of each step."""
        return x

    def return_to_go(self, reward: Array) -> Array:
        """Sums the rewards of this and all later units of the episode."""
        return return_to_go(reward, self.mask)


@dataclasses.dataclass(frozen=True)
class TokenUnits:
    """Each counted action token is a unit: arrays `[R, L]`. See `StepUnits` for the operations."""

    batch: Batch

    @property
    def mask(self) -> Array:
        return token_mask(self.batch)

    @property
    def group_id(self) -> Array:
        group_ExS = StepUnits(self.batch).group_id
        return to_tokens(group_ExS, self.batch).astype(group_ExS.dtype)

    @property
    def first(self) -> Array:
        # A step whose text was cut away has no token, so the first step with a token counts.
        with_token_ExS = first_step(step_mask(self.batch) & (token_count(self.batch) > 0)).astype(jnp.float32)
        return jnp.where(first_token(self.batch), to_tokens(with_token_ExS, self.batch), 0.0)

    @property
    def count(self) -> Array:
        return token_count(self.batch)

    def from_tokens(self, x_RxL: Array) -> Array:
        return x_RxL

    def from_steps(self, x_ExS: Array) -> Array:
        return to_tokens(x_ExS, self.batch)

    def to_tokens(self, x: Array) -> Array:
        return x

    def to_steps(self, x: Array) -> Array:
        return step_sum(x, self.batch)

    def return_to_go(self, reward: Array) -> Array:
        stream = token_stream(self.batch.step_id, self.mask, self.batch.max_steps)
        ends_1xN = jnp.where(stream.episode_end, 0.0, 1.0)
        return stream.put(return_to_go(stream.take(reward), stream.mask, ends_1xN), reward.shape)


Units = StepUnits | TokenUnits
UNITS = {"step": StepUnits, "token": TokenUnits}
