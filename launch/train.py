"""Trains an agent with step-level credit.

    python launch/train.py --config=configs/istar_sokoban.py [--workdir=runs/my_run] [--stage=sft] [--config.KEY=VALUE …]

The same command on the same workdir resumes the run, or says that it is finished. A run executes the stages that its credit method
needs, in this order: sft, explore, estimator, preference, train, evaluate. --stage runs one of them alone.
"""

from __future__ import annotations

import sys

from stepreward.config import QUIET, WORKDIR, Option, parse_command_line
from stepreward.errors import launcher

STAGE = Option("stage", "run only this stage", choices=("sft", "explore", "estimator", "preference", "train", "evaluate"))
OPTIONS = (WORKDIR, QUIET, STAGE)


def main() -> int | None:
    config, options = parse_command_line(sys.argv[1:], extra=OPTIONS, description=__doc__)
    from stepreward.training.main_job import train  # jax is imported only after the command line was checked

    return train(config, options.workdir, quiet=options.quiet, stage=options.stage)


if __name__ == "__main__":
    launcher(main)
