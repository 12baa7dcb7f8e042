"""A global random state of one's own, for games that draw from the module `random` or from `numpy.random`."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np


class OwnRandomness:
    """What a game draws from the global generators depends on its own seed alone, whatever else runs in the process.

    own = OwnRandomness()
    own.seed(7)
    with own.active():
        game.step(action)
    """

    def __init__(self):
        self.seed(0)

    def seed(self, seed: int) -> None:
        """Starts both generators anew."""
        numpy_state = np.random.RandomState(seed % 2**32).get_state(legacy=False)
        self._states = random.Random(seed).getstate(), numpy_state

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Puts the own states in place for a block, and the others back after it."""
        others = random.getstate(), np.random.get_state(legacy=False)
        random.setstate(self._states[0])
        np.random.set_state(self._states[1])
        try:
            yield
        finally:
            self._states = random.getstate(), np.random.get_state(legacy=False)
            random.setstate(others[0])
            np.random.set_state(others[1])
