"""Settings and runs that learn nothing: refused or warned of, as nothing else would show it."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from stepreward import credit

_log = logging.getLogger(__name__)
PATIENCE = 5  # iterations in a row without anything to learn from, before a warning
_ZERO = 1e-6  # what rounding leaves of an advantage of 0


def check_groups(c, method: credit.Method, signals: frozenset[str]) -> None:
    """Raises ValueError where groups of one are to be compared.

    Args:
      c: the config.
      method: its credit method.
      signals: those that a run computes, so that only methods are named that it can take.
    """
    if c.rollout.group_size > 1 or not method.needs_group:
        return
    known = {name: credit.make(name) for name in credit.names()}
    others = ", ".join(name for name, other in known.items() if not (other.needs_group or other.requires - signals))
    raise ValueError(
        f"rollout.group_size=1: credit.method={c.credit.method!r} as it is set here learns from the differences within a group, and a "
        f"group of one has none. Give rollout.group_size of at least 2, or a method without groups ({others})."
    )


def idle_settings(c, method: credit.Method) -> Iterator[str]:
    """What in a config keeps something from learning, one sentence each."""
    trained = {"policy": True, "sft": c.sft.updates > 0, "prm": method.has_prm and not method.prm_frozen,
               "critic": method.has_critic and c.critic.backbone == "separate", "estimator": method.has_progress}  # fmt: skip
    for name in (name for name, used in trained.items() if used):
        for key in ("learning_rate", "max_grad_norm"):
            if c[name][key] == 0:
                yield f"{name}.{key}=0: the updates of this part change nothing."
    if c.policy.clip_low == 0 and c.policy.clip_high == 0:
        yield "policy.clip_low=0 and policy.clip_high=0: the loss cuts off every step away from the policy that played."
    if c.credit.outcome_scale == 0:
        yield "credit.outcome_scale=0: every outcome counts as 0."
    if c.lora.rank and c.lora.alpha == 0:
        yield "lora.alpha=0: adapters have no effect on the model, and so no gradient."
    if method.has_prm and method.prm_frozen and c.credit.options.get("prm_frozen") is None:
        yield (
            f"credit.variant={c.credit.variant} freezes the process reward model, as the public release does: it stays the supervised "
            "policy. credit.options.prm_frozen=False trains it, and prm_frozen=True silences this."
        )
    if not (c.sft.updates or c.model.path or c.stages.sft):
        yield "sft.updates=0 without model.path or stages.sft: the policy starts from random weights, and may never find a reward."
    if method.needs_group and (c.rollout.temperature == 0 or c.rollout.top_k == 1):
        key = "rollout.temperature=0" if c.rollout.temperature == 0 else "rollout.top_k=1"
        yield f"{key}: answers are greedy, so that the episodes of a group differ only where the environment does."


def warn_of_idle_settings(c, method: credit.Method) -> None:
    """Logs what `idle_settings` finds."""
    for sentence in idle_settings(getattr(c, "untracked", c), method):
        _log.warning("%s", sentence)


class Stillness:
    """Notices when iteration after iteration there is nothing to learn from, and warns once for each reason."""

    def __init__(self, method: credit.Method):
        self._method = method
        self._rows: dict[str, int] = {}  # reason -> for how many iterations in a row
        self._told: set[str] = set()

    def see(self, metrics: dict[str, float]) -> None:
        """Takes the metrics of one iteration."""
        flat = self._method.needs_group and metrics.get("credit/flat_groups") == 1
        none = metrics.get("credit/advantage_max", 1.0) < _ZERO
        trains = self._method.has_prm and not self._method.prm_frozen and self._method.needs_pairs
        outcome = metrics.get("rollout/success", float("nan"))
        self._count(
            "groups",
            flat,
            f"in {PATIENCE} iterations in a row all episodes of every group ended alike (success {100 * outcome:.1f} %): they show no "
            "difference to learn from. Choose tasks that are neither too hard nor too easy, train the warm start longer, or raise "
            "rollout.group_size or rollout.temperature.",
        )
        self._count(
            "advantages",
            none and not flat,
            f"in {PATIENCE} iterations in a row every advantage was 0: the policy has had nothing to learn from.",
        )
        self._count(
            "pairs",
            trains and not flat and metrics.get("prm/pairs") == 0,
            f"in {PATIENCE} iterations in a row no group held both a success and a failure: the process reward model has had no pair to "
            "learn from.",
        )

    def _count(self, reason: str, now: bool, sentence: str) -> None:
        self._rows[reason] = self._rows.get(reason, 0) + 1 if now else 0
        if self._rows[reason] == PATIENCE and reason not in self._told:
            self._told.add(reason)
            _log.warning("%s", sentence)
