"""The policy in hindsight: what it thinks of its actions once it is told how a successful episode ended. It has no parameters of its own."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator

import jax
import numpy as np

from stepreward import processes
from stepreward.batch import Batch
from stepreward.models.heads import decoder_of
from stepreward.programs import Program
from stepreward.rollout.episode import Episode
from stepreward.rollout.packing import pack
from stepreward.text import clean
from stepreward.training.auxiliaries.base import Auxiliary
from stepreward.training.backbones import Backbone
from stepreward.training.layout import Layout
from stepreward.training.minibatches import round_up
from stepreward.training.scoring import score

_log = logging.getLogger(__name__)
STATE = "{state}"  # in hindsight.text, the place of the final observation


class Hindsight(Auxiliary):
    """`log_prob_hindsight`: log π(a_t | s_t, the final state), with the policy that played, at the sampling temperature.

    The text `hindsight.text` with the episode's final observation is added to the end of the user's message before a_t; for a conversation
    (`rollout.context="episode"`) everything before that message is as it was. Every step of a successful episode is a row of its own.
    Steps of other episodes get 0, since their return is 0 whatever the ratio. A step whose row would have more than
    `rollout.max_row_tokens + hindsight.max_tokens` tokens has no hindsight: its tokens get NaN, and `hindsight/dropped` counts it.

    Attributes:
      model: the policy's backbone; None before `begin`.
      capacity, length: rows, and tokens of a row.

    Raises:
      ValueError: the text does not name the state.

    Source: HCAPO (arXiv 2603.08754); where the text stands in the prompt is not stated there.
    """

    name = "hindsight"
    provides = frozenset({"log_prob_hindsight"})
    when = None
    trains = False
    reads_policy = True

    def __init__(self, c, parts, layout: Layout, key: jax.Array):
        self._text, self._most = c.hindsight.text, c.hindsight.max_tokens
        if STATE not in self._text or self._most < 0:
            raise ValueError(f"hindsight.text={self._text!r} must hold {STATE}, and hindsight.max_tokens={self._most} must be at least 0.")
        self._parts, self.layout, self._rollout = parts, layout, c.rollout
        episodes = c.rollout.groups * c.rollout.group_size
        self.capacity = round_up(episodes * c.rollout.max_steps, c.train.chunk_rows)
        self.length = c.rollout.max_row_tokens + self._most
        self.model: Backbone | None = None
        self._rows: Batch | None = None
        self._known = np.zeros(0, bool)
        self._warned = False

    def begin(self, model: Backbone, params) -> None:
        """Takes the policy's backbone; the parameters are given with each batch."""
        self.model = model

    def prepare(self, batch: Batch, episodes) -> dict:
        """Writes the rows of an iteration; returns how many steps have hindsight, and how many were dropped."""
        told, known = zip(*map(self._told, episodes, batch.episode_mask & batch.success))
        rollout, parts = self._rollout, self._parts
        self._rows = pack(
            told,
            context="step",
            max_steps=rollout.max_steps,
            row_length=self.length,
            row_multiple=self.capacity,
            pad_id=parts.chat.codec.pad_id,
            reader=parts.collector.reader,
        )
        self._known = np.stack([np.pad(row, (0, rollout.max_steps - len(row))) for row in known]).ravel()
        dropped = sum(len(row) for row in known) - self._known.sum()
        if dropped and not self._warned and processes.is_writer():
            self._warned = True
            _log.warning(
                "%d steps have no hindsight, since it does not fit: raise hindsight.max_tokens, or shorten hindsight.text.", dropped
            )
        return {"hindsight/steps": float(self._known.sum()), "hindsight/dropped": float(dropped)}

    def _told(self, episode, won: bool) -> tuple[Episode, np.ndarray]:
        """The steps of a successful episode with hindsight in their prompts, and which of them fit; nothing for another episode."""
        told, known, before = Episode(episode.task), [], []
        note = clean(self._text.replace(STATE, episode.final_observation))
        for step in episode.steps if won else ():
            prompt = np.concatenate([*before, self._parts.chat.noted(step.prompt_tokens, note)])
            known.append(len(prompt) + len(step.action_tokens) <= self.length)
            kept = {"prompt_tokens": prompt} if known[-1] else {"prompt_tokens": prompt[:0], "images": None}
            told.steps.append(dataclasses.replace(step, **kept))
            if self._rollout.context == "episode":
                before += [step.prompt_tokens, step.action_tokens]
        return told, np.array(known, bool)

    def scores(self, placed: Batch, to_rows, policy_params) -> dict:
        """Returns the log-probabilities, `[R, L]`, of the batch that was prepared, or of what is left of it."""
        rows = self._rows
        scored = self.model.reads(self.layout.place(rows))
        found = processes.to_host(score(decoder_of(policy_params), scored, **self.layout.scoring(self.model))[0])
        told_id, step_id = rows.step_id[rows.action_mask], to_rows(placed.step_id + 1) - 1  # 0, not -1, where a row is padded
        values = np.where(self._known[told_id], found[rows.action_mask], np.nan)
        # The tokens of a step have the same order in both batches, whatever the order of their rows.
        told, there = np.isin(told_id, step_id), np.isin(step_id, told_id)
        log_prob, placed_values = np.zeros(step_id.shape, np.float32), np.zeros(there.sum(), np.float32)
        placed_values[np.argsort(step_id[there], kind="stable")] = values[told][np.argsort(told_id[told], kind="stable")]
        log_prob[there] = placed_values
        return {"log_prob_hindsight": log_prob}

    def programs(self, stage: str, policy_params=None) -> Iterator[Program]:
        if stage == "train":
            rows = self.model.reads(self.layout.shapes(self.capacity, length=self.length))
            yield Program(
                "hindsight/score",
                score,
                (decoder_of(policy_params), rows),
                self.layout.scoring(self.model),
                trips=self.layout.chunks(self.capacity),
                kernel_flops=self.layout.kernel_flops(self.model, self.capacity),
            )
