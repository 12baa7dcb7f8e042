"""Methods that read the signals of a strategy, for tests; importing this module registers them."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from stepreward import credit
from stepreward.credit.base import Credit, step_mask, to_tokens
from stepreward.credit.outcome import advantage_metrics, outcome_metrics, outcome_reward
from stepreward.rollout import strategies

STRATEGIES = {
    "tree": {"branching": (2, 2), "segment_steps": 2},
    "entropy_branch": {"n0": 2, "p": 0.8, "first_tokens": 2},
    "restore": {"k": 2, "at": "cuts", "tokens_per_cut": 4, "adaptive": True},
    "expert_prefix": {"k": 1, "at": "expert_prefix"},
}


def method(kind: str) -> type[credit.Method]:
    """A method that learns from the differences of values that a strategy measures."""
    of = kind if kind in strategies.names() else "restore"
    signals = sorted(strategies.make(of, **STRATEGIES[kind]).provides)

    @dataclasses.dataclass(frozen=True)
    class Branching(credit.Method):
        name: ClassVar[str] = f"by_{kind}"
        strategy: ClassVar[str] = of
        strategy_options: ClassVar[dict] = STRATEGIES[kind]
        requires: ClassVar[frozenset[str]] = frozenset(signals)

        def assign(self, batch):
            if "mc_value" in signals:
                value_ExS = batch.outcome[:, None] - batch.signals["mc_value"]
            else:
                value_ExS = batch.signals["segment_value"] - batch.signals["parent_value"]
            value_ExS = jnp.where(step_mask(batch) & jnp.isfinite(value_ExS), value_ExS, 0.0)
            advantage_RxL = to_tokens(value_ExS, batch)
            sums = {f"sum_{name}": jnp.nansum(jnp.where(step_mask(batch), batch.signals[name], 0)) for name in signals}
            metrics = {**outcome_metrics(batch), **advantage_metrics(advantage_RxL, batch), **sums}
            return Credit(advantage_RxL, outcome_reward(batch), value_ExS, None, metrics)

    return credit.register(Branching.name)(Branching)


for _kind in STRATEGIES:
    method(_kind)
