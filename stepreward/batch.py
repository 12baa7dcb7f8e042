"""`Batch`: the one data structure, with arrays at three levels.

A rollout yields `E` episodes of at most `S` steps; their tokens are in `R` rows of length `L`.

* token level `[R, L]`: what the model reads and writes;
* step level `[E, S]`: what the environment returns for each action;
* episode level `[E]`: how the episode ended.

A row is either a whole episode (full history) or one step with a window of history. No code that uses a batch depends on which:
`step_id` alone says which step a token belongs to. Step boundaries are never inferred from rewards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import struct

from stepreward import signals as table

Array = jax.Array


@struct.dataclass
class Batch:
    """Padded arrays of static shape; a pytree.

    The first six arrays are at token level, `[R, L]`. Arrays named `log_prob*` hold at `[r, l]` the log-probability of `tokens[r, l]`
    given the earlier tokens of its segment, in nats, so they line up with `action_mask` without a shift.

    Attributes:
      tokens: int32 token ids; values at padding are arbitrary.
      positions: int32 rotary position of each token in its sequence (0, 1, 2, ...).
      segment_ids: int32, 0 at padding; tokens attend to earlier tokens of the same non-zero segment.
      action_mask: bool, True where the policy sampled the token.
      step_id: int32 flat index `episode * S + step` at action tokens, -1 elsewhere.
      log_prob_old: float32 log-probability under the policy that made the rollout, at the sampling temperature; 0 outside
        `action_mask`.
      step_mask: bool `[E, S]`, True where the episode has that step.
      env_reward: float32 `[E, S]`, the environment's own reward for each step.
      executed: bool `[E, S]`, True if the action was parsed, ran and took effect (SPA's grounding signal).
      episode_mask: bool `[E]`, False for padding and for episodes whose environment failed; these are excluded from all statistics
        and losses.
      outcome: float32 `[E]`, the return that outcome methods use (by default the sum of `env_reward`).
      success: bool `[E]`, the label for preference pairs and success rates.
      truncated: bool `[E]`, True if the step limit stopped the episode.
      group_id: int32 `[E]` in `[0, E)`; episodes of one group start from the same task and state.
      signals: extra arrays that a method declares in `requires`, each with a row in `stepreward.signals`.
      vision: the images of the rows, a `models.vision.VisionInputs` whose arrays have a leading axis R, or None. For a model without
        a vision tower use `batch.replace(vision=None)`: placeholders of images are then ordinary tokens.
    """

    tokens: Array
    positions: Array
    segment_ids: Array
    action_mask: Array
    step_id: Array
    log_prob_old: Array
    step_mask: Array
    env_reward: Array
    executed: Array
    episode_mask: Array
    outcome: Array
    success: Array
    truncated: Array
    group_id: Array
    signals: Mapping[str, Array] = struct.field(default_factory=dict)
    vision: Any = None

    @property
    def num_episodes(self) -> int:
        return self.step_mask.shape[0]

    @property
    def max_steps(self) -> int:
        return self.step_mask.shape[1]

    def with_signals(self, **signals: Array) -> Batch:
        """Returns a copy with the named signals added or replaced.

        Raises:
          ValueError: if a name has no row in `stepreward.signals`.
        """
        for name in signals:
            table.row(name)
        return self.replace(signals={**self.signals, **signals})

    def rows(self, index) -> Batch:
        """Returns the batch with only the token rows `index`; step and episode levels are kept whole, so `step_id` remains valid."""
        return self.map(lambda x, _: x[index], table.TOKEN, vision=jax.tree.map(lambda x: x[index], self.vision))

    def map(self, change: Callable[[Array, table.Row], Array], *levels: str, **others: Any) -> Batch:
        """Returns the batch with every field and signal of the given levels replaced by `change(array, row)`.

        Args:
          change: a function of an array and its row of the table in `stepreward.signals`.
          *levels: some of `stepreward.signals.LEVELS`.
          **others: fields to set directly, whatever their level.
        """
        fields = {name: change(getattr(self, name), table.FIELDS[name]) for name in table.fields(*levels) if name not in others}
        rows = {name: table.row(name) for name in self.signals}
        signals = {name: change(x, rows[name]) if rows[name].level in levels else x for name, x in self.signals.items()}
        return self.replace(signals=signals, **fields, **others)


TOKEN_LEVEL = table.fields(table.TOKEN)


def validate(batch: Batch) -> None:
    """Checks shapes and ids of a concrete batch on the host, because ids out of range would be dropped silently on the device.

    The cost is a few passes over the token ids. A run checks every batch that it makes or reads, unless `train.check_batches` is
    off.

    Raises:
      ValueError: if a field is inconsistent; the message names it, its value and what is expected.
    """
    rows, length = batch.tokens.shape
    episodes, steps = batch.step_mask.shape
    arrays = {f"batch.{name}": (getattr(batch, name), row) for name, row in table.FIELDS.items()}
    arrays |= {f"batch.signals[{name!r}]": (value, table.row(name)) for name, value in batch.signals.items()}
    for name, (value, row) in arrays.items():
        shape = table.shape(row, rows, length, episodes, steps)
        if not table.fits(np.shape(value), shape):
            wanted = str(shape).replace("None", "any size")
            raise ValueError(f"{name} has shape {np.shape(value)}; it must be {wanted}")
    for leaf in jax.tree.leaves(batch.vision):
        if leaf.shape[0] != rows:
            raise ValueError(f"batch.vision has {leaf.shape[0]} rows; it must have {rows}")
    for name, (value, row) in arrays.items():
        if row.dtype is bool and value.dtype != bool:
            raise ValueError(f"{name} has dtype {value.dtype}; it must be bool")
    for name, low, high in (("group_id", 0, episodes), ("step_id", -1, episodes * steps)):
        ids = np.asarray(getattr(batch, name))
        if ids.size and (ids.min() < low or ids.max() >= high):
            raise ValueError(f"batch.{name} has values in [{ids.min()}, {ids.max()}]; they must be in [{low}, {high})")
    step_id, action_mask = np.asarray(batch.step_id), np.asarray(batch.action_mask)
    if (action_mask != (step_id >= 0)).any():
        raise ValueError("batch.step_id must be -1 exactly where batch.action_mask is False")
    ids, row = step_id[action_mask], np.nonzero(action_mask)[0]
    if not np.asarray(batch.step_mask).reshape(-1)[ids].all():
        raise ValueError("batch.step_id refers to a step whose batch.step_mask is False")
    row_of_step = np.zeros(episodes * steps, row.dtype)
    row_of_step[ids] = row
    if (row_of_step[ids] != row).any():
        raise ValueError("the tokens of one step are in more than one row of the batch; all tokens of a step must be in the same row")
