"""Prints a script that completes the command `stepreward` in a shell: jobs, flags, shipped experiments and config keys.

    python launch/completion.py bash

docs/runs.md says where each shell looks for the script.
"""

from __future__ import annotations

import sys

from stepreward import completion
from stepreward.cli import JOBS
from stepreward.config import Option, parse_arguments
from stepreward.errors import UserError, launcher

SHELL = Option("shell", "bash, zsh or fish")


def main() -> int:
    if sys.argv[1:2] == ["words"]:  # asked by the scripts
        print("\n".join(completion.words(sys.argv[2:], tuple(JOBS))))
        return 0
    shells = parse_arguments(sys.argv[1:], options=(), description=__doc__, positional=SHELL, several=True).shell or ()
    if len(shells) != 1:
        raise UserError(f"give one shell: {', '.join(completion.SHELLS)}.")
    print(completion.script(shells[0]), end="")
    return 0


if __name__ == "__main__":
    launcher(main)
