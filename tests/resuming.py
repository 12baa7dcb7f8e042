"""For tests of runs that are stopped and go on: what they measured, and runs that are stopped after some iterations."""

from stepreward.metrics import read_metrics


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
