"""Kills short runs with SIGKILL at random moments, resumes them, and compares their results with those of an uninterrupted run.

    python experiments/kill_trial.py [--kills=20] [--config=configs/spa_sokoban.py:micro] [--runs=4] [--seed=0] [--config.KEY=VALUE …]

Each run is killed --kills / --runs times, at moments drawn uniformly from the duration of a run. It must end with the same metrics,
except those that measure time, and with bit-identical arrays in its last checkpoint. The script prints a table, and exits with 1 if a
run differs. Use a CPU: on an accelerator, bit-identical results depend on its kernels.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from stepreward.checkpoint import Checkpoints
from stepreward.config import Option, parse_arguments
from stepreward.errors import UserError, launcher
from stepreward.metrics import read_metrics

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = (
    Option("config", "config of the experiment", default="configs/spa_sokoban.py:micro"),
    Option("kills", "total number of kills", default=20, type=int),
    Option("runs", "number of runs that share the kills", default=4, type=int),
    Option("seed", "seed of the moments", default=0, type=int),
    Option("folder", "folder for the runs (default: a temporary folder, removed at the end)"),
)
_CLOCK = ("wall_s", "rollout/tokens_per_s", "estimator/steps_per_s")


def main() -> int:
    argv = sys.argv[1:]
    overrides = [argument for argument in argv if argument.startswith("--config.")]
    options = parse_arguments([a for a in argv if a not in overrides], options=OPTIONS, description=__doc__)
    if options.runs < 1 or options.kills < 0:
        raise UserError(f"--runs={options.runs} must be at least 1, and --kills={options.kills} at least 0.")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.folder or temporary)
        job = [sys.executable, str(ROOT / "launch" / "train.py"), f"--config={options.config}", "--quiet", *overrides]
        start(job, folder / "compiled").wait()  # fills the compilation cache, so that the next run takes as long as the others
        started = time.monotonic()
        if start(job, folder / "whole").wait():
            raise UserError(f"the uninterrupted run failed; run it to see its error: {' '.join(job)}")
        seconds = time.monotonic() - started
        print(f"uninterrupted: {len(measured(folder / 'whole'))} lines of metrics, {seconds:.0f} s\n")
        print("| run | killed after (s), at line of metrics | lines | metrics | parameters |\n|---|---|---|---|---|")
        draw, differ = random.Random(options.seed), 0
        shares = [len(part) for part in np.array_split(np.arange(options.kills), options.runs)]
        for number, kills in enumerate(shares):
            workdir = folder / f"cut {number}"
            moments = [kill(job, workdir, draw.uniform(0.1, seconds)) for _ in range(kills)]
            code = start(job, workdir).wait()
            same = [measured(workdir) == measured(folder / "whole"), equal(workdir, folder / "whole")] if code == 0 else [False, False]
            differ += not all(same)
            words = ["the same" if s else "DIFFERENT" if code == 0 else f"exit code {code}" for s in same]
            lines = len(measured(workdir)) if code == 0 else "-"
            print(f"| {number} | {', '.join(moments)} | {lines} | {words[0]} | {words[1]} |", flush=True)
        print(f"\n{options.runs - differ} of {options.runs} runs, killed {options.kills} times, end like the uninterrupted one.")
        return 1 if differ else 0


def start(job: list[str], workdir: Path) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}  # use this repository, not an installed package
    return subprocess.Popen([*job, f"--workdir={workdir}"], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def kill(job: list[str], workdir: Path, after_s: float) -> str:
    """Starts or resumes a run and kills it; describes the moment in words."""
    process = start(job, workdir)
    try:
        process.wait(after_s)
        return "ended before"
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    try:
        lines = len(read_metrics(workdir))
    except FileNotFoundError:
        lines = 0
    return f"{after_s:.1f} at {lines}"


def measured(workdir: Path) -> list[dict]:
    """Returns the metrics that do not measure time."""
    records = read_metrics(workdir)
    return [{k: v for k, v in record.items() if k not in _CLOCK and not k.startswith("time/")} for record in records]


def equal(a: Path, b: Path) -> bool:
    """Whether the last checkpoints of two runs have bit-identical arrays."""
    first, second = arrays(a), arrays(b)
    return first.keys() == second.keys() and all(np.array_equal(first[k], second[k], equal_nan=True) for k in first)


def arrays(workdir: Path) -> dict[str, np.ndarray]:
    """Returns every array of a run's last checkpoint, by path."""
    checkpoints = Checkpoints(workdir, read_only=True)
    try:
        return checkpoints.arrays()
    finally:
        checkpoints.close()


if __name__ == "__main__":
    launcher(main)
