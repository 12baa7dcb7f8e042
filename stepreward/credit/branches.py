"""What methods on branching rollouts share: values of nodes, steps that several episodes share, and sets of siblings.

A value is that of a state or node in the unit of the outcome: the rewards before it count too. An unknown value is NaN, an unknown id −1.
Ids are compared within a group only.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from stepreward.batch import Batch
from stepreward.credit.base import Metrics, step_mask, token_mask
from stepreward.credit.pieces import reward_metrics
from stepreward.kernels import group_normalise, group_statistics, group_sum, masked_mean

Array = jax.Array


# --- Values along one episode ---


class States(NamedTuple):
    """Values of the states around each step, float32 `[E, S]`, and whether they are known, bool `[E, S]`.

    Attributes:
      here: of the state before the step; 0 where it is unknown.
      start: of the last known state up to the step, the start of its segment.
      later: of the first known state after the step; the outcome, where none is known.
      known: whether `here` is known.
      begun: whether `start` is known.
    """

    here: Array
    start: Array
    later: Array
    known: Array
    begun: Array


def states_around(value_ExS: Array, outcome_E: Array, mask_ExS: Array) -> States:
    """Finds the values of the states around each step.

    Args:
      value_ExS: `[E, S]`, the value of the state before each step; NaN where it is unknown.
      outcome_E: `[E]`, the value of the state after the last step.
      mask_ExS: bool `[E, S]`, the steps that count.
    """
    known_ExS = mask_ExS & jnp.isfinite(value_ExS)
    value_ExS = jnp.where(known_ExS, value_ExS.astype(jnp.float32), 0.0)
    steps = mask_ExS.shape[1]
    index = jnp.arange(steps)
    last_ExS = jax.lax.cummax(jnp.where(known_ExS, index, -1), axis=1)
    next_ExS = jax.lax.cummin(jnp.where(known_ExS, index, steps), axis=1, reverse=True)
    after_ExS = jnp.pad(next_ExS[:, 1:], ((0, 0), (0, 1)), constant_values=steps)
    take = lambda place_ExS: jnp.take_along_axis(value_ExS, jnp.clip(place_ExS, 0, max(steps - 1, 0)), axis=1)
    later_ExS = jnp.where(after_ExS < steps, take(after_ExS), outcome_E[:, None].astype(jnp.float32))
    return States(value_ExS, take(last_ExS), later_ExS, known_ExS, mask_ExS & (last_ExS >= 0))


# --- Steps and segments that episodes share ---


class Numbers(NamedTuple):
    """Ids of steps as numbers in [0, E·S) that no two groups share, int32 `[E, S]`; and the counted steps that have an id, bool `[E, S]`."""

    number: Array
    known: Array


def numbered(id_ExS: Array, batch: Batch) -> Numbers:
    """Numbers the pairs (group, id) of the counted steps; the ids may be any numbers, and −1 is none."""
    known_ExS = step_mask(batch) & (id_ExS >= 0)
    group_ExS = jnp.broadcast_to(batch.group_id[:, None], id_ExS.shape)
    group, ids = (jnp.where(known_ExS, x, -1).reshape(-1) for x in (group_ExS, id_ExS))
    order = jnp.lexsort((ids, group))
    pairs = jnp.stack([group, ids])[:, order]
    starts = jnp.pad((pairs[:, 1:] != pairs[:, :-1]).any(axis=0), (1, 0))[: order.size]
    number = jnp.zeros(order.size, jnp.int32).at[order].set(jnp.cumsum(starts).astype(jnp.int32))
    return Numbers(number.reshape(id_ExS.shape), known_ExS)


def sharers(node: Numbers) -> Array:
    """float32 `[E, S]`: how many counted episodes share the step of each known node; 1 elsewhere. An episode visits a node once."""
    count_N = group_sum(node.known.astype(jnp.float32), node.number, node.known, node.number.size)
    return jnp.where(node.known, count_N[node.number] if node.number.size else 1.0, 1.0)


def counted_once(node: Numbers, batch: Batch) -> Array:
    """float32 `[E, S]`: the weight of each counted step with which every step of the tree counts once: 1 / its number of episodes.

    The copies of a step have the same tokens, context and advantage, so their weighted gradients add up to that of one copy. Keeping one
    copy only would have the same gradient, but the episode that keeps it would depend on their order, and its row would hold more of the
    loss than the rows of its siblings.
    """
    return jnp.where(step_mask(batch), 1.0 / sharers(node), 0.0)


# --- Siblings ---


class Siblings(NamedTuple):
    """The segments that start from one node, seen from each of their steps: arrays `[E, S]`.

    Attributes:
      value: the value of the node that the segment leads to; 0 where it is unknown.
      known: whether the step is in a segment with a known value.
      number: the set of siblings that the step belongs to.
      weight: 1 / the number of the segment's steps in the batch, with which every segment of a set counts once.
    """

    value: Array
    known: Array
    number: Array
    weight: Array

    def normalise(self, scale: str, *, ddof: int, eps: float) -> Array:
        """Compares each segment with its siblings as `kernels.group_normalise` does; 0 for a segment without siblings."""
        return group_normalise(self.value, self.number, self.known, **self._options, scale=scale, ddof=ddof, eps=eps)

    def statistics(self, ddof: int) -> tuple[Array, Array, Array]:
        """Mean, standard deviation and number of the segments of the set."""
        return group_statistics(self.value, self.number, self.known, **self._options, ddof=ddof)

    def spread(self) -> Array:
        """The largest minus the smallest value of the set; 0 where the value is unknown."""
        if not self.value.size:
            return self.value
        ids = jnp.where(self.known, self.number, self.number.size).reshape(-1)
        most, least = (
            reduce(self.value.reshape(-1), ids, num_segments=ids.size + 1)[self.number]
            for reduce in (jax.ops.segment_max, jax.ops.segment_min)
        )
        return jnp.where(self.known, most - least, 0.0)

    @property
    def _options(self) -> dict:
        return {"num_groups": self.number.size, "weight": self.weight}


def siblings(batch: Batch) -> Siblings:
    """The sets of siblings of a batch with the signals `segment_id`, `sibling_id` and `segment_value`."""
    value_ExS = batch.signals["segment_value"].astype(jnp.float32)
    segment, start = numbered(batch.signals["segment_id"], batch), numbered(batch.signals["sibling_id"], batch)
    known_ExS = segment.known & start.known & jnp.isfinite(value_ExS)
    size = segment.number.size
    steps_N = group_sum(known_ExS.astype(jnp.float32), segment.number, known_ExS, size)
    steps_ExS = steps_N[segment.number] if size else value_ExS
    weight_ExS = jnp.where(known_ExS, 1.0 / jnp.maximum(steps_ExS, 1.0), 0.0)
    return Siblings(jnp.where(known_ExS, value_ExS, 0.0), known_ExS, start.number, weight_ExS)


def branch_metrics(advantage_RxL: Array, step_reward_ExS: Array, token_weight_RxL: Array | None, batch: Batch) -> Metrics:
    """Scalars: those of outcomes and advantages, the size of the step rewards, and the share of action tokens that the loss leaves out."""
    found = reward_metrics(advantage_RxL, step_reward_ExS, batch)
    return found if token_weight_RxL is None else found | {"tokens_left_out": masked_mean(token_weight_RxL == 0, token_mask(batch))}
