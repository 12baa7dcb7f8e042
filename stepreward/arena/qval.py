"""QVal's protocol: how well a score of actions agrees with Q-values, over all points together and within each state.

A point is a state with its K candidate actions. Q(s, a) is the discounted reward of taking a in s and then following a reference: a best
policy, for an environment that knows its transitions.

Source: QVal (arXiv 2606.32034); the release is bethgelab/qval, commit 3519062, `src/qval/correlation.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from stepreward.envs.graphs import StateGraph

DISCOUNT = 0.95  # of every configuration of the release
FEWEST = 50  # usable candidates, below which pooled measures are not defined


def agreement(q, score, *, fewest: int = FEWEST) -> dict[str, float]:
    """Compares scores with Q-values.

    Args:
      q, score: float `[P, K]`, of the K candidates of P points; NaN where there is no candidate, or no score.
      fewest: how many candidates with both must be there for the pooled measures.

    Returns:
      `spearman`, `kendall` (tau-b) and `pearson`: over all candidates of all points together; NaN with too few.
      `state_spearman`, `state_std`: mean and standard deviation (ddof 1) over points of Spearman's correlation within the point. Points whose Q are all
      equal, that lack a score or that have less than two candidates are left out, and so are those with equal scores, which the release counts as
      NaN.
      `points`, `candidates`: how many points and candidates count; `missing`: candidates without a score; `equal_q`, `equal_scores`: points left
      out because all their Q, or all their scores, are equal.

    Raises:
      ValueError: the shapes differ.
    """
    q, score = np.asarray(q, np.float64), np.asarray(score, np.float64)
    if q.shape != score.shape or q.ndim != 2:
        raise ValueError(f"q and score must share one shape [P, K], not {q.shape}, {score.shape}")
    there = ~np.isnan(q)
    usable = there & ~np.isnan(score)
    x, y = score[usable], q[usable]
    defined = len(x) >= max(fewest, 2) and np.ptp(x) > 0 and np.ptp(y) > 0
    found = {
        "spearman": float(stats.spearmanr(x, y).statistic) if defined else float("nan"),
        "kendall": float(stats.kendalltau(x, y).statistic) if defined else float("nan"),
        "pearson": float(stats.pearsonr(x, y).statistic) if defined else float("nan"),
    }
    within, equal_q, equal_scores = within_states(q, score)
    known = within[~np.isnan(within)]
    return found | {
        "state_spearman": float(known.mean()) if len(known) else float("nan"),
        "state_std": float(known.std(ddof=1)) if len(known) > 1 else float("nan"),
        "points": float(len(known)),
        "candidates": float(usable.sum()),
        "missing": float((there & ~usable).sum()),
        "equal_q": float(equal_q),
        "equal_scores": float(equal_scores),
    }


def within_states(q: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Spearman's correlation within each point, float64 `[P]`, NaN for a point that `agreement` leaves out; and how many were left out because all Q,
    or all scores, are equal."""
    within, equal_q, equal_scores = np.full(len(q), np.nan), 0, 0
    for place, (row_q, row_score) in enumerate(zip(q, score)):
        there = ~np.isnan(row_q)
        mine, truth = row_score[there], row_q[there]
        if len(truth) < 2 or np.isnan(mine).any():
            continue
        if np.ptp(truth) == 0:
            equal_q += 1
        elif np.ptp(mine) == 0:
            equal_scores += 1
        else:
            within[place] = stats.spearmanr(mine, truth).statistic
    return within, equal_q, equal_scores


def bootstrap(
    measure: Callable[[np.ndarray], float], trajectory: Sequence[int], *, reps: int = 1000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """A percentile interval of a measure, resampling whole trajectories.

    Args:
      measure: of the indices of some points, with repetitions.
      trajectory: the trajectory of each point.
      reps: resamples.
    """
    trajectory, rng = np.asarray(trajectory), np.random.default_rng(seed)
    own = [np.flatnonzero(trajectory == name) for name in np.unique(trajectory)]
    drawn = rng.integers(len(own), size=(reps, len(own)))
    found = [measure(np.concatenate([own[place] for place in row])) for row in drawn]
    tail = 50 * (1 - level)
    return tuple(float(x) for x in np.nanpercentile(found, [tail, 100 - tail]))


def best_q(graph: StateGraph, discount: float = DISCOUNT) -> np.ndarray:
    """Q of a best policy for the reward 1 of a solution, float64 `[N, A]`; no limit on the steps counts.

    Q(s, a) = γ^k, where the solution comes k steps after a; 0 where there is none. By value iteration.
    """
    won, goes_on = graph.won.astype(np.float64), ~graph.done
    value = np.zeros(len(graph.keys))
    while True:
        q = won + discount * goes_on * value[graph.next_state]
        if np.array_equal(q.max(axis=1), value):
            return q
        value = q.max(axis=1)


def middle(steps: int, rng: np.random.Generator, *, most: int = 5, first: int = 1, last: int = 2) -> np.ndarray:
    """The turns of a trajectory that become points: at most `most`, without the first and the last ones; int `[≤ most]`, in order."""
    those = np.arange(first, max(first, steps - last))
    return np.sort(rng.choice(those, min(most, len(those)), replace=False)) if len(those) else those
