"""The experiment and the settings with which each credit method runs by its name, for scripts and tests that try all of them."""

from __future__ import annotations

from stepreward import credit
from stepreward.credit import Method
from stepreward.envs.protocol import EVENTS, REFERENCE, TURN_REWARD

# What a capability that a method needs asks for: another experiment, or keys of the config.
_EXPERIMENT = {REFERENCE: "istar_search_qa"}
_SETTINGS = {
    TURN_REWARD: ("environment.options.turn_reward=True",),
    # The answer is a tag and a word, so it has one token more than without tags.
    EVENTS: (
        "environment.options.events=True", "environment.prompt=compact_tags",
        "rollout.max_answer_tokens=3", "rollout.max_row_tokens=21",
    ),
}  # fmt: skip
NEEDS_A_RUN = frozenset({"log_prob_trained", "log_prob_start"})  # signals for which `frozen_pair.trained` must name a finished run


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
    suffix = "" if preset == "tiny" else f":{preset}"
    return [f"--config=configs/{experiment(method)}.py{suffix}", *(f"--config.{key}" for key in keys)]
