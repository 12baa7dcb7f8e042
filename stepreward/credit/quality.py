"""Measures of credit against the exact progress of each step, on the host."""

from __future__ import annotations

import numpy as np

CLEAR = 1e-3  # an exact advantage of at most this size has no sign


def rank_correlation(step_reward, true_progress, mask) -> float:
    """Spearman's rank correlation of credit and exact progress over all True steps, in [−1, 1].

    Args:
      step_reward: float `[E, S]`, the credit that each step received.
      true_progress: float `[E, S]`, for example the exact distance to the goal before the step minus that after it. Steps
        with infinity or NaN are left out.
      mask: bool `[E, S]`.

    Returns:
      The correlation, or NaN when fewer than two steps count or either side is constant.
    """
    reward, progress, mask = _arrays(step_reward, true_progress, mask)
    return _spearman(reward[mask], progress[mask])


def credit_quality(step_reward, true_progress, mask) -> dict[str, float]:
    """Compares the credit of each step with its exact progress.

    Args:
      step_reward, true_progress, mask: as in `rank_correlation`.

    Returns:
      `rank_correlation`: over all steps. `rank_correlation_within`: its mean over the episodes in which it is defined.
      `sign_accuracy`: the share of steps with progress ≠ 0 whose credit has the same sign; a credit of 0 counts as half.
      `steps`: the number of steps compared. An undefined measure is left out.
    """
    reward, progress, mask = _arrays(step_reward, true_progress, mask)
    within = [_spearman(r[m], p[m]) for r, p, m in zip(reward, progress, mask)]
    within = [value for value in within if not np.isnan(value)]
    moved = mask & (progress != 0)
    agreement = np.sign(reward[moved]) * np.sign(progress[moved])
    measures = {
        "rank_correlation": _spearman(reward[mask], progress[mask]),
        "rank_correlation_within": float(np.mean(within)) if within else float("nan"),
        "sign_accuracy": float(np.mean((agreement + 1) / 2)) if moved.any() else float("nan"),
        "steps": float(mask.sum()),
    }
    return {name: value for name, value in measures.items() if not np.isnan(value)}


def step_quality(given, truth, mask) -> dict[str, float]:
    """Compares the credit of each step with its exact advantage, over all True steps.

    Args:
      given, truth: float `[episodes, T]`.
      mask: bool `[episodes, T]`.

    Returns:
      `pearson` and `spearman`, correlations over all steps; `sign`, the share of steps with an exact advantage beyond ±`CLEAR` whose credit has
      the same sign, where 0 counts half; `top`, the share of episodes whose step of highest credit has the highest exact advantage, where
      equal credits share. NaN where a measure is not defined.
    """
    from scipy import stats  # takes up to a second to import, which is long for `stepreward play`

    given, truth, mask = np.asarray(given, np.float64), np.asarray(truth, np.float64), np.asarray(mask, bool)
    x, y = given[mask], truth[mask]
    constant = x.size < 2 or np.ptp(x) < 1e-9 or np.ptp(y) < 1e-9
    clear = np.abs(y) > CLEAR
    sign = (np.sign(np.where(np.abs(x) < 1e-9, 0, x)) * np.sign(y) + 1) / 2
    lowest = np.where(mask, given, -np.inf).max(axis=1, keepdims=True)
    highest = np.where(mask, truth, -np.inf).max(axis=1, keepdims=True)
    chosen, right = mask & (given >= lowest - 1e-9), mask & (truth >= highest - 1e-6)
    spread = np.where(mask.any(axis=1), highest[:, 0] - np.where(mask, truth, np.inf).min(axis=1, initial=np.inf), 0.0) > CLEAR
    hits = (chosen & right).sum(axis=1) / np.maximum(chosen.sum(axis=1), 1)
    return {
        "pearson": float("nan") if constant else float(stats.pearsonr(x, y).statistic),
        "spearman": float("nan") if constant else float(stats.spearmanr(x, y).statistic),
        "sign": float(sign[clear].mean()) if clear.any() else float("nan"),
        "top": float(hits[spread].mean()) if spread.any() else float("nan"),
    }


def exact_quality(credit, batch) -> dict[str, float]:
    """Compares the credit of each step with its exact advantage, over all steps whose exact advantage is known.

    Args:
      credit: a `Credit` on the host.
      batch: with the signal `exact_advantage`.

    Returns:
      The measures of `step_quality` as `exact_NAME_reward` for the step rewards and `exact_NAME_advantage` for the step advantages, and
      `exact_std`, the standard deviation of the exact advantages. NaN where a measure is not defined.
    """
    truth = np.asarray(batch.signals["exact_advantage"], np.float64)
    mask = np.asarray(batch.step_mask & batch.episode_mask[:, None], bool) & np.isfinite(truth)
    found = {"exact_std": float(truth[mask].std()) if mask.any() else float("nan")}
    for name, given in (("reward", credit.step_reward), ("advantage", credit.step_advantage)):
        found |= {f"exact_{measure}_{name}": value for measure, value in step_quality(given, truth, mask).items()}
    return found


def outcome_fit(prediction, outcome, reference: float, *, bins: int = 10) -> dict[str, float]:
    """Measures how well the sum of an episode's contributions predicts its outcome.

    Args:
      prediction: float `[E]`, the sum of the contributions of each episode.
      outcome: float `[E]`.
      reference: a constant prediction to compare with, such as the mean outcome of the training tasks.
      bins: number of bins of `calibration_error`.

    Returns:
      `mse`, `mae`, `within_0.1` (share of |error| ≤ 0.1), `mse_of_mean` (of the constant prediction), `explained` = 1 − mse /
      mse_of_mean (left out where that is 0), and `calibration_error`: mean over bins of equally many episodes, sorted by
      prediction, of |mean prediction − mean outcome|.
    """
    prediction, outcome = np.asarray(prediction, np.float64), np.asarray(outcome, np.float64)
    if prediction.shape != outcome.shape or prediction.ndim != 1 or not len(outcome):
        raise ValueError(f"prediction and outcome must share one shape [E], E > 0, not {prediction.shape}, {outcome.shape}")
    error = prediction - outcome
    order = np.argsort(prediction, kind="stable")
    gaps = [(abs(error[part].mean()), len(part)) for part in np.array_split(order, min(bins, len(order)))]
    mse, of_mean = float((error**2).mean()), float(((outcome - reference) ** 2).mean())
    measures = {
        "mse": mse,
        "mae": float(np.abs(error).mean()),
        "within_0.1": float((np.abs(error) <= 0.1).mean()),
        "mse_of_mean": of_mean,
        "calibration_error": float(np.average([gap for gap, _ in gaps], weights=[count for _, count in gaps])),
    }
    return measures | ({"explained": 1.0 - mse / of_mean} if of_mean > 0 else {})


def _arrays(step_reward, true_progress, mask) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    reward, progress = np.asarray(step_reward, np.float64), np.asarray(true_progress, np.float64)
    mask = np.asarray(mask, bool)
    if not reward.shape == progress.shape == mask.shape or reward.ndim != 2:
        raise ValueError(
            f"step_reward, true_progress and mask must share one shape [E, S], not {reward.shape}, {progress.shape}, {mask.shape}"
        )
    return reward, progress, mask & np.isfinite(progress) & np.isfinite(reward)


def _spearman(x: np.ndarray, y: np.ndarray) -> float:
    if x.size < 2 or np.all(x == x[0]) or np.all(y == y[0]):
        return float("nan")
    from scipy import stats

    return float(stats.spearmanr(x, y).statistic)
