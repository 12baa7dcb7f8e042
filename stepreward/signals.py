"""Every array that a batch may contain: its level, dtype and meaning. Code reads levels from this table and never guesses them from shapes.

A rollout yields `E` episodes of at most `S` steps, whose tokens are packed into `R` rows of length `L`. An array has one of four levels:

    token    [R, L]     indexed by the rows of a batch
    step     [E, S]     indexed by its episodes
    episode  [E]        indexed by its episodes
    scalar   []         one value for the whole batch

A signal may have further axes of any size behind these, as many as its `depth`.

`FIELDS` are the fields of `Batch`, and `SIGNALS` the possible entries of `Batch.signals`. A method that reads another signal adds a row
here, or calls `add` in its own module.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from stepreward.errors import did_you_mean

TOKEN, STEP, EPISODE, SCALAR = LEVELS = ("token", "step", "episode", "scalar")


class Row(NamedTuple):
    """One array.

    Attributes:
      level: one of `LEVELS`.
      dtype: the dtype of its elements.
      meaning: one sentence, with units.
      computed: whether a run computes the array if a method or loss requires it.
      padding: the value in padding rows and episodes.
      depth: the number of further axes after those of the level. They may have any size, which the method decides.
    """

    level: str
    dtype: type
    meaning: str
    computed: bool = False
    padding: int = 0
    depth: int = 0


FIELDS: dict[str, Row] = {
    "tokens": Row(TOKEN, np.int32, "Token ids; arbitrary at padding."),
    "positions": Row(TOKEN, np.int32, "Position of each token in its sequence, from 0."),
    "segment_ids": Row(TOKEN, np.int32, "0 at padding; a token attends to earlier tokens of the same segment."),
    "action_mask": Row(TOKEN, bool, "Whether the policy sampled the token."),
    "step_id": Row(TOKEN, np.int32, "episode * S + step at action tokens, -1 elsewhere.", padding=-1),
    "log_prob_old": Row(TOKEN, np.float32, "Log-probability under the behaviour policy, in nats, at the sampling temperature."),
    "step_mask": Row(STEP, bool, "Whether the episode has that step."),
    "env_reward": Row(STEP, np.float32, "The environment's reward for the step."),
    "executed": Row(STEP, bool, "Whether the action was parsed and took effect."),
    "episode_mask": Row(EPISODE, bool, "False for padding and for failed environments: such episodes enter no statistic."),
    "outcome": Row(EPISODE, np.float32, "The outcome that credit methods use: success or return, scaled."),
    "success": Row(EPISODE, bool, "Whether the episode succeeded."),
    "truncated": Row(EPISODE, bool, "Whether the step limit ended the episode."),
    "group_id": Row(EPISODE, np.int32, "Episodes of one group started from the same task and state."),
}

SIGNALS: dict[str, Row] = {
    # Outputs of models: float32, 0 off the action mask; log-probabilities are in nats.
    "log_prob_prm": Row(TOKEN, np.float32, "Log-probability under the process reward model.", computed=True),
    "log_prob_initial": Row(TOKEN, np.float32, "Log-probability under the policy that reinforcement learning started from.", computed=True),
    "log_prob_policy": Row(TOKEN, np.float32, "Log-probability under the current policy, before the update."),
    "log_prob_behaviour": Row(TOKEN, np.float32, "Log-probability under an older policy that has sampled the action (rollout.ahead)."),
    "log_prob_reference": Row(TOKEN, np.float32, "Log-probability under the reference policy of the KL penalty in the loss."),
    "value": Row(TOKEN, np.float32, "The critic's value of the state before each action token.", computed=True),
    "progress": Row(STEP, np.float32, "The progress estimator's output at the last token of each step.", computed=True),
    # Results of credit assignment that the updates read.
    "advantage": Row(TOKEN, np.float32, "Advantage of each action token."),
    "token_weight": Row(TOKEN, np.float32, "Weight of each action token in the policy's loss, at least 0."),
    "returns": Row(TOKEN, np.float32, "Regression target of the critic's value."),
    "value_mask": Row(TOKEN, bool, "Tokens at which the critic is trained."),
    "pair_weight": Row(EPISODE, np.float32, "Weight of the preference pair that the episode belongs to."),
    # Arrays that the host draws at random or computes from episodes.
    "step_permutation": Row(STEP, np.int32, "A random order of the steps of each episode, for the shuffled control.", computed=True),
    "progress_label": Row(STEP, np.float32, "Label of the estimator's loss in [0, 1]; -1 for a step without a label.", computed=True),
    "others_outcome": Row(
        EPISODE, np.float32, "Mean outcome of the other episodes of the group, or its own without others.", computed=True
    ),
    "anchor_id": Row(STEP, np.int32, "Id of the group and state in which the step was taken; -1: none.", computed=True, padding=-1),
    "level_id": Row(
        STEP, np.int32, "Ids of the group's steps whose last 1, 2, … states are equal; -1: none.", computed=True, padding=-1, depth=1
    ),
    "tag_id": Row(STEP, np.int32, "Kind of thought that the step's answer is tagged with; -1: none.", computed=True, padding=-1),
    "rule_reward": Row(STEP, np.float32, "Reward of the step by rules about its tag.", computed=True),
    "turn_reward": Row(STEP, np.float32, "Partial progress that the step made, by the environment's measure.", computed=True),
    "automaton_state": Row(STEP, np.int32, "State of the automaton of subgoals before the step; -1: none.", computed=True, padding=-1),
    "automaton_next": Row(STEP, np.int32, "State of the automaton of subgoals after the step; -1: none.", computed=True, padding=-1),
    "equal_id": Row(STEP, np.int32, "Id of the group's steps that count as equal; -1: none.", computed=True, padding=-1),
    # Results of rollout strategies that branch. A strategy computes those that it `provides`.
    "mc_value": Row(STEP, np.float32, "Mean outcome of the episodes that were continued from the state before the step."),
    "node_id": Row(
        STEP, np.int32, "Id of the step in the tree of its group: episodes that share a step share its id; -1: none.", padding=-1
    ),
    "segment_id": Row(STEP, np.int32, "Id of the segment of the tree, the steps between two branching points; -1: none.", padding=-1),
    "sibling_id": Row(STEP, np.int32, "Id of the node that the step's segment starts from: siblings share it; -1: none.", padding=-1),
    "segment_value": Row(STEP, np.float32, "Value of the node that the step's segment leads to: the mean of its children, or the outcome."),
    "parent_value": Row(STEP, np.float32, "Value of the node that the step's segment starts from: the mean of its children."),
    "exact_advantage": Row(
        STEP, np.float32, "Exact advantage of the step's action under the policy that played; NaN: unknown.", computed=True
    ),
    # What other models or judges say of steps.
    "answer_log_prob": Row(
        STEP, np.float32, "Mean log-probability of the reference answer before the step, in nats a token; NaN: not scored.", computed=True
    ),
    "log_prob_hindsight": Row(
        TOKEN, np.float32, "Log-probability under the policy that is told how a success ended; NaN: it was not told.", computed=True
    ),
    "log_prob_trained": Row(TOKEN, np.float32, "Log-probability under the trained policy of a frozen pair of checkpoints.", computed=True),
    "log_prob_start": Row(
        TOKEN, np.float32, "Log-probability under the policy that the training of that pair started from.", computed=True
    ),
    "process_score": Row(STEP, np.float32, "A judge's score of the step, in [0, 1]; NaN: none.", computed=True),
    "discriminator_logit": Row(
        STEP, np.float32, "The discriminator's logit of each step: log D − log(1 − D), D the probability of the expert.", computed=True
    ),
    "from_expert": Row(EPISODE, bool, "Whether the expert played the episode: the label of the discriminator's loss."),
    # Scalars of a batch; besides these, `scheduled_NAME` is the value of the scheduled coefficient NAME.
    "kl_coef": Row(SCALAR, np.float32, "Coefficient of the KL penalty in the reward.", computed=True),
    "automaton_distance": Row(
        SCALAR,
        np.float32,
        "Distance of each state of the automaton of subgoals: as it is, and adapted; [2, states].",
        computed=True,
        depth=2,
    ),
    "automaton_eta": Row(SCALAR, np.float32, "Share of the penalty for staying in a state of the automaton of subgoals.", computed=True),
}

SCHEDULED = "scheduled_"  # the signal with this prefix is the value of a method's scheduled coefficient
_SCHEDULED_ROW = Row(SCALAR, np.float32, "Value of a scheduled coefficient in this iteration.", computed=True)


def add(name: str, level: str, dtype: type, meaning: str, *, computed: bool = False, depth: int = 0) -> None:
    """Adds a signal to the table, for a method outside the library.

    Args:
      name, level, dtype, meaning, computed, depth: see `Row`.

    Raises:
      ValueError: another array has this name, or the level is unknown.
    """
    if level not in LEVELS:
        raise ValueError(f"signal {name!r}: the level {level!r} is not one of {', '.join(LEVELS)}")
    new = Row(level, dtype, meaning, computed, depth=depth)
    if (known := FIELDS.get(name) or SIGNALS.get(name)) and known != new:
        raise ValueError(f"a batch already has an array {name!r} ({known.meaning.rstrip('.')}): choose another name")
    SIGNALS[name] = new


def row(name: str) -> Row:
    """Returns the row of a signal.

    Raises:
      ValueError: the signal is unknown; the message suggests the nearest name.
    """
    if name in SIGNALS:
        return SIGNALS[name]
    if name.startswith(SCHEDULED):
        return _SCHEDULED_ROW
    raise ValueError(
        f"there is no signal {name!r}{did_you_mean(name, SIGNALS)}; add it with stepreward.signals.add(name, level, dtype, meaning)"
    )


def computed() -> frozenset[str]:
    """Returns the signals that a run computes if a method or loss requires them."""
    return frozenset(name for name, found in SIGNALS.items() if found.computed)


def fields(*levels: str) -> tuple[str, ...]:
    """Returns the names of the fields of `Batch` at some levels, in order."""
    return tuple(name for name, found in FIELDS.items() if found.level in levels)


def shape(found: Row, rows: int, length: int, episodes: int, steps: int) -> tuple[int | None, ...]:
    """Returns the shape of an array in a batch of `rows` × `length` tokens and `episodes` × `steps` steps; None is an axis of any size."""
    of_level = {TOKEN: (rows, length), STEP: (episodes, steps), EPISODE: (episodes,), SCALAR: ()}[found.level]
    return of_level + (None,) * found.depth


def fits(found: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    """Whether an array of the shape `found` is one of `expected`, which `shape` returned."""
    return len(found) == len(expected) and all(size is None or size == other for other, size in zip(found, expected))
