"""Takes iStar apart in the arena: which of its parts helps, which hurts, and what its step rewards know while the policy learns.

    python experiments/arena_istar.py --out=runs/arena            # a few minutes on one core
    python experiments/arena_istar.py --out=runs/arena --write    # the same, and writes the table and the data into docs/

Each variant differs from the paper's method in what its name says. Rates and seeds are chosen as in experiments/arena.py. The correlations are
those of one batch, as the mean over all batches of the 20 runs in which they are defined.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import arena
import jax.numpy as jnp
import numpy as np
from pages import replace_parts

from stepreward import credit
from stepreward.arena import learn, measure, tasks
from stepreward.arena.arms import Arm

TASKS = ("key_door_5", "ice", "sokoban")
TITLES = ("task", "variant", "rate", "mean", "half_width", "reward_exact", "advantage_exact", "reward_update")
PAPER = Arm("paper", credit.make("istar"), prm_resync=False, prm_replay=0)


def changed(name: str, **options) -> Arm:
    """The paper's method with other options of the method, or of the arm."""
    of_arm = {key: options.pop(key) for key in list(options) if key.startswith("prm_") and key != "prm_objective"}
    return dataclasses.replace(PAPER, name=name, method=credit.make("istar", **options), **of_arm)


VARIANTS = (
    Arm("rloo", credit.make("rloo")),
    PAPER,
    changed("paper, α = 0.3", alpha=0.3),
    changed("paper, rewards shuffled within episodes", step_reward="shuffled"),
    changed("centred in place of z-scored, β = 1", step_advantage="centre", beta=1.0),
    changed("PRM synchronised", prm_resync=True),
    changed("PRM synchronised, 5 batches replayed", prm_resync=True, prm_replay=5),
    changed("PRM synchronised, 5 batches replayed, centred, β = 1", prm_resync=True, prm_replay=5, step_advantage="centre", beta=1.0),
    changed("5 batches replayed", prm_replay=5),
    changed("the same, reference: the first policy", prm_replay=5, reference="initial"),
    Arm("stable (the default)", credit.make("istar", variant="stable")),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/arena")
    parser.add_argument("--write", action="store_true", help="write docs/arena.md and docs/data")
    options = parser.parse_args()
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    table = arena.Table(out / "arena_istar.csv", TITLES, 2)
    for arm in VARIANTS:
        for task in TASKS:
            if (task, arm.name) not in table.rows:
                table.add(task=task, variant=arm.name, **train(arm, task))
        print(arm.name, [table.rows[task, arm.name]["mean"] for task in TASKS], flush=True)
        learn.compiled.clear_cache()
    if options.write:
        arena.DATA.mkdir(exist_ok=True)
        table.write(arena.DATA / table.path.name)
        replace_parts(arena.PAGE, {"istar": as_markdown(table)})


def train(arm: Arm, task_name: str) -> dict[str, float]:
    """The learning of a variant on a task, and the correlations of its credit on the way."""
    task, settings = tasks.make(task_name), learn.Settings(record=True)
    _, half, _ = arena.facts(task_name)
    policies = learn.Policies(jnp.zeros_like(half), jnp.zeros_like(half), half)
    go = lambda rates, seeds: learn.run(arm, settings, task, policies, np.float32(rates), np.float32(rates), np.asarray(seeds))
    rate = arena.choose_rate(go, arena.RATES)
    found = go(np.full(arena.SEEDS, rate), np.arange(arena.SEEDS))
    mean = np.asarray(found.success).mean(axis=1)
    record = found.record
    return {
        "rate": rate,
        "mean": float(mean.mean()),
        "half_width": measure.interval(mean),
        "reward_exact": correlation(record.step_reward, record.exact, record.mask),
        "advantage_exact": correlation(record.step_advantage, record.exact, record.mask),
        "reward_update": correlation(record.step_reward, record.new_log_ratio, record.mask),
    }


def correlation(x, y, mask) -> float:
    """The mean over batches of Pearson's correlation over their steps; batches in which one side is constant are left out."""
    x, y, mask = (np.asarray(a, np.float64) for a in (x, y, mask))
    over = lambda a: (a * mask).sum(axis=(2, 3))
    count = np.maximum(over(np.ones_like(x)), 1)
    centred = lambda a: a - (over(a) / count)[..., None, None]
    x, y = centred(x), centred(y)
    size = np.sqrt(over(x * x) * over(y * y))
    defined = size > 1e-9
    return float((over(x * y)[defined] / size[defined]).mean()) if defined.any() else float("nan")


def as_markdown(table: arena.Table) -> str:
    titles = ("mean success", "step reward with A", "advantage with A", "step reward with RLOO's update")
    head = f"| variant | {' | '.join(titles)} |\n|---|{'---|' * len(titles)}\n"
    rows = []
    for arm in VARIANTS:
        of = lambda key, arm=arm: [table.value(task, arm.name, of=key) for task in TASKS]
        success = ", ".join(f"{m:.2f} ± {h:.2f}" for m, h in zip(of("mean"), of("half_width")))
        cells = [", ".join(f"{value:.2f}" for value in of(key)) for key in ("reward_exact", "advantage_exact", "reward_update")]
        rows.append(f"| {arm.name} | {success} | {' | '.join(cells)} |\n")
    return head + "".join(rows)


if __name__ == "__main__":
    main()
