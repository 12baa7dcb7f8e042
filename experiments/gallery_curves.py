"""Measures a learning curve of every credit method in the arena, for the pictures of the method gallery.

    python experiments/gallery_curves.py --out=runs/gallery            # a few minutes on two cores
    python experiments/gallery_curves.py --out=runs/gallery --write    # the same, and writes docs/data/arena_curves.csv

Each method uses the learning rate that `docs/data/arena.csv` has for it, and the seeds of the arena's report. Finished rows are read from
`--out` and not computed again. `experiments/gallery.py` draws the pictures.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from arena import ADAM, DATA, LEARNING, SEEDS, Table, facts

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
    table = Table(path, TITLES, 3)
    known = arms()
    for name in credit.names():
        for task in TASKS:
            if name in known and not any(key[:2] == (task, name) for key in table.rows):
                table.rows |= {(task, name, row["steps"]): row for row in curve(known[name], task)}
                table.write(path)  # whole curves only, so that an interrupted one is computed again
        learn.compiled.clear_cache()
        print(name, flush=True)
    if options.write:
        table.rows = dict(sorted(table.rows.items(), key=lambda item: item[0][:2]))  # stable: points keep their order
        table.write(DATA / path.name)


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
    return float(Table(DATA / "arena.csv", LEARNING, 2).rows[task, arm]["rate"])


if __name__ == "__main__":
    main()
