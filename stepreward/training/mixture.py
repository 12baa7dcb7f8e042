"""Several environments in one run: their settings, which of them each group of an iteration is played in, and in which order they are trained.

Each environment of a mixture has a *view*: the run's config with the settings of that environment in place of the group `environment`. All
code that makes an environment, its demonstrations or its tasks reads the view as if it were the config of a run of that environment alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from stepreward.config import TrackedConfig
from stepreward.errors import did_you_mean
from stepreward.training.transfer import order_by_transfer, read_transfer

ORDERS = ("joint", "sequential", "transfer")
OUTCOMES = ("environment", "judge")
# Keys of an entry besides those of the group `environment`, with their defaults; 0 stands for the value of the group `rollout`.
_OWN = {"share": 1.0, "outcome": "environment", "max_steps": 0, "history": -1}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One environment of a mixture.

    Attributes:
      name: its short name.
      share: its share of the groups or of the budget, relative to the other shares.
      judged: whether a judge's score is the outcome of its episodes.
      view: the config of a run of this environment alone.
    """

    name: str
    share: float
    judged: bool
    view: Any


@dataclasses.dataclass(frozen=True)
class Mixture:
    """The environments of a run.

    Attributes:
      entries: one for each environment, sorted by name, since groups of a config have no order.
      sequence: the names of the environments that are trained on one after the other; () for all at once.
    """

    entries: tuple[Entry, ...]
    sequence: tuple[str, ...] = ()

    @classmethod
    def of(cls, c) -> Mixture | None:
        """Returns the mixture of a config; None if it has one environment.

        Raises:
          ValueError: an entry has an unknown key or a wrong value, or the order is not possible; the message names the key.
        """
        group = c.get("mixture")
        if group is None:  # an earlier version of the library saved the config
            return None
        found, order, sequence, path = group.environments.to_dict(), group.order, tuple(group.sequence), group.transfer
        if order not in ORDERS:
            raise ValueError(f"mixture.order={order!r} is not one of {', '.join(ORDERS)}.")
        for key, value, wanted in (("sequence", sequence, "sequential"), ("transfer", path, "transfer")):
            if order == wanted and not value:
                raise ValueError(f"mixture.order={order!r} needs mixture.{key}: set it.")
            if value and order != wanted:
                raise ValueError(f"mixture.order={order!r} does not read mixture.{key}: leave it empty, or set mixture.order={wanted}.")
        if not found:
            if order != "joint":
                raise ValueError(f"mixture.order={order!r} orders several environments: set mixture.environments.NAME.KEY, or order=joint.")
            return None
        names = sorted(found)
        total = dict(zip(names, apportion(c.sft.episodes, [_share(name, found[name]) for name in names])))
        entries = tuple(_entry(c, name, found[name], total[name]) for name in names)
        if order == "transfer":
            sequence = order_by_transfer(names, read_transfer(path, names))
        for name in sequence:
            if name not in names:
                raise ValueError(f"mixture.sequence names {name!r}{did_you_mean(name, names)}; the environments are {', '.join(names)}.")
        if len(set(sequence)) < len(sequence):
            raise ValueError(f"mixture.sequence={','.join(sequence)} names an environment twice.")
        if sequence and c.train.mode == "offline":
            raise ValueError(f"mixture.order={order!r} needs episodes that are played in this order: set train.mode=online.")
        return cls(entries, tuple(sequence))

    def environments(self, first: int, groups: int, done: float | None = None) -> list[str]:
        """Returns the name of the environment of each of some groups.

        Args:
          first, groups: the number of the first group, counted over the whole run, and how many there are.
          done: the finished share of the budget, from 0; None for groups that are not ordered (exploration, warm-up of a PRM).
        """
        if done is not None and self.sequence:
            shares = {entry.name: entry.share for entry in self.entries}
            return [self.sequence[active(done, [shares[name] for name in self.sequence])]] * groups
        names = [entry.name for entry in self.entries]
        return [names[place] for place in assignment(first, groups, [entry.share for entry in self.entries])]


# --- Shares ---


def apportion(total: int, shares: Sequence[float]) -> list[int]:
    """Divides a number by shares: each gets ⌊total · share / Σ shares⌋, and the largest remainders one more; at least 1 each.

    Of equal remainders, the first one counts. apportion(10, [1, 1, 2]) = [3, 2, 5]: the exact parts are 2.5, 2.5 and 5.
    """
    exact = [total * share / math.fsum(shares) for share in shares]
    parts = [math.floor(x) for x in exact]
    order = sorted(range(len(parts)), key=lambda i: (parts[i] - exact[i], i))
    for i in order[: total - sum(parts)]:
        parts[i] += 1
    return [max(1, part) for part in parts]


def assignment(first: int, count: int, shares: Sequence[float]) -> list[int]:
    """Returns which of some environments the groups `first` … `first + count − 1` of a run are played in.

    Group k goes to the environment i with the largest p_i · (k + 1) − n_i, the first of equal ones, with p_i = share_i / Σ shares and n_i
    its number of groups before k. The numbers n_i are therefore within 1 of p_i · k, whatever the number of groups in an iteration is.
    The result depends on the arguments alone. For the shares 1, 1, 2, it is 2, 0, 1, 2, and the same again.

    Args:
      shares: positive numbers.

    Returns:
      Indices into `shares`, one for each group.
    """
    total, counts, found = math.fsum(shares), [0] * len(shares), []
    for k in range(first + count):
        chosen = max(range(len(shares)), key=lambda i: (round(shares[i] / total * (k + 1) - counts[i], 9), -i))
        counts[chosen] += 1
        found.append(chosen)
    return found[first:]


def active(done: float, shares: Sequence[float]) -> int:
    """Returns which environment is trained on when a share `done` of the budget is used, if each takes its share one after the other.

    It is the first i with done < (share_0 + … + share_i) / Σ shares, and the last one from 1 on. active(0.25, [1, 3]) = 1.
    """
    total, end = math.fsum(shares), 0.0
    for i, share in enumerate(shares):
        end += share / total
        if done < end:
            return i
    return len(shares) - 1


# --- Entries ---


def views(c) -> dict[str, Any]:
    """Returns the config of each environment alone, by its name in the mixture; in a run of one environment, {"": c}."""
    mixture = Mixture.of(c)
    return {"": c} if mixture is None else {entry.name: entry.view for entry in mixture.entries}


def _share(name: str, found: dict) -> float:
    if not name.isidentifier():
        raise ValueError(f"mixture.environments has the name {name!r}: use letters, digits and _, since it is part of metrics and folders.")
    if not isinstance(found, dict):
        raise ValueError(f"mixture.environments.{name}={found!r} must be a group: set mixture.environments.{name}.KEY.")
    share = found.get("share", _OWN["share"])
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share < math.inf:
        raise ValueError(f"mixture.environments.{name}.share={share!r} must be a finite number above 0.")
    return float(share)


def _entry(c, name: str, found: dict, episodes: int) -> Entry:
    where, default = f"mixture.environments.{name}", c.environment.to_dict()
    for key, value in found.items():
        known = default | _OWN
        if key not in known:
            raise ValueError(f"{where} has no key {key!r}{did_you_mean(key, known)}; its keys are {', '.join(known)}.")
        kind = (int, float) if isinstance(known[key], float) else type(known[key])
        if isinstance(value, bool) or not isinstance(value, kind):
            what = kind.__name__ if isinstance(kind, type) else "float"
            raise ValueError(f"{where}.{key}={value!r} must be of type {what}.")
    own = _OWN | {key: found[key] for key in _OWN if key in found}
    if own["outcome"] not in OUTCOMES:
        raise ValueError(f"{where}.outcome={own['outcome']!r} is not one of {', '.join(OUTCOMES)}.")
    most = c.rollout.max_steps
    if not 0 <= own["max_steps"] <= most:
        raise ValueError(
            f"{where}.max_steps={own['max_steps']} must be from 1 to rollout.max_steps={most}, the number of steps that a batch has room for; "
            "0 takes that number."
        )
    if own["history"] < -1:
        raise ValueError(f"{where}.history={own['history']} must be at least 0; -1 takes rollout.history={c.rollout.history}.")
    plain = c.untracked if isinstance(c, TrackedConfig) else c
    view = plain.copy_and_resolve_references()
    with view.unlocked():
        del view.mixture
        view.environment = ConfigDict(default | {key: value for key, value in found.items() if key not in _OWN})
        view.rollout.max_steps = own["max_steps"] or most
        view.rollout.history = c.rollout.history if own["history"] < 0 else own["history"]
        view.sft.episodes = episodes
    view = c.of(view) if isinstance(c, TrackedConfig) else view
    return Entry(name, _share(name, found), own["outcome"] == "judge", view)


def without_imitation(view):
    """Returns the view of an environment that has no expert, in a run whose other environments may have one."""
    plain = (view.untracked if isinstance(view, TrackedConfig) else view).copy_and_resolve_references()
    with plain.unlocked():
        plain.sft.updates = 0
    return view.of(plain) if isinstance(view, TrackedConfig) else plain
