"""SPO: advantages of segments, between the cuts of a chain or along the edges of a tree."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from stepreward.batch import Batch
from stepreward.credit.base import Credit, Method, check_at_least, check_choice, register, step_mask, to_tokens, token_mask
from stepreward.credit.branches import branch_metrics, counted_once, numbered, siblings, states_around
from stepreward.kernels import potential_differences

Array = jax.Array

CHOICES = {"form": ("chain", "tree"), "scale": ("rloo", "grpo")}
ZERO = 1e-6  # the advantage of a dropped edge: means of equal values differ by rounding
TREE_SIGNALS = frozenset({"node_id", "segment_id", "sibling_id", "segment_value", "parent_value"})


@register("spo")
@dataclasses.dataclass(frozen=True)
class SPO(Method):
    """Segment policy optimization: each segment of an episode has the advantage A_seg = V(its end) − V(its start).

    "chain": an episode is cut after every `tokens_per_cut` tokens with π(token) < `below`, at the next step; V of a cut is the mean
    outcome of `k` episodes that are played on from it, V of the end is the outcome. Signal: `mc_value` `[E, S]`, NaN where there is no cut.

    "tree": `branching` segments start from each node, the first from the initial state; V of a leaf is its outcome, V of a node the
    mean of its children. A(edge) = V(child) − V(parent) is the advantage of the segment's steps. Edges of advantage 0 are dropped from the loss.
    A step that several leaves share counts once. Signals: `TREE_SIGNALS`.

    All steps of a segment have its advantage. Steps without a known value have the advantage 0 and do not enter the loss.

    Attributes:
      form: "chain" or "tree".
      probability_mask: whether the loss reads only the tokens with π_old(token) < `below`, the places where the episode could have
        taken another turn. None: True for a chain, as in the paper, and False for a tree, where its use is unverified.
      below: threshold of the cuts and of the mask, in (0, 1].
      scale: of the tree: "rloo" is A(edge), "grpo" divides by the standard deviation (ddof 0) of the parent's children plus eps.
      k: of the chain: episodes from each cut. A chain has few cuts, so that more episodes are played from each than in VinePPO.
      tokens_per_cut: of the chain: tokens with π < `below` between two cuts.
      branching: of the tree: segments from each node, by depth; the paper's is (6, 6, 6). The product is
        `rollout.group_size`. None: two, in as many levels as make `rollout.group_size` leaves.
      segment_steps: of the tree: steps of a segment. The paper cuts after 30 tokens.
      eps: added to the standard deviation.

    Source: Segment Policy Optimization (arXiv 2505.23564), not the single-stream method of the same abbreviation.
    """

    name: ClassVar[str] = "spo"
    unscheduled: ClassVar[frozenset[str]] = frozenset({"below"})  # the strategy reads it

    form: str = "chain"
    probability_mask: bool | None = None
    below: float = 0.9
    scale: str = "rloo"
    k: int = 4
    tokens_per_cut: int = 5
    branching: tuple[int, ...] | None = None
    segment_steps: int = 2
    eps: float = 1e-6

    def __post_init__(self):
        for field, choices in CHOICES.items():
            check_choice(self, field, choices)
        check_branching(self)
        check_at_least(self, 1, "k", "tokens_per_cut")
        check_at_least(self, 0, "eps")
        if not 0.0 < self.below <= 1.0:
            raise ValueError(f"below of '{self.name}' must lie in (0, 1], not {self.below!r}")

    @property
    def masks(self) -> bool:
        """Whether the loss reads only tokens of low probability."""
        return self.form == "chain" if self.probability_mask is None else self.probability_mask

    @property
    def requires(self) -> frozenset[str]:
        return frozenset({"mc_value"}) if self.form == "chain" else TREE_SIGNALS

    @property
    def weights_tokens(self) -> bool:
        return True

    @property
    def needs_group(self) -> bool:
        """A tree of one leaf has no siblings."""
        return self.form == "tree"

    @property
    def strategy(self) -> str:
        return "restore" if self.form == "chain" else "tree"

    @property
    def strategy_options(self) -> dict:
        if self.form == "chain":
            return {"k": self.k, "at": "cuts", "tokens_per_cut": self.tokens_per_cut, "below": self.below}
        return {"branching": self.branching, "segment_steps": self.segment_steps}

    def assign(self, batch: Batch) -> Credit:
        difference_ExS, advantage_ExS, weight_ExS = self._chain(batch) if self.form == "chain" else self._tree(batch)
        weight_RxL = to_tokens(weight_ExS, batch)
        if self.masks:
            open_RxL = jnp.where(token_mask(batch), batch.log_prob_old, 0.0) < jnp.log(self.below)
            weight_RxL = jnp.where(open_RxL, weight_RxL, 0.0)
        advantage_RxL = to_tokens(advantage_ExS, batch)
        metrics = branch_metrics(advantage_RxL, difference_ExS, weight_RxL, batch)
        return Credit(advantage_RxL, difference_ExS, advantage_ExS, None, metrics, weight_RxL)

    def _chain(self, batch: Batch) -> tuple[Array, Array, Array]:
        """`[E, S]` each: value differences, advantages, and weights of the steps."""
        states = states_around(batch.signals["mc_value"], batch.outcome, step_mask(batch))
        difference_ExS = potential_differences(states.later, states.begun, states.start)
        return difference_ExS, difference_ExS, states.begun.astype(jnp.float32)

    def _tree(self, batch: Batch) -> tuple[Array, Array, Array]:
        sets = siblings(batch)
        known_ExS = sets.known & jnp.isfinite(batch.signals["parent_value"])
        difference_ExS = potential_differences(sets.value, known_ExS, batch.signals["parent_value"])
        kept_ExS = known_ExS & (jnp.abs(difference_ExS) > ZERO)
        advantage_ExS = difference_ExS
        if self.scale == "grpo":
            _, std_ExS, _ = sets.statistics(ddof=0)
            advantage_ExS = jnp.where(std_ExS > 0, difference_ExS / jnp.where(std_ExS > 0, std_ExS + self.eps, 1.0), 0.0)
        once_ExS = counted_once(numbered(batch.signals["node_id"], batch), batch)
        return difference_ExS, jnp.where(kept_ExS, advantage_ExS, 0.0), jnp.where(kept_ExS, once_ExS, 0.0)


def check_branching(method: Method) -> None:
    """Makes a method's `branching` a tuple; raises ValueError where the shape of its tree is not one."""
    if method.branching is not None:
        object.__setattr__(method, "branching", tuple(method.branching))  # a list cannot be hashed
    wrong = lambda n: not isinstance(n, int) or isinstance(n, bool) or n < 1
    if method.branching is not None and (not method.branching or any(map(wrong, method.branching))):
        raise ValueError(
            f"branching of '{method.name}' must hold whole numbers of at least 1, one for each depth, not {method.branching!r}"
        )
    check_at_least(method, 1, "segment_steps")
