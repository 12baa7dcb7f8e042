"""For tests of runs that stop and go on: what they measured, and runs that stop after an iteration or in the middle of one.

Here a run ends by an exception, which is faster than a process of its own. test_resume, test_spa_resume, test_seams, test_branching_runs,
test_mixture and test_preference_runs end processes with SIGKILL.
"""

import pytest

from stepreward.metrics import read_metrics
from stepreward.training.train import Runner


class Cut(Exception):
    """Ends a run where nobody expects it."""


def tick_until_cut(runner):
    """Runs until something raises `Cut`, and closes the run, which saves nothing more."""
    try:
        with pytest.raises(Cut):
            for _ in range(1000):
                runner.tick()
    finally:
        runner.close()


def cut_in(iteration, config, workdir):
    """A run that ends in the middle of an iteration, after the policy's update."""
    runner = Runner(config, workdir)
    update = runner.learner.update_policy

    def update_and_end(*args):
        update(*args)
        if runner.counters.iteration == iteration:
            raise Cut

    runner.learner.update_policy = update_and_end
    tick_until_cut(runner)


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


def assert_same_after_a_cut(config, folder):
    """A run that ends in the middle of its third iteration, and that goes on, measures what a whole one does; returns the whole run's folder."""
    whole, cut = folder / "whole", folder / "cut"
    Runner(config, whole).run()
    cut_in(2, config, cut)
    again = Runner(config, cut)
    assert again.counters.iteration == 2
    again.run()
    assert measured(cut) == measured(whole)
    return whole
