"""The simulator in its Java process, without the lists of valid actions that the package makes at every step (65 ms of a step of 68)."""

from __future__ import annotations

import os
import shutil
import subprocess

from stepreward.envs.extras import require

JAVA = "apt-get install -y default-jre-headless"
LONGEST = 300  # characters of an action
_OPTIONS = "JAVA_TOOL_OPTIONS"
_UNLIMITED = 10**9


class Simulator:
    """One Java process with the simulator.

    Args:
      memory_mb: most memory of the Java heap, in MiB. It has no effect where the variable JAVA_TOOL_OPTIONS is set.

    Raises:
      ValueError: the package or Java is not installed; the message gives the command that installs it.
    """

    def __init__(self, memory_mb: int):
        package = require("scienceworld", "scienceworld")
        if shutil.which("java") is None:
            raise ValueError(f"ScienceWorld needs Java, at least version 8, and there is no program 'java'; run {JAVA}, or the like")
        before = os.environ.get(_OPTIONS)
        if before is None:
            # Java's default is a heap of a quarter of the machine and a thread for each core, in every environment.
            os.environ[_OPTIONS] = f"-Xmx{memory_mb}m -XX:+UseSerialGC -XX:TieredStopAtLevel=1"
        try:
            self._package = package.ScienceWorldEnv("", envStepLimit=_UNLIMITED)
        finally:
            if before is None:
                os.environ.pop(_OPTIONS, None)
        self._server = self._package.server

    def counts(self) -> dict[str, int]:
        """Returns the number of variations of each task, in the simulator's order."""
        return {name: self._server.getTaskMaxVariations(name) for name in self._server.getTaskNames()}

    def load(self, task: str, variation: int, simplifications: str) -> str:
        """Starts a variation of a task; returns what the agent sees first."""
        self._server.load(task, variation, simplifications, False)
        self._server.reset()
        return self._server.step("look around")

    def gold(self, task: str, variation: int, simplifications: str) -> list[str]:
        """Returns the gold path of a variation. It may differ between calls, and leaves the simulator in no state to play on from."""
        self._server.load(task, variation, simplifications, True)
        return list(self._server.getGoldActionSequence())

    def act(self, action: str) -> str:
        """Takes an action; returns the simulator's answer."""
        return self._server.step(action[:LONGEST].encode("utf-8", "replace").decode())

    def score(self) -> int:
        """Returns the benchmark's score, from 0 to 100, or −100 after the focus on a wrong object."""
        return round(100 * self._server.getScore())

    def completed(self) -> bool:
        """Whether the task is completed."""
        return bool(self._server.getCompleted())

    def look(self) -> str:
        """Returns what the agent sees. It takes no time in the world, like `inventory` and `task`."""
        return self._server.freeActionLook()

    def inventory(self) -> str:
        """Returns what the agent holds."""
        return self._server.freeActionInventory()

    def task(self) -> str:
        """Returns the description of the task."""
        return self._server.freeActionTaskDesc()

    def valid(self) -> list[str]:
        """Returns all actions that the simulator would execute now."""
        return list(self._server.getValidActionObjectCombinations())

    def close(self) -> None:
        """Ends the Java process."""
        process = self._package._gateway.java_process
        try:
            self._package.close()
            process.wait(5)
        except (OSError, subprocess.TimeoutExpired):
            process.kill()
            process.wait()
