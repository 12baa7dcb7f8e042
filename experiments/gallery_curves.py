"""Measures a learning curve of every credit method in the arena, for the pictures of the method gallery.

    python experiments/gallery_curves.py --out=runs/gallery            # a few minutes on two cores
    python experiments/gallery_curves.py --out=runs/gallery --write    # the same, and writes docs/data/arena_curves.csv

Each method uses the learning rate that `docs/data/arena.csv` has for it, and the seeds of the arena's report. Finished rows are read from
`--out` and not computed again. `experiments/gallery.py` draws the pictures.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from arena import ADAM, DATA, SEEDS, facts

from stepreward import credit
from stepreward.arena import learn, measure, tasks
from stepreward.arena.arms import arms

TASKS = ("key_door_5", "ice")
EVERY = 3  # iterations between two points of a curve
TITLES = ("task", "arm", "steps", "success", "half_width")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/gallery")
    parser.add_argument("--write", action="store_true", help="write docs/data/arena_curves.csv")
    options = parser.parse_args()
    path = Path(options.out) / "arena_curves.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = read(path) if path.exists() else []
    known = arms()
    for name in credit.names():
        for task in TASKS:
            if name in known and not any((row["task"], row["arm"]) == (task, name) for row in rows):
                rows += curve(known[name], task)
                write(path, rows)
        learn.compiled.clear_cache()
        print(name, flush=True)
    if options.write:
        write(DATA / path.name, sorted(rows, key=lambda row: (row["task"], row["arm"])))  # stable: points keep their order


def curve(arm, task_name: str) -> list[dict[str, str]]:
    """The points of one curve: environment steps (branches included) and exact success, both as means over seeds."""
    task, half = tasks.make(task_name), facts(task_name)[1]
    policies = learn.Policies(jnp.zeros_like(half), jnp.zeros_like(half), half)
    rates = np.full(SEEDS, rate(task_name, arm.name), np.float32)
    found = learn.run(arm, ADAM, task, policies, rates, rates, np.arange(SEEDS))
    success, cost = np.asarray(found.success), np.asarray(found.cost)
    before = np.concatenate([[0.0], cost.mean(axis=0).cumsum()[:-1]])
    points = sorted({*range(0, success.shape[1], EVERY), success.shape[1] - 1})
    return [
        {
            "task": task_name,
            "arm": arm.name,
            "steps": f"{before[at]:.0f}",
            "success": f"{success[:, at].mean():.4f}",
            "half_width": f"{measure.interval(success[:, at]):.4f}",
        }
        for at in points
    ]


def rate(task: str, arm: str) -> float:
    """The learning rate that the arena chose for this arm on this task."""
    (found,) = [row for row in read(DATA / "arena.csv") if (row["task"], row["arm"]) == (task, arm)]
    return float(found["rate"])


def read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: list[dict[str, str]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, TITLES, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
