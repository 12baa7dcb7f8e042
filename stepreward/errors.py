"""`UserError`, the wrapper that shows an expected error as one line instead of a traceback, and parts of messages."""

from __future__ import annotations

import contextlib
import difflib
import linecache
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

# A ValueError raised by code in these folders is one of our own checks; any other is a bug whose traceback is needed.
_OWN_FOLDERS = tuple(Path(__file__).resolve().parent.parent / name for name in ("stepreward", "envs", "launch"))


class UserError(Exception):
    """Wrong input on the command line or in a file: the message says what is wrong and what to do."""


class Terminated(KeyboardInterrupt):
    """SIGTERM asked the job to stop, as clusters do before they take a machine away; running the same command again resumes it."""


def launcher(main: Callable[[], object]) -> None:
    """Runs `main()` and ends the process, with exit code 0 if it returns, and 2 and one line on stderr if the input was wrong.

    If `main` returns an int, it is the exit code. `UserError`, `FileNotFoundError` and any `ValueError` that this project itself
    raised are printed as `error: ...`. An interrupt prints `interrupted` and exits with 130; SIGTERM prints `terminated` and exits
    with 143 (128 + the signal's number, which a cluster can tell from the codes of a finished job and of wrong input). Any other
    exception keeps its traceback.

    Args:
      main: the job, a function without arguments.

    Raises:
      SystemExit: always, unless `main` raises any other exception.
    """
    try:
        code = main()
    except Terminated:
        print("terminated", file=sys.stderr)
        sys.exit(128 + signal.SIGTERM)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        if not is_expected(error):
            raise
        print(f"error: {describe(error)}", file=sys.stderr)
        sys.exit(2)
    sys.exit(code if isinstance(code, int) else 0)


def is_expected(error: BaseException) -> bool:
    """Returns True if `error` is meant for the user: its message is enough, and a traceback would only hide it."""
    if isinstance(error, (UserError, FileNotFoundError)):
        return True
    return isinstance(error, ValueError) and _raised_here(error)


def describe(error: BaseException) -> str:
    """Returns the error's message as one line; for a `FileNotFoundError` of the system, `no such file: 'path'`."""
    if isinstance(error, FileNotFoundError) and error.filename is not None:
        return f"no such file: {str(error.filename)!r}"
    return " ".join(str(error).split()) or type(error).__name__


@contextlib.contextmanager
def naming(name: str) -> Iterator[None]:
    """Names the environment of a mixture in a ValueError; `name` is "" in a run of one environment, whose errors do not change."""
    try:
        yield
    except ValueError as error:
        if not name:
            raise
        raise ValueError(f"mixture.environments.{name}: {error}") from error


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns " (did you mean 'NAME'?)" with the nearest known name, or "" if none is near; to be put into an error message."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _raised_here(error: BaseException) -> bool:
    """True if the innermost frame is in our code and on a `raise` statement: int("x") in our code is a bug, not a check."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return False
    path, line = Path(frames[-1].filename), linecache.getline(frames[-1].filename, frames[-1].lineno or 0)
    return line.strip().startswith("raise") and any(path.is_relative_to(folder) for folder in _OWN_FOLDERS)
