"""Evaluates an agent on the fixed held-out set, with the same rollout as in training.

    python launch/evaluate.py --workdir=runs/istar_sokoban [--episodes=2048] [--step=120] [--which=policy]
    stepreward evaluate sokoban        # an agent that comes with the package, or a folder that `stepreward export` wrote

Prints the success rate with its 95 % interval. The set begins with the tasks on which the run itself evaluates.
"""

from __future__ import annotations

import sys

from stepreward.config import Option, parse_arguments
from stepreward.errors import UserError, launcher

OPTIONS = (
    Option("workdir", "folder of the run"),
    Option("episodes", "held-out episodes to play", default=2048, type=int),
    Option("step", "checkpoint of a run to evaluate (default: the latest)", type=int),
    Option("which", "model to play: the policy, the PRM or the initial policy", default="policy", choices=("policy", "prm", "initial")),
    Option("seed", "seed for sampling the policy's answers", default=0, type=int),
)


def main() -> int | None:
    options = parse_arguments(
        sys.argv[1:],
        description=__doc__,
        positional=Option("agent", "an agent that comes with the package, an exported folder, or the workdir of a run"),
        options=OPTIONS,
    )
    if options.agent is None and options.workdir is None:
        raise UserError("--workdir is missing: give it, or the name of an agent; --help lists the flags")
    if options.agent is not None and options.workdir is not None:
        raise UserError(f"--workdir={options.workdir} and {options.agent!r} both name what to evaluate: give one of them")
    if options.workdir is not None:
        from stepreward.training.evaluate import evaluate_workdir

        return evaluate_workdir(options.workdir, options.episodes, options.step, options.which, options.seed)
    from stepreward.agents import catalogue

    place = catalogue.find(options.agent)
    from stepreward.agents.evaluate import evaluate_agent

    return evaluate_agent(place, options.episodes, options.step, options.which, options.seed)


if __name__ == "__main__":
    launcher(main)
