"""An environment that executes any command, harmful ones included, for tests of the pools."""

from __future__ import annotations

import ctypes
import functools
import os
import signal
import subprocess
import sys
import time


class Misbehaving:
    """`step` takes the name of a command; other actions are counted. `close` writes a file into the folder `files`."""

    def __init__(self, files="", broken="", broken_until=""):
        self.capabilities = frozenset({"distance"})
        self._files, self._steps = files, 0
        if broken and not (broken_until and os.path.exists(broken_until)):
            if broken_until:
                open(broken_until, "w").close()
            self.do(broken)

    def reset(self, *, seed=None, options=None):
        self._steps = 0
        if options and "do" in options:
            return self.do(options["do"])
        return {"text": f"seed {seed}"}, {}

    def step(self, action, *, bonus=0):
        self._steps += 1
        return self.do(action) if action else (os.getpid(), self._steps, bonus)

    def distance(self):
        return float(self._steps)

    def close(self):
        if self._files:
            open(os.path.join(self._files, f"closed-{os.getpid()}"), "w").close()
        if self._steps == 13:
            self.do("hang stubbornly")

    def do(self, what):
        what, _, detail = what.partition(":")
        if what == "raise":
            raise RuntimeError("the server is gone")
        if what == "sys.exit":
            sys.exit(3)
        if what == "hang":
            time.sleep(1000)
        if what == "hang stubbornly":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            while True:
                time.sleep(1000)
        if what == "sleep":
            time.sleep(float(detail))
        if what == "exit":
            os._exit(3)
        if what == "segfault":
            ctypes.string_at(0)
        if what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "unpicklable":
            return lambda: None
        if what == "unreadable":
            return Unreadable()
        if what == "child":
            return subprocess.Popen([sys.executable, "-c", f"import time; time.sleep(1000)  # {detail}"]).pid
        if what == "fork and exit":  # the grandchild keeps the connection open
            if not os.fork():
                time.sleep(1000)
            os._exit(4)
        if what == "print":
            print("x" * 100_000, file=sys.stderr)
            os.write(1, b"y" * 100_000)
        if what == "image":
            return os.urandom(1) * 3_000_000
        if what == "modules":
            return sorted({name.partition(".")[0] for name in sys.modules})
        return what


class Unreadable:
    """An object that can be pickled but not unpickled."""

    def __reduce__(self):
        return _refuse, ()


def _refuse():
    raise OSError("not here")


def make(**settings):
    """Returns a picklable factory."""
    return functools.partial(Misbehaving, **settings)
