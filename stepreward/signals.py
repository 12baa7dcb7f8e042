"""Every array that a batch may hold: its level, its type and what it means. Code reads the level here and never guesses it from a shape.

A rollout yields `E` episodes of at most `S` steps; their tokens lie in `R` rows of length `L`. An array has one of four levels:

    token    [R, L]     moves with the rows of a batch
    step     [E, S]     moves with its episodes
    episode  [E]        moves with its episodes
    scalar   []         belongs to the whole batch

`FIELDS` are the fields of `Batch`; `SIGNALS` may lie in `Batch.signals`. A method that reads another signal adds a row here, or calls
`add` where it is defined.
"""

from __future__ import annotations

import difflib
from typing import NamedTuple

import numpy as np

TOKEN, STEP, EPISODE, SCALAR = LEVELS = ("token", "step", "episode", "scalar")


class Row(NamedTuple):
    """One array.

    Attributes:
      level: one of `LEVELS`.
      dtype: of its elements.
      meaning: one sentence, with units.
      computed: whether a run computes it where a method or loss requires it.
      padding: what fills rows and episodes that do not exist.
    """

    level: str
    dtype: type
    meaning: str
    computed: bool = False
    padding: int = 0


FIELDS: dict[str, Row] = {
    "tokens": Row(TOKEN, np.int32, "Token ids; arbitrary at padding."),
    "positions": Row(TOKEN, np.int32, "Position of each token in its sequence, from 0."),
    "segment_ids": Row(TOKEN, np.int32, "0 at padding; a token attends to earlier tokens of the same segment."),
    "action_mask": Row(TOKEN, bool, "Whether the policy sampled the token."),
    "step_id": Row(TOKEN, np.int32, "episode * S + step at action tokens, -1 elsewhere.", padding=-1),
    "log_prob_old": Row(TOKEN, np.float32, "Log-probability under the policy that played, in nats, at the sampling temperature."),
    "step_mask": Row(STEP, bool, "Whether the episode has that step."),
    "env_reward": Row(STEP, np.float32, "The environment's reward for the step."),
    "executed": Row(STEP, bool, "Whether the action was parsed, ran and took effect."),
    "episode_mask": Row(EPISODE, bool, "False for padding and where the environment failed: such episodes enter no statistic."),
    "outcome": Row(EPISODE, np.float32, "The return that outcome methods see."),
    "success": Row(EPISODE, bool, "Whether the episode succeeded."),
    "truncated": Row(EPISODE, bool, "Whether the step limit ended the episode."),
    "group_id": Row(EPISODE, np.int32, "Episodes of one group started from the same task and state."),
}

SIGNALS: dict[str, Row] = {
    # What models say of the tokens of a batch: float32, in nats where it is a log-probability, 0 off the action mask.
    "log_prob_prm": Row(TOKEN, np.float32, "Log-probability under the process reward model.", computed=True),
    "log_prob_initial": Row(TOKEN, np.float32, "Log-probability under the policy that reinforcement learning began with.", computed=True),
    "log_prob_policy": Row(TOKEN, np.float32, "Log-probability under the policy as it is before the update."),
    "log_prob_reference": Row(TOKEN, np.float32, "Log-probability under the reference of the policy's KL penalty."),
    "value": Row(TOKEN, np.float32, "The critic's value of the state before each action token.", computed=True),
    "progress": Row(STEP, np.float32, "The progress estimator's output at the last token of each step.", computed=True),
    # What credit assignment hands to the updates.
    "advantage": Row(TOKEN, np.float32, "Advantage of each action token."),
    "returns": Row(TOKEN, np.float32, "What the critic's value is trained towards."),
    "value_mask": Row(TOKEN, bool, "The tokens whose value the critic learns."),
    # What the host draws or finds in the episodes.
    "step_permutation": Row(STEP, np.int32, "A random order of the steps of each episode, for the shuffled control.", computed=True),
    "progress_label": Row(STEP, np.float32, "Label of the estimator's loss in [0, 1]; -1 where a step has none.", computed=True),
    "anchor_id": Row(STEP, np.int32, "Number of the state and group that the step was taken in; -1: none.", computed=True, padding=-1),
    # What a strategy of rollouts finds by branching.
    "mc_value": Row(STEP, np.float32, "Mean outcome of the episodes that were played on from the state before the step."),
    # One number for the batch.
    "alpha_scale": Row(SCALAR, np.float32, "Twice the PRM's pair accuracy minus 1, at least 0.", computed=True),
    "kl_coef": Row(SCALAR, np.float32, "Coefficient of the KL penalty in the reward.", computed=True),
}


def add(name: str, level: str, dtype: type, meaning: str, *, computed: bool = False) -> None:
    """Adds a signal of one's own, which a method of one's own requires.

    Args:
      name, level, dtype, meaning, computed: see `Row`.

    Raises:
      ValueError: the name is taken by an array of another kind, or there is no such level.
    """
    if level not in LEVELS:
        raise ValueError(f"signal {name!r}: the level {level!r} is not one of {', '.join(LEVELS)}")
    new = Row(level, dtype, meaning, computed)
    if (known := FIELDS.get(name) or SIGNALS.get(name)) and known != new:
        raise ValueError(f"a batch has an array {name!r} already: {known.meaning}")
    SIGNALS[name] = new


def row(name: str) -> Row:
    """The row of a signal.

    Raises:
      ValueError: there is none; the message names the nearest one.
    """
    if name in SIGNALS:
        return SIGNALS[name]
    near = difflib.get_close_matches(name, SIGNALS, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise ValueError(f"there is no signal {name!r}{hint}; add it with stepreward.signals.add(name, level, dtype, meaning)")


def computed() -> frozenset[str]:
    """The signals that a run computes where a method or loss requires them."""
    return frozenset(name for name, found in SIGNALS.items() if found.computed)


def fields(*levels: str) -> tuple[str, ...]:
    """The fields of `Batch` at some levels, in order."""
    return tuple(name for name, found in FIELDS.items() if found.level in levels)


def shape(found: Row, rows: int, length: int, episodes: int, steps: int) -> tuple[int, ...]:
    """The shape of an array in a batch of that size."""
    return {TOKEN: (rows, length), STEP: (episodes, steps), EPISODE: (episodes,), SCALAR: ()}[found.level]
