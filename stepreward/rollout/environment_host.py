"""One environment and its faults: made when it is first called, thrown away when it raises.

Pools of all kinds run environments by this, in this process or in another one; so it imports neither jax nor anything heavy.
"""

from __future__ import annotations

import logging
import pickle
import traceback
from collections.abc import Callable, Sequence

from stepreward.envs.protocol import Environment
from stepreward.text import clean, cleaned

_OPAQUE = ("snapshot",)  # what these return is given back to the environment, and never read
_LONG = ("reset", "restore")  # what may take long: loading a task, or the way to one of its states

_log = logging.getLogger(__name__)


class EnvironmentFailure(Exception):
    """An environment raised, died or took too long; the message says which, and `where` the place in its code if it is known."""

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
        """The environment, made where there is none."""
        if self._environment is None:
            self._environment = self._factory()
        return self._environment

    def run(self, steps: Sequence[tuple]) -> list:
        """Calls methods `(name, args, kwargs)` one after the other and returns their results, their text cleaned (`text.clean`);
        reads a plain attribute.

        Raises:
          EnvironmentFailure: one raised, or the environment could not be made; the next call makes a fresh one.
        """
        try:
            results = []
            for method, args, kwargs in steps:
                found = getattr(self.environment(), method)
                result = found(*args, **kwargs) if callable(found) else found
                # Here text enters the library: whatever it says, all that comes after can write and tokenise it.
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
        """Closes the environment; what that raises is logged only, for nothing is lost."""
        environment, self._environment = self._environment, None
        if environment is None:
            return
        try:
            environment.close()
        except (Exception, SystemExit) as error:
            _log.warning("environment raised %r in close", error)


class RemoteHost:
    """The far end of a pool whose environments live elsewhere: bytes in, bytes out.

    Args:
      factory: a pickled factory; it is unpickled at the first call, whose failure it is when that fails.

    Attributes:
      failed: the last answer was a failure.
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
      EnvironmentFailure: it failed there, or its results cannot be read here.
    """
    try:
        fine, found = pickle.loads(answer)
    except Exception as error:
        raise EnvironmentFailure(f"what it returned cannot be read: {_named(error)}") from error
    if not fine:
        raise EnvironmentFailure(*found)
    return found


def time_limit(steps: Sequence[tuple], fresh: bool, timeout_s: float, reset_timeout_s: float) -> float:
    """Seconds that a round trip may take: the limits of its calls, and of making the environment where it is `fresh`."""
    limits = [reset_timeout_s if method in _LONG else timeout_s for method, _, _ in steps]
    return sum(limits) + (reset_timeout_s if fresh else 0.0)


def too_long(steps: Sequence[tuple], limit: float) -> EnvironmentFailure:
    """The failure of an environment that did not answer."""
    return EnvironmentFailure(f"{' and '.join(method for method, _, _ in steps)} took longer than {limit:g} s")


def _named(error: BaseException) -> str:
    return clean("; ".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())]))
