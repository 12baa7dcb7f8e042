"""Detects settings and runs that learn nothing, which no other error would reveal."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from stepreward import credit
from stepreward.credit.filters import COMPARING
from stepreward.training import frozen, preferring

_log = logging.getLogger(__name__)
PATIENCE = 5  # consecutive iterations with nothing to learn from before a warning
_ZERO = 1e-6  # a smaller advantage is 0 up to rounding


def check_groups(c, method: credit.Method, signals: frozenset[str]) -> None:
    """Raises ValueError if the method compares the episodes of a group but groups have one episode.

    Args:
      c: the config.
      method: the config's credit method.
      signals: the signals that a run computes; the error suggests only methods that need no others.
    """
    if c.rollout.group_size > 1 or not method.needs_group:
        return
    known = {name: credit.make(name) for name in credit.names()}
    # Some methods need more than their name, a frozen pair of policies for example, or filter groups.
    alone = lambda other: not (other.requires - signals or other.capabilities or other.requires & frozen.SIGNALS)
    apart = lambda other: other.needs_group or other.filter in COMPARING or not alone(other)
    others = ", ".join(name for name, other in known.items() if not apart(other))
    raise ValueError(
        f"rollout.group_size=1: credit.method={c.credit.method!r} with these options learns from differences within a group, and a "
        f"group of one has none. Set rollout.group_size to at least 2, or choose a method without groups ({others})."
    )


def idle_settings(c, method: credit.Method) -> Iterator[str]:
    """Yields one sentence for each setting that keeps a model from learning."""
    trained = {"policy": preferring.reinforces(c), "sft": c.sft.updates > 0, "prm": method.has_prm and not method.prm_frozen,
               "critic": method.has_critic and c.critic.backbone == "separate", "estimator": method.has_progress,
               "discriminator": "discriminator_logit" in method.requires, "preference": bool(c.preference.method)}  # fmt: skip
    for name in (name for name, used in trained.items() if used):
        for key in ("learning_rate", "max_grad_norm"):
            if c[name][key] == 0:
                yield f"{name}.{key}=0: these updates change no parameters."
    if c.policy.clip_low == 0 and c.policy.clip_high == 0:
        yield "policy.clip_low=0 and policy.clip_high=0: clipping permits no step away from the policy that played."
    if c.credit.outcome_scale == 0:
        yield "credit.outcome_scale=0: every outcome is 0."
    if c.lora.rank and c.lora.alpha == 0:
        yield "lora.alpha=0: adapters have no effect on the model and receive no gradient."
    if method.has_prm and method.prm_frozen and c.credit.options.get("prm_frozen") is None:
        yield (
            f"credit.variant={c.credit.variant} freezes the process reward model, as the public release does: it remains the supervised "
            "policy. Set credit.options.prm_frozen=False to train it, or True to silence this warning."
        )
    if not (c.sft.updates or c.model.path or c.stages.sft):
        yield "sft.updates=0 without model.path or stages.sft: the policy starts from random weights and may never find a reward."
    if method.needs_group and (c.rollout.temperature == 0 or c.rollout.top_k == 1):
        key = "rollout.temperature=0" if c.rollout.temperature == 0 else "rollout.top_k=1"
        yield f"{key}: answers are greedy, so the episodes of a group differ only if the environment is random."


def warn_of_idle_settings(c, method: credit.Method) -> None:
    """Logs the sentences of `idle_settings` as warnings."""
    for sentence in idle_settings(getattr(c, "untracked", c), method):
        _log.warning("%s", sentence)


class Stillness:
    """Warns once for each reason if `PATIENCE` consecutive iterations had nothing to learn from."""

    def __init__(self, method: credit.Method):
        self._method = method
        self._rows: dict[str, int] = {}  # reason -> number of consecutive iterations
        self._told: set[str] = set()

    def see(self, metrics: dict[str, float]) -> None:
        """Checks the metrics of one iteration."""
        none = metrics.get("credit/advantage_max", 1.0) < _ZERO
        trains = self._method.has_prm and not self._method.prm_frozen and self._method.needs_pairs
        # Equal outcomes leave something to learn where steps differ nevertheless, such as in GiGPO's discounted returns.
        flat = self._method.needs_group and metrics.get("credit/flat_groups") == 1 and (none or trains)
        outcome = metrics.get("rollout/success", float("nan"))
        self._count(
            "groups",
            flat,
            f"in {PATIENCE} consecutive iterations, all episodes of every group had the same outcome (success {100 * outcome:.1f} %), so "
            "there was no difference to learn from. Choose tasks that are neither too hard nor too easy, train the warm start longer, or "
            "raise rollout.group_size or rollout.temperature.",
        )
        self._count(
            "filter",
            metrics.get("filter/kept_groups") == 0,
            f"in {PATIENCE} consecutive iterations, the filter kept no group, so the policy was not updated. Choose tasks that are neither "
            "too hard nor too easy, raise filter.rounds or rollout.group_size, or set another filter.kind.",
        )
        self._count(
            "advantages",
            none and not flat,
            f"in {PATIENCE} consecutive iterations, every advantage was 0: the policy had nothing to learn from.",
        )
        self._count(
            "pairs",
            trains and not flat and metrics.get("prm/pairs") == 0,
            f"in {PATIENCE} consecutive iterations, no group had both a success and a failure: the process reward model had no pair to "
            "learn from.",
        )

    def _count(self, reason: str, now: bool, sentence: str) -> None:
        self._rows[reason] = self._rows.get(reason, 0) + 1 if now else 0
        if self._rows[reason] == PATIENCE and reason not in self._told:
            self._told.add(reason)
            _log.warning("%s", sentence)
