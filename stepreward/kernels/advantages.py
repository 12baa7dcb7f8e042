"""Advantages of whole episodes, computed from the outcomes of a group of episodes of the same task.

All functions take `[E]` arrays: `outcome_E` of any dtype, `group_id_E` int32 in `[0, E)`, `mask_E` bool (episodes with False are
excluded from all statistics and get 0). They compute in float32 and return float32 `[E]`; `levels.steps_to_tokens` copies the
result to tokens.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from stepreward.kernels.inputs import as_bool, as_float32
from stepreward.kernels.masked import group_normalise, weighted_whiten

Array = jax.Array


def grpo(outcome_E: Array, group_id_E: Array, mask_E: Array, *, ddof: int = 1, eps: float = 1e-6, singleton: str = "zero") -> Array:
    """Group-relative advantage of GRPO: A_i = (R_i − mean_g) / (std_g + eps).

    Args:
      outcome_E, group_id_E, mask_E: see the module.
      ddof: 1 for the sample std (as in verl), 0 for the population std.
      eps: added to the std.
      singleton: advantage of the only episode of a group: "zero", or "raw" for its outcome (as in verl).

    Source: Shao et al. 2024 (arXiv 2402.03300), section 4.1.2.
    """
    return _normalise(outcome_E, group_id_E, mask_E, scale="std", ddof=ddof, eps=eps, singleton=singleton)


def dr_grpo(outcome_E: Array, group_id_E: Array, mask_E: Array, *, singleton: str = "zero") -> Array:
    """Advantage of Dr. GRPO, centred but not scaled: A_i = R_i − mean_g.

    Dr. GRPO also needs the loss aggregation "constant".

    Source: Liu et al. 2025 (arXiv 2503.20783), section 3.2.
    """
    return _normalise(outcome_E, group_id_E, mask_E, scale="none", singleton=singleton)


def rloo(outcome_E: Array, group_id_E: Array, mask_E: Array, *, singleton: str = "zero") -> Array:
    """Leave-one-out advantage: A_i = R_i − mean_{j≠i} R_j = n / (n − 1) · (R_i − mean_g), over the n episodes of a group.

    Source: Ahmadian et al. 2024 (arXiv 2402.14740), equation 8.
    """
    return _normalise(outcome_E, group_id_E, mask_E, scale="leave_one_out", singleton=singleton)


def reinforce_plus_plus(outcome_E: Array, token_count_E: Array, mask_E: Array, *, eps: float = 1e-8) -> Array:
    """Outcomes whitened over all action tokens of the batch: A_i = (R_i − mean) / √(var + eps), ddof 1.

    Every token of an episode has the undiscounted return-to-go R_i, so an episode counts once per token in the mean and the
    variance.

    Args:
      outcome_E: float `[E]`.
      token_count_E: `[E]` number of action tokens of each episode.
      mask_E: bool `[E]`.
      eps: added to the variance.

    Source: Hu 2025 (arXiv 2501.03262).
    """
    return _whiten_over_tokens(outcome_E, token_count_E, mask_E, eps)


def reinforce_plus_plus_baseline(
    outcome_E: Array,
    group_id_E: Array,
    token_count_E: Array,
    mask_E: Array,
    *,
    eps: float = 1e-8,
    singleton: str = "zero",
) -> Array:
    """REINFORCE++ with the group mean as baseline: R_i − mean_g, whitened over all action tokens of the batch (ddof 1).

    Args:
      outcome_E, group_id_E, mask_E: see the module.
      token_count_E: `[E]` number of action tokens of each episode.
      eps: added to the variance.
      singleton: centred outcome of the only episode of a group: "zero", or "raw" for its outcome.

    Source: Hu 2025 (arXiv 2501.03262).
    """
    centred_E = _normalise(outcome_E, group_id_E, mask_E, scale="none", singleton=singleton)
    return _whiten_over_tokens(centred_E, token_count_E, mask_E, eps)


def _normalise(outcome_E: Array, group_id_E: Array, mask_E: Array, **options) -> Array:
    chex.assert_rank([outcome_E, group_id_E, mask_E], 1)
    return group_normalise(outcome_E, group_id_E, mask_E, num_groups=outcome_E.shape[0], **options)


def _whiten_over_tokens(x_E: Array, token_count_E: Array, mask_E: Array, eps: float) -> Array:
    """Applies `masked_whiten` to the token array in which each of the `token_count_E[i]` tokens of episode i has `x_E[i]`."""
    chex.assert_rank([x_E, token_count_E, mask_E], 1)
    count_E = as_float32(token_count_E)
    counted_E = as_bool(mask_E) & (count_E > 0)
    return weighted_whiten(x_E, jnp.where(counted_E, count_E, 0.0), eps=eps)
