"""RUDDER and ProgRM: step rewards as differences of a potential that an estimator predicts from each prefix."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from stepreward.batch import Batch
from stepreward.credit.actor_critic import ActorCritic
from stepreward.credit.base import Metrics, check_at_least, check_choice, register, step_mask
from stepreward.kernels import masked_mean, potential_differences, return_prediction_loss, spread_residual
from stepreward.kernels.inputs import select
from stepreward.kernels.redistribution import RESIDUALS

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class _Potential(ActorCritic):
    """Step rewards that are differences of a potential. Advantages come from the returns-to-go of the group, or from a critic.

    Attributes:
      baseline: "group": return-to-go minus that of the others of the group at the same step; "critic": the signal `value`.
    """

    baseline: str = "group"

    @property
    def has_progress(self) -> bool:
        return True

    @property
    def losses(self) -> dict:
        return {"estimator": self.progress_loss}

    @property
    def requires(self) -> frozenset[str]:
        return super().requires | {"progress"}

    def reward_of_steps(self, batch: Batch) -> Array:
        return self.contributions(batch.signals["progress"], batch)


@register("rudder")
@dataclasses.dataclass(frozen=True)
class RUDDER(_Potential):
    """Return decomposition by differences: r_t = g_t − g_{t−1}, g_t the return predicted from the first t steps, g_{−1} = 0.

    The estimator is trained on (g_T − R)² + w·mean_t (g_t − R)². The residual R − g_T is added to the rewards, so that they sum to the
    outcome and the optimal policies do not change. The backbone is the run's language model; in the paper it is an LSTM.

    Attributes:
      residual: where R − g_T is added: at the "last" step, to all steps alike ("uniform"), or nowhere ("none").
      every_step: w, weight of predicting the return at every step.

    Source: arXiv 1806.07857.
    """

    name: ClassVar[str] = "rudder"

    residual: str = "last"
    every_step: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        check_choice(self, "residual", RESIDUALS)
        check_at_least(self, 0, "every_step")

    @property
    def progress_options(self) -> dict:
        return {"loss": "return of each prefix", "every_step": self.every_step}

    def contributions(self, output_ExS: Array, batch: Batch) -> Array:
        return potential_differences(output_ExS, step_mask(batch))

    def progress_loss(self, output_ExS: Array, batch: Batch) -> tuple[Array, Metrics]:
        """L = mean over episodes of (g_T − R)² + w·mean_t (g_t − R)²."""
        return return_prediction_loss(output_ExS, batch.outcome, step_mask(batch), every_step=self.every_step), {}

    def reward_of_steps(self, batch: Batch) -> Array:
        return spread_residual(super().reward_of_steps(batch), batch.outcome, step_mask(batch), self.residual)


@register("progrm")
@dataclasses.dataclass(frozen=True)
class ProgRM(_Potential):
    """Progress differences: r_t = p_t − p_{t−1}, p_{−1} = 0, with p_t = σ(output) in [0, 1] the progress after step t.

    The estimator learns labels in [0, 1], the signal `progress_label` `[E, S]`; a step with a negative label has none. The labels come
    from `lcs_progress_labels`.

    Attributes:
      objective: "mse" (p_t − label)², or "cross_entropy".

    Source: arXiv 2505.18121. The algorithm that the paper trains with these rewards is not public; this class uses returns-to-go.
    """

    name: ClassVar[str] = "progrm"

    objective: str = "mse"

    def __post_init__(self):
        super().__post_init__()
        check_choice(self, "objective", ("mse", "cross_entropy"))

    @property
    def progress_options(self) -> dict:
        return {"loss": "label of each step", "objective": self.objective}

    @property
    def label_signals(self) -> frozenset[str]:
        return frozenset({"progress_label"})

    def labels(self, batch: Batch, episodes) -> dict[str, np.ndarray]:
        sequences = [[f"{step.state_key}|{step.action}" for step in e.steps] if e.failure is None else [] for e in episodes]
        labels = lcs_progress_labels(sequences, np.asarray(batch.success).tolist(), np.asarray(batch.group_id).tolist())
        label_ExS = np.full(batch.step_mask.shape, -1.0, np.float32)
        for row, label in zip(label_ExS, labels):
            row[: len(label)] = label
        return {"progress_label": label_ExS}

    def contributions(self, output_ExS: Array, batch: Batch) -> Array:
        mask_ExS = step_mask(batch)
        return potential_differences(jax.nn.sigmoid(select(mask_ExS, output_ExS)), mask_ExS)

    def progress_loss(self, output_ExS: Array, batch: Batch) -> tuple[Array, Metrics]:
        """L = mean over labelled steps of (σ(output) − label)², or of the cross-entropy with the label."""
        label_ExS = batch.signals["progress_label"]
        mask_ExS = step_mask(batch) & (label_ExS >= 0)
        label_ExS, output_ExS = select(mask_ExS, label_ExS), select(mask_ExS, output_ExS)
        if self.objective == "mse":
            loss_ExS = (jax.nn.sigmoid(output_ExS) - label_ExS) ** 2
        else:
            loss_ExS = optax.losses.sigmoid_binary_cross_entropy(output_ExS, label_ExS)
        return masked_mean(loss_ExS, mask_ExS), {"labelled": masked_mean(mask_ExS.astype(jnp.float32), step_mask(batch))}


def lcs_progress_labels(sequences: Sequence[Sequence[str]], success: Sequence[bool], group_id: Sequence[int]) -> list[np.ndarray]:
    """Labels each step with its progress by self-annotation, on the host.

    The longest common subsequence of the successful episodes of a group gives its m key steps. Progress is j / m after the first j of
    them have been taken in order. The subsequence of more than two episodes is computed pairwise, in the given order.

    Args:
      sequences: for each episode, one text that identifies each of its steps, such as "state|action".
      success: whether each episode succeeded.
      group_id: the group of each episode; episodes of one group share the task and the initial state.

    Returns:
      float32 `[T_i]` for each episode: the progress *after* each step. All labels are −1 where the group has no success, or where its
      successes have nothing in common.

    Source: ProgRM (arXiv 2505.18121), LCS self-annotation.
    """
    keys: dict[int, list[str]] = {}
    for sequence, won, group in zip(sequences, success, group_id):
        if won:
            keys[group] = _common(keys[group], sequence) if group in keys else list(sequence)
    labels = []
    for sequence, group in zip(sequences, group_id):
        key, reached, label = keys.get(group, []), 0, np.full(len(sequence), -1.0, np.float32)
        for t, item in enumerate(sequence) if key else ():
            reached += reached < len(key) and item == key[reached]
            label[t] = reached / len(key)
        labels.append(label)
    return labels


def _common(a: Sequence[str], b: Sequence[str]) -> list[str]:
    """The longest common subsequence, by dynamic programming over suffixes."""
    length = np.zeros((len(a) + 1, len(b) + 1), int)
    for i in range(len(a) - 1, -1, -1):
        for j in range(len(b) - 1, -1, -1):
            same = a[i] == b[j]
            length[i, j] = length[i + 1, j + 1] + 1 if same else max(length[i + 1, j], length[i, j + 1])
    found, i, j = [], 0, 0
    while i < len(a) and j < len(b):
        if a[i] == b[j]:
            found.append(a[i])
            i, j = i + 1, j + 1
        elif length[i + 1, j] >= length[i, j + 1]:
            i += 1
        else:
            j += 1
    return found
