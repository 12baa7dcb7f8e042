"""Trains an agent with step-level credit.

    python launch/train.py --config=configs/istar_sokoban.py [--workdir=runs/my_run] [--config.KEY=VALUE …]

The same command on the same workdir resumes the run, or says that it is finished.
"""

from __future__ import annotations

import sys

from stepreward.config import parse_command_line
from stepreward.errors import launcher


def main() -> int | None:
    config, options = parse_command_line(sys.argv[1:], description=__doc__)
    from stepreward.training.main_job import train  # jax loads only once the command line is known to be right

    return train(config, options.workdir, quiet=options.quiet)


if __name__ == "__main__":
    launcher(main)
