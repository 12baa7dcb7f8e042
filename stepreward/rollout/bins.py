"""Sequence packing: several rows of a batch share one longer row, so that a forward pass computes less padding."""

from __future__ import annotations

import dataclasses

import numpy as np

from stepreward import signals as table
from stepreward.batch import Batch


@dataclasses.dataclass(frozen=True)
class Bins:
    """The places of a batch's tokens after packing.

    Attributes:
      place_RxL: int `[R, L]`, flat index into the packed rows; −1 at padding.
      shape: `(rows, length)` of the packed batch.
    """

    place_RxL: np.ndarray
    shape: tuple[int, int]


def bin_rows(batch: Batch, length: int | None = None, row_multiple: int = 1, max_actions: int | None = None) -> tuple[Batch, Bins]:
    """Packs rows into shared rows by first-fit decreasing; on the host.

    Each original row keeps its positions and gets segment ids of its own, counted from 1, so that it attends only to itself.
    Token-level arrays are moved. Step-level and episode-level arrays do not change, and `step_id` still indexes them. Losses that count
    rows ("sequence-mean", "sequence-sum", "constant") count the packed ones.

    Args:
      batch: NumPy arrays; rows without a token are dropped.
      length: length of the packed rows; None: that of the batch.
      row_multiple: the number of packed rows is padded to a multiple of this, so that shapes repeat.
      max_actions: the most action tokens that a packed row may hold; None: no limit.

    Raises:
      ValueError: a row holds more than `length` tokens or `max_actions` action tokens, or the rows have images.
    """
    if batch.vision is not None:
        raise ValueError("rows with images cannot be packed: set train.pack_rows=False.")
    segment_ids = np.asarray(batch.segment_ids)
    rows, old_length = segment_ids.shape
    length = old_length if length is None else length
    # A row ends at its last token. Padding before that token is moved with the row.
    counts = np.where(segment_ids > 0, np.arange(1, old_length + 1), 0).max(axis=1, initial=0)
    if counts.max(initial=0) > length:
        raise ValueError(f"A row of {counts.max()} tokens does not fit into packed rows of {length}.")
    actions = np.zeros(rows, np.int64)
    if max_actions is not None:
        actions = np.asarray(batch.action_mask).sum(axis=1)
        if actions.max(initial=0) > max_actions:
            raise ValueError(f"A row of {actions.max()} action tokens does not fit into packed rows of {max_actions}.")
    bin_of, start_of, used = first_fit(counts, length, actions, max_actions or 0)
    total = max(1, -(-used // row_multiple)) * row_multiple

    inside = np.arange(old_length) < counts[:, None]
    place = np.where(inside, (bin_of * length + start_of)[:, None] + np.arange(old_length), -1)
    bins = Bins(place, (total, length))
    packed_ids = _move(_numbered(segment_ids, bin_of, start_of), bins, 0)
    move = lambda x, row: _move(np.asarray(x), bins, row.padding)
    return batch.map(move, table.TOKEN, segment_ids=packed_ids), bins


def unbin(x_packed: np.ndarray, bins: Bins) -> np.ndarray:
    """Undoes the packing of a token-level array: returns `[R, L]` for the original rows, 0 at padding."""
    if np.shape(x_packed) != bins.shape:
        raise ValueError(f"an array of shape {np.shape(x_packed)} is not one of packed rows {bins.shape}.")
    flat = np.asarray(x_packed).reshape(-1)
    return np.where(bins.place_RxL >= 0, flat[bins.place_RxL], np.zeros((), flat.dtype))


def first_fit(
    counts_R: np.ndarray, length: int, actions_R: np.ndarray | None = None, max_actions: int = 0
) -> tuple[np.ndarray, np.ndarray, int]:
    """First-fit decreasing: returns each item's bin, its start in that bin, and the number of bins.

    Args:
      counts_R: int `[R]`, sizes; an item of size 0 takes no room (bin 0, start 0).
      length: size of a bin.
      actions_R, max_actions: a second size of each item, and the second size of a bin.
    """
    actions_R = np.zeros(len(counts_R), np.int64) if actions_R is None else actions_R
    left = np.full(len(counts_R), max_actions)
    bin_of, start_of = np.zeros(len(counts_R), np.int64), np.zeros(len(counts_R), np.int64)
    room, used = np.full(len(counts_R), length), 0
    for item in np.argsort(-counts_R, kind="stable"):
        if counts_R[item] == 0:
            break
        fits = (room[: used + 1] >= counts_R[item]) & (left[: used + 1] >= actions_R[item])  # the bin after the last is empty
        index = int(np.argmax(fits))
        used = max(used, index + 1)
        bin_of[item], start_of[item] = index, length - room[index]
        room[index] -= counts_R[item]
        left[index] -= actions_R[item]
    return bin_of, start_of, used


def _move(x_RxL: np.ndarray, bins: Bins, filler) -> np.ndarray:
    rows, length = bins.shape
    further = x_RxL.shape[2:]  # axes behind those of the tokens move with them
    out = np.full((rows * length, *further), filler, x_RxL.dtype)
    inside = bins.place_RxL >= 0
    out[bins.place_RxL[inside]] = x_RxL[inside]
    return out.reshape(rows, length, *further)


def _numbered(segment_ids_RxL: np.ndarray, bin_of: np.ndarray, start_of: np.ndarray) -> np.ndarray:
    """Segment ids that differ between the rows of a bin: those of a row follow those of the rows before it."""
    most, out = segment_ids_RxL.max(axis=1, initial=0), segment_ids_RxL.copy()
    before: dict[int, int] = {}
    for row in np.lexsort((start_of, bin_of)):
        if most[row]:
            shift = before.get(bin_of[row], 0)
            out[row] += np.where(segment_ids_RxL[row] > 0, shift, 0).astype(out.dtype)
            before[bin_of[row]] = shift + int(most[row])
    return out
