"""Makes pools of environments by name."""

from __future__ import annotations

import math
from collections.abc import Callable

from stepreward.envs.protocol import Environment
from stepreward.rollout.environments import EnvironmentPool, Pool, ThreadPool

KINDS = ("inline", "thread", "process", "ray")


def make_pool(
    kind: str, factory: Callable[[], Environment], *, timeout_s: float = 60.0, reset_timeout_s: float = 300.0, address: str = ""
) -> Pool:
    """Makes a pool of environments.

    Args:
      kind: where the environments run. "inline": in this process. "thread": in this process, with a thread for each call of a round.
        "process": each in its own process on this machine. "ray": each in an actor of a Ray cluster (the extra `ray`).
      factory: makes a fresh environment; for "process" and "ray" it must be picklable.
      timeout_s: seconds that one call may take; "inline" and "thread" have no limits.
      reset_timeout_s: seconds that "reset" or "restore" may take, and making an environment.
      address: of the Ray cluster, see `ray_pool.RayPool`.

    Raises:
      ValueError: an unknown kind; a limit that is not above 0, or infinite; a factory that cannot be pickled; no Ray, or no cluster there.
    """
    if kind not in KINDS:
        raise ValueError(f"the kind of pool {kind!r} is unknown; there are: {', '.join(KINDS)}")
    if address and kind != "ray":
        raise ValueError(f"address={address!r} is of a Ray cluster, and the kind of pool is {kind!r}")
    if not (0 < timeout_s < math.inf and 0 < reset_timeout_s < math.inf):
        raise ValueError(f"timeout_s={timeout_s} and reset_timeout_s={reset_timeout_s} must be above 0 seconds, and finite")
    if kind in ("inline", "thread"):
        return (EnvironmentPool if kind == "inline" else ThreadPool)(factory)
    if kind == "process":
        from stepreward.rollout.process_pool import ProcessPool

        return ProcessPool(factory, timeout_s=timeout_s, reset_timeout_s=reset_timeout_s)
    from stepreward.rollout.ray_pool import RayPool

    return RayPool(factory, timeout_s=timeout_s, reset_timeout_s=reset_timeout_s, address=address)
