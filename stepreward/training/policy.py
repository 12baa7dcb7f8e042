"""The policy's update: clipped policy gradient on credited rows, and the supervised warm start."""

from __future__ import annotations

import dataclasses
import time
from functools import partial

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

    Attributes:
      ratio: "token" or "step", at which level the importance ratio is taken (the paper writes "step").
      clip_low, clip_high: the ratio stays within [1 − clip_low, 1 + clip_high].
      dual_clip: bound on the loss of negative advantages (None: unbounded).
      aggregation: how tokens are averaged, see `kernels.losses.aggregate`; "step-mean" is the paper's 1/(N·T).
      constant: divisor of the "constant" aggregation.
      entropy_coef: weight of the entropy bonus.
      kl_coef: weight of KL to the policy that RL started from; `kl` is "k1" or "k3".
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


def normalise_advantage(advantage_RxL: np.ndarray, batch: Batch, norm: str) -> np.ndarray:
    """Advantages with mean 0 over the batch's steps ("centre"), and standard deviation 1 too ("whiten"); on the host.

    Failed episodes run to the step limit, so a baseline that counts episodes leaves the mean over *steps* below zero: most
    updates then push sampled actions down, and their probability flows to actions that nobody tried. A constant baseline changes
    no expected gradient.

    Args:
      advantage_RxL: float32 `[R, L]`, 0 off the action mask.
      norm: one of `ADVANTAGE_NORMS`; "none" returns the advantages as they are.
    """
    mask_RxL = np.asarray(batch.action_mask)
    if norm == "none" or not mask_RxL.any():
        return advantage_RxL
    first = np.unique(np.asarray(batch.step_id)[mask_RxL], return_index=True)[1]  # one token a step
    of_steps = advantage_RxL[mask_RxL][first].astype(np.float64)  # in float32, equal advantages far from 0 would differ from their mean
    scale = of_steps.std() + 1e-6 if norm == "whiten" else 1.0
    return np.where(mask_RxL, (advantage_RxL - of_steps.mean()) / scale, 0.0).astype(np.float32)


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
      state: donated.
      batch: the mini-batch; `batch.signals["log_prob_reference"]` `[R, L]` is needed when `loss.kl_coef` is not 0.
      advantage_RxL: float `[R, L]`, 0 off the action mask.
      chunk_rows: rows of one forward and backward pass.
      max_actions: most action tokens in a row, where that is few (see `token_log_probs`).
      value_loss: for a value head on the policy's own backbone; the parameters are then `{"decoder", "scalar_head"}`, and the
        signals `value`, `returns` and `value_mask` `[R, L]` are needed.
      base: frozen weights under the adapters that the state then holds, or None.
      dropout_key: of the adapters' dropout, or None.

    Returns:
      The new state and metrics: means over the mini-batch's tokens unless named otherwise.
    """
    used = chunks.used_chunks(batch.action_mask, chunk_rows)
    options = dict(aggregation=loss.aggregation, constant=loss.constant, **_levels(batch))
    denominator = losses.aggregation_denominator(batch.action_mask, step_id_RxL=batch.step_id, **options)
    tokens = losses.aggregation_denominator(batch.action_mask, "token-mean")
    more = {"advantage": advantage_RxL}
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
        rows = dict(step_id_RxL=c["step_id"], denominator=denominator, **options)
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
        share = metrics["tokens"] / tokens
        extremes = {k: v for k, v in metrics.items() if k.endswith(chunks.EXTREMES)}
        extremes["ratio_min"] = jnp.where(metrics["tokens"] > 0, extremes["ratio_min"], jnp.inf)  # a chunk of padding has no ratio
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
    """What `policy_step` takes besides state, batch and advantages."""
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
    """Several epochs of `policy_step` over shuffled rows, until the policy is `stop_kl` away from where it began.

    Args:
      batch: NumPy arrays, with the signal `advantage` and those that the losses read.
      c: the config's `policy` group.
      metrics: gains means over the updates (the largest `ratio_max`, the smallest `ratio_min`), and what the first mini-batch shows of the sampler, before anything has moved:
        `policy/sampler_gap` is how far the mean ratio is from 1, `policy/sampler_gap_nats` the mean over action tokens of
        |log p_trainer − log p_sampler|. A trainer's pass drops inputs of adapters where `lora.dropout` says so, a sampler's none:
        then both gaps hold the noise of that.
      seed: of the shuffles.
    """
    started, outs, rng = time.monotonic(), [], np.random.default_rng(seed)
    for part in layout.minibatches(batch, c.minibatch_rows, c.epochs, rng):
        arguments = policy_arguments(layout, model, optimizer, loss, value_loss, seed, len(outs))
        state, out = policy_step(state, part, part.signals["advantage"], **arguments)
        outs.append(out)
        if c.stop_kl and float(out["approx_kl"]) > c.stop_kl:
            break
    over_updates = lambda name: np.max if name.endswith("_max") else np.min if name.endswith("_min") else np.mean
    metrics |= {f"policy/{k}": float(over_updates(k)([o[k] for o in outs])) for k in outs[0] if k != "log_prob_gap"}
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
    """One supervised update: mean negative log-likelihood of the demonstrated action tokens, in nats a token."""
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
