"""Evaluates a run's checkpoint on the fixed held-out set, with the same rollout as in training.

    python launch/evaluate.py --workdir=runs/istar_sokoban [--episodes=2048] [--step=120] [--which=policy]

Prints the success rate with its 95 % interval. The set begins with the tasks on which the run itself evaluates.
"""

from __future__ import annotations

import sys

from stepreward.config import Option, parse_arguments
from stepreward.errors import launcher

OPTIONS = (
    Option("workdir", "folder of the run"),
    Option("episodes", "held-out episodes to play", default=2048, type=int),
    Option("step", "checkpoint to evaluate (default: the latest)", type=int),
    Option("which", "model to play: the policy, the PRM or the initial policy", default="policy", choices=("policy", "prm", "initial")),
    Option("seed", "seed for sampling the policy's answers", default=0, type=int),
)


def main() -> int | None:
    options = parse_arguments(
        sys.argv[1:],
        description=__doc__,
        required=("workdir",),
        options=OPTIONS,
    )
    from stepreward.training.evaluate import evaluate_workdir

    return evaluate_workdir(options.workdir, options.episodes, options.step, options.which, options.seed)


if __name__ == "__main__":
    launcher(main)
