"""The study: which step credit pays, at equal budgets and after equal tuning. docs/study.md is its plan.

    python experiments/study.py --out=runs/study --stage=tune --jobs=2      # 8 configurations an arm, on tuning seeds
    python experiments/study.py --out=runs/study --stage=run --jobs=2       # the chosen ones, on 10 paired seeds
    python experiments/study.py --out=runs/study --stage=report             # tables, study.csv and study.png
    python experiments/study.py --out=runs/study --stage=all --tasks=rooms --arms=rloo,gigpo --seeds=2

Every run is `launch/train.py` in its own process on one core. Finished runs are not repeated, so the same command goes on where it was stopped.
The report needs `pip install -e '.[study]'`.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from compare import launch

from stepreward.metrics import read_metrics, series, write_atomically

BASELINE = "rloo"
TUNING_SEEDS = (100, 101)
CONFIGURATIONS = 8
TUNING_SHARE = 0.5  # of the budget that a tuning run gets
REPS = 5000  # bootstrap samples of an interval


class Task(NamedTuple):
    """A task of the study.

    Attributes:
      config: the experiment's file.
      settings: overrides of every run.
      budget: environment steps of a run.
      exact: whether exact advantages are known, so that the arm `oracle` can run.
    """

    config: str
    settings: Mapping[str, str]
    budget: int
    exact: bool = False


TOLD = {"environment.options.turn_reward": "True"}  # which only the arm turn_return reads; the same for all, so that they share warm starts
TASKS = {
    "rooms": Task("configs/istar_sokoban.py", TOLD, 300_000, exact=True),
    "long_rooms": Task(
        "configs/istar_sokoban.py",
        TOLD
        | {"environment.options.height": "7", "environment.options.width": "7", "environment.options.max_steps": "40"}
        | {"environment.options.min_moves": "12", "environment.options.max_moves": "40"}
        | {"rollout.max_steps": "40", "rollout.max_prompt_tokens": "27", "rollout.max_row_tokens": "29"},
        400_000,
        exact=True,
    ),
    "shop": Task("configs/istar_webshop.py", TOLD, 160_000),
}  # fmt: skip

# Every arm chooses its policy settings from the same ranges, and its own option from the last one.
POLICY = {"policy.learning_rate": ("2.5e-4", "5e-4", "1e-3"), "policy.kl_coef": ("0.0", "0.02", "0.05"), "policy.epochs": ("1", "2")}


class Arm(NamedTuple):
    """An arm: what it fixes, and the ranges of its own that are tuned."""

    fixed: Mapping[str, str]
    ranges: Mapping[str, tuple[str, ...]] = {}


def _method(name: str, **fixed: str) -> dict[str, str]:
    return {"credit.method": name} | {f"credit.{key}": value for key, value in fixed.items()}


ALPHA = {"credit.options.alpha": ("0.1", "0.3", "1.0")}
TRACE = {"critic.learning_rate": ("3e-4", "1e-3")}
ARMS = {
    BASELINE: Arm(_method("rloo")),
    "grpo": Arm(_method("grpo")),
    "step_ppo": Arm(_method("step_ppo"), TRACE),
    "istar_paper": Arm(_method("istar", variant="paper"), ALPHA),
    "istar": Arm(_method("istar"), ALPHA),
    "istar_shuffled": Arm(_method("istar", **{"options.step_reward": "shuffled"}), ALPHA),
    "spa_paper": Arm(_method("spa", variant="paper"), TRACE),
    "spa": Arm(_method("spa"), TRACE),
    "prime": Arm(_method("prime")),
    "gigpo": Arm(_method("gigpo"), {"credit.options.weight": ("0.5", "1.0", "2.0")}),
    "vineppo": Arm(_method("vineppo"), {"credit.options.k": ("2", "4")}),
    "turn_return": Arm(_method("turn_return"), {"credit.options.discount": ("0.95", "1.0")}),
    "oracle": Arm(_method("oracle"), {"credit.options.whiten": ("False", "True")}),
}


def configurations(arm: str) -> list[dict[str, str]]:
    """The configurations of an arm that are tuned: a draw without replacement from its ranges, the same on every machine."""
    ranges = POLICY | dict(ARMS[arm].ranges)
    every = [dict(zip(ranges, values)) for values in itertools.product(*ranges.values())]
    order = np.random.default_rng([len(every), 2026]).permutation(len(every))
    return [every[place] for place in sorted(order[:CONFIGURATIONS])]


class Run(NamedTuple):
    """A run: its folder, and what it overrides."""

    task: str
    name: str
    seed: int
    overrides: Mapping[str, str]
    budget: int

    def folder(self, out: Path) -> Path:
        return out / self.task / f"{self.name}_{self.seed}"


def tuning_runs(task: str, arm: str) -> list[Run]:
    """All runs that choose the configuration of an arm."""
    budget = int(TUNING_SHARE * TASKS[task].budget)
    found = enumerate(configurations(arm))
    return [Run(task, f"tune_{arm}_{number}", seed, ARMS[arm].fixed | c, budget) for number, c in found for seed in TUNING_SEEDS]


def final_runs(task: str, arm: str, chosen: Mapping[str, str], seeds: Sequence[int]) -> list[Run]:
    """The runs of an arm that are reported."""
    return [Run(task, arm, seed, ARMS[arm].fixed | chosen, TASKS[task].budget) for seed in seeds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--stage", choices=("tune", "run", "report", "all"), default="all")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    tasks, arms = options.tasks.split(","), options.arms.split(",")
    for kind, given, known in (("task", tasks, TASKS), ("arm", arms, ARMS)):
        for name in given:
            if name not in known:
                parser.error(f"there is no {kind} {name!r}; the {kind}s are {', '.join(known)}")
    out, seeds = Path(options.out), range(options.seeds)
    those = [(task, arm) for task in tasks for arm in arms if arm != "oracle" or TASKS[task].exact]
    if options.stage in ("tune", "all"):
        play(out, [run for task, arm in those for run in tuning_runs(task, arm)], options.jobs)
    if options.stage in ("run", "all"):
        choice = {(task, arm): choose(out, task, arm) for task, arm in those}
        play(out, [run for (task, arm), chosen in choice.items() for run in final_runs(task, arm, chosen, seeds)], options.jobs)
    if options.stage in ("report", "all"):
        report(out, tasks, arms, list(seeds))


def play(out: Path, runs: Sequence[Run], jobs: int) -> None:
    """Makes the runs, after the warm starts that the runs of a task and seed share."""
    starts = sorted({(run.task, run.seed) for run in runs})

    def start(task: str, seed: int) -> None:
        launch(out / task / f"start_{seed}", TASKS[task].config, TASKS[task].settings | {"credit.method": BASELINE}, seed, stage="sft")

    def one(run: Run) -> None:
        task = TASKS[run.task]
        shared = {"stages.sft": str(out / run.task / f"start_{run.seed}"), "train.env_steps": str(run.budget)}
        launch(run.folder(out), task.config, {**task.settings, **run.overrides, **shared}, run.seed)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda pair: start(*pair), starts))
        list(pool.map(one, runs))


# --- Measures ---


def heights(folder: Path, budget: int, axis: str = "env_steps") -> float:
    """The primary measure: the mean height of the held-out success curve, from 0 to the budget.

    The last value holds on where a run ended earlier, and what lies behind the budget is cut off.

    Raises:
      FileNotFoundError: there is no such run.
      ValueError: it has no evaluation.
    """
    records = [record for record in read_metrics(folder / "metrics.jsonl") if record.get("eval/success") is not None]
    if not records:
        raise ValueError(f"{folder} has no evaluation")
    x, y = series([{axis: 0.0} | record for record in records], "eval/success", x=axis)
    grid = np.linspace(0, budget, 501)
    return float(np.trapezoid(np.interp(grid, x, y), grid) / budget)


def tokens(folder: Path) -> int:
    """All tokens that a run sampled."""
    found = [record["rollout/sampled_tokens"] for record in read_metrics(folder / "metrics.jsonl") if "rollout/sampled_tokens" in record]
    return int(max(found, default=0))


def choose(out: Path, task: str, arm: str) -> dict[str, str]:
    """The configuration of highest mean primary measure over the tuning seeds; written to OUT/TASK/chosen_ARM.json."""
    runs, budget = tuning_runs(task, arm), int(TUNING_SHARE * TASKS[task].budget)
    scores: dict[str, list[float]] = {}
    for run in runs:
        scores.setdefault(run.name, []).append(heights(run.folder(out), budget))
    best = max(scores, key=lambda name: np.mean(scores[name]))
    chosen = configurations(arm)[int(best.rsplit("_", 1)[1])]
    means = {name: float(np.mean(found)) for name, found in scores.items()}
    write_atomically(out / task / f"chosen_{arm}.json", json.dumps({"chosen": chosen, "tuning": means}, indent=2) + "\n")
    return chosen


def report(out: Path, tasks: Sequence[str], arms: Sequence[str], seeds: Sequence[int]) -> list[dict]:
    """Prints a table for each task, and writes study.csv and study.png.

    A row is an arm: the interquartile mean of the primary measure over the seeds with a 95 % bootstrap interval (`rliable`), its mean
    difference from the baseline on the same seeds, with a 95 % interval and the p-value of a paired permutation test, corrected over the
    arms of a task by Holm's method, and what it cost.
    """
    from statsmodels.stats.multitest import multipletests

    rows = []
    for task in tasks:
        budget, found = TASKS[task].budget, {}
        for arm in arms:
            folders = [out / task / f"{arm}_{seed}" for seed in seeds]
            if all((folder / "metrics.jsonl").exists() for folder in folders):
                found[arm] = folders
        if BASELINE not in found:
            continue
        least = min(tokens(folder) for folders in found.values() for folder in folders)
        mine = [_row(task, arm, folders, found[BASELINE], budget, least) for arm, folders in found.items()]
        others = [row for row in mine if row["arm"] != BASELINE]
        if others:
            for row, corrected in zip(others, multipletests([row["p"] for row in others], method="holm")[1]):
                row["p_holm"] = float(corrected)
        rows += mine
        _print(task, len(seeds), mine)
    if rows:
        with open(out / "study.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]), restval="")
            writer.writeheader()
            writer.writerows(rows)
        _plot(out / "study.png", rows)
    return rows


def _row(task: str, arm: str, folders: Sequence[Path], baseline: Sequence[Path], budget: int, least_tokens: int) -> dict:
    from rliable import library, metrics
    from scipy import stats

    mine, base = (np.array([heights(folder, budget) for folder in some]) for some in (folders, baseline))
    by_token = [heights(folder, least_tokens, "rollout/sampled_tokens") for folder in folders] if least_tokens else [np.nan]
    points, intervals = library.get_interval_estimates(
        {arm: mine[:, None]},
        lambda scores: np.array([metrics.aggregate_iqm(scores)]),
        reps=REPS,
        random_state=np.random.RandomState(0),
    )
    difference = mine - base
    half = stats.t.ppf(0.975, len(mine) - 1) * stats.sem(difference) if len(mine) > 1 else np.nan
    test = stats.permutation_test((difference,), np.mean, permutation_type="samples", rng=0) if difference.any() else None
    last = [read_metrics(folder / "metrics.jsonl")[-1] for folder in folders]
    return {
        "task": task,
        "arm": arm,
        "iqm": float(points[arm][0]),
        "low": float(intervals[arm][0, 0]),
        "high": float(intervals[arm][1, 0]),
        "by_token": float(np.mean(by_token)),
        "difference": float(difference.mean()),
        "half": float(half),
        "p": 1.0 if test is None else float(test.pvalue),
        "p_holm": 1.0,
        "env_steps": float(np.mean([record["env_steps"] for record in last])),
        "sampled_tokens": float(np.mean([tokens(folder) for folder in folders])),
        "wall_s": float(np.mean([record["wall_s"] for record in last])),
    }


def _print(task: str, seeds: int, rows: Sequence[dict]) -> None:
    print(f"\n{task}, {seeds} seeds: mean height of the held-out success curve (%)\n")
    print("| arm | over environment steps (IQM, 95 %) | over sampled tokens | less rloo | p (Holm) | environment steps | tokens | wall s |")
    print("|" + "---|" * 8)
    for row in rows:
        less = "–" if row["arm"] == BASELINE else f"{100 * row['difference']:+.1f} ± {100 * row['half']:.1f}"
        p = "–" if row["arm"] == BASELINE else f"{row['p_holm']:.3f}"
        print(
            f"| {row['arm']} | {100 * row['iqm']:.1f} ({100 * row['low']:.1f} to {100 * row['high']:.1f}) | {100 * row['by_token']:.1f} | {less} | "
            f"{p} | {row['env_steps']:,.0f} | {row['sampled_tokens']:,.0f} | {row['wall_s']:.0f} |"
        )


def _plot(path: Path, rows: Sequence[dict]) -> None:
    """The difference of each arm from the baseline, with its interval, a panel a task."""
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(row["task"] for row in rows))
    figure = Figure(figsize=(4.2 * len(tasks), 4.2), layout="constrained")
    for place, task in enumerate(tasks):
        axes = figure.add_subplot(1, len(tasks), place + 1)
        mine = [row for row in rows if row["task"] == task and row["arm"] != BASELINE][::-1]
        axes.errorbar(
            [100 * row["difference"] for row in mine], range(len(mine)), xerr=[100 * row["half"] for row in mine], fmt="o", capsize=3
        )
        axes.axvline(0, color="0.5", linewidth=1)
        axes.set_yticks(range(len(mine)), [row["arm"] for row in mine])
        axes.set(title=task, xlabel="points of success above RLOO (95 %)")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
