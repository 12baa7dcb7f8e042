"""What the shuffled controls of several methods share."""

from __future__ import annotations

import numpy as np


def step_permutation(rng: np.random.Generator, step_mask_ExS: np.ndarray) -> np.ndarray:
    """Draws the signal `step_permutation` of the "shuffled" control: a random permutation of the steps of each episode.

    Args:
      rng: NumPy random generator.
      step_mask_ExS: bool `[E, S]`.

    Returns:
      int32 `[E, S]`; the True entries of a row permute among themselves, the others stay in place.
    """
    mask_ExS = np.asarray(step_mask_ExS, bool)
    permutation_ExS = np.tile(np.arange(mask_ExS.shape[1], dtype=np.int32), (mask_ExS.shape[0], 1))
    for row, mask in zip(permutation_ExS, mask_ExS):
        row[mask] = rng.permutation(np.flatnonzero(mask))
    return permutation_ExS
