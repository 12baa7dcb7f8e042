"""Plays the next iteration while the models learn from this one.

A rollout that is played ahead sees the run as it was before this iteration's updates: the policy that plays is one iteration older than
the policy that learns from what it plays. The learner corrects for that with truncated importance weights, see `importance`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np

from stepreward import processes
from stepreward.errors import UserError


@dataclasses.dataclass(frozen=True)
class View:
    """What a rollout sees of the run.

    Attributes:
      params: the policy's parameters, without a head.
      env_steps: environment steps of the run so far, which the order of environments in a mixture follows.
      successes: the training success of earlier iterations, which schedules of strategies read.
      staleness: iterations of learning between this policy and the one that learns from the episodes.
    """

    params: Any
    env_steps: int
    successes: tuple[float, ...] = ()
    staleness: int = 0

    @property
    def facts(self) -> dict:
        """What a checkpoint keeps of it beside the parameters."""
        return {"env_steps": self.env_steps, "successes": list(self.successes), "staleness": self.staleness}


class Ahead:
    """One rollout that is played in a thread of its own.

    Args:
      halted: an event that ends a rollout early; `close` sets it.
    """

    def __init__(self, halted):
        self._halted, self._pool = halted, ThreadPoolExecutor(1, thread_name_prefix="rollout")
        self._future: Future | None = None

    def begin(self, play: Callable[[], Any]) -> None:
        """Begins a rollout; the last one has been taken."""
        self._future = self._pool.submit(play)

    @property
    def begun(self) -> bool:
        return self._future is not None

    def take(self) -> Any:
        """Waits for the rollout that has begun, and returns it or raises what it raised."""
        found, self._future = self._future, None
        return found.result()

    def settle(self) -> None:
        """Waits until no rollout is being played, because something else needs the environments."""
        if self._future is not None:
            wait([self._future])

    def close(self) -> None:
        """Ends the rollout that is being played, if there is one, and the thread."""
        if self._future is not None:
            self._halted.set()
        self._pool.shutdown(wait=True, cancel_futures=True)


def importance(log_prob_now: np.ndarray, log_prob_then: np.ndarray, mask: np.ndarray, cap: float) -> tuple[np.ndarray, dict[str, float]]:
    """Truncated importance weights of actions that an older policy has sampled.

        w = min(π_now(a) / π_then(a), cap) for every action token, 0 elsewhere

    The weights multiply the advantages, and the clipped objective is then that of the policy as it is now, π / π_now.

    Args:
      log_prob_now, log_prob_then: `[R, L]`, in nats, of the policy that learns and of the one that played.
      mask: bool `[R, L]`, the action tokens.
      cap: the largest weight.

    Returns:
      The weights, and metrics: their mean, the share that was cut, and the mean of log π_then − log π_now, an estimate of KL(then ‖ now).

    Source: "truncated importance sampling" of Yao et al. 2025, for samplers that differ from the trainer; the weight is that of Espeholt et
    al. 2018 (IMPALA, arXiv 1802.01561), ρ̄ = cap.
    """
    gap = np.where(mask, np.asarray(log_prob_now, np.float64) - np.asarray(log_prob_then, np.float64), 0.0)
    ratio, count = np.exp(gap), max(int(mask.sum()), 1)
    weight = np.where(mask, np.minimum(ratio, cap), 0.0)
    metrics = {
        "policy/importance_mean": float(weight.sum() / count),
        "policy/importance_cut": float((mask & (ratio > cap)).sum() / count),
        "policy/stale_kl": float(-gap.sum() / count),
    }
    return weight.astype(np.float32), metrics


def check_mesh(c, mesh) -> None:
    """Raises UserError if the run plays ahead on several devices: programs from two threads could reach them in different orders, and wait for
    each other for ever."""
    if c.rollout.ahead and mesh.size > 1:
        raise UserError(f"rollout.ahead=1 works on one device, but the mesh of this run has {mesh.size}: set rollout.ahead=0.")


def check(c) -> None:
    """Raises ValueError if the next iteration cannot be played while this one is learnt from."""
    if c.rollout.ahead not in (0, 1):
        raise ValueError(
            f"rollout.ahead={c.rollout.ahead} must be 0 or 1: the iterations that are played before the last one is learnt from."
        )
    if c.policy.importance_cap <= 0:
        raise ValueError(f"policy.importance_cap={c.policy.importance_cap} must be positive.")
    if c.rollout.ahead and c.train.mode == "offline":
        raise ValueError("rollout.ahead=1 plays while the models learn, but train.mode=offline plays nothing: set rollout.ahead=0.")
    if c.rollout.ahead and processes.count() > 1:
        raise ValueError(
            f"rollout.ahead=1 works in one process, but this job has {processes.count()}, which must run their programs in one order: set rollout.ahead=0."
        )
