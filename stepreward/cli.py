"""The console command: `stepreward train --config=istar_sokoban` is `python launch/train.py --config=configs/istar_sokoban.py`."""

from __future__ import annotations

import difflib
import importlib
import sys

from stepreward import __version__
from stepreward.errors import UserError, launcher

JOBS = {
    "train": "train an agent, or resume a run",
    "play": "show a trained agent at work, with the credit under each step: stepreward play sokoban",
    "view": "show runs in a browser: live curves, and episodes with the credit of each step",
    "evaluate": "measure the success of a run's checkpoint, or of an agent, on held-out tasks",
    "serve": "serve a trained agent or a model folder to OpenAI clients",
    "export": "write a run's model as a Hugging Face folder",
    "doctor": "say what is installed, which devices there are, and which models fit",
    "env": "check an environment against the protocol: stepreward env check NAME",
    "methods": "list the methods, what each needs, and whether an environment offers it",
    "completion": "print the completion script of a shell: bash, zsh or fish",
    "compile-tpu": "compile a run's programs for a TPU slice, on a machine without a TPU",
}
USAGE = "\n".join(
    [
        "usage: stepreward JOB [--flags]",
        "",
        *(f"  {name:12} {text}" for name, text in JOBS.items()),
        "",
        "stepreward JOB --help lists the flags of a job; --config takes the name of an installed experiment, or a file.",
    ]
)


def main() -> None:
    """Runs the job that the first argument names with the remaining arguments, and ends the process with its exit code."""
    launcher(_run)


def _run():
    name, arguments = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("--help", [])
    if name in ("--help", "-h"):
        print(USAGE)
        return 0
    if name == "--version":
        print(f"stepreward {__version__}")
        return 0
    if name not in JOBS:
        near = difflib.get_close_matches(name, JOBS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the jobs are {', '.join(JOBS)}"
        raise UserError(f"stepreward has no job {name!r}; {hint}")
    module = importlib.import_module(f"stepreward.launch.{name.replace('-', '_')}")
    sys.argv = [f"stepreward {name}", *arguments]
    return module.main()


if __name__ == "__main__":
    main()
