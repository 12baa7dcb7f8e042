"""The experiment and the settings with which each credit method runs by its name, for scripts and tests that try all of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from stepreward import credit
from stepreward.credit import Method
from stepreward.envs.protocol import AUTOMATON, EVENTS, REFERENCE, TURN_REWARD
from stepreward.training import frozen

# What a capability that a method needs asks for: another experiment, or keys of the config.
_EXPERIMENT = {REFERENCE: "istar_search_qa"}
_SETTINGS = {
    TURN_REWARD: ("environment.options.turn_reward=True",),
    AUTOMATON: ("environment.options.automaton=True",),
    # The answer is a tag and a word, so it has one token more than without tags.
    EVENTS: (
        "environment.options.events=True", "environment.prompt=compact_tags",
        "rollout.max_answer_tokens=3", "rollout.max_row_tokens=21",
    ),
}  # fmt: skip
ROOT = Path(__file__).resolve().parent.parent
NEEDS_A_RUN = frozen.SIGNALS  # signals for which `frozen_pair.trained` must name a finished run


def experiment(method: Method) -> str:
    """Returns the name of an experiment in configs/ whose environment offers what the method needs."""
    found = [_EXPERIMENT[name] for name in method.capabilities if name in _EXPERIMENT]
    return found[0] if found else "spa_sokoban" if method.has_progress else "istar_sokoban"


def settings(method: Method, trained: str = "") -> list[str]:
    """Returns the keys that the method needs beside `credit.method`, as KEY=VALUE.

    Args:
      trained: workdir of a finished run, for a method that reads a frozen pair of policies.
    """
    found = [setting for name in sorted(method.capabilities) for setting in _SETTINGS.get(name, ())]
    if method.requires & NEEDS_A_RUN:
        found.append(f"frozen_pair.trained={trained}")
    return found


def flags(name: str, preset: str = "micro", trained: str = "") -> list[str]:
    """Returns the arguments of launch/train.py with which the method runs."""
    method = credit.make(name)
    keys = [f"credit.method={name}", *settings(method, trained)]
    return [config_flag(experiment(method), preset), *(f"--config.{key}" for key in keys)]


def config_flag(name: str, preset: str) -> str:
    """Returns the argument that selects a preset of an experiment in configs/."""
    return f"--config=configs/{name}.py:{preset}"


def train(flags: list[str], workdir: Path, **variables: str) -> tuple[int, str]:
    """Runs launch/train.py of this repository; returns its exit code and the last line of its error.

    Args:
      flags: its arguments besides `--workdir`.
      variables: further environment variables.
    """
    command = [sys.executable, str(ROOT / "launch" / "train.py"), *flags, "--quiet", f"--workdir={workdir}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | variables
    done = subprocess.run(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    return done.returncode, (done.stderr.strip().splitlines() or [""])[-1]
