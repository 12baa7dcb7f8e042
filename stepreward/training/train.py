"""The loop of a run.

A run has the stages of `stages.STAGES` that its config and credit method ask for. Each stage is a sequence of ticks, and a tick ends with
one line of metrics. What a tick does depends only on the checkpointed state, so a killed run repeats the ticks after its last checkpoint
bit for bit. With several processes, each runs this loop; only the writer writes files, and all write checkpoints together.
"""

from __future__ import annotations

import copy
import signal
import threading
import time
from pathlib import Path

from stepreward import processes
from stepreward.errors import Terminated
from stepreward.training import decisions
from stepreward.training.auxiliaries import NotReady
from stepreward.training.run import Run


class Runner(Run):
    """Takes a run to its end.

    Args:
      config: see `configs/`.
      workdir: folder of the run.
      on_tick: called with the runner and the metrics of each tick, for the display.
    """

    def __init__(self, config, workdir: str | Path, on_tick=None):
        self.on_tick = on_tick or (lambda runner, metrics: None)
        self._stop = 0  # the signal that asked the run to stop, or 0
        super().__init__(config, workdir)

    def run(self, stage: str | None = None) -> None:
        """Runs to the end of the run or of one stage. If interrupted, saves the last finished tick before it stops.

        Args:
          stage: run only this stage of `decisions.STAGES`, which must be the next one or already begun; None runs all.

        Raises:
          UserError: the stage is already finished, or an earlier stage is not.
          TrainingDiverged: a loss or gradient is not finite; the last good checkpoint is kept.
          KeyboardInterrupt: the run was interrupted, and its last finished tick is saved; `Terminated` after SIGTERM.
        """
        handlers = {number: signal.signal(number, self._request_stop) for number in _stop_signals()}
        try:
            if stage is not None:
                has = {each.command for each in self.stages.values() if each.wanted()}
                decisions.check_turn(stage, self.stage and self.stage.command, has, self.c)
            while self.stage is not None and stage in (None, self.stage.command):
                self.tick()
                if asked := int(processes.agree_max(self._stop)):  # in any process
                    self._stop = asked
                    self.save(wait=True)
                    raise self._interruption()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler or signal.SIG_DFL)  # None: the old handler was not set from Python
            self.close()

    def tick(self) -> None:
        """Runs one tick: the stage's work, a line of metrics, and a checkpoint if one is due."""
        counters, stage, before = self.counters, self.stage, copy.deepcopy(self.counters)
        counters.tick += 1
        try:
            metrics = stage.tick()
        except NotReady:
            self.counters = before
            if before.tick:
                self.save(wait=True)  # the ticks since the last checkpoint are kept
            raise
        if seam := stage.finished:
            self.advance()
            metrics |= stage.leave()
        self.folder.mark_begun(stage.command)  # after the tick: if the stage cannot begin with this config, the user may still change it
        counters.wall_s = time.monotonic() - self._started
        self.check_finite(metrics)
        record = {"tick": counters.tick, "iteration": counters.iteration, "stage": stage.name, "env_steps": counters.env_steps}
        if self.metrics is not None:
            self.metrics.write(record | {"wall_s": counters.wall_s} | metrics)
        self.on_tick(self, metrics)
        if seam or counters.tick % self.c.checkpoint.every == 0 or stage.saves_every_tick:
            self.save(wait=seam)  # a new stage begins only when the checkpoint that it starts from is on disk

    def _request_stop(self, number, _):
        if self._stop:  # the second signal stops at once
            raise self._interruption()
        self._stop = number

    def _interruption(self) -> KeyboardInterrupt:
        return Terminated() if self._stop == signal.SIGTERM else KeyboardInterrupt()


def _stop_signals():
    return (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
