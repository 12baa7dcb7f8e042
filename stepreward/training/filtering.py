"""Drops groups of an iteration before the credit method sees them, and plays further groups in their place if the config says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from stepreward.batch import Batch
from stepreward.credit import Method
from stepreward.credit.filters import COMPARING, Filter, GroupOutcomes
from stepreward.rollout.episode import Cost, Episode
from stepreward.rollout.strategies import Rollout
from stepreward.training.minibatches import row_episodes, take_rows


class Selection(NamedTuple):
    """The groups of an iteration, as many as it has.

    Attributes:
      rollout: their episodes and signals; its cost includes the groups that were left out.
      dropped: bool `[E]`, the episodes of groups that are in the batch but not trained on; they are masked.
      metrics: of the filter.
    """

    rollout: Rollout
    dropped: np.ndarray
    metrics: dict[str, float]


def make_filter(c, method: Method) -> Filter:
    """Returns the filter of a run: the config's, or with `filter.kind="auto"` the one that the credit method names.

    Raises:
      ValueError: a value is out of range, or the filter does not fit the rest of the config.
    """
    f = c.filter
    found = Filter(method.filter if f.kind == "auto" else f.kind, f.share, f.weights, f.low, f.high, f.rounds)
    if found.kind in COMPARING and c.rollout.group_size < 2:
        raise ValueError(
            f"filter.kind={found.kind!r} compares the episodes of a group, and rollout.group_size=1 has none to compare: set "
            "rollout.group_size to at least 2, or filter.kind=none."
        )
    if found.rounds > 1 and c.train.mode == "offline":
        raise ValueError(f"filter.rounds={found.rounds} plays further episodes, but train.mode=offline plays none: set filter.rounds=1.")
    return found


def select(found: Filter, rollout: Rollout, play_round: Callable[[int], Rollout], *, outcome: str, scale: float = 1.0) -> Selection:
    """Chooses the groups of an iteration.

    If too few groups are kept, further rounds are played. If there are still too few after the last round, dropped groups fill the
    batch, whose shape does not change. If there are too many, those played last are left out.

    Args:
      rollout: the first round, with the episodes of a group side by side.
      play_round: plays round 1, 2 …, each with as many groups as the first one.
      outcome: "return" or "success", the outcome that groups are compared by, which is multiplied by `scale`.
    """
    rounds, groups = [rollout], _groups(rollout.episodes)
    wanted, kept = len(groups), found.kept([outcomes(group, outcome, scale) for group in groups])
    while len(kept) < wanted and len(rounds) < found.rounds:
        rounds.append(play_round(len(rounds)))
        groups = [group for each in rounds for group in _groups(each.episodes)]
        kept = found.kept([outcomes(group, outcome, scale) for group in groups])
    trained, spare = kept[:wanted], [i for i in range(len(groups)) if i not in kept]
    chosen = sorted(trained + spare[: wanted - len(trained)])
    metrics = {"kept_groups": len(trained), "kept_share": len(kept) / len(groups), "played_groups": len(groups), "rounds": len(rounds)}
    return Selection(
        _take(rounds, groups, chosen),
        np.concatenate([np.full(len(groups[i]), i not in trained) for i in chosen]),
        {f"filter/{name}": float(value) for name, value in metrics.items()},
    )


def outcomes(group: list[Episode], outcome: str, scale: float = 1.0) -> GroupOutcomes:
    """The outcomes and successes of a group's episodes whose environment did not fail."""
    good = [e for e in group if e.counts and e.steps]
    return GroupOutcomes(np.array([scale * e.outcome(outcome) for e in good]), np.array([e.success for e in good], bool))


def without_episodes(batch: Batch, dropped_E: np.ndarray) -> Batch:
    """Returns the batch with some episodes masked as if their environment had failed: their rows are padding, and move to the end."""
    row_episode, kept_E = row_episodes(batch), ~dropped_E
    left = take_rows(batch, np.flatnonzero((row_episode >= 0) & kept_E[row_episode]), len(batch.tokens))
    names = ("executed", "episode_mask", "success", "truncated", "env_reward", "outcome")
    hide = lambda x: np.where(kept_E.reshape(-1, *[1] * (x.ndim - 1)), x, np.zeros((), x.dtype))
    return left.replace(step_mask=hide(batch.step_mask), **{name: hide(getattr(batch, name)) for name in names})


def health(episodes: list[Episode]) -> dict[str, float]:
    """Metrics of all groups that were played: `reward_std`, the mean over groups of the standard deviation of the episodes' returns, and
    `flat_groups`, the share of groups whose returns are all equal. Groups with fewer than two episodes enter neither."""
    std = [found.std for found in (outcomes(group, "return") for group in _groups(episodes)) if len(found.outcome) > 1]
    return {"health/reward_std": float(np.mean(std)), "health/flat_groups": float(np.mean(np.array(std) == 0))} if std else {}


def _groups(episodes: list[Episode]) -> list[list[Episode]]:
    """The episodes of each group, in order."""
    found: dict[int, list[Episode]] = {}
    for episode in episodes:
        found.setdefault(episode.task.group, []).append(episode)
    return list(found.values())


def _take(rounds: list[Rollout], groups: list[list[Episode]], chosen: list[int]) -> Rollout:
    """The rollout of some groups, with the cost of all rounds."""
    episodes = [episode for i in chosen for episode in groups[i]]
    played = [episode for each in rounds for episode in each.episodes]
    place = {id(episode): index for index, episode in enumerate(played)}
    rows = {name: [row for each in rounds for row in each.signals[name]] for name in rounds[0].signals}
    signals = {name: [found[place[id(episode)]] for episode in episodes] for name, found in rows.items()}
    counts = {name: sum(each.counts[name] for each in rounds) for name in rounds[0].counts}
    return Rollout(episodes, signals, Cost(*(sum(costs) for costs in zip(*(each.cost for each in rounds)))), counts)
