"""GiGPO: episodes are compared with their group, and steps with the steps that were taken from the same state."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from stepreward.batch import Batch
from stepreward.credit.base import (
    Credit,
    Method,
    Metrics,
    check_at_least,
    check_choice,
    check_share,
    register,
    step_mask,
    to_tokens,
)
from stepreward.credit.host import of_steps, step_array
from stepreward.credit.outcome import outcome_reward
from stepreward.credit.pieces import compare_episodes, reward_metrics
from stepreward.kernels import group_normalise, group_statistics, masked_mean, return_to_go
from stepreward.kernels.inputs import select
from stepreward.kernels.masked import SINGLETON

Array = jax.Array

CHOICES = {"scale": ("none", "std"), "reward": ("outcome", "env"), "episode_units": ("episodes", "steps"), "singleton": SINGLETON}


@register("gigpo")
@dataclasses.dataclass(frozen=True)
class GiGPO(Method):
    """Group-in-group policy optimization: A(a_t) = A^E(τ) + w·A^S(a_t).

    A^E(τ_i) = (R_i − mean) / F over the episodes of the group                                            (equation 3)
    G_t = Σ_{k ≥ t} γ^{k−t}·r_k                                                                           (equation 5)
    A^S(a_t) = (G_t − mean) / F over the steps of the group that were taken from the state of step t      (equation 7)

    F is 1 or the standard deviation (ddof 1) plus eps. The steps that were taken from one state form an anchor; a step that is alone in
    its anchor has A^S = 0. Signal: `anchor_id` int32 `[E, S]`, the anchor of each step, or −1 for a step in none (`host_signals`).

    Attributes:
      weight: w ≥ 0, weight of A^S; 0 leaves the outcome method.
      discount: γ in [0, 1].
      scale: F: "none" is 1, "std" the standard deviation. The paper reports both. The default is "none": with "std" an anchor of
        two successes that differ by one step gives as large an A^S as an anchor of a success and a failure.
      reward: r_t: "outcome" is the outcome at the last step, "env" the environment's reward for each step. In the paper r_t is the
        environment's reward, and R its sum. The default is "outcome", so that both terms measure the same quantity, whether the outcome is
        success or the return.
      episode_units: what the mean and standard deviation of A^E are taken over: "episodes", or "steps", where an episode counts once a
        step (the release).
      similarity: at 1, steps of equal `state_key` share an anchor. Below 1, steps share an anchor where the texts of their observations are
        similar: see `anchor_ids`. The release uses 0.9 or 0.95 for this.
      singleton: A^E of the only unit of a group: "zero", or "raw", its own outcome (the release).
      eps: added to every standard deviation.

    Raises:
      ValueError: at construction, on a value out of range.

    Source: GiGPO (arXiv 2505.10978).
    """

    name: ClassVar[str] = "gigpo"
    requires: ClassVar[frozenset[str]] = frozenset({"anchor_id"})
    unscheduled: ClassVar[frozenset[str]] = frozenset({"similarity"})  # the host reads it
    variants: ClassVar = {"paper": {}, "released": {"episode_units": "steps", "reward": "env", "singleton": "raw"}}

    weight: float = 1.0
    discount: float = 0.95
    scale: str = "none"
    reward: str = "outcome"
    episode_units: str = "episodes"
    similarity: float = 1.0
    singleton: str = "zero"
    eps: float = 1e-6

    def __post_init__(self):
        for field, choices in CHOICES.items():
            check_choice(self, field, choices)
        check_at_least(self, 0, "weight", "eps")
        check_share(self, "discount")
        if not 0.0 < self.similarity <= 1.0:
            raise ValueError(f"similarity of '{self.name}' must lie in (0, 1], not {self.similarity!r}")

    @property
    def needs_group(self) -> bool:
        """True unless the only episode of a group keeps its own outcome."""
        return self.singleton == "zero"

    def host_signals(self, batch: Batch, episodes, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {"anchor_id": anchors(batch, episodes, self.similarity)}

    def assign(self, batch: Batch) -> Credit:
        mask_ExS, anchor_ExS = step_mask(batch), batch.signals["anchor_id"]
        reward_ExS = outcome_reward(batch) if self.reward == "outcome" else select(mask_ExS, batch.env_reward)
        anchored_ExS = mask_ExS & (anchor_ExS >= 0)
        step_ExS = group_normalise(
            return_to_go(reward_ExS, mask_ExS, self.discount),
            anchor_ExS,
            anchored_ExS,
            num_groups=mask_ExS.size,
            scale=self.scale,
            eps=self.eps,
        )
        options = dict(scale=self.scale, counted=self.episode_units, eps=self.eps, singleton=self.singleton)
        advantage_ExS = compare_episodes(batch, **options) + self.weight * step_ExS
        advantage_RxL = to_tokens(advantage_ExS, batch)
        metrics = reward_metrics(advantage_RxL, reward_ExS, batch) | anchor_metrics(anchor_ExS, anchored_ExS, mask_ExS)
        return Credit(advantage_RxL, reward_ExS, advantage_ExS, None, metrics)


def anchor_metrics(anchor_ExS: Array, anchored_ExS: Array, mask_ExS: Array) -> Metrics:
    """Scalars: the share of counted steps that share their anchor with another step, and the mean number of steps in an anchor."""
    _, _, size_ExS = group_statistics(anchored_ExS, anchor_ExS, anchored_ExS, num_groups=mask_ExS.size, ddof=1)
    anchors = jnp.where(anchored_ExS, 1.0 / jnp.maximum(size_ExS, 1.0), 0.0).sum()
    return {
        "anchors_shared": masked_mean(size_ExS > 1, mask_ExS),
        "anchor_size": anchored_ExS.sum() / jnp.maximum(anchors, 1.0),
    }


def anchors(batch: Batch, episodes, similarity: float = 1.0) -> np.ndarray:
    """The signal `anchor_id` of a batch, from its episodes: see `anchor_ids`."""
    states = of_steps(episodes, lambda step: step.observation if similarity < 1 else step.state_key)
    ids = anchor_ids(states, np.asarray(batch.group_id).tolist(), similarity=similarity)
    return step_array(ids, batch, dtype=np.int32, fill=-1)


def anchor_ids(states: Sequence[Sequence[str]], group_id: Sequence[int], *, similarity: float = 1.0) -> list[list[int]]:
    """Numbers the states in which the steps of each group were taken, on the host.

    With `similarity` < 1 each anchor is represented by the first text in it. A text joins the first anchor of its group whose
    representative it resembles (the ratio of `difflib.SequenceMatcher` is at least `similarity`), or starts a new one. The anchors
    therefore depend on the order of the episodes.

    Args:
      states: for each episode the state, as text, before each of its steps.
      group_id: the group of each episode.
      similarity: in (0, 1]; 1 joins equal texts only.

    Returns:
      For each episode the anchor of each step: numbers 0, 1, 2 … in the order of appearance, which no two groups share.

    Source: `build_step_group` of the public release of GiGPO.
    """
    known: dict[tuple[int, str], int] = {}
    representatives: dict[int, list[tuple[str, int]]] = {}
    count = 0
    ids = []
    for texts, group in zip(states, group_id):
        for text in texts:
            if (group, text) in known:  # a text that was seen before finds the same anchor again
                continue
            of_group = representatives.setdefault(group, [])
            anchor = next((a for other, a in of_group if _similar(text, other, similarity)), None) if similarity < 1 else None
            if anchor is None:
                anchor, count = count, count + 1
                of_group.append((text, anchor))
            known[group, text] = anchor
        ids.append([known[group, text] for text in texts])
    return ids


def _similar(text: str, other: str, similarity: float) -> bool:
    """Whether the ratio of two texts is at least `similarity`; upper bounds on it, which cost less, are looked at first."""
    matcher = SequenceMatcher(None, text, other)
    return all(ratio() >= similarity for ratio in (matcher.real_quick_ratio, matcher.quick_ratio, matcher.ratio))
