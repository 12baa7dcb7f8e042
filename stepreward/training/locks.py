"""An advisory lock that lets one process at a time write into a workdir; the kernel releases it when the process ends in any way.

The lock is `flock` on the folder's file `.lock`, which also names the process that holds it. The file remains after the release, but only
the lock counts, so a run killed with SIGKILL leaves nothing to clean up.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import time
from pathlib import Path

from stepreward.errors import UserError

LOCK_FILE = ".lock"
_log = logging.getLogger(__name__)
# The errors of file systems without locks.
_NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP})


class FolderLock:
    """The lock of a folder, held until `release` or the end of the process.

    A process may take the same lock several times; it is free after as many releases.

    Args:
      folder: the folder, which must exist.
      what: the name of the folder in errors.

    Raises:
      UserError: another process holds the lock; the message names the process and its machine.
    """

    def __init__(self, folder: str | Path, what: str = "workdir"):
        import filelock

        self.path, self._held = Path(folder).resolve() / LOCK_FILE, False
        # `is_singleton` lets this process take the lock twice, and `thread_local=False` lets another thread release it. The library's
        # fallback, a file whose existence is the lock, would survive a kill.
        lock = filelock.FileLock(self.path, is_singleton=True, thread_local=False, fallback_to_soft=False)
        first = not lock.is_locked
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise UserError(
                f"{what} {str(folder)!r} is in use by {_holder(self.path)}: wait until that run ends, stop it, or give another --workdir."
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            _log.warning(
                "%s %r is on a file system without locks (%s), so a second run there is not detected: do not start one",
                what,
                str(folder),
                error.strerror,
            )
            return
        self._lock, self._held = lock, True
        if first:
            self._sign()

    def release(self) -> None:
        """Releases the lock; safe to call twice."""
        if self._held:
            self._held = False
            self._lock.release()

    def _sign(self) -> None:
        """Writes the holder of the lock into its file, for errors of other processes. Not atomic, since a new file would not be locked."""
        facts = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S %z")}
        try:
            self.path.write_text(json.dumps(facts) + "\n", encoding="utf-8")
        except OSError as error:
            _log.warning("cannot write the holder of the lock to %s: %s", self.path, error)


def _holder(path: Path) -> str:
    """Returns the process that holds a lock, as its file names it."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        return f"process {facts['pid']} on host {facts['host']} (since {facts['since']})"
    except (OSError, ValueError, KeyError, TypeError):  # the process has not written the file yet
        return "another process"
