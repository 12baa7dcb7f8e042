"""The study: which step credit pays, at equal budgets and after tuning. docs/study.md is its plan.

    python experiments/study.py --out=runs/study --jobs=2                                # all of it; goes on where it was stopped
    python experiments/study.py --out=runs/study --tasks=rooms --arms=rloo,gigpo --seeds=2    # a part of it
    python experiments/study.py --out=runs/study --stage=report --write                  # tables and pictures into docs/
    python experiments/study.py --out=runs/again --stage=report --data=docs/data/study_runs.csv    # the report of the recorded runs

Every run is `launch/train.py` in its own process on one core. What the report needs of a finished run is kept in OUT/runs.csv, and a run that
is in there is not repeated. The report needs `pip install -e '.[study]'`.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import shutil
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from compare import launch
from pages import replace_parts

from stepreward.metrics import read_metrics, write_atomically

ROOT = Path(__file__).resolve().parent.parent
PAGE, DATA, PICTURE = ROOT / "docs" / "study.md", ROOT / "docs" / "data" / "study_runs.csv", ROOT / "docs" / "images" / "study.png"
BASELINE = "rloo"
TUNING_SEEDS = (100,)
CONFIGURATIONS = 8  # of the policy's settings that the baseline tries; the other arms take those that it chose
TUNING_SHARE = 0.5  # of the budget that a tuning run gets
SEEDS, FEW_SEEDS = 10, 5  # of the arms that matter most, and of the others
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


# For all arms, so that they share warm starts and one scale of advantages. Only the arm turn_return reads the turn rewards.
SHARED = {
    "environment.options.turn_reward": "True",
    "policy.advantage_norm": "whiten",
    "prm.replay": "1",
    "exploration.tasks": "256",
    "estimator.epochs": "6",
    "eval.every": "4",
    "eval.final_episodes": "0",
    "eval.prm_as_policy_every": "0",
}
LONG = {
    "environment.options.height": "7",
    "environment.options.width": "7",
    "environment.options.max_steps": "40",
    "environment.options.min_moves": "6",
    "environment.options.max_moves": "20",
    "sft.updates": "300",
    "rollout.max_steps": "40",
    "rollout.max_prompt_tokens": "27",
    "rollout.max_row_tokens": "29",
    "rollout.groups": "16",
}
TASKS = {
    "rooms": Task("configs/istar_sokoban.py", SHARED, 100_000, exact=True),
    "long_rooms": Task("configs/istar_sokoban.py", SHARED | LONG, 100_000, exact=True),
    "shop": Task("configs/istar_webshop.py", SHARED, 20_000),
}

# The baseline chooses the settings of the policy. All arms use them, which favours the baseline, and choose only their own options.
POLICY = {"policy.learning_rate": ("2.5e-4", "5e-4", "1e-3"), "policy.kl_coef": ("0.02", "0.05", "0.1"), "policy.epochs": ("2", "4")}


class Arm(NamedTuple):
    """An arm: what it fixes, the ranges of its own options, of which it tries every combination, and how many seeds it has."""

    fixed: Mapping[str, str]
    ranges: Mapping[str, tuple[str, ...]] = {}
    seeds: int = FEW_SEEDS


def _method(name: str, **fixed: str) -> dict[str, str]:
    return {"credit.method": name} | {f"credit.{key}": value for key, value in fixed.items()}


ALPHA = {"credit.options.alpha": ("0.03", "0.1", "0.3", "1.0")}
TRACE = {"critic.learning_rate": ("3e-4", "1e-3"), "credit.options.trace": ("0.95", "1.0")}
ARMS = {
    BASELINE: Arm(_method("rloo"), seeds=SEEDS),
    "gigpo": Arm(_method("gigpo"), {"credit.options.weight": ("0.5", "1.0", "2.0", "4.0")}, SEEDS),
    "istar": Arm(_method("istar"), ALPHA, SEEDS),
    "spa": Arm(_method("spa"), TRACE, SEEDS),
    "oracle": Arm(_method("oracle"), seeds=SEEDS),
    "istar_shuffled": Arm(_method("istar", **{"options.step_reward": "shuffled"}), ALPHA),
    "istar_paper": Arm(_method("istar", variant="paper"), ALPHA),
    "istar_state_pairs": Arm(_method("istar", variant="state_pairs"), ALPHA),
    "spa_paper": Arm(_method("spa", variant="paper"), TRACE),
    "grpo": Arm(_method("grpo")),
    "step_ppo": Arm(_method("step_ppo"), TRACE),
    "prime": Arm(_method("prime")),
    "vineppo": Arm(_method("vineppo"), {"credit.options.k": ("2", "4")}),
    "turn_return": Arm(_method("turn_return"), {"credit.options.discount": ("0.95", "1.0")}),
}


def configurations(arm: str) -> list[dict[str, str]]:
    """The configurations that an arm tries: for the baseline a draw without replacement from `POLICY`, the same on every machine; for the others
    every combination of their own options, which may be one."""
    ranges = POLICY if arm == BASELINE else ARMS[arm].ranges
    every = [dict(zip(ranges, values)) for values in itertools.product(*ranges.values())]
    if arm != BASELINE:
        return every
    order = np.random.default_rng([len(every), 2026]).permutation(len(every))
    return [every[place] for place in sorted(order[:CONFIGURATIONS])]


class Run(NamedTuple):
    """A run: its task and name, and what it overrides."""

    task: str
    name: str
    seed: int
    overrides: Mapping[str, str]
    budget: int

    def folder(self, out: Path) -> Path:
        return out / self.task / f"{self.name}_{self.seed}"


def tuning_runs(task: str, arm: str, policy: Mapping[str, str] = MappingProxyType({})) -> list[Run]:
    """All runs that choose the configuration of an arm. An arm with one configuration has none.

    Args:
      policy: the settings that the baseline has chosen.
    """
    budget, found = int(TUNING_SHARE * TASKS[task].budget), configurations(arm)
    named = [(f"tune_{arm}_{number}", c) for number, c in enumerate(found)] if len(found) > 1 else []
    return [Run(task, name, seed, {**policy, **ARMS[arm].fixed, **c}, budget) for name, c in named for seed in TUNING_SEEDS]


def final_runs(task: str, arm: str, chosen: Mapping[str, str], seeds: Sequence[int]) -> list[Run]:
    """The runs of an arm that are reported; `chosen` has the settings of the policy and the arm's own options."""
    return [Run(task, arm, seed, ARMS[arm].fixed | chosen, TASKS[task].budget) for seed in seeds]


# --- Results ---

COLUMNS = ("task", "name", "seed", "env_steps", "sampled_tokens", "wall_s", "success")


class Curve(NamedTuple):
    """A run's evaluations: environment steps, sampled tokens and seconds before each, and the held-out success."""

    env_steps: np.ndarray
    sampled_tokens: np.ndarray
    wall_s: np.ndarray
    success: np.ndarray


class Results:
    """The curves of finished runs, by task, name and seed, in a CSV file with a line for each evaluation."""

    def __init__(self, path: Path):
        self.path, self.curves, self._lock = path, {}, threading.Lock()
        if path.exists():
            with open(path, newline="", encoding="utf-8") as file:
                for (task, name, seed), lines in itertools.groupby(csv.DictReader(file), lambda line: tuple(line[c] for c in COLUMNS[:3])):
                    values = np.array([[float(line[c]) for c in COLUMNS[3:]] for line in lines])
                    self.curves[task, name, int(seed)] = Curve(*values.T)

    def __contains__(self, run: Run) -> bool:
        return (run.task, run.name, run.seed) in self.curves

    def add(self, run: Run, curve: Curve) -> None:
        """Adds a finished run, and writes the file."""
        with self._lock:
            self.curves[run.task, run.name, run.seed] = curve
            lines = [",".join(COLUMNS)]
            for key, found in self.curves.items():
                head = ",".join(map(str, key))
                lines += [f"{head},{x:.0f},{n:.0f},{s:.1f},{y:.6f}" for x, n, s, y in zip(*found)]
            write_atomically(self.path, "\n".join(lines) + "\n")


def curve_of(folder: Path) -> Curve:
    """Reads the evaluations of a run.

    Raises:
      FileNotFoundError: there is no such run.
      ValueError: it has no evaluation.
    """
    spent, found = 0.0, []
    for record in read_metrics(folder / "metrics.jsonl"):
        spent = record.get("rollout/sampled_tokens") or spent
        if record.get("eval/success") is not None:
            found.append((record.get("env_steps", 0.0), spent, record["wall_s"], record["eval/success"]))
    if not found:
        raise ValueError(f"{folder} has no evaluation")
    return Curve(*np.array(found, float).T)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--stage", choices=("tune", "run", "report", "all"), default="all")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--seeds", type=int, default=SEEDS, help="seeds of an arm, at most")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--data", help="CSV file of finished runs; OUT/runs.csv if it is not given")
    parser.add_argument("--write", action="store_true", help="write the report into docs/")
    options = parser.parse_args()
    tasks, arms = options.tasks.split(","), options.arms.split(",")
    for kind, given, known in (("task", tasks, TASKS), ("arm", arms, ARMS)):
        for name in given:
            if name not in known:
                parser.error(f"there is no {kind} {name!r}; the {kind}s are {', '.join(known)}")
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    results = Results(Path(options.data) if options.data else out / "runs.csv")
    those = [(task, arm) for task in tasks for arm in arms if arm != "oracle" or TASKS[task].exact]
    if options.stage in ("tune", "all"):
        play(out, results, [run for task in tasks for run in tuning_runs(task, BASELINE)], options.jobs)
        others = [(task, arm, choose(results, task, BASELINE)) for task, arm in those if arm != BASELINE]
        play(out, results, [run for task, arm, policy in others for run in tuning_runs(task, arm, policy)], options.jobs)
    if options.stage in ("run", "all"):
        seeds = {arm: range(min(options.seeds, ARMS[arm].seeds)) for arm in arms}
        runs = [run for task, arm in those for run in final_runs(task, arm, choose(results, task, arm), seeds[arm])]
        play(out, results, sorted(runs, key=lambda run: (tasks.index(run.task), run.seed)), options.jobs)  # all arms of a seed together
    if options.stage in ("report", "all"):
        report(out, results, tasks, arms, options.write)


def play(out: Path, results: Results, runs: Sequence[Run], jobs: int) -> None:
    """Makes the runs that have no results, after the warm starts that the runs of a task and seed share.

    A run that fails is made once more; if it fails again it has no results, and the others go on.
    """
    runs = [run for run in runs if run not in results]
    starts = sorted({(run.task, run.seed) for run in runs})
    starts = [(task, seed) for task, seed in starts if not (out / task / f"start_{seed}" / "stages" / "sft").is_dir()]

    def start(task: str, seed: int) -> None:
        launch(out / task / f"start_{seed}", TASKS[task].config, TASKS[task].settings | {"credit.method": BASELINE}, seed, stage="sft")

    def one(run: Run) -> None:
        task, folder = TASKS[run.task], run.folder(out)
        shared = {"stages.sft": str(out / run.task / f"start_{run.seed}"), "train.env_steps": str(run.budget)}
        for _ in range(2):
            if launch(folder, task.config, {**task.settings, **run.overrides, **shared}, run.seed) == 0:
                results.add(run, curve_of(folder))
                shutil.rmtree(folder)  # a checkpoint for each of hundreds of runs is a lot
                return

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda pair: start(*pair), starts))
        list(pool.map(one, runs))


# --- Measures ---


def heights(curve: Curve, budget: float, axis: str = "env_steps") -> float:
    """The primary measure: the mean height of the held-out success curve, from 0 to the budget.

    The last value holds on where a run ended earlier, and what lies behind the budget is cut off.
    """
    grid = np.linspace(0, budget, 501)
    return float(np.trapezoid(np.interp(grid, getattr(curve, axis), curve.success), grid) / budget)


def choose(results: Results, task: str, arm: str) -> dict[str, str]:
    """The configuration of highest mean primary measure over the tuning seeds, with the settings of the policy that the baseline has chosen.

    Raises:
      SystemExit: a tuning run is missing.
    """
    scores, found = tuned(results, task, arm), configurations(arm)
    mine = found[int(np.argmax(scores))] if scores else found[0]
    return mine if arm == BASELINE else choose(results, task, BASELINE) | mine


def tuned(results: Results, task: str, arm: str) -> list[float]:
    """The mean primary measure of each configuration of an arm, empty if it has only one; raises SystemExit if a tuning run is missing."""
    scores: dict[str, list[float]] = {}
    for run in tuning_runs(task, arm):
        if run not in results:
            raise SystemExit(f"the tuning run {run.name} of {task} with seed {run.seed} is missing: run --stage=tune first")
        scores.setdefault(run.name, []).append(heights(results.curves[run.task, run.name, run.seed], run.budget))
    return [float(np.mean(found)) for found in scores.values()]


def report(out: Path, results: Results, tasks: Sequence[str], arms: Sequence[str], writes: bool = False) -> list[dict]:
    """Prints a table for each task, and writes study.csv and study.png; with `writes`, also page, data and picture in docs/.

    A row is an arm: the interquartile mean of the primary measure over its seeds with a 95 % bootstrap interval (`rliable`), its mean
    difference from the baseline on the same seeds, with a 95 % interval and the p-value of a paired permutation test, corrected over the
    arms of a task by Holm's method, and what it cost.
    """
    from statsmodels.stats.multitest import multipletests

    rows, tables = [], []
    for task in tasks:
        found = {arm: {seed: c for (t, name, seed), c in results.curves.items() if t == task and name == arm} for arm in arms}
        found = {arm: curves for arm, curves in found.items() if curves}
        if BASELINE not in found:
            continue
        least = min(curve.sampled_tokens[-1] for curves in found.values() for curve in curves.values())
        mine = [_row(task, arm, curves, found[BASELINE], TASKS[task].budget, least) for arm, curves in found.items()]
        others = [row for row in mine if row["arm"] != BASELINE]
        if others:
            for row, corrected in zip(others, multipletests([row["p"] for row in others], method="holm")[1]):
                row["p_holm"] = float(corrected)
        rows += mine
        tables.append(_table(task, mine) + (_choices(results, task, list(found)) if writes else ""))
        print(tables[-1])
    if rows:
        with open(out / "study.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]), restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        _plot(out / "study.png", rows)
    if rows and writes:
        _plot(PICTURE, rows)
        if results.path.resolve() != DATA:
            shutil.copyfile(results.path, DATA)
        replace_parts(PAGE, {"results": "".join(tables)})
    return rows


def _row(task: str, arm: str, curves: Mapping[int, Curve], baseline: Mapping[int, Curve], budget: int, least_tokens: float) -> dict:
    from rliable import library, metrics
    from scipy import stats

    mine = np.array([heights(curve, budget) for curve in curves.values()])
    by_token = [heights(curve, least_tokens, "sampled_tokens") for curve in curves.values()] if least_tokens else [np.nan]
    points, intervals = library.get_interval_estimates(
        {arm: mine[:, None]},
        lambda scores: np.array([metrics.aggregate_iqm(scores)]),
        reps=REPS,
        random_state=np.random.RandomState(0),
    )
    shared = [seed for seed in curves if seed in baseline]
    difference = np.array([heights(curves[seed], budget) - heights(baseline[seed], budget) for seed in shared])
    half = stats.t.ppf(0.975, len(difference) - 1) * stats.sem(difference) if len(difference) > 1 else np.nan
    test = stats.permutation_test((difference,), np.mean, permutation_type="samples", rng=0) if difference.any() else None
    last = lambda axis: float(np.mean([getattr(curve, axis)[-1] for curve in curves.values()]))
    return {
        "task": task,
        "arm": arm,
        "seeds": len(curves),
        "iqm": float(points[arm][0]),
        "low": float(intervals[arm][0, 0]),
        "high": float(intervals[arm][1, 0]),
        "by_token": float(np.mean(by_token)),
        "end": last("success"),
        "difference": float(difference.mean()) if len(difference) else np.nan,
        "half": float(half),
        "p": 1.0 if test is None else float(test.pvalue),
        "p_holm": 1.0,
        "env_steps": last("env_steps"),
        "sampled_tokens": last("sampled_tokens"),
        "wall_s": float(np.median([curve.wall_s[-1] for curve in curves.values()])),  # a run that was paused counts the pause
    }


def _table(task: str, rows: Sequence[dict]) -> str:
    titles = ("arm", "seeds", "over environment steps (IQM, 95 %)", "over sampled tokens", "at the end", f"less {BASELINE}", "p (Holm)")
    lines = [f"\n### `{task}`\n", f"| {' | '.join((*titles, 'environment steps', 'tokens', 'wall s'))} |", "|" + "---|" * 10]
    for row in sorted(rows, key=lambda row: -row["iqm"]):
        less = "–" if row["arm"] == BASELINE else f"{100 * row['difference']:+.1f} ± {100 * row['half']:.1f}"
        p = "–" if row["arm"] == BASELINE else f"{row['p_holm']:.3f}"
        span = f"{100 * row['iqm']:.1f} ({100 * row['low']:.1f} to {100 * row['high']:.1f})"
        costs = f"{row['env_steps']:,.0f} | {row['sampled_tokens']:,.0f} | {row['wall_s']:.0f}"
        lines.append(
            f"| {row['arm']} | {row['seeds']} | {span} | {100 * row['by_token']:.1f} | {100 * row['end']:.1f} | {less} | {p} | {costs} |"
        )
    return "\n".join(lines) + "\n"


def _choices(results: Results, task: str, arms: Sequence[str]) -> str:
    """The chosen configuration of each arm, with the primary measure of all of them on the tuning seeds."""
    lines = [
        "\nChosen on the tuning seeds, with the measure of each configuration there (%):\n",
        "| arm | chosen | configurations |",
        "|---|---|---|",
    ]
    for arm in arms:
        scores, chosen = tuned(results, task, arm), choose(results, task, arm)
        mine = chosen if arm == BASELINE else {key: chosen[key] for key in ARMS[arm].ranges}
        said = ", ".join(f"`{key.removeprefix('credit.options.')}={value}`" for key, value in mine.items()) or "–"
        lines.append(f"| {arm} | {said} | {', '.join(f'{100 * score:.1f}' for score in scores) or '–'} |")
    return "\n".join(lines) + "\n"


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
