"""One process at a time writes into a workdir: an advisory lock that the kernel releases when its holder ends, however it ends.

The lock is `flock` on the file `.lock` of the folder, which also says who holds it. The file stays when the lock is released; it means
nothing by itself, so a run killed with SIGKILL leaves nothing to clean up.
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
# What a file system answers that has no locks.
_NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP})


class FolderLock:
    """The lock of a folder, held from here to `release` or to the end of the process.

    The same process may take it more than once; it is free again when each of these has released it.

    Args:
      folder: it must exist.
      what: what the folder is, as the error names it.

    Raises:
      UserError: another process holds it; the message names the process and its machine.
    """

    def __init__(self, folder: str | Path, what: str = "workdir"):
        import filelock

        self.path, self._held = Path(folder).resolve() / LOCK_FILE, False
        # Without `is_singleton` a second lock of this same process would be refused; without `thread_local` another thread could not
        # release it. The library's fallback, a file whose presence is the lock, would survive a kill.
        lock = filelock.FileLock(self.path, is_singleton=True, thread_local=False, fallback_to_soft=False)
        first = not lock.is_locked
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise UserError(
                f"{what} {str(folder)!r} is in use by {_holder(self.path)}: wait until that run ends or stop it, or give another --workdir."
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            _log.warning(
                "%s %r lies on a file system without locks (%s): nothing stops a second run there, so start none",
                what,
                str(folder),
                error.strerror,
            )
            return
        self._lock, self._held = lock, True
        if first:
            self._sign()

    def release(self) -> None:
        """Lets another process take the folder; safe to call twice."""
        if self._held:
            self._held = False
            self._lock.release()

    def _sign(self) -> None:
        """Writes who holds the lock, for the message of those who come later. Not atomically: a new file would carry no lock."""
        facts = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S %z")}
        try:
            self.path.write_text(json.dumps(facts) + "\n", encoding="utf-8")
        except OSError as error:
            _log.warning("cannot write into %s: %s", self.path, error)


def _holder(path: Path) -> str:
    """Who holds a lock, as its file says."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        return f"process {facts['pid']} on host {facts['host']} (since {facts['since']})"
    except (OSError, ValueError, KeyError, TypeError):  # it has just taken the lock
        return "another process"
