"""Updates of the policy: the clipped policy gradient, and supervised learning for the warm start."""

from __future__ import annotations

import dataclasses
import time
from functools import partial, reduce

import jax
import jax.numpy as jnp
import numpy as np

from stepreward.batch import Batch
from stepreward.kernels import losses
from stepreward.models.adapters import join
from stepreward.models.log_probs import log_probs_and_values, token_log_probs
from stepreward.training import chunks
from stepreward.training.auxiliaries.critic import ValueLoss, value_signals
from stepreward.training.backbones import Backbone
from stepreward.training.layout import Layout
from stepreward.training.state import TrainState, apply_gradients

Array = jax.Array

ADVANTAGE_NORMS = ("none", "centre", "whiten")


@dataclasses.dataclass(frozen=True)
class PolicyLoss:
    """The policy's objective: L = clip loss + kl_coef · KL(π‖π_ref) − entropy_coef · H.

    Where the credit has token weights, all three terms are averages with these weights (`kernels.losses`).

    Attributes:
      ratio: the level of the importance ratio, "token" or "step" (as in the iStar paper).
      clip_low, clip_high: the ratio is clipped to [1 − clip_low, 1 + clip_high].
      dual_clip: bound on the loss for negative advantages; None is unbounded.
      aggregation: how tokens are averaged; see `kernels.losses.aggregate`; "step-mean" is the paper's 1/(N·T).
      constant: divisor of the "constant" aggregation.
      entropy_coef: weight of the entropy bonus.
      kl_coef: weight of the KL to the policy that reinforcement learning started from.
      kl: the estimator of that KL, "k1" or "k3".
    """

    ratio: str = "step"
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    aggregation: str = "step-mean"
    constant: float | None = None
    entropy_coef: float = 0.0
    kl_coef: float = 0.0
    kl: str = "k3"

    def __post_init__(self):
        if self.kl not in ("k1", "k3"):
            raise ValueError(f"policy.kl={self.kl!r} is neither 'k1' nor 'k3'.")
        if self.aggregation not in losses.AGGREGATIONS:
            raise ValueError(f"policy.aggregation={self.aggregation!r} is not one of {', '.join(losses.AGGREGATIONS)}.")
        if self.ratio not in losses.RATIOS:
            raise ValueError(f"policy.ratio={self.ratio!r} is not one of {', '.join(losses.RATIOS)}.")


def normalise_advantage(advantage_RxL: np.ndarray, batch: Batch, norm: str, weight_RxL: np.ndarray | None = None) -> np.ndarray:
    """Normalises advantages over the batch's steps, on the host: "centre" A − mean(A), "whiten" (A − mean(A)) / (std(A) + 1e-6).

    Failed episodes run to the step limit, so with a baseline over episodes the mean over *steps* is negative. Most updates then lower
    the probability of sampled actions, in favour of actions that were never tried. A constant baseline does not change the expected
    gradient.

    Args:
      advantage_RxL: float32 `[R, L]`, 0 off the action mask.
      norm: one of `ADVANTAGE_NORMS`; "none" returns the advantages unchanged.
      weight_RxL: float32 `[R, L]`, weights of the tokens in the loss, or None. As in the loss, a step counts as the mean weight of its
        tokens of positive weight.
    """
    mask_RxL = np.asarray(batch.action_mask)
    if norm == "none" or not mask_RxL.any():
        return advantage_RxL
    first = np.unique(np.asarray(batch.step_id)[mask_RxL], return_index=True)[1]  # one token per step
    of_steps = advantage_RxL[mask_RxL][first].astype(np.float64)  # float64, so that the mean of equal advantages is exact
    if weight_RxL is not None:
        return _normalise_weighted(advantage_RxL, of_steps, np.asarray(batch.step_id), mask_RxL, weight_RxL, norm)
    scale = of_steps.std() + 1e-6 if norm == "whiten" else 1.0
    return np.where(mask_RxL, (advantage_RxL - of_steps.mean()) / scale, 0.0).astype(np.float32)


def _normalise_weighted(advantage_RxL, of_steps, step_id_RxL, mask_RxL, weight_RxL, norm: str) -> np.ndarray:
    ids = np.unique(step_id_RxL[mask_RxL], return_inverse=True)[1]
    weight = weight_RxL[mask_RxL].astype(np.float64)
    of_weights = np.bincount(ids, weight) / np.maximum(np.bincount(ids, weight > 0), 1)
    if not of_weights.any():
        return advantage_RxL  # the loss reads none of them
    mean = np.average(of_steps, weights=of_weights)
    scale = np.sqrt(np.average((of_steps - mean) ** 2, weights=of_weights)) + 1e-6 if norm == "whiten" else 1.0
    return np.where(mask_RxL, (advantage_RxL - mean) / scale, 0.0).astype(np.float32)


def _levels(batch: Batch) -> dict:
    return dict(num_episodes=batch.num_episodes, max_steps=batch.max_steps)


def _chunked(batch: Batch, chunk_rows: int, **more: Array) -> dict[str, Array]:
    names = ("tokens", "positions", "segment_ids", "action_mask", "step_id", "log_prob_old")
    rows = {k: chunks.split(v, chunk_rows) for k, v in ({n: getattr(batch, n) for n in names} | more).items()}
    return rows | chunks.images(batch, chunk_rows)


@partial(
    jax.jit,
    static_argnames=("graphdef", "optimizer", "loss", "chunk_rows", "temperature", "max_actions", "value_loss"),
    donate_argnames="state",
)
def policy_step(
    state: TrainState,
    batch: Batch,
    advantage_RxL: Array,
    *,
    graphdef,
    optimizer,
    loss: PolicyLoss,
    chunk_rows,
    temperature,
    max_actions=None,
    value_loss: ValueLoss | None = None,
    base=None,
    dropout_key=None,
) -> tuple[TrainState, dict[str, Array]]:
    """One policy update on one mini-batch of rows.

    Args:
      state: parameters and optimizer; its buffers are donated.
      batch: the mini-batch; it needs the signal `log_prob_reference` `[R, L]` if `loss.kl_coef` is not 0. With the signal `token_weight`
        `[R, L]`, the loss is weighted.
      advantage_RxL: float `[R, L]`, 0 off the action mask.
      chunk_rows: rows of one forward and backward pass.
      temperature: the sampling temperature, by which logits are divided.
      max_actions: upper bound on the action tokens of a row, or None (see `token_log_probs`).
      value_loss: the loss of a value head on the policy's backbone, or None. With it, the parameters are `{"decoder", "scalar_head"}`,
        and the batch needs the signals `value`, `returns` and `value_mask` `[R, L]`.
      base: frozen weights, if the state's parameters are adapters; else None.
      dropout_key: the random key of the adapters' dropout, or None for no dropout.

    Returns:
      The new state, and metrics: means over the mini-batch's action tokens, except for `_max` and `_min`. Those of `losses.ppo_clip` are
      over the action tokens of positive weight.
    """
    used = chunks.used_chunks(batch.action_mask, chunk_rows)
    options = dict(aggregation=loss.aggregation, constant=loss.constant, **_levels(batch))
    weight_RxL = batch.signals.get("token_weight")
    denominator = losses.aggregation_denominator(batch.action_mask, step_id_RxL=batch.step_id, weight_RxL=weight_RxL, **options)
    tokens = losses.aggregation_denominator(batch.action_mask, "token-mean")
    weighted = losses.aggregation_denominator(losses.weighted_mask(batch.action_mask, weight_RxL), "token-mean")
    more = {"advantage": advantage_RxL}
    if weight_RxL is not None:
        more["weight"] = weight_RxL
    keys = chunks.dropout_keys(dropout_key, batch, chunk_rows)
    if loss.kl_coef:
        more["reference"] = batch.signals["log_prob_reference"]

    if value_loss is not None:
        more |= value_signals(batch)
        values = jnp.maximum(batch.signals["value_mask"].sum(), 1)

    def loss_fn(params, c):
        params = join(base, params)
        decoder, head = (params, None) if value_loss is None else (params["decoder"], params["scalar_head"])
        log_prob, entropy, value = log_probs_and_values(
            graphdef,
            decoder,
            head,
            c["tokens"],
            c["positions"],
            c["segment_ids"],
            temperature=temperature,
            action_mask_RxL=c["action_mask"],
            max_actions=max_actions,
            dropout_key=c.get("dropout_key"),
            vision=c.get("vision"),
        )
        rows = dict(step_id_RxL=c["step_id"], denominator=denominator, weight_RxL=c.get("weight"), **options)
        total, metrics = losses.ppo_clip(
            log_prob,
            c["log_prob_old"],
            c["advantage"],
            c["action_mask"],
            ratio=loss.ratio,
            clip_low=loss.clip_low,
            clip_high=loss.clip_high,
            dual_clip=loss.dual_clip,
            **rows,
        )
        share = metrics["tokens"] / weighted
        extremes = {k: v for k, v in metrics.items() if chunks.extreme(k)}
        extremes["ratio_min"] = jnp.where(
            metrics["tokens"] > 0, extremes["ratio_min"], jnp.inf
        )  # a chunk without action tokens has no ratio
        kept = extremes | {k: v * share for k, v in metrics.items() if k != "tokens" and k not in extremes}
        kept["entropy"] = losses.aggregate(entropy, c["action_mask"], denominator=tokens)
        gap = jnp.abs(jax.lax.stop_gradient(log_prob) - c["log_prob_old"])
        kept["log_prob_gap"] = losses.aggregate(gap, c["action_mask"], denominator=tokens)
        if loss.entropy_coef:
            total += losses.entropy_bonus(entropy, c["action_mask"], loss.entropy_coef, **rows)
        if loss.kl_coef:
            kl = getattr(losses, f"kl_{loss.kl}")(log_prob, c["reference"])
            total += loss.kl_coef * losses.aggregate(kl, c["action_mask"], **rows)
            kept["kl_reference"] = losses.aggregate(kl, c["action_mask"], denominator=tokens)
        if value_loss is not None:
            value_total, value_metrics = value_loss(value, c, values)
            total += value_loss.coef * value_total
            kept |= value_metrics | {"value_loss": value_total}
        return total, kept

    grads, metrics = chunks.accumulate(loss_fn, state.params, _chunked(batch, chunk_rows, **more) | keys, used)
    metrics["ratio_min"] = jnp.where(jnp.isfinite(metrics["ratio_min"]), metrics["ratio_min"], 0.0)
    state, more_metrics = apply_gradients(state, grads, optimizer)
    return state, metrics | more_metrics


def policy_arguments(layout: Layout, model: Backbone, optimizer, loss: PolicyLoss, value_loss, seed, update: int) -> dict:
    """Arguments of `policy_step`, except state, batch and advantages."""
    return dict(optimizer=optimizer, loss=loss, value_loss=value_loss, **layout.scoring(model), **layout.training(model, seed, update))


def update_policy(
    state: TrainState,
    batch: Batch,
    c,
    layout: Layout,
    metrics: dict,
    seed,
    *,
    model: Backbone,
    optimizer,
    loss: PolicyLoss,
    value_loss: ValueLoss | None,
) -> TrainState:
    """Runs several epochs of `policy_step` over shuffled rows, and stops early once the approximate KL exceeds `stop_kl`.

    Args:
      batch: NumPy arrays, with the signal `advantage` and those that the losses read.
      c: the config's `policy` group.
      metrics: receives the metrics of `policy_step`, averaged over updates (the maximum of `ratio_max`, the minimum of `ratio_min`). The
        first mini-batch, before any change of the policy, also compares trainer and sampler: `policy/sampler_gap` is
        |mean ratio − 1|, and `policy/sampler_gap_nats` the mean over action tokens of |log p_trainer − log p_sampler|. With
        `lora.dropout`, both gaps include the noise of dropout, which only the trainer applies.
      seed: entropy of the shuffles and of dropout.
    """
    started, outs, rng = time.monotonic(), [], np.random.default_rng(seed)
    for part in layout.minibatches(batch, c.minibatch_rows, c.epochs, rng):
        arguments = policy_arguments(layout, model, optimizer, loss, value_loss, seed, len(outs))
        state, out = policy_step(state, part, part.signals["advantage"], **arguments)
        outs.append(out)
        if c.stop_kl and float(out["approx_kl"]) > c.stop_kl:
            break
    over_updates = lambda name, values: reduce(extreme, values) if (extreme := chunks.extreme(name)) else np.mean(values)
    metrics |= {f"policy/{k}": float(over_updates(k, [o[k] for o in outs])) for k in outs[0] if k != "log_prob_gap"}
    if c.stop_kl:
        metrics["policy/updates"] = len(outs)
    metrics["policy/sampler_gap"] = abs(float(outs[0]["ratio_mean"]) - 1.0)
    metrics["policy/sampler_gap_nats"] = float(outs[0]["log_prob_gap"])
    metrics["time/policy_s"] = time.monotonic() - started
    return state


@partial(jax.jit, static_argnames=("graphdef", "optimizer", "chunk_rows", "max_actions"), donate_argnames="state")
def sft_step(
    state: TrainState, batch: Batch, *, graphdef, optimizer, chunk_rows, max_actions=None, base=None, dropout_key=None
) -> tuple[TrainState, dict[str, Array]]:
    """One supervised update. The loss is the mean negative log-likelihood of demonstrated action tokens, in nats per token."""
    denominator = losses.aggregation_denominator(batch.action_mask, "token-mean")

    def loss_fn(params, c):
        log_prob, entropy = token_log_probs(
            graphdef,
            join(base, params),
            c["tokens"],
            c["positions"],
            c["segment_ids"],
            action_mask_RxL=c["action_mask"],
            max_actions=max_actions,
            dropout_key=c.get("dropout_key"),
            vision=c.get("vision"),
        )
        loss = losses.negative_log_likelihood(log_prob, c["action_mask"], denominator=denominator)
        return loss, {"entropy": losses.aggregate(entropy, c["action_mask"], denominator=denominator)}

    used = chunks.used_chunks(batch.action_mask, chunk_rows)
    chunked = _chunked(batch, chunk_rows) | chunks.dropout_keys(dropout_key, batch, chunk_rows)
    grads, metrics = chunks.accumulate(loss_fn, state.params, chunked, used)
    state, more_metrics = apply_gradients(state, grads, optimizer)
    return state, metrics | more_metrics
