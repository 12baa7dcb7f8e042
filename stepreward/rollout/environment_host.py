"""Runs one environment: makes it at its first call and drops it when it raises.

Every kind of pool runs its environments through this module, here or in other processes. So it does not import jax or other heavy packages.
"""

from __future__ import annotations

import logging
import pickle
import traceback
from collections.abc import Callable, Sequence

from stepreward.envs.protocol import Environment
from stepreward.text import clean, cleaned

_OPAQUE = ("snapshot",)  # the library does not read what these return; it only passes it back to an environment
_LONG = ("reset", "restore")  # these may load a task, so they have the longer limit

_log = logging.getLogger(__name__)


class EnvironmentFailure(Exception):
    """An environment raised, died or took too long. The message says what happened; `where` is the place in its code, if known."""

    def __init__(self, message: str, where: str = ""):
        super().__init__(message)
        self.where = where


class EnvironmentHost:
    """Keeps one environment.

    Args:
      factory: makes a fresh environment.
    """

    def __init__(self, factory: Callable[[], Environment]):
        self._factory = factory
        self._environment: Environment | None = None

    def environment(self) -> Environment:
        """The environment; makes one if there is none."""
        if self._environment is None:
            self._environment = self._factory()
        return self._environment

    def run(self, steps: Sequence[tuple]) -> list:
        """Calls methods `(name, args, kwargs)` one after the other and returns their results, with cleaned text (`text.clean`).

        The name of a plain attribute reads that attribute.

        Raises:
          EnvironmentFailure: a call raised, or the environment could not be made. The next call makes a fresh environment.
        """
        try:
            results = []
            for method, args, kwargs in steps:
                found = getattr(self.environment(), method)
                result = found(*args, **kwargs) if callable(found) else found
                # Text enters the library here. Once it is clean, everything later can write and tokenise it.
                results.append(result if method in _OPAQUE else cleaned(result))
            return results
        except EnvironmentFailure:  # `checked` found a wrong result
            self.close()
            raise
        except (Exception, SystemExit) as error:
            self.close()
            last = traceback.extract_tb(error.__traceback__)[-1]
            raise EnvironmentFailure(_named(error), f"in {last.name}, {last.filename}:{last.lineno}") from error

    def close(self) -> None:
        """Closes the environment. If that raises, the error is only logged, since nothing is lost."""
        environment, self._environment = self._environment, None
        if environment is None:
            return
        try:
            environment.close()
        except (Exception, SystemExit) as error:
            _log.warning("environment raised %r in close", error)


class RemoteHost:
    """Runs one environment of a pool in another process: takes and returns bytes.

    Args:
      factory: a pickled factory. It is unpickled at the first call; if that raises, the call fails.

    Attributes:
      failed: whether the last answer was a failure.
    """

    def __init__(self, factory: bytes):
        self._host = EnvironmentHost(lambda: pickle.loads(factory)())
        self.failed = False

    def answer(self, request: bytes) -> bytes:
        """Runs pickled steps; returns a pickled `(True, results)`, or `(False, (message, where))`."""
        self.failed = True
        try:
            results = self._host.run(pickle.loads(request))
        except EnvironmentFailure as failure:
            return pickle.dumps((False, (str(failure), failure.where)))
        except Exception as error:
            return pickle.dumps((False, (f"the call cannot be read: {_named(error)}", "")))
        try:
            answer = pickle.dumps((True, results), protocol=5)
        except Exception as error:
            self._host.close()
            return pickle.dumps((False, (f"what it returned cannot be sent: {_named(error)}", "")))
        self.failed = False
        return answer

    def close(self) -> None:
        """Closes the environment."""
        self._host.close()


def read_answer(answer: bytes) -> list:
    """The results that `RemoteHost.answer` sent.

    Raises:
      EnvironmentFailure: the call failed there, or its results cannot be unpickled here.
    """
    try:
        fine, found = pickle.loads(answer)
    except Exception as error:
        raise EnvironmentFailure(f"what it returned cannot be read: {_named(error)}") from error
    if not fine:
        raise EnvironmentFailure(*found)
    return found


def time_limit(steps: Sequence[tuple], fresh: bool, timeout_s: float, reset_timeout_s: float) -> float:
    """Seconds that a round trip may take: the sum of the limits of its calls, and of making the environment if it is `fresh`."""
    limits = [reset_timeout_s if method in _LONG else timeout_s for method, _, _ in steps]
    return sum(limits) + (reset_timeout_s if fresh else 0.0)


def too_long(steps: Sequence[tuple], limit: float) -> EnvironmentFailure:
    """The failure of an environment that did not answer."""
    return EnvironmentFailure(f"{' and '.join(method for method, _, _ in steps)} took longer than {limit:g} s")


def _named(error: BaseException) -> str:
    return clean("; ".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())]))
