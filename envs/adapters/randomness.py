"""A private state of the global random generators, for games that draw from the module `random` or from `numpy.random`."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np


class OwnRandomness:
    """Makes the draws of a game from the global generators depend on its own seed alone, whatever else the process draws.

    own = OwnRandomness()
    own.seed(7)
    with own.active():
        game.step(action)
    """

    def __init__(self):
        self.seed(0)

    def seed(self, seed: int) -> None:
        """Seeds both generators."""
        numpy_state = np.random.RandomState(seed % 2**32).get_state(legacy=False)
        self._states = random.Random(seed).getstate(), numpy_state

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Installs the private states for the duration of a block, then restores the global ones."""
        others = random.getstate(), np.random.get_state(legacy=False)
        random.setstate(self._states[0])
        np.random.set_state(self._states[1])
        try:
            yield
        finally:
            self._states = random.getstate(), np.random.get_state(legacy=False)
            random.setstate(others[0])
            np.random.set_state(others[1])
