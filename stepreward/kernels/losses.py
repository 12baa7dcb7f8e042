"""Losses on token log-probabilities (policy gradient, KL, entropy, imitation), and their aggregation over tokens.

All arrays are `[R, L]`, of any dtype; losses are computed in float32. `log_prob[r, l]` is the log-probability of token `[r, l]`
given the earlier ones, in nats.

Gradients can be accumulated over micro-batches of whole rows: with the `denominator` of the whole mini-batch (from
`aggregation_denominator`), the losses of the micro-batches add up to the loss of the mini-batch.

Tokens may have weights w ≥ 0 (`weight_RxL`; None is 1 everywhere). A token of weight 0 is treated as if the mask excluded it. The losses
of the others are multiplied by w, and each counts as w in the denominator; a row or a step counts as the mean weight of its tokens. So a row
whose tokens all have the weight 1/2 counts as half a row in every aggregation.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from stepreward.kernels.inputs import as_bool, as_float32, select, where_known
from stepreward.kernels.levels import steps_to_tokens, tokens_to_steps
from stepreward.kernels.masked import masked_mean

Array = jax.Array

AGGREGATIONS = ("token-mean", "sequence-mean", "sequence-sum", "constant", "step-mean")
RATIOS = ("token", "step")
MAX_LOG_RATIO = 20.0  # nats; above it, exp is replaced by its tangent


def aggregation_denominator(
    mask_RxL: Array,
    aggregation: str,
    *,
    step_id_RxL: Array | None = None,
    num_episodes: int | None = None,
    max_steps: int | None = None,
    constant: float | None = None,
    weight_RxL: Array | None = None,
) -> Array:
    """Returns the number by which `aggregate` divides, for a whole mini-batch.

    "token-mean": number of tokens.
    "sequence-mean", "sequence-sum": number of rows with a token.
    "constant": number of rows with a token × `constant`.
    "step-mean": number of steps with a token.

    With weights, the number of tokens is the sum of their weights, and a row or step counts as the mean weight of its tokens.

    Args:
      mask_RxL: bool `[R, L]`.
      aggregation: one of `AGGREGATIONS`.
      step_id_RxL, num_episodes, max_steps: required by "step-mean".
      constant: required by "constant": the maximum length of a response, in tokens.
      weight_RxL: float `[R, L]` ≥ 0, weights of the tokens, or None.

    Returns:
      float32 scalar, at least 1 without weights and above 0 with them, so that an empty batch has loss 0.

    Raises:
      ValueError: an unknown aggregation or a missing argument.
    """
    chex.assert_rank(mask_RxL, 2)
    _check_aggregation(aggregation, step_id_RxL, num_episodes, max_steps, constant)
    mask_RxL = as_bool(mask_RxL)
    if weight_RxL is not None:
        mask_RxL = weighted_mask(mask_RxL, weight_RxL)
        levels = (step_id_RxL, num_episodes, max_steps)
        mean = aggregation if aggregation in ("token-mean", "step-mean") else "sequence-mean"  # rows count alike in all the others
        count = _within_units(select(mask_RxL, weight_RxL), mask_RxL, mean, *levels).sum()
        count = jnp.where(count > 0, count, 1.0)
        return count * constant if aggregation == "constant" else count
    if aggregation == "token-mean":
        count = mask_RxL.sum()
    elif aggregation == "step-mean":
        ids = jnp.where(mask_RxL, step_id_RxL, -1)
        count = (tokens_to_steps(mask_RxL, ids, num_episodes, max_steps) > 0).sum()
    else:
        count = mask_RxL.any(axis=1).sum()
    count = jnp.maximum(count.astype(jnp.float32), 1.0)
    return count * constant if aggregation == "constant" else count


def aggregate(
    x_RxL: Array,
    mask_RxL: Array,
    aggregation: str = "token-mean",
    *,
    step_id_RxL: Array | None = None,
    num_episodes: int | None = None,
    max_steps: int | None = None,
    constant: float | None = None,
    denominator: Array | float | None = None,
    weight_RxL: Array | None = None,
) -> Array:
    """Reduces a per-token loss to a scalar.

    "token-mean": Σ x / tokens.
    "sequence-mean": mean over rows of the mean over the row's tokens.
    "sequence-sum": mean over rows of the sum over the row's tokens.
    "constant": Σ x / (rows × constant), Dr. GRPO.
    "step-mean": mean over steps of the mean over the step's tokens. If x is constant within a step, this is the 1/(N·T)
      average over steps in iStar's equation 6.

    Args:
      x_RxL: `[R, L]`; values where the mask is False are ignored.
      mask_RxL: bool `[R, L]`.
      aggregation: one of the above.
      step_id_RxL, num_episodes, max_steps: required by "step-mean".
      constant: required by "constant": the maximum length of a response, in tokens.
      denominator: the `aggregation_denominator` of the whole mini-batch, if these rows are only a part of it. A row, and so a
        step, must not be split between parts. None uses the denominator of these rows.
      weight_RxL: float `[R, L]` ≥ 0, weights of the tokens, or None; see the module.

    Returns:
      float32 scalar.

    Raises:
      ValueError: an unknown aggregation or a missing argument.
    """
    chex.assert_rank([x_RxL, mask_RxL], 2)
    chex.assert_equal_shape([x_RxL, mask_RxL])
    levels = dict(step_id_RxL=step_id_RxL, num_episodes=num_episodes, max_steps=max_steps)
    if denominator is None:
        denominator = aggregation_denominator(mask_RxL, aggregation, constant=constant, weight_RxL=weight_RxL, **levels)
    else:
        _check_aggregation(aggregation, step_id_RxL, num_episodes, max_steps, constant)
    mask_RxL = as_bool(mask_RxL)
    if weight_RxL is not None:
        mask_RxL = weighted_mask(mask_RxL, weight_RxL)
    x_RxL = select(mask_RxL, x_RxL)
    if weight_RxL is not None:
        x_RxL = x_RxL * select(mask_RxL, weight_RxL)
    return _within_units(x_RxL, mask_RxL, aggregation, step_id_RxL, num_episodes, max_steps).sum() / denominator


def weighted_mask(mask_RxL: Array, weight_RxL: Array | None) -> Array:
    """bool `[R, L]`: the tokens that enter a loss, which are those of the mask whose weight is above 0; without weights, the mask."""
    mask_RxL = as_bool(mask_RxL)
    return mask_RxL if weight_RxL is None else mask_RxL & (jax.lax.stop_gradient(as_float32(weight_RxL)) > 0)


def _within_units(x_RxL: Array, mask_RxL: Array, aggregation: str, step_id_RxL, num_episodes, max_steps) -> Array:
    """Divides each token's number by the number of tokens in its row ("sequence-mean") or step ("step-mean")."""
    if aggregation == "sequence-mean":
        return x_RxL / jnp.maximum(mask_RxL.sum(axis=1, keepdims=True), 1)
    if aggregation == "step-mean":
        ids = jnp.where(mask_RxL, step_id_RxL, -1)
        tokens_ExS = tokens_to_steps(mask_RxL, ids, num_episodes, max_steps)
        return x_RxL / jnp.maximum(steps_to_tokens(tokens_ExS, ids), 1.0)
    return x_RxL


def ppo_clip(
    log_prob_RxL: Array,
    log_prob_old_RxL: Array,
    advantage_RxL: Array,
    mask_RxL: Array,
    *,
    step_id_RxL: Array | None = None,
    num_episodes: int | None = None,
    max_steps: int | None = None,
    ratio: str = "token",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    aggregation: str = "token-mean",
    constant: float | None = None,
    denominator: Array | float | None = None,
    weight_RxL: Array | None = None,
) -> tuple[Array, dict[str, Array]]:
    """Clipped surrogate policy loss.

    ℓ = −min(ρ·A, clip(ρ, 1 − clip_low, 1 + clip_high)·A); with `dual_clip` c, where A < 0: min(ℓ, −c·A).

    "token": ρ = exp(log π − log π_old) of the token. "step": ρ = exp Σ (log π − log π_old) over the tokens of its step; together
    with the aggregation "step-mean", this is iStar's equation 6.

    Above a log-ratio of 20 nats, ρ is replaced by its tangent, e²⁰·(log ρ − 19). It stays finite, and a bad action that has become
    that much likelier still gets a gradient. Where the clip or the dual clip is active, the gradient is zero by definition.

    A token of weight 0 gets no gradient: it is also left out of the ratio of its step.

    Args:
      log_prob_RxL: `[R, L]`, under the current policy.
      log_prob_old_RxL: `[R, L]`, under the policy that generated the rollout.
      advantage_RxL: `[R, L]`; no gradient flows into it.
      mask_RxL: bool `[R, L]`, the action tokens of the episodes to train on.
      step_id_RxL, num_episodes, max_steps: required by the step ratio and by "step-mean".
      ratio: "token" or "step".
      clip_low, clip_high: clip range below and above 1 (DAPO uses 0.2 and 0.28).
      dual_clip: c > 1, which bounds the loss for negative advantages; None for no bound.
      aggregation, constant, denominator, weight_RxL: see `aggregate`; no gradient flows into the weights.

    Returns:
      `(loss, metrics)`. Plain means over the tokens of these rows whose weight is above 0 (across micro-batches, weight them by
      `tokens`): `clip_fraction` (the clipped branch is active), `clip_fraction_low`, `clip_fraction_high`, `dual_clip_fraction`,
      `approx_kl` (k3 estimate of KL(π_old‖π)), `ratio_mean`. Others: `ratio_max`, `ratio_min`, `tokens`. All are 0 if there is no such
      token.

    Raises:
      ValueError: an unknown ratio or aggregation, or a missing argument.

    Source: Schulman et al. 2017 (arXiv 1707.06347), equation 7; dual clip Ye et al. 2020 (arXiv 1912.09729).
    """
    chex.assert_rank([log_prob_RxL, log_prob_old_RxL, advantage_RxL, mask_RxL], 2)
    chex.assert_equal_shape([log_prob_RxL, log_prob_old_RxL, advantage_RxL, mask_RxL])
    if ratio not in RATIOS:
        raise ValueError(f"ratio must be one of {RATIOS}, not {ratio!r}")
    if ratio == "step" and (step_id_RxL is None or num_episodes is None or max_steps is None):
        raise ValueError("ratio='step' needs step_id_RxL, num_episodes and max_steps")
    if weight_RxL is not None:
        weight_RxL = jax.lax.stop_gradient(weight_RxL)
    mask_RxL = weighted_mask(mask_RxL, weight_RxL)
    token_log_ratio_RxL = select(mask_RxL, log_prob_RxL) - select(mask_RxL, log_prob_old_RxL)
    advantage_RxL = jax.lax.stop_gradient(select(mask_RxL, advantage_RxL))
    log_ratio_RxL = token_log_ratio_RxL
    if ratio == "step":
        ids = jnp.where(mask_RxL, step_id_RxL, -1)
        log_ratio_RxL = steps_to_tokens(tokens_to_steps(token_log_ratio_RxL, ids, num_episodes, max_steps), ids)
    ratio_RxL = _bounded_exp(log_ratio_RxL)

    unclipped_RxL = -ratio_RxL * advantage_RxL
    clipped_RxL = -jnp.clip(ratio_RxL, 1.0 - clip_low, 1.0 + clip_high) * advantage_RxL
    loss_RxL = jnp.maximum(unclipped_RxL, clipped_RxL)
    dual_RxL = jnp.zeros_like(mask_RxL)
    if dual_clip is not None:
        bound_RxL = -dual_clip * advantage_RxL
        dual_RxL = (advantage_RxL < 0) & (loss_RxL > bound_RxL)
        loss_RxL = jnp.where(dual_RxL, bound_RxL, loss_RxL)
    loss = aggregate(
        loss_RxL,
        mask_RxL,
        aggregation,
        step_id_RxL=step_id_RxL,
        num_episodes=num_episodes,
        max_steps=max_steps,
        constant=constant,
        denominator=denominator,
        weight_RxL=weight_RxL,
    )

    active_RxL = clipped_RxL > unclipped_RxL
    mean = lambda x: masked_mean(x, mask_RxL)
    any_token = mask_RxL.any()
    metrics = {
        "clip_fraction": mean(active_RxL),
        "clip_fraction_low": mean(active_RxL & (advantage_RxL < 0)),
        "clip_fraction_high": mean(active_RxL & (advantage_RxL > 0)),
        "dual_clip_fraction": mean(dual_RxL),
        "approx_kl": mean(kl_k3(jnp.zeros_like(token_log_ratio_RxL), token_log_ratio_RxL)),
        "ratio_mean": mean(ratio_RxL),
        "ratio_max": jnp.max(jnp.where(mask_RxL, ratio_RxL, 0.0), initial=0.0),
        "ratio_min": jnp.where(any_token, jnp.min(jnp.where(mask_RxL, ratio_RxL, jnp.inf), initial=jnp.inf), 0.0),
        "tokens": mask_RxL.sum().astype(jnp.float32),
    }
    return loss, jax.lax.stop_gradient(metrics)


def kl_k1(log_prob: Array, log_prob_reference: Array) -> Array:
    """Unbiased estimate of KL(π‖π_ref) per token sampled from π: log π − log π_ref. Returns float32 of any shape; may be negative.

    Source: Schulman, "Approximating KL divergence" (2020), k1.
    """
    chex.assert_equal_shape([log_prob, log_prob_reference])
    return as_float32(log_prob) - as_float32(log_prob_reference)


def kl_k3(log_prob: Array, log_prob_reference: Array) -> Array:
    """Non-negative, low-variance estimate of KL(π‖π_ref) per token sampled from π. Returns float32 of any shape.

    exp(d) − d − 1, with d = log π_ref − log π.

    Above d = 20 nats, the function is replaced by its tangent, so a token whose probability under the policy is almost 0 gives a
    finite value and a finite gradient, e²⁰ − 1. For large negative d, where the policy is far likelier than the reference, it is
    exact: value −d − 1, and gradient 1 with respect to log π. A NaN (of a token to be masked later) gives NaN with a gradient of 0.

    Source: Schulman, "Approximating KL divergence" (2020), k3.
    """
    chex.assert_equal_shape([log_prob, log_prob_reference])
    return where_known(_k3, as_float32(log_prob_reference) - as_float32(log_prob))


def _k3(d: Array) -> Array:
    near, beyond = _split(d)
    return jnp.expm1(near) - near + jnp.expm1(MAX_LOG_RATIO) * beyond


def _bounded_exp(x: Array) -> Array:
    """Returns eˣ, replaced by its tangent above `MAX_LOG_RATIO`."""
    near, beyond = _split(x)
    return jnp.exp(near) + jnp.exp(MAX_LOG_RATIO) * beyond


def _split(x: Array) -> tuple[Array, Array]:
    """Splits x into min(x, `MAX_LOG_RATIO`) and the excess over it; their derivatives add up to 1 everywhere."""
    above = x > MAX_LOG_RATIO
    return jnp.where(above, MAX_LOG_RATIO, x), jnp.where(above, x - MAX_LOG_RATIO, 0.0)


def entropy_bonus(entropy_RxL: Array, mask_RxL: Array, coefficient: float, **aggregation) -> Array:
    """Loss term that rewards entropy: −coefficient · aggregate(entropy).

    Args:
      entropy_RxL: float `[R, L]`, entropy of the policy's next-token distribution at each token, in nats.
      mask_RxL: bool `[R, L]`.
      coefficient: ≥ 0.
      **aggregation: arguments of `aggregate`.
    """
    return -coefficient * aggregate(entropy_RxL, mask_RxL, **aggregation)


def negative_log_likelihood(log_prob_RxL: Array, mask_RxL: Array, **aggregation) -> Array:
    """Imitation loss (SFT): aggregate(−log π) over the tokens to imitate. Returns a scalar, by default in nats per token.

    Args:
      log_prob_RxL: float `[R, L]`.
      mask_RxL: bool `[R, L]`.
      **aggregation: arguments of `aggregate`.
    """
    return -aggregate(log_prob_RxL, mask_RxL, **aggregation)


def _check_aggregation(aggregation, step_id_RxL, num_episodes, max_steps, constant):
    if aggregation not in AGGREGATIONS:
        raise ValueError(f"aggregation must be one of {AGGREGATIONS}, not {aggregation!r}")
    if aggregation == "step-mean" and (step_id_RxL is None or num_episodes is None or max_steps is None):
        raise ValueError("aggregation='step-mean' needs step_id_RxL, num_episodes and max_steps")
    if aggregation == "constant" and constant is None:
        raise ValueError("aggregation='constant' needs constant=, the maximum length of a response in tokens")
