"""The arms of the arena: every registered credit method with the variant that a run uses, further variants, and controls.

A method that cannot run here has a reason in `REASONS`. A new method runs by itself if `signals.PROVIDED` or the tables of `learn` have
the signals that it reads.
"""

from __future__ import annotations

import dataclasses

from stepreward import credit
from stepreward.arena import signals
from stepreward.credit import Method

TABLES = frozenset({"value", "log_prob_prm", "progress", "discriminator_logit", "automaton_distance", "automaton_eta"})  # of `learn`
STRATEGIES = frozenset({"chain", "restore", "tree", "entropy_branch", "handover"})

REASONS: dict[str, str] = {}  # method → why it does not apply


@dataclasses.dataclass(frozen=True)
class Arm:
    """A credit method and how it is trained here; hashable.

    Attributes:
      name: in tables and pictures.
      method: the credit method.
      prm_resync, prm_replay: `prm.resync` and `prm.replay` of the config; the defaults are the trainer's.
      shuffled: permute the step advantages among all steps of the batch: a control that says nothing.
      fades: a coefficient of the method falls to 0 over half of the run, in place of 100 iterations.
      critic_by_step: whether the critic's table also has an axis of steps.
    """

    name: str
    method: Method
    prm_resync: bool = True
    prm_replay: int = 5
    shuffled: bool = False
    fades: bool = False
    critic_by_step: bool = False


def missing(method: Method) -> frozenset[str]:
    """The signals that a method reads and the arena does not have."""
    lacking = (method.requires | method.label_signals) - TABLES - set(signals.PROVIDED) - {"progress_label", "others_outcome"}
    return lacking | ({f"strategy {method.strategy}"} if method.strategy not in STRATEGIES else set())


def registered(name: str, **options) -> Method:
    """A registered method with the variant that a run uses by default."""
    variant = credit.recommended_variant(name)
    return credit.make(name, **({"variant": variant} if variant else {}) | options)


def arms() -> dict[str, Arm]:
    """All arms, by name: the registered methods that run here, the papers' variants where another one is the default, and controls."""
    found = {name: Arm(name, registered(name)) for name in credit.names() if name not in REASONS}
    for name in ("reward_phasing", "temporal_phasing"):
        found[name] = dataclasses.replace(found[name], fades=True)
    more = [
        Arm("istar (paper)", credit.make("istar"), prm_resync=False, prm_replay=0),
        Arm("istar (paper, synchronised)", credit.make("istar"), prm_resync=True, prm_replay=5),
        Arm("istar (shuffled)", registered("istar", step_reward="shuffled")),
        Arm("prime (paper)", credit.make("prime"), prm_resync=False, prm_replay=0),
        Arm("istar (state_pairs)", credit.make("istar", variant="state_pairs")),
        Arm("spa (paper)", credit.make("spa")),
        Arm("spa (every_step)", credit.make("spa", variant="every_step")),
        Arm("step_ppo (critic by step)", credit.make("step_ppo"), critic_by_step=True),
        Arm("shuffled oracle", credit.make("oracle"), shuffled=True),
    ]
    return found | {arm.name: arm for arm in more}


def told(arm: Arm) -> str:
    """What the arm knows beside its episodes, in a few words; "" for nothing."""
    known = [words for name, words in signals.TOLD.items() if name in arm.method.requires]
    if arm.method.strategy == "handover":
        known.append("first steps of a best policy")
    return ", ".join(known)
