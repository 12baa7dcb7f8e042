"""AgentPRM, two papers: step rewards from a model of promise, M(s_t, a_t) ≈ Q, that learns from plain episodes.

`agentprm` learns from temporal differences of its own outputs (arXiv 2511.08325), `agentprm_mc` from the outcomes of the episodes that took
the same action after the same history (arXiv 2502.10325).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from stepreward.batch import Batch
from stepreward.credit.base import Metrics, check_at_least, check_choice, check_share, first_step, register, step_mask
from stepreward.credit.outcome import outcome_reward
from stepreward.credit.potentials import ProgRM, _Potential
from stepreward.kernels import generalized_advantage_estimation, masked_mean, potential_differences, spread_residual
from stepreward.kernels.inputs import select
from stepreward.kernels.redistribution import RESIDUALS

Array = jax.Array


@register("agentprm")
@dataclasses.dataclass(frozen=True)
class AgentPRM(_Potential):
    """Promise and progress: r_t = M_t − M_{t−1}, with M_t ≈ Q(s_t, a_t) the estimator's output after step t.

    δ_t = ρ_t + γ·M_t − M_{t−1},  at the last step ρ_t − M_{t−1}
    Â_t = Σ_k (γλ)^k·δ_{t+k},  Q̂_t = Â_t + M_{t−1}
    L = mean over steps of (M_t − Q̂_t)² + β·(M_t − M_{t−1} − Â_t)²

    ρ is the outcome at the last step. The labels Q̂ and Â are computed anew from the current M for each mini-batch, and have no gradient.
    The two terms have the same value, but the second one also has a gradient through M_{t−1}.

    The paper uses M to choose among candidates and as a reward of PPO. How its PPO turns M into rewards is not known to us: here the
    rewards are the progress, and the policy's advantages are returns-to-go of the group, or those of a critic with `baseline="critic"`.

    Attributes:
      label_discount: γ of the labels, in [0, 1].
      label_trace: λ of the labels, in [0, 1].
      beta: β ≥ 0, weight of the progress in the loss.
      initial: M_{−1}, the promise before the first step, which the paper does not define.
      reward: ρ_t of the labels: the "outcome" at the last step, or "env", the environment's reward for each step.
      residual: where the outcome minus the sum of the rewards is added, so that they sum to the outcome: at the "last" step, to all steps
        alike ("uniform"), or nowhere ("none", the default).

    Source: AgentPRM (arXiv 2511.08325).
    """

    name: ClassVar[str] = "agentprm"

    label_discount: float = 1.0
    label_trace: float = 0.95
    beta: float = 1.0
    initial: float = 0.0
    reward: str = "outcome"
    residual: str = "none"

    def __post_init__(self):
        super().__post_init__()
        check_choice(self, "residual", RESIDUALS)
        check_share(self, "label_discount", "label_trace")
        check_at_least(self, 0, "beta")

    @property
    def progress_options(self) -> dict:
        names = ("label_discount", "label_trace", "beta", "initial", "reward")
        return {"loss": "temporal differences"} | {name: getattr(self, name) for name in names}

    def contributions(self, output_ExS: Array, batch: Batch) -> Array:
        """float32 `[E, S]`: M_t − M_{t−1} with M_{−1} = 0; the sum is M after the last step."""
        return potential_differences(output_ExS, step_mask(batch))

    def progress_loss(self, output_ExS: Array, batch: Batch) -> tuple[Array, Metrics]:
        """L = mean over steps of (M − Q̂)² + β·(M_t − M_{t−1} − Â)²."""
        mask_ExS = step_mask(batch)
        promise_ExS = select(mask_ExS, output_ExS)
        before_ExS = select(mask_ExS, jnp.pad(promise_ExS[:, :-1], ((0, 0), (1, 0)), constant_values=self.initial))
        advantage_ExS, q_ExS = self.td_labels(promise_ExS, batch)
        promise = masked_mean((promise_ExS - q_ExS) ** 2, mask_ExS)
        progress = masked_mean((promise_ExS - before_ExS - advantage_ExS) ** 2, mask_ExS)
        return promise + self.beta * progress, {"label_mean": masked_mean(q_ExS, mask_ExS)}

    def td_labels(self, output_ExS: Array, batch: Batch) -> tuple[Array, Array]:
        """`(Â, Q̂)`, each float32 `[E, S]` without gradient, from the current outputs of the estimator."""
        mask_ExS = step_mask(batch)
        promise_ExS = jax.lax.stop_gradient(select(mask_ExS, output_ExS))
        before_ExS = jnp.pad(promise_ExS[:, :-1], ((0, 0), (1, 0)), constant_values=self.initial)
        reward_ExS = outcome_reward(batch) if self.reward == "outcome" else select(mask_ExS, batch.env_reward)
        # M after a step is the value of the state that the next step starts from.
        return generalized_advantage_estimation(reward_ExS, before_ExS, mask_ExS, self.label_discount, self.label_trace)

    def reward_of_steps(self, batch: Batch) -> Array:
        mask_ExS = step_mask(batch)
        reward_ExS = super().reward_of_steps(batch) - jnp.where(first_step(mask_ExS), self.initial, 0.0)
        return spread_residual(reward_ExS, batch.outcome, mask_ExS, self.residual)


LABELS = ("mc", "shaped", "inverse")
DISCOUNT_FROM = ("end", "start")


@register("agentprm_mc")
@dataclasses.dataclass(frozen=True)
class AgentPRMMonteCarlo(ProgRM):
    """Promise from pooled outcomes: r_t = p_t − p_{t−1}, p_{−1} = 0, with p_t = σ(output) ≈ Q(s_t, a_t) in [0, 1].

    Q(h, a) = mean of γ^{T−1−t}·(2R − 1) over the episodes of the task that took action a after the history h
    label = (Q + 1) / 2,  L = mean over steps of the cross-entropy of σ(output) with the label

    A history consists of all earlier observations and actions and the current observation; an action is the parsed one, so what the model
    thought is no part of it. The signal is `progress_label`. The paper trains the policy by online DPO on single steps; here the rewards are
    differences of p, and the policy's advantages those of `rudder` and `progrm`.

    Attributes:
      labels_from: "mc", as above. "shaped": the label is σ(3·(y − mean)/IQR), with y the mean of γ^{T−1−t}·(2R − 1) + γ·V(s') − V(s), and
        mean and IQR over the steps of the batch; V(s) is the mean of γ^{T−t}·(2R − 1) over the episodes through the history of s, 0 after
        the last step. The paper takes V from a reference policy; the pooled V is ours. "inverse": the loss is the cross-entropy of
        σ(q_t − γ·q_{t+1}) with the label 1 at steps of an expert, 0 at the policy's, q the output, and r_t = q_t − γ·q_{t+1}; a run has
        no expert's episodes among the policy's, so the successful episodes take the expert's place.
      label_discount: γ of the labels, in [0, 1].
      discount_from: "end" is the exponent T − 1 − t; "start" is t, as in the release, which moves the labels of late steps to 0.5.
      objective: "cross_entropy", or "mse".

    Source: arXiv 2502.10325 and its release (sanjibanc/agent_prm, commit e471471).
    """

    name: ClassVar[str] = "agentprm_mc"
    unscheduled: ClassVar[frozenset[str]] = frozenset({"label_discount"})  # the host reads it
    variants: ClassVar = {"paper": {}, "released": {"discount_from": "start"}}

    objective: str = "cross_entropy"
    labels_from: str = "mc"
    label_discount: float = 0.95
    discount_from: str = "end"

    def __post_init__(self):
        super().__post_init__()
        check_choice(self, "labels_from", LABELS)
        check_choice(self, "discount_from", DISCOUNT_FROM)
        check_share(self, "label_discount")

    @property
    def progress_options(self) -> dict:
        names = ("objective", "labels_from", "label_discount", "discount_from")
        return {"loss": "pooled outcomes"} | {name: getattr(self, name) for name in names}

    def labels(self, batch: Batch, episodes) -> dict[str, np.ndarray]:
        counted = np.asarray(batch.episode_mask)
        sequences = [[(s.observation, s.action) for s in e.steps] if ok else [] for e, ok in zip(episodes, counted)]
        if self.labels_from == "inverse":
            found = [np.full(len(s), won, np.float32) for s, won in zip(sequences, np.asarray(batch.success))]
        else:
            options = {"discount": self.label_discount, "discount_from": self.discount_from}
            make = {"mc": monte_carlo_labels, "shaped": shaped_labels}[self.labels_from]
            found = make(sequences, np.asarray(batch.outcome).tolist(), np.asarray(batch.group_id).tolist(), **options)
        label_ExS = np.full(batch.step_mask.shape, -1.0, np.float32)
        for row, label in zip(label_ExS, found):
            row[: len(label)] = label
        return {"progress_label": label_ExS}

    def contributions(self, output_ExS: Array, batch: Batch) -> Array:
        if self.labels_from != "inverse":
            return super().contributions(output_ExS, batch)
        return inverse_rewards(output_ExS, step_mask(batch), self.label_discount)

    def progress_loss(self, output_ExS: Array, batch: Batch) -> tuple[Array, Metrics]:
        if self.labels_from != "inverse":
            return super().progress_loss(output_ExS, batch)
        logit_ExS = inverse_rewards(output_ExS, step_mask(batch), self.label_discount)
        mask_ExS = step_mask(batch) & (batch.signals["progress_label"] >= 0)
        label_ExS = select(mask_ExS, batch.signals["progress_label"])
        loss_ExS = optax.losses.sigmoid_binary_cross_entropy(logit_ExS, label_ExS)
        return masked_mean(loss_ExS, mask_ExS), {"labelled": masked_mean(mask_ExS.astype(jnp.float32), step_mask(batch))}


def inverse_rewards(output_ExS: Array, mask_ExS: Array, discount: float) -> Array:
    """float32 `[E, S]`: q_t − γ·q_{t+1} with q = 0 after the last step; 0 where the mask is False."""
    output_ExS = select(mask_ExS, output_ExS)
    return jnp.where(mask_ExS, output_ExS - discount * jnp.pad(output_ExS[:, 1:], ((0, 0), (0, 1))), 0.0)


def monte_carlo_labels(
    sequences: Sequence[Sequence[tuple[str, str | None]]],
    outcome: Sequence[float],
    group_id: Sequence[int],
    *,
    discount: float,
    discount_from: str = "end",
) -> list[np.ndarray]:
    """Labels each step with the pooled discounted outcome of its action after its history, scaled to [0, 1]; on the host.

    Args:
      sequences: for each episode, the observation and the action of each of its steps.
      outcome: R of each episode, in [0, 1].
      group_id: the task of each episode.
      discount: γ in [0, 1].
      discount_from: one of `DISCOUNT_FROM`.

    Returns:
      float32 `[T_i]` for each episode.

    Source: arXiv 2502.10325; with `discount_from="start"` `compute_prm_target.py` of its release.
    """
    _, actions = _histories(sequences, group_id)
    pooled = _pool(actions, [_returns(len(s), r, discount, discount_from) for s, r in zip(sequences, outcome)])
    return [((values + 1) / 2).astype(np.float32) for values in pooled]


def shaped_labels(sequences, outcome, group_id, *, discount: float, discount_from: str = "end") -> list[np.ndarray]:
    """The labels σ(3·(y − mean)/IQR) of `AgentPRMMonteCarlo` with "shaped"; arguments and result as in `monte_carlo_labels`.

    Where the interquartile range is 0, all labels are 0.5.
    """
    states, actions = _histories(sequences, group_id)
    returns = [_returns(len(s), r, discount, discount_from) for s, r in zip(sequences, outcome)]
    # V(s_t) is one step further from the end than Q(s_t, a_t), where the discount counts from the end.
    values = _pool(states, [discount * x if discount_from == "end" else x for x in returns])
    following = [np.append(v[1:], 0.0) if len(v) else v for v in values]
    pooled = _pool(actions, [shaped_targets(g, v, after, discount) for g, v, after in zip(returns, values, following)])
    everything = np.concatenate([*pooled, np.zeros(0)])
    if not len(everything):
        return [x.astype(np.float32) for x in pooled]
    low, high = np.percentile(everything, [25, 75])
    if high == low:
        return [np.full(len(x), 0.5, np.float32) for x in pooled]
    z = lambda x: 3 * (x - everything.mean()) / (high - low)
    return [(0.5 * (1 + np.tanh(z(x) / 2))).astype(np.float32) for x in pooled]


def shaped_targets(returns: np.ndarray, value: np.ndarray, next_value: np.ndarray, discount: float) -> np.ndarray:
    """y = G + γ·V(s') − V(s)."""
    return returns + discount * next_value - value


def _returns(steps: int, outcome: float, discount: float, discount_from: str) -> np.ndarray:
    """γ^k·(2R − 1) at each step t, with k = T − 1 − t or k = t."""
    t = np.arange(steps)
    return discount ** (t if discount_from == "start" else steps - 1 - t) * (2.0 * outcome - 1.0)


def _histories(sequences, group_id) -> tuple[list[list[int]], list[list[int]]]:
    """Numbers, for each step, its history with the current observation, and that history with the action."""
    known: dict[tuple, int] = {}
    number = lambda *key: known.setdefault(key, len(known))
    states, actions = [], []
    for sequence, group in zip(sequences, group_id):
        node, of_states, of_actions = number("task", group), [], []
        for observation, action in sequence:
            of_states.append(number(node, "observation", observation))
            node = number(of_states[-1], "action", action)
            of_actions.append(node)
        states.append(of_states)
        actions.append(of_actions)
    return states, actions


def _pool(keys: Sequence[Sequence[int]], values: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The mean of the values over all steps with the same key."""
    found: dict[int, list[float]] = {}
    for of_keys, of_values in zip(keys, values):
        for key, value in zip(of_keys, of_values):
            found.setdefault(key, []).append(value)
    means = {key: float(np.mean(x)) for key, x in found.items()}
    return [np.array([means[key] for key in of_keys], np.float64) for of_keys in keys]
