"""Packs episodes into a `Batch`, with a row for each step or for each episode; on the host."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stepreward.batch import Batch, validate
from stepreward.models.images import ImageReader, join_images
from stepreward.rollout.episode import Episode


def pack(
    episodes: Sequence[Episode],
    *,
    context: str,
    max_steps: int,
    row_length: int,
    row_multiple: int,
    pad_id: int,
    outcome: str = "return",
    outcome_scale: float = 1.0,
    reader: ImageReader | None = None,
    check: bool = True,
) -> Batch:
    """Packs episodes into rows of tokens (NumPy arrays).

    The steps of a prefix (`Episode.prefix`) are packed like all others. The answers of steps that the policy did not sample (`Step.sampled`)
    are read as prompts are.

    Args:
      episodes: as they were played; one that failed keeps its place with `episode_mask=False` and has no rows.
      context: "step" (a row is a step) or "episode" (a row is an episode).
      max_steps: S, the number of step columns.
      row_length: L; a longer row raises, since nothing is cut.
      row_multiple: the number of rows is padded to a multiple of this, so that shapes repeat.
      pad_id: the token of padding.
      outcome: "return" (sum of environment rewards) or "success" (0 or 1).
      outcome_scale: multiplies the outcome.
      reader: lays out the images of the prompts; None leaves them out, and their placeholders are ordinary tokens.
      check: whether to call `batch.validate` on the result.

    Raises:
      ValueError: `outcome` is unknown, or a row is longer than `row_length`.
    """
    if outcome not in ("return", "success"):
        raise ValueError(f"outcome={outcome!r} is neither 'return' nor 'success'.")
    rows, images = [], []  # (tokens, log_prob, step_id)
    for index, episode in enumerate(episodes):
        if episode.failure is None:
            rows += _rows_of(episode, index * max_steps, context)
            shown = [step.images for step in episode.steps]
            images += shown if context == "step" else [join_images(shown)][: len(shown)]
    total = max(1, -(-len(rows) // row_multiple)) * row_multiple
    tokens = np.full((total, row_length), pad_id, np.int32)
    segment_ids = np.zeros((total, row_length), np.int32)
    log_prob = np.zeros((total, row_length), np.float32)
    step_id = np.full((total, row_length), -1, np.int32)
    for r, (row_tokens, row_log_prob, row_step_id) in enumerate(rows):
        n = len(row_tokens)
        if n > row_length:
            raise ValueError(f"A row of {n} tokens exceeds row_length={row_length}; raise rollout.max_row_tokens.")
        tokens[r, :n], segment_ids[r, :n] = row_tokens, 1
        log_prob[r, :n], step_id[r, :n] = row_log_prob, row_step_id
    batch = Batch(
        tokens=tokens,
        positions=np.broadcast_to(np.arange(row_length, dtype=np.int32), tokens.shape),
        segment_ids=segment_ids,
        action_mask=step_id >= 0,
        step_id=step_id,
        log_prob_old=log_prob,
        vision=None if reader is None else _vision(reader, rows, images, total, row_length),
        **_levels(episodes, max_steps, outcome, outcome_scale),
    )
    if check:
        validate(batch)
    return batch


def _rows_of(episode: Episode, first_id: int, context: str):
    rows, whole = [], []
    for t, step in enumerate(episode.steps):
        before, answer = len(step.prompt_tokens), len(step.action_tokens)
        part = (
            np.concatenate([step.prompt_tokens, step.action_tokens]),
            np.concatenate([np.zeros(before, np.float32), step.log_prob]),
            np.concatenate([np.full(before, -1, np.int32), np.full(answer, first_id + t if step.sampled else -1, np.int32)]),
        )
        (rows if context == "step" else whole).append(part)
    if whole:
        rows = [tuple(np.concatenate(arrays) for arrays in zip(*whole))]
    return rows


def _vision(reader: ImageReader, rows, images, total: int, row_length: int):
    """The images of all rows; a row of padding has none."""
    empty = total - len(rows)
    tokens = [row_tokens for row_tokens, _, _ in rows] + [np.zeros(0, np.int32)] * empty
    sampled = [step_id >= 0 for _, _, step_id in rows] + [np.zeros(0, bool)] * empty
    return reader.inputs(tokens, images + [None] * empty, row_length, sampled=sampled)


def _levels(episodes, max_steps, outcome, scale) -> dict:
    count = len(episodes)
    step_mask = np.zeros((count, max_steps), bool)
    env_reward = np.zeros((count, max_steps), np.float32)
    executed = np.zeros((count, max_steps), bool)
    valid = np.array([e.failure is None and bool(e.steps) for e in episodes])
    for index, episode in enumerate(episodes):
        if valid[index]:
            n = len(episode.steps)
            step_mask[index, :n] = True
            env_reward[index, :n] = [s.reward for s in episode.steps]
            executed[index, :n] = [s.executed for s in episode.steps]
    success = np.array([e.success for e in episodes]) & valid
    value = env_reward.sum(axis=1) if outcome == "return" else success.astype(np.float32)
    judged = np.array([e.judged is not None for e in episodes]) & valid
    value = np.where(judged, np.array([e.judged or 0.0 for e in episodes], np.float32), value)
    groups: dict[int, int] = {}
    return dict(
        step_mask=step_mask,
        env_reward=env_reward,
        executed=executed,
        episode_mask=valid,
        outcome=(value * scale).astype(np.float32),
        success=success,
        truncated=np.array([e.truncated for e in episodes]) & valid,
        group_id=np.array([groups.setdefault(e.task.group, len(groups)) for e in episodes], np.int32),
    )
