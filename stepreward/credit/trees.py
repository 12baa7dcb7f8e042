"""TreeRPO and ARPO: the episodes of a group are the leaves of a tree."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from stepreward.batch import Batch
from stepreward.credit.base import Credit, Method, check_at_least, check_choice, check_share, per_step, register, to_tokens
from stepreward.credit.branches import branch_metrics, counted_once, numbered, siblings
from stepreward.credit.outcome import counted_episodes, outcome_reward
from stepreward.credit.spo import check_branching
from stepreward.kernels import group_statistics, grpo
from stepreward.kernels.masked import SINGLETON

Array = jax.Array


@register("treerpo")
@dataclasses.dataclass(frozen=True)
class TreeRPO(Method):
    """Tree relative policy optimization: the segments that start from one node are a GRPO group.

    A = (V − mean) / (std + eps) over the siblings of the segment, V the value of the node that it leads to: the outcome of a leaf, the
    mean over the children of any other node. Sets of siblings with max V − min V < τ are pruned: the loss leaves them out. All steps of
    a segment have its advantage, and a step that several leaves share counts once.

    Signals: `node_id`, `segment_id`, `sibling_id`, `segment_value`, each `[E, S]`. A segment without a known value is left out.

    Attributes:
      tau: τ ≥ 0, the least difference between siblings. The paper gives 0.1; that it is the range of the values is unverified.
      scale: "std", or "none": A = V − mean, as another repository of this name has it.
      ddof: of the std: 1, as in `grpo`, or 0; the paper does not say.
      renormalise: divides by √(mean·(1 − mean)) instead, the std that a binary outcome with the siblings' mean would have. The paper
        re-normalises advantages of rewards that are not binary, and its formula is unverified: this one is an assumption. Values must lie in [0, 1].
      branching: segments from each node, by depth; the paper's is (8, 8, 8). The product is
        `rollout.group_size`. None: two, in as many levels as make `rollout.group_size` leaves.
      segment_steps: steps of a segment. The paper cuts after 384 tokens.
      eps: added to the std.

    Source: TreeRPO (arXiv 2506.05183); "none" is that of omrisapir1/treerpo.
    """

    name: ClassVar[str] = "treerpo"
    strategy: ClassVar[str] = "tree"
    requires: ClassVar[frozenset[str]] = frozenset({"node_id", "segment_id", "sibling_id", "segment_value"})

    tau: float = 0.1
    scale: str = "std"
    ddof: int = 1
    renormalise: bool = False
    branching: tuple[int, ...] | None = None
    segment_steps: int = 2
    eps: float = 1e-6

    def __post_init__(self):
        check_choice(self, "scale", ("std", "none"))
        check_choice(self, "ddof", (0, 1))
        check_branching(self)
        check_at_least(self, 0, "tau", "eps")
        if self.renormalise and self.scale == "none":
            raise ValueError(f"renormalise of '{self.name}' replaces the divisor of scale='std': set one of the two")

    @property
    def weights_tokens(self) -> bool:
        return True

    @property
    def needs_group(self) -> bool:
        """True: a tree of one leaf has no siblings."""
        return True

    @property
    def strategy_options(self) -> dict:
        return {"branching": self.branching, "segment_steps": self.segment_steps}

    def assign(self, batch: Batch) -> Credit:
        sets = siblings(batch)
        centred_ExS = sets.normalise("none", ddof=self.ddof, eps=self.eps)
        kept_ExS = sets.known & (sets.spread() >= self.tau)
        advantage_ExS = centred_ExS
        if self.renormalise:
            mean_ExS, _, _ = sets.statistics(ddof=self.ddof)
            variance_ExS = jnp.maximum(mean_ExS * (1.0 - mean_ExS), 0.0)
            advantage_ExS = jnp.where(variance_ExS > 0, centred_ExS / (jnp.sqrt(variance_ExS) + self.eps), 0.0)
        elif self.scale == "std":
            advantage_ExS = sets.normalise("std", ddof=self.ddof, eps=self.eps)
        advantage_ExS = jnp.where(kept_ExS, advantage_ExS, 0.0)
        once_ExS = counted_once(numbered(batch.signals["node_id"], batch), batch)
        weight_RxL = to_tokens(jnp.where(kept_ExS, once_ExS, 0.0), batch)
        advantage_RxL = to_tokens(advantage_ExS, batch)
        metrics = branch_metrics(advantage_RxL, centred_ExS, weight_RxL, batch)
        return Credit(advantage_RxL, centred_ExS, advantage_ExS, None, metrics, weight_RxL)


@register("arpo")
@dataclasses.dataclass(frozen=True)
class ARPO(Method):
    """Agentic reinforced policy optimization: GRPO over the leaves of rollouts that branch where the policy becomes uncertain.

    A(leaf) = (R − mean) / (std + eps) over the leaves of the group. The reward is the outcome: the paper's −1 for a wrong format
    and +0.1 for the use of both tools belong to the environment.

    Attributes:
      advantage: "soft": every step of an episode has the episode's advantage; a step that several episodes share is repeated in the loss, with
        the advantage of each. "hard": a shared step has the mean advantage of the episodes through it (signal `node_id`). At ratio 1
        both have the same gradient.
      ddof: of the std: 1, as in verl, on which the release builds, or 0.
      singleton: what the only episode of a group gets: "zero", or "raw", its own outcome (as in verl).
      eps: added to the std.
      n0: episodes that are started, at least 1; the branches fill up the group, `rollout.group_size`. None: half of the group, rounded up; the
        paper starts 8 of 16.
      p, w: after a step, an episode branches with probability clip(p + w·ΔH, 0, 1), ΔH the change of the entropy of the first tokens of
        an answer since the first answer. w is 0.2 in the paper's scripts and 0.5 by default in its code.
      beam: ways that lead on from a state where an episode branches, at least 2, the episode itself included.

    Source: ARPO (arXiv 2507.19849).
    """

    name: ClassVar[str] = "arpo"
    strategy: ClassVar[str] = "entropy_branch"
    unscheduled: ClassVar[frozenset[str]] = frozenset({"p", "w"})  # the strategy reads them

    advantage: str = "soft"
    ddof: int = 1
    singleton: str = "zero"
    eps: float = 1e-6
    n0: int | None = None
    p: float = 0.5
    w: float = 0.2
    beam: int = 2

    def __post_init__(self):
        check_choice(self, "advantage", ("soft", "hard"))
        check_choice(self, "ddof", (0, 1))
        check_choice(self, "singleton", SINGLETON)
        for field, least in (("eps", 0), ("n0", 1), ("beam", 2)):
            check_at_least(self, least, field)
        check_share(self, "p")

    @property
    def requires(self) -> frozenset[str]:
        return frozenset({"node_id"}) if self.advantage == "hard" else frozenset()

    @property
    def needs_group(self) -> bool:
        """True unless the only episode of a group keeps its own outcome."""
        return self.singleton == "zero"

    @property
    def strategy_options(self) -> dict:
        return {"n0": self.n0, "p": self.p, "w": self.w, "beam": self.beam}

    def assign(self, batch: Batch) -> Credit:
        options = dict(ddof=self.ddof, eps=self.eps, singleton=self.singleton)
        advantage_E = grpo(batch.outcome, batch.group_id, counted_episodes(batch), **options)
        advantage_ExS = per_step(advantage_E, batch)
        if self.advantage == "hard":
            node = numbered(batch.signals["node_id"], batch)
            mean_ExS, _, _ = group_statistics(advantage_ExS, node.number, node.known, num_groups=node.number.size, ddof=0)
            advantage_ExS = jnp.where(node.known, mean_ExS, advantage_ExS)
        advantage_RxL = to_tokens(advantage_ExS, batch)
        reward_ExS = outcome_reward(batch)
        return Credit(advantage_RxL, reward_ExS, advantage_ExS, None, branch_metrics(advantage_RxL, reward_ExS, None, batch))
