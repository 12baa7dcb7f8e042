"""The oracle: the exact advantage of each action, where it can be computed. It is the ceiling of step credit, not a method to compete with."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from stepreward.batch import Batch
from stepreward.credit.base import Credit, Method, register, step_mask, to_tokens
from stepreward.credit.pieces import common_metrics
from stepreward.kernels import masked_whiten


@register("oracle")
@dataclasses.dataclass(frozen=True)
class Oracle(Method):
    """A(a_t) = A^π(s_t, a_t) = Q^π(s_t, a_t) − V^π(s_t), with the steps that are left, for the policy π that played.

    The expectation of its policy gradient is the exact policy gradient of the outcome, and no step gets credit for what others did.
    Signal: `exact_advantage` float32 `[E, S]`, in the unit of the outcome; a value that is not finite counts as 0.

    Attributes:
      whiten: shift and scale the advantages to zero mean and unit variance over the batch.
    """

    name: ClassVar[str] = "oracle"
    requires: ClassVar[frozenset[str]] = frozenset({"exact_advantage"})

    whiten: bool = False

    def assign(self, batch: Batch) -> Credit:
        mask_ExS, exact_ExS = step_mask(batch), batch.signals["exact_advantage"]
        exact_ExS = jnp.where(mask_ExS & jnp.isfinite(exact_ExS), exact_ExS.astype(jnp.float32), 0.0)
        advantage_ExS = masked_whiten(exact_ExS, mask_ExS) if self.whiten else exact_ExS
        advantage_RxL = to_tokens(advantage_ExS, batch)
        return Credit(advantage_RxL, exact_ExS, advantage_ExS, None, common_metrics(advantage_RxL, exact_ExS, batch))
