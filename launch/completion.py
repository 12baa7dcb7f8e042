"""Prints a script that completes the command `stepreward` in a shell: jobs, flags, shipped experiments and config keys.

    python launch/completion.py bash

docs/runs.md says where each shell looks for the script.
"""

from __future__ import annotations

import sys

from stepreward import completion
from stepreward.cli import JOBS
from stepreward.config import parse_arguments
from stepreward.errors import UserError, launcher


def main() -> int:
    if sys.argv[1:2] == ["words"]:  # asked by the scripts
        print("\n".join(completion.words(sys.argv[2:], tuple(JOBS))))
        return 0
    shells = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    parse_arguments([argument for argument in sys.argv[1:] if argument.startswith("-")], options=(), description=__doc__)
    if len(shells) != 1:
        raise UserError(f"give one shell: {', '.join(completion.SHELLS)}.")
    print(completion.script(shells[0]), end="")
    return 0


if __name__ == "__main__":
    launcher(main)
