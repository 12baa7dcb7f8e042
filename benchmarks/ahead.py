"""Measures what it saves to play the next iteration while the models learn from this one (`rollout.ahead=1`).

    python benchmarks/ahead.py                        # Sokoban rooms whose steps take 20 ms
    python benchmarks/ahead.py --quick                # a smoke test; its figures mean nothing
    python benchmarks/ahead.py --delay=0 --json=ahead.json

Each arm is a whole training run without evaluations: one with `rollout.ahead=0`, one with 1. The time of an iteration is the wall time between the
ends of two iterations, the median over the run; the first two iterations are not counted, because they compile. The runs are made in turn, `--repeats` of
each. An environment's step sleeps, as one on another machine would; on the machine's own cores both arms share them, and little is saved.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
import time
from pathlib import Path

import measure  # imported before stepreward, because it makes the project importable
import numpy as np

from stepreward.config import load_config_file
from stepreward.envs import sokoban
from stepreward.errors import UserError, launcher
from stepreward.metrics import read_metrics
from stepreward.training.train import Runner

SKIPPED = 2  # iterations that compile
prompts = sokoban.prompts


def make(preset: str = "tiny", *, delay_ms: float = 20.0, **settings):
    """A factory of Sokoban rooms whose steps take `delay_ms`; the run names this file as its environment."""
    return functools.partial(Slow, sokoban.make(preset, **settings), delay_ms / 1e3)


class Slow:
    """An environment that answers late."""

    def __init__(self, factory, delay: float):
        self._inner, self._delay = factory(), delay

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def step(self, action):
        time.sleep(self._delay)
        return self._inner.step(action)


def parse() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the micro preset, a few iterations, one repeat")
    parser.add_argument("--preset", default="tiny", help="preset of configs/istar_sokoban.py")
    parser.add_argument("--method", default="rloo")
    parser.add_argument("--delay", type=float, default=20.0, help="milliseconds of an environment's step")
    parser.add_argument("--env-steps", type=int, default=40_000, help="environment steps of a run; tiny takes about 3,000 an iteration")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each arm; the median counts")
    parser.add_argument("--json", metavar="PATH", help="file to write the figures to")
    options = parser.parse_args()
    if options.quick:
        options.preset, options.env_steps, options.repeats, options.delay = "micro", 800, 1, 1.0
    if options.repeats < 1 or options.delay < 0:
        raise UserError(f"--repeats={options.repeats} must be at least 1, and --delay={options.delay} at least 0.")
    return options


def main() -> None:
    options = parse()
    root = Path(__file__).resolve().parent.parent
    config = load_config_file(f"{root}/configs/istar_sokoban.py:{options.preset}")
    changes = {
        "environment.name": "ahead", "environment.options.delay_ms": options.delay, "environment.pool": "thread", "credit.method": options.method,
        "sft.updates": 20, "eval.every": 10**6, "eval.final_episodes": 0, "eval.prm_as_policy_every": 0, "train.env_steps": options.env_steps,
    }  # fmt: skip

    def run(ahead: int) -> measure.Time:
        with tempfile.TemporaryDirectory() as folder:
            c = config.copy_and_resolve_references()
            with c.unlocked():
                c.environment.options.update(delay_ms=options.delay)
            c.update_from_flattened_dict(changes | {"rollout.ahead": ahead})
            began = time.process_time()
            Runner(c, Path(folder, "run")).run()
            spent = time.process_time() - began
            records = [r for r in read_metrics(Path(folder, "run")) if r["stage"] == "train"]
        ends = np.array([r["wall_s"] for r in records])[SKIPPED - 1 :]
        if len(ends) < 2:
            raise UserError(
                f"--env-steps={options.env_steps} are {len(records)} iterations, of which {SKIPPED} are not counted: give more."
            )
        return measure.Time(float(np.median(np.diff(ends))), spent / len(records))

    seconds = measure.in_turn({ahead: functools.partial(run, ahead) for ahead in (0, 1)}, options.repeats, warm_up=0)
    facts = measure.machine()
    print(f"{options.preset}, {options.method}, steps of {options.delay:g} ms, {facts['device']}, {facts['cores']} cores\n")
    print(f"{'rollout.ahead':>14} {'s an iteration':>15} {'(range)':>17}")
    results = []
    for ahead, found in seconds.items():
        r = {"ahead": ahead, **measure.summary(found)}
        results.append(r)
        print(f"{ahead:>14} {r['seconds']:>15.3f} {measure.spread(r):>17}")
    ratios = {"waits / ahead": measure.ratio(seconds[0], seconds[1])}
    print(f"\n{measure.show_ratio('waits / ahead', ratios['waits / ahead'])}")
    measure.write_json(options.json, vars(options) | facts | {"results": results, "ratios": ratios})


if __name__ == "__main__":
    launcher(main)
