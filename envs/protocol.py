"""The protocol between the library and any environment: gymnasium's five-tuple over text.

    observation, info = environment.reset(seed=7, options={"split": "train"})
    observation, reward, terminated, truncated, info = environment.step("up")

* An observation is `{"text": str}` or `{"text": str, "image": uint8[H, W, 3]}`.
* `step` takes the parsed action as a string, or `None` when the model's output held no action. Every string is legal input: an
  action that the environment does not understand is a no-op with `executed=False`, never an exception.
* `info` always has `won` (bool: the task is solved), `score` (float: the benchmark's own measure of success; if it has none,
  1.0 when won and 0.0 otherwise), `executed` (bool: the environment understood the action and it took effect; True at reset) and
  `state_key` (str: equal for equal states of the same task). It may have `admissible` (tuple of str: the actions that would
  be executed in this state, as the benchmark lists them) and `task` (str: the task's description, the same at every turn).
* The same seed and options give the same episode on any machine. If the number of tasks is finite, `num_tasks(split)` returns it,
  and seed `s` selects task `s mod num_tasks(split)`.

An environment neither writes prompts nor parses model output: see `Prompt`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

Observation = Mapping[str, Any]
Info = Mapping[str, Any]

# Optional capabilities of an environment; each name stands for one method or one key.
IMAGE = "image"  # observations carry an image
# snapshot() -> opaque state, restore(state): the environment continues from that state, in an environment with equal settings and without
# a reset. Both work in every state after a reset. A snapshot can be pickled.
SNAPSHOT = "snapshot"
DISTANCE = "distance"  # distance() -> distance to success, in a unit that the environment documents; inf: unreachable; nan: unknown
EXPERT = "expert"  # expert(rng=None) -> list of actions that solves the task from here, or None
ADMISSIBLE = "admissible"  # info["admissible"]
TASKS = "tasks"  # num_tasks(split) -> int
REPLAY = "replay"  # the same actions after the same reset lead to the same state: `replay_prefix` below works
REFERENCE = "reference_answer"  # info["reference_answer"]: the text of a right final answer, the same at every turn; no prompt shows it
EVENTS = "events"  # info["events"] after a step: a tuple of the names in `EVENT_NAMES` that are true of it
TURN_REWARD = "turn_reward"  # info["turn_reward"] after a step: the partial progress that it made, a float beside the reward
# automaton() -> `automata.Automaton` of subgoals, the same for all tasks; info["automaton_state"] (int): its state now, at reset and after each step
AUTOMATON = "automaton"
AUTOMATON_STATE = "automaton_state"
# transitions() -> `graphs.StateGraph` of all states that can be reached from here; raises ValueError if there are too many to list
TRANSITIONS = "transitions"

# A state that the episode had not reached before; an action that failed; an action that took effect right after one that failed.
EVENT_NAMES = ("new_state", "error", "recovered")

VIEWED = ("admissible", "task")  # the keys of info that prompts see


@runtime_checkable
class Environment(Protocol):
    """A text game. `reset` starts a seeded task, and `step` takes an action as a string."""

    capabilities: frozenset[str]

    def reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> tuple[Observation, Info]:
        """Starts the task that `seed` and `options` select; `options["split"]` is "train" or "held_out"."""

    def step(self, action: str | None) -> tuple[Observation, float, bool, bool, Info]:
        """Takes one action; returns observation, reward, terminated, truncated, info."""

    def close(self) -> None:
        """Releases the environment's resources."""


def prompt_view(observation: Observation, info: Info) -> dict[str, Any]:
    """Returns what a prompt sees of a turn: the observation, and `admissible` and `task` if `info` has them."""
    return {**observation, **{key: info[key] for key in VIEWED if key in info}}


def replay_prefix(
    environment: Environment, actions: Sequence[str | None], *, seed: int, options: Mapping[str, Any] | None = None
) -> tuple[Observation, Info]:
    """Resets an environment that declares `REPLAY` and takes `actions`; returns the last observation and info.

    Raises ValueError when the environment does not declare `REPLAY`, or when the episode ends before the last action.
    """
    if REPLAY not in environment.capabilities:
        raise ValueError(f"{type(environment).__name__} does not declare REPLAY: replaying its actions may lead to another state")
    observation, info = environment.reset(seed=seed, options=options)
    for index, action in enumerate(actions):
        observation, _, terminated, truncated, info = environment.step(action)
        if (terminated or truncated) and index + 1 < len(actions):
            raise ValueError(f"the episode ended at action {index + 1} of {len(actions)}")
    return observation, info


@runtime_checkable
class Prompt(Protocol):
    """Turns observations into user messages, and model output into actions.

    Every observation is a mapping that `prompt_view` returned.

    A prompt may also have

    * `answer_in(action, events)`: as `answer`, if the answer depends on what happens in the episode. `events` has the names of the events
      (`EVENT_NAMES`) of each step up to this one, whose own are last; see `expert_answer`.
    * `words`: texts that are one token each in the tokenizer of a tiny model, as actions are.
    * `reference(answer) -> (lead-in, answer)`, for environments that declare `REFERENCE`: what the model would write before a final answer,
      such as "Now there's enough information to answer. <answer>", and the answer itself, of which methods such as IGPO read the
      log-probability. Without it, nothing precedes the answer, which is written as `answer(answer)` says.
    """

    def first(self, observation: Observation) -> str:
        """Returns the user message that opens an episode with full history: the rules and the first observation."""

    def later(self, observation: Observation) -> str:
        """Returns the user message of a later turn of an episode with full history."""

    def window(self, observation: Observation, history: Sequence[tuple[Observation, str]]) -> str:
        """Returns a stand-alone user message for one step: rules, the last (observation, answer) pairs, this observation."""

    def parse(self, text: str) -> str | None:
        """Returns the action in the model's output, or None when it holds none. Never raises, whatever the text."""

    def answer(self, action: str) -> str:
        """Returns what an expert would write to take `action`: `parse(answer(action)) == action`."""


def expert_answer(prompt: Prompt, action: str, events: Sequence[Sequence[str]]) -> str:
    """Returns what an expert would write to take `action` at a step of an episode.

    Args:
      prompt: its `answer_in` is used if it has one, otherwise its `answer`.
      action: the action of the step.
      events: names of the events of each step of the episode, up to and including this one.
    """
    write = getattr(prompt, "answer_in", None)
    return prompt.answer(action) if write is None else write(action, events)
