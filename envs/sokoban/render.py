"""Renders boards as pictures from seven 16×16 tiles, which the code below draws."""

from __future__ import annotations

import numpy as np

TILE = 16


def _canvas(colour: tuple[int, int, int]) -> np.ndarray:
    return np.full((TILE, TILE, 3), colour, np.uint8)


def _wall() -> np.ndarray:
    tile = _canvas((120, 108, 100))
    brick, shade = (168, 84, 60), (140, 66, 48)
    for course in range(4):
        top, shift = course * 4, 0 if course % 2 == 0 else 4
        for left in range(shift - 8, TILE, 8):
            start, stop = max(left, 0), min(left + 7, TILE)
            if stop > start:
                tile[top : top + 3, start:stop] = brick
                tile[top + 2, start:stop] = shade
    return tile


def _floor() -> np.ndarray:
    tile = _canvas((224, 210, 176))
    tile[0, :] = tile[:, 0] = (208, 192, 156)
    tile[5, 11] = tile[11, 4] = (208, 192, 156)
    return tile


def _target() -> np.ndarray:
    tile = _canvas((0, 0, 0))
    tile[0, :] = tile[-1, :] = tile[:, 0] = tile[:, -1] = (220, 30, 40)
    tile[_diamond(4.0)] = (235, 40, 50)
    return tile


def _diamond(radius: float) -> np.ndarray:
    across = np.abs(np.arange(TILE) - 7.5)
    return across[:, None] + across[None, :] <= radius


def _box(frame: tuple[int, int, int]) -> np.ndarray:
    tile = _floor()
    tile[1:15, 1:15] = frame
    tile[3:13, 3:13] = (222, 170, 88)
    for offset in range(10):
        for thickness in (0, 1):
            tile[3 + offset, 3 + min(offset + thickness, 9)] = frame
            tile[3 + offset, 12 - min(offset + thickness, 9)] = frame
    tile[1, 1:15] = tile[1:15, 1] = np.minimum(np.array(frame) + 40, 255)
    return tile


def _player(ground: np.ndarray) -> np.ndarray:
    tile = ground.copy()
    body, dark, white = (58, 170, 72), (28, 96, 44), (250, 250, 250)
    tile[2:8, 4:12] = dark  # head
    tile[3:7, 5:11] = body
    tile[4:6, 5:7] = tile[4:6, 9:11] = white
    tile[5, 6] = tile[5, 9] = (10, 10, 10)
    tile[8:13, 5:11] = dark  # trunk
    tile[8:12, 6:10] = body
    tile[8:11, 3:5] = tile[8:11, 11:13] = body  # arms
    tile[13:15, 5:7] = tile[13:15, 9:11] = dark  # feet
    return tile


def _tiles() -> np.ndarray:
    """The tiles in the order of core's codes: wall, floor, target, box on target, box, player, player on target."""
    on_target = _target()
    return np.stack([
        _wall(), _floor(), on_target, _box((52, 140, 60)), _box((150, 96, 40)), _player(_floor()), _player(on_target)
    ])  # fmt: skip


TILES = _tiles()
TILES.setflags(write=False)


def rgb(grids: np.ndarray) -> np.ndarray:
    """Renders boards: int[B, H, W] of core's codes → uint8[B, 16·H, 16·W, 3]. Raises ValueError for another rank."""
    if grids.ndim != 3:
        raise ValueError(f"grids has shape {grids.shape}; give three axes [B, H, W]")
    count, height, width = grids.shape
    return TILES[grids].transpose(0, 1, 3, 2, 4, 5).reshape(count, height * TILE, width * TILE, 3)
