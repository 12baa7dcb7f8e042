"""The protocol between the library and any environment: gymnasium's five-tuple over text.

    observation, info = environment.reset(seed=7, options={"split": "train"})
    observation, reward, terminated, truncated, info = environment.step("up")

* An observation is `{"text": str}` or `{"text": str, "image": uint8[H, W, 3]}`.
* `step` takes the parsed action, a string, or `None` when the model's output held no action. Any string is legal input:
  what the environment does not understand is a no-op with `executed=False`, never an exception.
* `info` always carries `won` (bool: the task is solved), `score` (float: how well, in the benchmark's own measure; where it has
  none, 1.0 when won and 0.0 otherwise), `executed` (bool: the action was understood, ran and took effect; True at reset) and
  `state_key` (str: equal for equal states of the same task). It may carry `admissible` (tuple of str: the actions that would
  be executed here, as the benchmark lists them) and `task` (str: what is asked, the same at every turn).
* The same seed and options give the same episode on any machine. Where there are finitely many tasks, `num_tasks(split)` says how
  many, and seed `s` names task `s mod num_tasks(split)`.

Turning observations into prompts and model output into actions is not the environment's business: see `Prompt`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

Observation = Mapping[str, Any]
Info = Mapping[str, Any]

# What an environment may offer beyond reset and step; each name is one optional method or key.
IMAGE = "image"  # observations carry an image
# snapshot() -> opaque state, restore(state): the environment goes on from that state, in an environment of equal settings and without a
# reset. Both work in every state after a reset. A snapshot can be pickled.
SNAPSHOT = "snapshot"
DISTANCE = (
    "distance"  # distance() -> how far success is, in the environment's own unit (its docs say which); inf: out of reach; nan: unknown
)
EXPERT = "expert"  # expert(rng=None) -> list of actions that solves the task from here, or None
ADMISSIBLE = "admissible"  # info["admissible"]
TASKS = "tasks"  # num_tasks(split) -> int
REPLAY = "replay"  # the same actions after the same reset lead to the same state: `replay_prefix` below works

VIEWED = ("admissible", "task")  # of info, what prompts get to see


@runtime_checkable
class Environment(Protocol):
    """One environment: a text game that is reset to a seeded task and stepped by strings."""

    capabilities: frozenset[str]

    def reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> tuple[Observation, Info]:
        """Starts the task that `seed` and `options` name; `options["split"]` is "train" or "held_out"."""

    def step(self, action: str | None) -> tuple[Observation, float, bool, bool, Info]:
        """Takes one action; returns observation, reward, terminated, truncated, info."""

    def close(self) -> None:
        """Releases what the environment holds."""


def prompt_view(observation: Observation, info: Info) -> dict[str, Any]:
    """What a prompt gets to see of a turn: the observation, and `admissible` and `task` of `info` where they are there."""
    return {**observation, **{key: info[key] for key in VIEWED if key in info}}


def replay_prefix(
    environment: Environment, actions: Sequence[str | None], *, seed: int, options: Mapping[str, Any] | None = None
) -> tuple[Observation, Info]:
    """Resets an environment that declares `REPLAY` and takes `actions`; returns the last observation and info.

    Raises ValueError when the environment does not declare it, or when the episode ends before the last action.
    """
    if REPLAY not in environment.capabilities:
        raise ValueError(f"{type(environment).__name__} does not promise that a replay leads to the same state")
    observation, info = environment.reset(seed=seed, options=options)
    for index, action in enumerate(actions):
        observation, _, terminated, truncated, info = environment.step(action)
        if (terminated or truncated) and index + 1 < len(actions):
            raise ValueError(f"the episode ended at action {index + 1} of {len(actions)}")
    return observation, info


@runtime_checkable
class Prompt(Protocol):
    """Words around an environment: observations to user messages, model output to actions.

    An observation comes as `prompt_view` makes it.
    """

    def first(self, observation: Observation) -> str:
        """The user message that opens an episode with full history: the rules and the first observation."""

    def later(self, observation: Observation) -> str:
        """The user message of every later turn of an episode with full history."""

    def window(self, observation: Observation, history: Sequence[tuple[Observation, str]]) -> str:
        """A stand-alone user message for one step: rules, the last (observation, action) pairs, this observation."""

    def parse(self, text: str) -> str | None:
        """The action in the model's output, or None when it holds none. Never raises, whatever the text."""

    def answer(self, action: str) -> str:
        """What an expert would write to take `action`: `parse(answer(action)) == action`."""
