"""The loop of a run.

A run has the stages of `stages.STAGES` that its config and credit method ask for. Each stage is a sequence of ticks, and a tick ends with
one line of metrics. What a tick does depends only on the checkpointed state, so a killed run repeats the ticks after its last checkpoint
bit for bit. With several processes each runs this same loop; the writer alone writes files, and all write checkpoints together.
"""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

from stepreward import processes
from stepreward.errors import Terminated
from stepreward.training import decisions
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
        self._stop = 0  # the signal that asked for it
        super().__init__(config, workdir)

    def run(self, stage: str | None = None) -> None:
        """Runs to the end, or to the end of one stage, or until interrupted: then the last finished tick is saved first.

        Args:
          stage: only this one of `decisions.STAGES`, which must be the next one or partly done.

        Raises:
          UserError: the stage is finished already, or lacks the output of the one before it.
          TrainingDiverged: a loss or gradient is not finite; the last good checkpoint stays.
          KeyboardInterrupt: after saving; on SIGTERM it is `Terminated`.
        """
        handlers = {number: signal.signal(number, self._request_stop) for number in _stop_signals()}
        try:
            if stage is not None:
                has = {each.command for each in self.stages.values() if each.wanted()}
                decisions.check_turn(stage, self.stage and self.stage.command, has, self.c)
            while self.stage is not None and stage in (None, self.stage.command):
                self.tick()
                if asked := int(processes.agree_max(self._stop)):  # of any process
                    self._stop = asked
                    self.save(wait=True)
                    raise self._interruption()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler or signal.SIG_DFL)  # None: a handler that is not Python's
            self.close()

    def tick(self) -> None:
        """One tick: its stage's work, a line of metrics, and a checkpoint when it is time."""
        counters, stage = self.counters, self.stage
        counters.tick += 1
        metrics = stage.tick()
        if seam := stage.finished:
            self.advance()
            metrics |= stage.leave()
        self.folder.mark_begun(stage.command)  # not before: a config that a stage cannot begin with may still be put right
        counters.wall_s = time.monotonic() - self._started
        self.check_finite(metrics)
        record = {"tick": counters.tick, "iteration": counters.iteration, "stage": stage.name, "env_steps": counters.env_steps}
        if self.metrics is not None:
            self.metrics.write(record | {"wall_s": counters.wall_s} | metrics)
        self.on_tick(self, metrics)
        if seam or counters.tick % self.c.checkpoint.every == 0 or stage.saves_every_tick:
            self.save(wait=seam)  # no tick of a new stage without the checkpoint that it starts from

    def _request_stop(self, number, _):
        if self._stop:  # asked twice: now
            raise self._interruption()
        self._stop = number

    def _interruption(self) -> KeyboardInterrupt:
        return Terminated() if self._stop == signal.SIGTERM else KeyboardInterrupt()


def _stop_signals():
    return (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
