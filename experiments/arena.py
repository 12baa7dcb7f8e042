"""Runs every credit method on every task of the arena, and measures its credit against exact advantages.

    python experiments/arena.py --out=runs/arena            # all of it; on two cores in under an hour
    python experiments/arena.py --out=runs/arena --write    # the same, and writes tables, data and picture into docs/
    python experiments/arena.py --out=runs/arena --optimizer=sgd --write    # some arms and tasks with plain gradient ascent, a few minutes
    python experiments/arena.py --out=runs/quick --quick    # a minute: three arms, two tasks, few seeds

The policy's learning rate of each arm and task is the one of RATES with the highest mean success on tuning seeds, which are no seeds of
the report. Finished rows are read from the CSV files in `--out` and not computed again. One process uses one to two cores.
"""

from __future__ import annotations

import argparse
import csv
import functools
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # tables are too small for an accelerator

import jax
import jax.numpy as jnp
import numpy as np
from pages import replace_parts

from stepreward.arena import exact, learn, measure, tasks
from stepreward.arena.arms import REASONS, Arm, arms, told

ROOT = Path(__file__).resolve().parent.parent
RATES, SGD_RATES = (0.03, 0.1, 0.3, 1.0), (3.0, 10.0, 30.0, 100.0)
ADAM, SGD = learn.Settings(), learn.Settings(optimizer="sgd")
SGD_ARMS = ("oracle", "vineppo", "gigpo", "istar", "grpo", "rloo")
SGD_TASKS = ("key_door_5", "ice", "sokoban", "doors")
SEEDS = 20
TUNING_SEEDS = tuple(tuple(range(first, first + 5)) for first in (1000, 1005, 1010))  # run one after the other, as many lanes as the report
MEASURED = ("key_door_5", "ice")  # tasks on which credit is measured against the exact advantage
AGES = ("start", "half")
QUICK_ARMS, QUICK_TASKS = ("rloo", "istar", "oracle"), ("lock", "key_door_5")
LEARNING = ("task", "arm", "rate", "mean", "half_width", "end", "steps_to", "reached", "collapsed", "steps", "seconds")
CREDIT = (
    "task", "arm", "age", "cosine_of_mean", "bias", "cosine", "noise", "reward_pearson", "reward_spearman", "reward_sign", "reward_top",
    "advantage_pearson", "advantage_spearman", "advantage_sign", "advantage_top", "rloo_update",
)  # fmt: skip
IMPLICIT = ("task", "gradient", "small_step", "adam_step", "rloo_exact", "prm_exact")
PAGE, DATA, PICTURE = ROOT / "docs" / "arena.md", ROOT / "docs" / "data", ROOT / "docs" / "images" / "arena.png"


class Table:
    """Rows in a CSV file, kept as text; a row is found by its first values."""

    def __init__(self, path: Path, titles: tuple[str, ...], keys: int):
        self.path, self.titles, self.keys, self.rows = path, titles, keys, {}
        if path.exists():
            with open(path, newline="", encoding="utf-8") as file:
                self.rows = {tuple(row[title] for title in titles[:keys]): row for row in csv.DictReader(file)}

    def add(self, **row) -> None:
        """Adds a row, and writes all of them."""
        row = {title: f"{row[title]:.4g}" if isinstance(row[title], float) else str(row[title]) for title in self.titles}
        self.rows[tuple(row[title] for title in self.titles[: self.keys])] = row
        self.write(self.path)

    def write(self, path: Path) -> None:
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.titles, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows.values())

    def value(self, *key: str, of: str) -> float:
        """A number of a row; NaN if there is no such row."""
        return float(self.rows[key][of]) if key in self.rows else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/arena")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--write", action="store_true", help="write docs/arena.md, docs/data and docs/images/arena.png")
    parser.add_argument("--optimizer", choices=("adam", "sgd"), default="adam", help="of the policy")
    options = parser.parse_args()
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    known, chosen = arms(), list(tasks.names())
    if options.optimizer == "sgd":
        return with_sgd(Table(out / "arena_sgd.csv", LEARNING, 2), known, options.write)
    if options.quick:
        known, chosen = {name: known[name] for name in QUICK_ARMS}, list(QUICK_TASKS)
    learning, quality = Table(out / "arena.csv", LEARNING, 2), Table(out / "arena_credit.csv", CREDIT, 3)
    implicit = Table(out / "arena_implicit.csv", IMPLICIT, 1)
    compare_updates(implicit, chosen)
    for name, arm in known.items():
        for task in sorted(chosen, key=lambda task: tasks.make(task).max_steps):  # tasks of one shape share a program
            train(learning, arm, task, seeds=SEEDS)
        for task in chosen:
            if task in MEASURED:
                assess(quality, arm, task, batches=5 if options.quick else 20)
        means = [learning.value(task, name, of="mean") for task in chosen]
        print(f"{name}: mean success {', '.join(f'{task} {mean:.2f}' for task, mean in zip(chosen, means))}", flush=True)
        learn.compiled.clear_cache()
    if options.write:
        write(learning, quality, implicit, list(known), chosen)


def with_sgd(table: Table, known: dict[str, Arm], writes: bool) -> None:
    """Trains some arms on some tasks by plain gradient ascent."""
    for name in SGD_ARMS:
        for task in SGD_TASKS:
            train(table, known[name], task, SEEDS, SGD, SGD_RATES)
        print(name, [table.rows[task, name]["mean"] for task in SGD_TASKS], flush=True)
        learn.compiled.clear_cache()
    if writes:
        DATA.mkdir(exist_ok=True)
        table.write(DATA / table.path.name)
        replace_parts(PAGE, {"sgd": success_table(table, by_mean(table, SGD_ARMS, SGD_TASKS), list(SGD_TASKS), reasons=False)})


def train(table: Table, arm: Arm, task_name: str, seeds: int, settings: learn.Settings = ADAM, grid: tuple[float, ...] = RATES) -> None:
    """Adds the learning of an arm on a task: the rate is chosen on tuning seeds."""
    if (task_name, arm.name) in table.rows:
        return
    started, task = time.monotonic(), tasks.make(task_name)
    best, half, _ = facts(task_name)
    policies = learn.Policies(jnp.zeros_like(half), jnp.zeros_like(half), half)
    go = lambda rates, seeds: learn.run(
        arm,
        settings,
        task,
        policies,
        np.float32(rates),
        np.minimum(np.float32(rates), 0.1 if settings.optimizer == "sgd" else np.inf),
        np.asarray(seeds),
    )
    rate = choose_rate(go, grid)
    found = go(np.full(seeds, rate), np.arange(seeds))
    success, cost = np.asarray(found.success), np.asarray(found.cost)
    reached = measure.steps_to(success, cost, measure.LEVEL * best)
    table.add(
        task=task_name,
        arm=arm.name,
        rate=rate,
        mean=float(success.mean()),
        half_width=measure.interval(success.mean(axis=1)),
        end=float(success[:, -1].mean()),
        steps_to=float(np.median(reached)),
        reached=float(np.isfinite(reached).mean()),
        collapsed=float(measure.collapsed(success, best).mean()),
        steps=float(cost.sum(axis=1).mean()),
        seconds=time.monotonic() - started,
    )


def choose_rate(go: Callable, grid: tuple[float, ...]) -> float:
    """The rate of the grid with the highest mean success on the tuning seeds; `go(rates, seeds)` runs one lane for each."""
    tuning = [go(np.repeat(grid, len(few)), np.tile(few, len(grid))).success for few in TUNING_SEEDS]
    means = np.mean([np.asarray(success).reshape(len(grid), -1).mean(axis=1) for success in tuning], axis=0)
    return grid[int(means.argmax())]


@functools.cache
def facts(task_name: str) -> tuple[float, jax.Array, tuple[jax.Array, jax.Array]]:
    """The best success of a task, a half-trained policy, and the exact gradients at the uniform policy and at that one."""
    task = tasks.make(task_name)
    half = measure.half_trained(task)
    gradient = jax.jit(exact.policy_gradient)
    return measure.best_success(task), half, (gradient(task, jnp.zeros_like(half)), gradient(task, half))


def assess(table: Table, arm: Arm, task_name: str, batches: int) -> None:
    """Adds the quality of an arm's credit at the uniform policy and at a half-trained one."""
    task = tasks.make(task_name)
    _, half, gradients = facts(task_name)
    for age, logits, truth in zip(AGES, (jnp.zeros_like(half), half), gradients):
        if (task_name, arm.name, age) in table.rows:
            continue
        record = measure.at_policy(arm, task, logits, half, 0.1, batches=batches)
        flat = lambda x: np.asarray(x).reshape(-1, x.shape[-1])
        update = measure.step_quality(flat(record.step_reward), flat(record.new_log_ratio), flat(record.mask))["pearson"]
        table.add(task=task_name, arm=arm.name, age=age, rloo_update=update, **measure.credit_quality(record, truth))


def compare_updates(table: Table, chosen: list[str]) -> None:
    """Adds how a synchronised PRM's log-ratio and RLOO's update agree, as the mean over batches at a half-trained policy."""
    for name in chosen:
        if (name,) not in table.rows:
            task = tasks.make(name)
            found = jax.vmap(lambda seed, task=task: measure.implicit_update(task, facts(name)[1], seed))(np.arange(200))
            table.add(task=name, **{key: float(np.nanmean(np.asarray(value))) for key, value in found.items()})


# --- The page ---


def write(learning: Table, quality: Table, implicit: Table, names: list[str], chosen: list[str]) -> None:
    """Writes the tables between their marks in docs/arena.md, the data and the picture."""
    DATA.mkdir(exist_ok=True)
    for table in (learning, quality, implicit):
        table.write(DATA / table.path.name)
    ranked = by_mean(learning, names, chosen)
    draw(learning, ranked, chosen)
    parts = {
        "tasks": "| task | kind of credit problem | start | best |\n|---|---|---|---|\n" + "".join(map(_task_row, chosen)),
        "success": success_table(learning, ranked, chosen),
        "details": details_table(learning, ranked, chosen),
        "credit": credit_table(quality, ranked, "key_door_5"),
        "noisy": credit_table(quality, ranked, "ice"),
        "implicit": implicit_table(implicit, chosen),
    }
    replace_parts(PAGE, parts)


def by_mean(learning: Table, names: Sequence[str], chosen: Sequence[str]) -> list[str]:
    """The arms by falling mean success over tasks."""
    return sorted(names, key=lambda name: -np.mean([learning.value(task, name, of="mean") for task in chosen]))


def _task_row(name: str) -> str:
    task = tasks.make(name)
    uniform = jnp.log(jnp.full(task.next_state.shape[:2], 0.25))
    return f"| `{name}` | {tasks.TASKS[name].kind} | {float(exact.success(task, uniform)):.3f} | {measure.best_success(task):.2f} |\n"


def success_table(learning: Table, names: list[str], chosen: list[str], reasons: bool = True) -> str:
    head = f"| arm | mean | {' | '.join(f'`{task}`' for task in chosen)} |\n|---|---|{'---|' * len(chosen)}\n"
    rows = []
    for name in names:
        values = [learning.value(task, name, of="mean") for task in chosen]
        half = [learning.value(task, name, of="half_width") for task in chosen]
        rows.append(f"| {name} | {np.mean(values):.3f} | {' | '.join(f'{v:.2f} ± {h:.2f}' for v, h in zip(values, half))} |\n")
    rows += [f"| {name} | – | {reason} |\n" for name, reason in REASONS.items() if reasons]
    return head + "".join(rows)


def details_table(learning: Table, names: list[str], chosen: list[str]) -> str:
    """For each arm: where it is above or below RLOO by more than the intervals, steps, collapse, cost, rates, and what it knows."""
    head = "| arm | tasks above / below `rloo` | steps to 80 % | not reached | collapsed | steps of a run | rates | knows beside its episodes |\n"
    head += "|---|---|---|---|---|---|---|---|\n"
    known, rows = arms(), []
    for name in names:
        signs = [apart(learning, task, name) for task in chosen]
        ratio = [learning.value(task, name, of="steps_to") / learning.value(task, "rloo", of="steps_to") for task in chosen]
        cost = np.mean([learning.value(task, name, of="steps") / learning.value(task, "rloo", of="steps") for task in chosen])
        lost = 1 - np.mean([learning.value(task, name, of="reached") for task in chosen])
        broken = np.mean([learning.value(task, name, of="collapsed") for task in chosen])
        rates = sorted({learning.value(task, name, of="rate") for task in chosen})
        span = f"{rates[0]:g}–{rates[-1]:g}" if len(rates) > 1 else f"{rates[0]:g}"
        middle = np.nanmedian(ratio)
        times = f"{middle:.2f} ×" if np.isfinite(middle) else "never"
        rows.append(
            f"| {name} | {signs.count(1)} / {signs.count(-1)} | {times} | {lost:.0%} | {broken:.0%} | {cost:.2f} × | {span} "
            f"| {told(known[name]) or '–'} |\n"
        )
    return head + "".join(rows)


def apart(learning: Table, task: str, name: str) -> int:
    """1 or −1 if an arm's mean success is above or below RLOO's by more than the interval of the difference, else 0."""
    difference = learning.value(task, name, of="mean") - learning.value(task, "rloo", of="mean")
    half = np.hypot(learning.value(task, name, of="half_width"), learning.value(task, "rloo", of="half_width"))
    return int(np.sign(difference)) if abs(difference) > half else 0


def credit_table(quality: Table, names: list[str], task: str) -> str:
    columns = {
        "cosine of the mean gradient": "cosine_of_mean", "cosine of one batch": "cosine", "noise": "noise", "reward: Pearson": "reward_pearson",
        "Spearman": "reward_spearman", "sign": "reward_sign", "top step": "reward_top", "advantage: Pearson": "advantage_pearson",
        "Spearman ": "advantage_spearman", "sign ": "advantage_sign", "top step ": "advantage_top",
    }  # fmt: skip
    head = f"| arm | {' | '.join(title.strip() for title in columns)} |\n|---|{'---|' * len(columns)}\n"
    rows = []
    for name in names:
        cells = [" / ".join(_short(quality.value(task, name, age, of=key)) for age in AGES) for key in columns.values()]
        rows.append(f"| {name} | {' | '.join(cells)} |\n")
    return head + "".join(rows)


def implicit_table(implicit: Table, chosen: list[str]) -> str:
    head = "| task | cosine of the gradients | correlation after a small step | after a step of Adam | RLOO's advantage with A | PRM's log-ratio with A |\n"
    row = lambda task: " | ".join(f"{implicit.value(task, of=key):.3f}" for key in IMPLICIT[1:])
    return head + "|---|---|---|---|---|---|\n" + "".join(f"| `{task}` | {row(task)} |\n" for task in chosen)


def _short(value: float) -> str:
    return "–" if np.isnan(value) else "∞" if np.isinf(value) else f"{value:.0f}" if abs(value) >= 10 else f"{value:.2f}"


def draw(learning: Table, names: list[str], chosen: list[str]) -> None:
    """A picture of all arms and tasks: the mean success of the run, less that of RLOO."""
    from matplotlib.figure import Figure

    base = np.array([learning.value(task, "rloo", of="mean") for task in chosen])
    value = np.array([[learning.value(task, name, of="mean") for task in chosen] for name in names])
    figure = Figure(figsize=(1.6 + 0.72 * len(chosen), 1.6 + 0.235 * len(names)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(value - base, cmap="RdBu", vmin=-0.3, vmax=0.3, aspect="auto")
    for row, column in np.ndindex(value.shape):
        dark = abs(value[row, column] - base[column]) > 0.18
        axes.text(column, row, f"{value[row, column]:.2f}", ha="center", va="center", fontsize=7, color="white" if dark else "black")
    axes.set_xticks(range(len(chosen)), chosen, rotation=40, ha="right", fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.tick_params(length=0)
    axes.set_title("Mean success over a run of 60 iterations; colour: difference from rloo", fontsize=9)
    figure.colorbar(image, ax=axes, shrink=0.5, pad=0.01)
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=110)


if __name__ == "__main__":
    main()
