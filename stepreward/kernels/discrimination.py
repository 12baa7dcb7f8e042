"""Discriminators that tell an expert's steps from an agent's: their loss, and the rewards that their outputs give.

D = σ(f) is the probability that the expert took the step, and f is its logit. Everything is computed in float32.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from stepreward.kernels.inputs import as_bool, select, where_known
from stepreward.kernels.masked import masked_mean

Array = jax.Array

# The reward of a step by the logit of the discriminator.
_REWARDS = {
    "gail": jax.nn.softplus,
    "airl": lambda logit: logit,
    "log": lambda logit: -jax.nn.softplus(-logit),
}
REWARDS = tuple(_REWARDS)


def discriminator_loss(logit_ExS: Array, expert_E: Array, mask_ExS: Array) -> tuple[Array, dict[str, Array]]:
    """Binary cross-entropy of the steps: the label is 1 for a step of the expert and 0 for one of the agent.

    L = mean over steps of −y·log D − (1 − y)·log(1 − D) = y·softplus(−f) + (1 − y)·softplus(f)
    ∂L/∂f = (D − y) / steps

    The mean is over all steps together. With as many steps of each side it is half the sum of the two expectations in GAIL.

    Args:
      logit_ExS: `[E, S]`, f.
      expert_E: bool `[E]`, True for the expert's episodes.
      mask_ExS: bool `[E, S]`.

    Returns:
      `(loss, metrics)`: `steps_expert` and `steps_agent`, the numbers of steps; `accuracy_expert` and `accuracy_agent`, the shares of
      the steps of each side that D puts on the right side of ½, where ½ counts half; 0 for a side without a step.

    Source: GAIL (arXiv 1606.03476), equation 17.
    """
    chex.assert_rank([logit_ExS, mask_ExS], 2)
    chex.assert_equal_shape([logit_ExS, mask_ExS])
    mask_ExS = as_bool(mask_ExS)
    logit_ExS = select(mask_ExS, logit_ExS)
    expert_ExS = jnp.broadcast_to(as_bool(expert_E)[:, None], mask_ExS.shape)
    side_ExS = jnp.where(expert_ExS, logit_ExS, -logit_ExS)  # positive where D is right
    right_ExS = jnp.where(side_ExS > 0, 1.0, jnp.where(side_ExS < 0, 0.0, 0.5))
    metrics = {}
    for name, of_side_ExS in (("expert", mask_ExS & expert_ExS), ("agent", mask_ExS & ~expert_ExS)):
        metrics[f"steps_{name}"] = of_side_ExS.sum().astype(jnp.float32)
        metrics[f"accuracy_{name}"] = masked_mean(right_ExS, of_side_ExS)
    return masked_mean(jax.nn.softplus(-side_ExS), mask_ExS), jax.lax.stop_gradient(metrics)


def discriminator_reward(logit: Array, form: str = "gail") -> Array:
    """The reward of a step by the logit f of the discriminator, elementwise over any shape.

    "gail": −log(1 − D) = softplus(f), which is positive, so it pays for long episodes.
    "airl": log D − log(1 − D) = f, which has either sign.
    "log": log D = −softplus(−f), which is negative, so it pays for short episodes.

    "airl" is the sum of the two others. A NaN (of a step to be masked later) stays NaN and has the gradient 0.

    Args:
      logit: f.
      form: one of `REWARDS`.

    Returns:
      float32, the shape of `logit`.

    Raises:
      ValueError: an unknown `form`.

    Source: GAIL (arXiv 1606.03476), AIRL (arXiv 1710.11248), equation 3.
    """
    if form not in _REWARDS:
        raise ValueError(f"the form of the reward must be one of {', '.join(map(repr, REWARDS))}, not {form!r}")
    return where_known(_REWARDS[form], logit)
