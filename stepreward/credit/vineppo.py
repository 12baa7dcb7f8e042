"""VinePPO: the advantage of a step is the change of the state's value, which episodes that are played on from the state estimate."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from stepreward.batch import Batch
from stepreward.credit.base import Credit, Method, check_at_least, check_choice, register, step_mask, to_tokens
from stepreward.credit.branches import branch_metrics, states_around
from stepreward.kernels import potential_differences

PLACES = ("all", "cuts")


@register("vineppo")
@dataclasses.dataclass(frozen=True)
class VinePPO(Method):
    """Advantages from Monte Carlo values of states: A_t = r_t + V̂(s_{t+1}) − V̂(s_t), V̂(terminal) = 0, without discount.

    V̂(s_t) is the mean return of `k` episodes that the policy plays on from s_t. The signal `mc_value` `[E, S]` is the mean *outcome* of
    these episodes, which contains the rewards before s_t, so r_t cancels:

    A_t = V̂(s_{t+1}) − V̂(s_t),   A_{T−1} = R − V̂(s_{T−1}).

    The advantages of an episode sum to R − V̂(s_0). Each is an unbiased estimate of the policy's advantage for any k, since V̂ is
    unbiased. An unknown value (NaN) is that of the next state, V̂(s_t) = V̂(s_{t+1}), and at the end R: the step then has the advantage 0.

    Cost of an episode of S steps: up to k·S(S−1)/2 further environment steps for the states after the first one, and k·S for the first.

    Attributes:
      k: episodes from each state. The paper plays 9. The default is 2: an episode of 10 steps then costs 12 times the environment steps of
        one without values, and with 9 it costs 50 times. The error of V̂ has mean 0, so more episodes reduce it as well as more
        continuations of each do. It is 2 and not 1, so that one failed environment does not leave a state without a value.
      values_at: where values are estimated: at "all" states, or at the "cuts" of `SPO`, which cost less; a step that is no cut has the advantage 0.
      unfinished_penalty: outcome of an episode or continuation that a limit cut short (the release's `unfinished_response_penalty`, in the
        unit of the outcome before `credit.outcome_scale`); None keeps the outcome that it has.

    Source: VinePPO (arXiv 2410.01679).
    """

    name: ClassVar[str] = "vineppo"
    strategy: ClassVar[str] = "restore"
    requires: ClassVar[frozenset[str]] = frozenset({"mc_value"})
    unscheduled: ClassVar[frozenset[str]] = frozenset({"unfinished_penalty"})  # the host reads it
    variants: ClassVar = {"paper": {"k": 9}, "released": {"k": 9, "unfinished_penalty": 0.0}}

    k: int = 2
    values_at: str = "all"
    unfinished_penalty: float | None = None

    def __post_init__(self):
        check_choice(self, "values_at", PLACES)
        check_at_least(self, 1, "k")

    @property
    def strategy_options(self) -> dict:
        return {"k": self.k, "at": self.values_at, "unfinished": self.unfinished_penalty}

    def assign(self, batch: Batch) -> Credit:
        mask_ExS, outcome_E = step_mask(batch), batch.outcome
        if self.unfinished_penalty is not None:
            outcome_E = jnp.where(batch.truncated, self.unfinished_penalty, outcome_E)
        states = states_around(batch.signals["mc_value"], outcome_E, mask_ExS)
        advantage_ExS = potential_differences(states.later, states.known, states.here)
        advantage_RxL = to_tokens(advantage_ExS, batch)
        return Credit(advantage_RxL, advantage_ExS, advantage_ExS, None, branch_metrics(advantage_RxL, advantage_ExS, None, batch))
