"""Runs several arms of an experiment on paired seeds and compares them.

    python experiments/compare.py --out=runs/compare --seeds=5 --jobs=2 \
        --arms="istar= rloo=credit.method:rloo frozen=credit.options.prm_frozen:True" \
        --set="train.env_steps:200000"

Each run is `launch/train.py` in its own process on one core, with the arm's overrides. Finished runs are not repeated.
`{seed}` in an override is replaced by the seed, so that the arms of a seed can share the finished stages of one run
(`stages.sft:runs/base_{seed}`). A seed determines the demonstrations, the warm start, the training rooms and the draws, so the arms
of a seed start from the same policy. The script writes `results.json` (all curves) and `curves.png`, and prints a table: success at
start and end, area under the curve (mean held-out success over environment steps), paired differences from the first arm with
95 % t-intervals, and what the training episodes cost: environment steps and sampled tokens, branches included, and replayed steps. `--measure=score` compares the benchmark's own score instead of success.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from scipy import stats

from stepreward.metrics import read_metrics, series
from stepreward.report import plot_curves

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--config", default="configs/istar_sokoban.py")
    parser.add_argument("--arms", required=True, help="space-separated name=key:value,key:value")
    parser.add_argument("--set", default="", help="key:value,... for every arm")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument(
        "--measure", choices=("success", "score", "executed"), default="success", help="measure on held-out episodes to compare"
    )
    options = parser.parse_args()
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    arms = dict(arm.split("=", 1) for arm in options.arms.split())
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    jobs = [(seed, name) for seed in seeds for name in arms]

    def run(job):
        seed, name = job
        pairs = [p.replace("{seed}", str(seed)) for p in f"{options.set},{arms[name]}".split(",") if p]
        launch(out / f"{name}_{seed}", options.config, dict(pair.split(":", 1) for pair in pairs), seed)

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(run, jobs))
    summarise(out, list(arms), list(seeds), options.measure)


def launch(workdir: Path, config: str, overrides: Mapping[str, str], seed: int, stage: str | None = None) -> int:
    """Makes one run, or goes on with it, in its own process on one core; its output goes to WORKDIR.log. Returns the exit code."""
    environment = os.environ | {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "launch/train.py"), f"--config={config}", f"--workdir={workdir}"]
    command += [f"--config.{key}={value}" for key, value in overrides.items()] + [f"--config.seed={seed}"]
    command += [] if stage is None else [f"--stage={stage}"]
    workdir.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{workdir}.log", "w") as log:
        code = subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=log).returncode
    print(f"{workdir.name}: {'done' if code == 0 else f'exit code {code}, see {workdir}.log'}", flush=True)
    return code


def summarise(out: Path, arms: list[str], seeds: list[int], measure: str = "success") -> None:
    """Reads `eval/MEASURE` of the finished runs below `out`, writes results.json and curves.png, and prints the table."""
    curves: dict[str, list] = {arm: [] for arm in arms}
    rows = []
    for arm in arms:
        for seed in seeds:
            path = out / f"{arm}_{seed}" / "metrics.jsonl"
            if not path.exists():
                continue
            records = [r for r in read_metrics(path) if r.get(f"eval/{measure}") is not None]
            if not records:
                continue  # stopped before its first evaluation
            x, y = series(records, f"eval/{measure}", x="env_steps")
            curves[arm].append((x, y))
            scores = [r["eval/score"] for r in records if r.get("eval/score") is not None]
            all_records = read_metrics(path)
            mean = lambda key: float(np.mean(found)) if (found := [r[key] for r in all_records if r.get(key) is not None]) else None
            rows.append(
                dict(
                    arm=arm,
                    seed=seed,
                    start=y[0],
                    end=float(np.mean(y[-2:])),
                    auc=area(x, y),
                    wall_s=all_records[-1]["wall_s"],
                    rank_correlation=mean("credit/rank_correlation"),
                    advantage=mean("credit/advantage_rank_correlation"),
                    score_start=scores[0] if scores else None,
                    score_end=float(np.mean(scores[-2:])) if scores else None,
                    grounding=records[-1].get("eval/executed"),
                    cost=cost(all_records),
                    env_steps=x.tolist(),
                    **{measure: y.tolist()},
                )
            )
    (out / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
    plot_curves(out / "curves.png", {a: c for a, c in curves.items() if c}, x_label="environment steps", y_label=f"held-out {measure}")
    titles = ("arm", "seeds", "start", "end", "area under the curve", "score at the start", "at the end",
              "rank correlation of step rewards", "of advantages", "grounding at the end", "environment steps", "sampled tokens", "replayed steps", "wall s", "area of the first arm less this one")  # fmt: skip
    print(f"| {' | '.join(titles)} |")
    print("|" + "---|" * len(titles))
    for arm in arms:
        mine = [r for r in rows if r["arm"] == arm]
        if not mine:
            continue
        cell = lambda key: interval([r[key] for r in mine if r[key] is not None])
        pairs = [(a["auc"], b["auc"]) for a in mine for b in rows if b["arm"] == arms[0] and b["seed"] == a["seed"]]
        difference = "" if arm == arms[0] else interval([b - a for a, b in pairs], test=True)
        scaled = " | ".join(cell(k) for k in ("start", "end", "auc"))
        details = ("score_start", "score_end", "rank_correlation", "advantage", "grounding")
        quality = " | ".join(cell(k) if mine[0][k] is not None else "–" for k in details)
        spent = " | ".join(f"{np.mean([r['cost'][key] for r in mine]):,.0f}" for key in ("env_steps", "sampled_tokens", "replayed_steps"))
        print(f"| {arm} | {len(mine)} | {scaled} | {quality} | {spent} | {np.mean([r['wall_s'] for r in mine]):.0f} | {difference} |")


def cost(records: list[dict]) -> dict[str, int]:
    """Returns what a run's training episodes cost, those of branches included: each step and token counts once."""
    largest = lambda key: int(max((r[key] for r in records if r.get(key) is not None), default=0))  # of counters, which only grow
    replayed = sum(int(r["rollout/replayed_steps"]) for r in records if r.get("rollout/replayed_steps") is not None)
    return {"env_steps": largest("env_steps"), "sampled_tokens": largest("rollout/sampled_tokens"), "replayed_steps": replayed}


def area(x: np.ndarray, y: np.ndarray) -> float:
    """Returns the mean height of the curve over its range of environment steps."""
    return float(np.trapezoid(y, x) / (x[-1] - x[0])) if len(x) > 1 else float(y[0])


def interval(values: list[float], test: bool = False) -> str:
    """Formats the mean and the half-width of its 95 % t-interval; with `test`, also the two-sided p-value of a zero mean."""
    values = np.asarray(values, float)
    if len(values) < 2:
        return f"{values.mean():.3f}"
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    p = f" (p = {stats.ttest_1samp(values, 0).pvalue:.3f})" if test else ""
    return f"{values.mean():.3f} ± {half:.3f}{p}"


if __name__ == "__main__":
    main()
