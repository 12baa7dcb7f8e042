"""Training on preference pairs: the method of a config, the loss, mini-batches of pairs, and the reference's log-probabilities."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from stepreward import preference
from stepreward import signals as table
from stepreward.batch import Batch
from stepreward.credit.base import step_sum
from stepreward.envs.protocol import EXPERT
from stepreward.kernels import dpo_with_sft
from stepreward.preference import Pairs, Preference
from stepreward.training import experts
from stepreward.training.asking import check_endpoint
from stepreward.training.layout import Layout
from stepreward.training.minibatches import filled_rows, pad_rows, row_episodes, take_rows
from stepreward.training.scoring import score
from stepreward.training.state import make_optimizer

NAME = "preference"
REFERENCES = ("start", "round")


def make_preference(c) -> Preference | None:
    """Returns the preference method of a config; None if it has none.

    Raises:
      ValueError: the method or an option is unknown or wrong.
    """
    if not c.preference.method:
        return None
    return preference.make(c.preference.method, **{k: v for k, v in c.preference.options.to_dict().items() if v is not None})


def reinforces(c) -> bool:
    """Whether a run has reinforcement learning: a preference method alone ends before it."""
    return not c.preference.method or c.preference.then_train


def check(c) -> None:
    """Checks the group `preference`. Raises ValueError that names the key."""
    p = c.preference
    if not p.method and c.stages.preference:
        raise ValueError(f"stages.preference={c.stages.preference!r} names recorded pairs: set preference.method, which trains on them.")
    method = make_preference(c)
    if method is not None:
        check_endpoint("expert", c.expert, experts.KINDS)
    if method is not None and c.expert.kind == "endpoint" and not method.advised:
        able = ", ".join(name for name in preference.names() if preference.make(name).advised)
        raise ValueError(
            f"expert.kind='endpoint' is for preference methods whose expert proposes single actions ({able}), and preference.method="
            f"{p.method!r} is none: set expert.kind=environment, or choose another method."
        )
    for name in ("tasks", "part_tasks", "epochs", "minibatch_pairs"):
        if p[name] < 1:
            raise ValueError(f"preference.{name}={p[name]} must be at least 1.")
    if p.reference not in REFERENCES:
        raise ValueError(f"preference.reference={p.reference!r} is not one of {', '.join(REFERENCES)}.")
    if p.method and c.train.mode == "offline" and p.then_train:
        raise ValueError("preference.then_train=True goes on with episodes of its own policy, so train.mode must be online.")


def needed(c, method: Preference) -> frozenset[str]:
    """The capabilities that the environment must declare."""
    return method.needs - {EXPERT} if experts.asks_endpoint(c) else method.needs


def judged(c) -> bool:
    """Whether the preference method asks the judge of the config."""
    method = make_preference(c)
    return method is not None and method.judged and not c.stages.preference


def optimizer(c, method: Preference, number: int):
    """The optimizer of a round, counted from 0."""
    group = c.preference.copy_and_resolve_references()
    group.learning_rate = group.learning_rate * method.rate_of(number)
    return make_optimizer(group, c.model.moment_dtype)


# --- The loss ---


@dataclasses.dataclass(frozen=True)
class PairLoss:
    """The mean loss over the pairs of a mini-batch, in the form that `auxiliary_step` takes.

        Σ_p w_p · [ −log σ(β · (Δ_chosen − Δ_rejected)) − sft · log π(chosen) ] / Σ_p w_p,   Δ = Σ_tokens log π − log π_ref

    The episodes of the batch are pairs in order, chosen and rejected in turn. Their steps are those of the range that the pair compares.
    Signals: `log_prob_reference` [R, L] and `pair_weight` [E].

    Attributes:
      beta, sft: see `Preference`.
    """

    beta: float
    sft: float

    @property
    def losses(self):
        return {NAME: self._loss}

    def with_coefficients(self, batch: Batch) -> PairLoss:
        """Returns itself: nothing is scheduled."""
        return self

    def _loss(self, log_prob_RxL, batch: Batch):
        log_prob_E = step_sum(log_prob_RxL, batch).sum(axis=1)
        reference_E = step_sum(batch.signals["log_prob_reference"], batch).sum(axis=1)
        gain_P, loss_P = (log_prob_E - reference_E)[0::2], (log_prob_E - reference_E)[1::2]
        margin_P = self.beta * (gain_P - loss_P)
        weight_P = batch.signals["pair_weight"][0::2]
        mean = lambda x_P: (weight_P * x_P).sum() / jnp.maximum(weight_P.sum(), 1e-9)
        metrics = {
            "pair_accuracy": mean((margin_P > 0) + 0.5 * (margin_P == 0)),
            "pair_margin": mean(margin_P),
            "chosen_gain": mean(gain_P),
            "rejected_gain": mean(loss_P),
        }
        return mean(dpo_with_sft(margin_P, log_prob_E[0::2], self.sft)), metrics


# --- Arrays ---


def with_reference(params, batch: Batch, layout: Layout, model) -> Batch:
    """Returns a batch with the signal `log_prob_reference` under `params`, computed in pieces of one shape."""
    rows = filled_rows(batch)
    size = layout.capacity
    found = np.zeros(batch.tokens.shape, np.float32)
    for first in range(0, len(rows), size):
        index = rows[first : first + size]
        part = take_rows(batch, index, size).map(lambda x, _: x[:1], table.STEP, table.EPISODE)
        placed, to_rows = layout.place_for_scoring(model.reads(part))
        found[index] = to_rows(score(params, placed, **layout.scoring(model))[0])[: len(index)]
    return batch.with_signals(log_prob_reference=found)


def pair_capacity(c, layout: Layout) -> int:
    """Number of rows of a mini-batch of pairs."""
    return layout.row_capacity(2 * c.preference.minibatch_pairs)


def pair_minibatches(batch: Batch, pairs: Pairs, most: int, capacity: int, rng: np.random.Generator) -> Iterator[Batch]:
    """Shuffles pairs and yields mini-batches of equal shape, each of at most `most` pairs.

    Args:
      batch: whole episodes (NumPy), with `log_prob_reference`.
      pairs: ranges of their steps.
      most: the most pairs of a mini-batch; smaller ones are padded with pairs of weight 0.
      capacity: number of rows of a mini-batch.
    """
    order = rng.permutation(pairs.number)
    episode_of_row = row_episodes(batch)
    for index in np.array_split(order, math.ceil(len(order) / most)) if len(order) else ():
        yield _pair_batch(batch, Pairs(*(x[index] for x in pairs)), most, capacity, episode_of_row)


def _pair_batch(batch: Batch, pairs: Pairs, most: int, capacity: int, episode_of_row: np.ndarray) -> Batch:
    """A batch of 2 · `most` episodes, chosen and rejected in turn, whose action tokens are those of the ranges."""
    sides = np.stack([pairs.chosen, pairs.rejected], axis=1).reshape(-1, 3)
    step_id, steps = np.asarray(batch.step_id), batch.max_steps
    rows, ids = [], []
    for place, (episode, first, end) in enumerate(sides):
        mine = np.flatnonzero(episode_of_row == episode)
        step = np.where(step_id[mine] >= 0, step_id[mine] % steps, -1)
        inside = (step >= first) & (step < end)
        mine, new = mine[inside.any(axis=1)], np.where(inside, place * steps + step, -1)[inside.any(axis=1)]
        rows.append(mine)
        ids.append(new)
    index = np.concatenate(rows)
    new = pad_rows(np.concatenate(ids).astype(np.int32), capacity, -1)
    part = take_rows(batch, index, capacity)
    take = lambda x, row: pad_rows(np.asarray(x)[sides[:, 0]], 2 * most, row.padding)
    weight = pad_rows(np.repeat(pairs.weight, 2), 2 * most, 0)
    group = np.repeat(np.arange(most, dtype=np.int32), 2)
    part = part.map(take, table.STEP, table.EPISODE, step_id=new, action_mask=new >= 0, group_id=group)
    return part.with_signals(log_prob_reference=part.signals["log_prob_reference"], pair_weight=weight)
