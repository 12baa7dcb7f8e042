"""Many environments in one process, with faults contained.

An environment that raises, or that cannot be made, gives one failed episode: the error is kept, the environment is thrown away
and a fresh one takes its place at the slot's next call. Nothing else notices.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from envs.protocol import Environment

_log = logging.getLogger(__name__)


class EnvironmentFailure(Exception):
    """An environment raised; the message is what it raised."""


class Call(NamedTuple):
    """One method call on the environment of a slot."""

    slot: int
    method: str
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = {}


class EnvironmentPool:
    """A growing list of environments, one a slot.

    Args:
      factory: makes a fresh environment.
    """

    def __init__(self, factory: Callable[[], Environment]):
        self._factory = factory
        self._environments: list[Environment | None] = []  # None: to be made
        self.failures = 0

    def capabilities(self) -> frozenset[str]:
        """What the environments declare."""
        return self._slot(0).capabilities

    def call(self, slot: int, method: str, *args, **kwargs):
        """Calls a method of the slot's environment.

        Raises:
          EnvironmentFailure: it raised, or could not be made; the slot's next call meets a fresh environment.
        """
        try:
            return getattr(self._slot(slot), method)(*args, **kwargs)
        except Exception as error:
            self.failures += 1
            last = traceback.extract_tb(error.__traceback__)[-1]
            _log.warning("environment raised %r in %s (line %s)", error, last.name, last.lineno)
            _close(self._environments[slot])
            self._environments[slot] = None
            raise EnvironmentFailure(f"{type(error).__name__}: {error}") from error

    def call_all(self, calls: Sequence[Call]) -> list[Any]:
        """Makes one round of calls to different slots; a call that fails gives its `EnvironmentFailure` as the result."""
        results: list[Any] = []
        for slot, method, args, kwargs in calls:
            try:
                results.append(self.call(slot, method, *args, **kwargs))
            except EnvironmentFailure as failure:
                results.append(failure)
        return results

    def close(self) -> None:
        """Closes every environment."""
        for environment in self._environments:
            _close(environment)
        self._environments.clear()

    def _slot(self, slot: int) -> Environment:
        self._environments += [None] * (slot + 1 - len(self._environments))
        if self._environments[slot] is None:
            self._environments[slot] = self._factory()
        return self._environments[slot]


def _close(environment: Environment | None) -> None:
    if environment is None:
        return
    try:
        environment.close()
    except Exception as error:  # nothing is lost: it is thrown away
        _log.warning("environment raised %r in close", error)
