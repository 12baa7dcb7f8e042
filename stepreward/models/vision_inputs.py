"""Lays out images for a model with a vision tower, on the host and with static shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from stepreward.models.vision import VisionConfig, VisionInputs


class Images(NamedTuple):
    """Preprocessed images of one row, in the order of their placeholders.

    Attributes:
      patches: float32 `[P, U]`, the patches of all images in the order of `transformers`' image processor: squares of
        `merge × merge` patches row by row, and the patches of each square next to each other.
      grids: int `[I, 3]`, for each image its frames (1), rows of patches and columns of patches.
    """

    patches: np.ndarray
    grids: np.ndarray


def image_tokens(config: VisionConfig, grid: Sequence[int]) -> int:
    """The number of placeholder tokens of an image with the grid `(1, rows, columns)`, in patches.

    Raises:
      ValueError: if the grid has several frames, or its sides are not multiples of `merge`.
    """
    frames, rows, columns = map(int, grid)
    if frames != 1:
        raise ValueError(f"an image with the grid {tuple(grid)} has {frames} frames; only still images (1 frame) are supported.")
    if rows % config.merge or columns % config.merge or not rows * columns:
        raise ValueError(f"an image of {rows} × {columns} patches cannot be divided into squares of {config.merge} × {config.merge}.")
    return rows * columns // config.merge**2


def multimodal_positions(
    tokens: np.ndarray, grids: Sequence[Sequence[int]], config: VisionConfig, *, start: int = 0, sampled: np.ndarray | None = None
) -> tuple[np.ndarray, int, np.ndarray]:
    """Rotary positions of a row of text and images (M-RoPE, Qwen2-VL, arXiv 2409.12191, section 2.1).

    A text token has the same position on all three axes, one more than the token before. In an image that starts at position p, the
    token of the merged square (row, column) has (p, p + row, p + column); the text after the image continues at
    p + max(rows, columns).

    Args:
      tokens: int `[T]`, without padding.
      grids: (1, rows, columns) of each image in patches, in order.
      config: the tower's config, which names the placeholder token.
      start: position of the first token.
      sampled: bool `[T]`, True where the model sampled the token. A sampled placeholder is an ordinary token and never part of an
        image, and so is any placeholder after those of the last image. None means that no token was sampled.

    Returns:
      positions int32 `[3, T]`; the position of the next text token; and int32 `[T]`, the index of the token's merged square among
      those of the row's images, −1 at text.

    Raises:
      ValueError: if there are fewer placeholders than the images need, or those of an image are not next to each other.
    """
    tokens = np.asarray(tokens)
    candidates = tokens == config.image_token_id
    if sampled is not None:
        candidates &= ~np.asarray(sampled, bool)
    found = np.flatnonzero(candidates)
    positions = np.zeros((3, len(tokens)), np.int32)
    square = np.full(len(tokens), -1, np.int32)
    done, used, following = 0, 0, int(start)

    def write_text(until: int) -> None:
        nonlocal done, following
        positions[:, done:until] = following + np.arange(until - done)
        following, done = following + until - done, until

    for index, grid in enumerate(grids):
        count = image_tokens(config, grid)
        places = found[used : used + count]
        if len(places) < count or places[-1] - places[0] != count - 1:
            raise ValueError(
                f"image {index} of a row needs {count} consecutive placeholder tokens ({config.image_token_id}), but the row has "
                f"{len(found)} in total for {len(grids)} images. Build the prompt with the same settings of the image processor."
            )
        write_text(int(places[0]))
        rows, columns = int(grid[1]) // config.merge, int(grid[2]) // config.merge
        positions[:, places] = following + np.stack([np.zeros(count, int), *np.divmod(np.arange(count), columns)])
        square[places] = used + np.arange(count)
        following += max(rows, columns)
        done, used = done + count, used + count
    write_text(len(tokens))
    return positions, following, square


def windows(config: VisionConfig, grids: Sequence[Sequence[int]]) -> list[tuple[int, np.ndarray]]:
    """The windows of a row's images as (index of the image, indices of its merged squares in the row); no window is empty."""
    found, first = [], 0
    for image, grid in enumerate(grids):
        count = image_tokens(config, grid)
        squares = first + np.arange(count).reshape(int(grid[1]) // config.merge, int(grid[2]) // config.merge)
        for top in range(0, squares.shape[0], config.window_side):
            for left in range(0, squares.shape[1], config.window_side):
                window = squares[top : top + config.window_side, left : left + config.window_side]
                found.append((image, window.reshape(-1)))
        first += count
    return found


def lay_out(config: VisionConfig, grids: Sequence[Sequence[int]], block_patches: int) -> list[list[tuple[int, np.ndarray]]]:
    """Packs the windows of a row's images into blocks of at most `block_patches` patches (first-fit decreasing).

    `len(lay_out(…))` is the number of blocks that these images need.

    Raises:
      ValueError: if a window is larger than a block.
    """
    room = block_patches // config.merge**2
    blocks: list[list] = []
    free: list[int] = []
    for window in sorted(windows(config, grids), key=lambda w: -len(w[1])):
        need = len(window[1])
        if need > room:
            raise ValueError(
                f"a window of an image has {need * config.merge**2} patches, more than block_patches={block_patches}: raise "
                f"block_patches; {config.window_patches} is always enough."
            )
        block = next((b for b, left in enumerate(free) if left >= need), None)
        if block is None:
            block = len(blocks)
            blocks.append([])
            free.append(room)
        blocks[block].append(window)
        free[block] -= need
    return blocks


def vision_inputs(
    tokens: Sequence[np.ndarray],
    images: Sequence[Images | None],
    config: VisionConfig,
    *,
    length: int,
    blocks: int,
    block_patches: int | None = None,
    start: Sequence[int] | None = None,
    sampled: Sequence[np.ndarray] | None = None,
) -> VisionInputs:
    """Lays out the images of some rows for the model, as NumPy arrays.

    Args:
      tokens: int `[t]` for each row, t ≤ `length`, including placeholders.
      images: the images of each row, or None.
      config: the tower's config.
      length: T, tokens in a row.
      blocks: G, blocks in a row.
      block_patches: K, patches in a block, a multiple of merge²; None means a full window.
      start: the rotary position of each row's first token; None means 0.
      sampled: for each row as in `multimodal_positions`.

    Raises:
      ValueError: if images do not match their placeholders or patches, or do not fit the blocks.
    """
    slots = config.window_patches if block_patches is None else block_patches
    unit = config.merge**2
    if slots % unit:
        raise ValueError(f"block_patches={slots} must be a multiple of merge² = {unit}.")
    rows, ids = len(tokens), (len(tokens), blocks, slots)
    out = VisionInputs(
        patches=np.zeros((*ids, config.patch_dim), np.float32),
        window_id=np.zeros(ids, np.int32),
        image_id=np.zeros(ids, np.int32),
        place=np.zeros((*ids, 2), np.int32),
        source=np.full((rows, length), -1, np.int32),
        positions=np.zeros((rows, 3, length), np.int32),
        offset=np.zeros(rows, np.int32),
    )
    for row, (row_tokens, row_images) in enumerate(zip(tokens, images)):
        count = len(row_tokens)
        grids = () if row_images is None else row_images.grids
        first = 0 if start is None else int(start[row])
        said = None if sampled is None else sampled[row]
        positions, following, square = multimodal_positions(row_tokens, grids, config, start=first, sampled=said)
        out.positions[row, :, :count] = positions
        out.positions[row, :, count:] = following + np.arange(length - count)
        out.offset[row] = following - first - count
        if len(grids):
            slot_of_square = _fill(out, row, row_images, config)
            out.source[row, :count] = np.where(square >= 0, slot_of_square[square], -1)
    return out


def _fill(out: VisionInputs, row: int, images: Images, config: VisionConfig) -> np.ndarray:
    """Writes a row's patches into its blocks; returns the index of the merged slot of each merged square."""
    unit, (_, blocks, slots) = config.merge**2, out.image_id.shape
    patches = np.asarray(images.patches, np.float32)
    total = sum(image_tokens(config, grid) for grid in images.grids)
    if patches.shape != (total * unit, config.patch_dim):
        raise ValueError(
            f"images with the grids {np.asarray(images.grids).tolist()} must have patches of shape {(total * unit, config.patch_dim)}, "
            f"not {patches.shape}."
        )
    laid = lay_out(config, images.grids, slots)
    if len(laid) > blocks:
        raise ValueError(
            f"a row's images need {len(laid)} blocks of {slots} patches, but there are only {blocks}. Raise the number of blocks, or "
            "lower the image processor's max_pixels."
        )
    place = np.concatenate([_places(grid, config.merge) for grid in images.grids])
    slot_of_square = np.zeros(total, np.int32)
    for block, block_windows in enumerate(laid):
        at = 0
        for number, (image, squares) in enumerate(block_windows, start=1):
            chosen = (squares[:, None] * unit + np.arange(unit)).reshape(-1)
            here = slice(at * unit, (at + len(squares)) * unit)
            out.patches[row, block, here] = patches[chosen]
            out.place[row, block, here] = place[chosen]
            out.window_id[row, block, here] = number
            out.image_id[row, block, here] = image + 1
            slot_of_square[squares] = block * (slots // unit) + at + np.arange(len(squares))
            at += len(squares)
    return slot_of_square


def _places(grid: Sequence[int], merge: int) -> np.ndarray:
    """Row and column of an image's patches, `[P, 2]`, in the processor's order: squares row by row, patches within each square."""
    _, rows, columns = map(int, grid)
    place = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), axis=-1)
    return place.reshape(rows // merge, merge, columns // merge, merge, 2).swapaxes(1, 2).reshape(-1, 2)
