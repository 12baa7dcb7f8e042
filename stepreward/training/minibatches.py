"""Splits batches on the host: into shuffled rows for the policy, and into whole groups for the PRM."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from stepreward import signals as table
from stepreward.batch import Batch


def round_up(number: int, multiple: int) -> int:
    """Returns the smallest multiple of `multiple` that is at least `number`."""
    return -(-number // multiple) * multiple


def filled_rows(batch: Batch) -> np.ndarray:
    """Indices of the rows that have an action token."""
    return np.flatnonzero(np.asarray(batch.action_mask).any(axis=1))


def row_minibatches(batch: Batch, rows: int, capacity: int, rng: np.random.Generator) -> Iterator[tuple[Batch, np.ndarray]]:
    """Shuffles the filled rows and splits them into equal parts of at most `rows`, each padded to `capacity` rows.

    Yields:
      The mini-batch, which keeps all steps and episodes, and the indices of its rows in `batch` without padding.
    """
    order = rng.permutation(filled_rows(batch))
    parts = max(1, math.ceil(len(order) / rows))
    for index in np.array_split(order, parts):
        yield take_rows(batch, index, capacity), index


def take_rows(batch: Batch, index: np.ndarray, capacity: int) -> Batch:
    """Returns the batch with the rows `index`, padded with empty rows to `capacity`."""
    if len(index) > capacity:
        raise ValueError(f"{len(index)} rows do not fit into a capacity of {capacity} rows.")
    take = lambda x, row: pad_rows(np.asarray(x)[index], capacity, row.padding)
    return batch.map(take, table.TOKEN, vision=take_images(batch.vision, index, capacity))


def take_images(vision, index: np.ndarray, capacity: int):
    """Returns the images of the rows `index`, padded to `capacity` with rows without images; None if `vision` is None."""
    if vision is None:
        return None
    return vision.replace(
        **{name: pad_rows(np.asarray(x)[index], capacity, -1 if name == "source" else 0) for name, x in vars(vision).items()}
    )


def pad_rows(x: np.ndarray, capacity: int, value) -> np.ndarray:
    """Pads the first axis to `capacity` with `value`."""
    out = np.full((capacity, *x.shape[1:]), value, x.dtype)
    out[: len(x)] = x
    return out


def row_episodes(batch: Batch) -> np.ndarray:
    """int `[R]`: the episode that each row belongs to, −1 for a row without an action."""
    row_step = np.asarray(batch.step_id).max(axis=1)
    return np.where(row_step >= 0, row_step // batch.max_steps, -1)


def take_groups(batch: Batch, groups: np.ndarray, capacity: int, num_episodes: int | None = None) -> Batch:
    """Returns a batch of the episodes of some groups, with their rows; for the other arguments see `take_episodes`."""
    return take_episodes(batch, np.flatnonzero(np.isin(batch.group_id, groups)), capacity, num_episodes)


def take_episodes(
    batch: Batch, episodes: np.ndarray, capacity: int, num_episodes: int | None = None, row_episode: np.ndarray | None = None
) -> Batch:
    """Returns a batch of some episodes, with their rows.

    Args:
      batch: NumPy arrays.
      episodes: indices of the episodes to keep, in their new order.
      capacity: number of rows of the result.
      num_episodes: number of episodes of the result, padded with empty ones that are masked; None takes len(episodes).
      row_episode: `row_episodes(batch)`, if it is already known.
    """
    max_steps = batch.max_steps
    new_index = np.full(batch.num_episodes + 1, -1)  # the last entry is for rows of no episode
    new_index[episodes] = np.arange(len(episodes))
    new_row_episode = new_index[row_episodes(batch) if row_episode is None else row_episode]
    kept = np.flatnonzero(new_row_episode >= 0)
    part = take_rows(batch, kept, capacity)
    shift = pad_rows(new_row_episode[kept] * max_steps, capacity, 0)[:, None]
    step_id = np.where(part.step_id >= 0, shift + part.step_id % max_steps, -1)
    size = len(episodes) if num_episodes is None else num_episodes
    take = lambda x, row: pad_rows(np.asarray(x)[episodes], size, row.padding)
    group_id = np.unique(np.asarray(batch.group_id)[episodes], return_inverse=True)[1].astype(np.int32)
    return part.map(take, table.STEP, table.EPISODE, step_id=step_id.astype(np.int32), group_id=pad_rows(group_id, size, 0))


def group_minibatches(batch: Batch, groups: int, capacity: int, rng: np.random.Generator, *, mixed_only: bool = False) -> Iterator[Batch]:
    """Shuffles the batch's groups and splits them into equal parts of at most `groups` groups, all of the same shape.

    Args:
      batch, capacity: see `take_groups`.
      groups: maximum number of groups in a part.
      mixed_only: leave out groups without a success or without a failure, which have no pairs.

    Groups without an episode that counts are left out: an update on them would follow the optimizer's momentum alone.
    """
    group_id, success, counted = (np.asarray(x) for x in (batch.group_id, batch.success, batch.episode_mask))
    sizes = np.unique(group_id, return_counts=True)[1]
    kept = np.unique(group_id[counted])
    if mixed_only:
        kept = np.intersect1d(group_id[counted & success], group_id[counted & ~success])
    if len(kept):
        for part in np.array_split(rng.permutation(kept), math.ceil(len(kept) / groups)):
            yield take_groups(batch, part, capacity, groups * int(sizes.max()))
