"""For tests of runs that are stopped and go on: what they measured, and runs that are stopped or killed after some iterations."""

import signal
import subprocess
import sys

from stepreward.config import save_config
from stepreward.metrics import read_metrics
from stepreward.training.train import Runner

KILLED = """
import os, signal, sys
from stepreward.config import load_config
from stepreward.training.train import Runner

runner = Runner(load_config(sys.argv[2]), sys.argv[1])
update = runner.learner.update_policy
def update_and_kill(*args):
    update(*args)
    if runner.counters.iteration == int(sys.argv[3]):
        runner.checkpoints.wait()
        os.kill(os.getpid(), signal.SIGKILL)
runner.learner.update_policy = update_and_kill
runner.run()
"""


def kill_in(iteration, config, workdir, root):
    """Runs in a process of its own, which SIGKILL ends in the middle of an iteration, after the policy's update."""
    file = workdir.with_suffix(".json")
    save_config(config, file)
    done = subprocess.run([sys.executable, "-c", KILLED, str(workdir), str(file), str(iteration)], cwd=root, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]


def measured(workdir, stage=None):
    """The metrics of a run that must not depend on when it was stopped: everything but the clock. `stage`: of that stage alone."""
    clock = lambda name: name == "wall_s" or name.startswith("time/") or name.endswith("_per_s")
    records = [record for record in read_metrics(workdir) if stage in (None, record["stage"])]
    return [{name: value for name, value in record.items() if not clock(name)} for record in records]


def stop_after(runner, iterations):
    """Runs to the end of an iteration, saves, and closes the run."""
    while runner.counters.iteration < iterations:
        runner.tick()
    runner.save(wait=True)
    runner.close()


def assert_same_after_a_kill(config, folder, root):
    """A run that SIGKILL ends in its third iteration, and that goes on, measures what a whole one does; returns the whole run's folder."""
    whole, cut = folder / "whole", folder / "cut"
    Runner(config, whole).run()
    kill_in(2, config, cut, root)
    again = Runner(config, cut)
    assert again.counters.iteration == 2
    again.run()
    assert measured(cut) == measured(whole)
    return whole
