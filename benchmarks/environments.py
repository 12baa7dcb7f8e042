"""Measures an environment before training in it: success of its expert and of random play, speed and memory.

    python benchmarks/environments.py --name=sokoban --preset=tiny
    python benchmarks/environments.py --name=sokoban --preset=istar --tasks=100 --split=held_out --set max_steps=20
    python benchmarks/environments.py --name=my_package.my_environment --set data=FOLDER --json=figures.json
    python benchmarks/environments.py --name=sokoban --quick          # a smoke test; its figures mean nothing

* expert: plays the tasks of seeds 0 … tasks − 1 with the actions that `expert()` returns right after reset.
* random: plays the same tasks, with new draws in each repeat. Actions are drawn uniformly from `info["admissible"]`, or, if the
  environment has none, from all actions that its expert took.
* speed, in CPU seconds of this process (other processes do not count, and numeric libraries use one thread): calls of `step` per
  second in random play, as the median and the range of the repeats (for an environment with caches, the first repeat is the
  slowest); median milliseconds of a task's first reset.
* memory: resident set after an episode, of the first environment with its data, and of each of `--extra` further ones.

The last lines printed are the header and the row of a Markdown table.
"""

from __future__ import annotations

import argparse
import ast
import gc
import json
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):  # before numpy is imported
    os.environ.setdefault(_name, "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from stepreward.envs.choosing import environment_module
from stepreward.envs.protocol import ADMISSIBLE, EXPERT, TASKS
from stepreward.errors import UserError, launcher

LONGEST = 10_000  # turns after which an episode is aborted


_BLANK = re.compile(r"<[^<>]+>")


class Player:
    """Plays tasks in one environment.

    Args:
      environment: the environment.
      split: the split of the tasks.
    """

    def __init__(self, environment, split: str):
        self.environment, self._split = environment, split
        self.steps, self.step_s, self.reset_s = 0, 0.0, []

    def play(self, seed: int, choose: Callable[[Mapping[str, Any]], str | None]) -> tuple[bool, float]:
        """Plays one task; `choose(info)` returns the next action, or None to stop. Returns (won, score)."""
        start = time.process_time()
        _, info = self.environment.reset(seed=seed, options={"split": self._split})
        self.reset_s.append(time.process_time() - start)
        for _ in range(LONGEST):
            action = choose(info)
            if action is None:
                break
            start = time.process_time()
            _, _, terminated, truncated, info = self.environment.step(action)
            self.step_s += time.process_time() - start
            self.steps += 1
            if terminated or truncated:
                break
        return bool(info["won"]), float(info["score"])

    def expert(self, seed: int, taken: set[str]) -> tuple[bool, float]:
        """Plays one task with the expert's actions, and adds them to `taken`."""
        plan: list[str] | None = None

        def choose(_):
            nonlocal plan
            if plan is None:
                plan = list(self.environment.expert() or [])
                taken.update(plan)
                plan.reverse()
            return plan.pop() if plan else None

        return self.play(seed, choose)

    def random(self, seed: int, actions: list[str], repeat: int) -> tuple[bool, float]:
        """Plays one task with random actions, drawn from `actions` if the environment lists none."""
        draws = np.random.Generator(np.random.PCG64(np.random.SeedSequence([repeat, seed])))

        def choose(info):
            there = info.get("admissible") or actions
            action = there[int(draws.integers(len(there)))]
            return _BLANK.sub(info.get("task", ""), action)  # fill the blank in search[<your query>] with the task

        return self.play(seed, choose)


def measure(factory: Callable[[], Any], split: str, tasks: int, repeats: int, extra: int) -> dict:
    """Returns all figures of an environment."""
    before = _resident()
    environment = factory()
    player = Player(environment, split)
    able = environment.capabilities
    count = environment.num_tasks(split) if TASKS in able else None
    seeds, taken = range(min(tasks, count or tasks)), set()
    expert = [player.expert(seed, taken) for seed in seeds] if EXPERT in able else []
    if ADMISSIBLE not in able and not taken:
        raise UserError("the environment lists no admissible actions and has no expert, so there are no actions to draw from.")
    actions = sorted(taken)
    gc.collect()
    first = _resident() - before
    rates, random = [], []
    for repeat in range(repeats):
        player.steps, player.step_s = 0, 0.0
        random += [player.random(seed, actions, repeat) for seed in seeds]
        rates.append(player.steps / max(player.step_s, 1e-9))
    gc.collect()
    before = _resident()
    others = [Player(factory(), split) for _ in range(extra)]
    for number, other in enumerate(others):
        other.random(number, actions, repeats)
    gc.collect()
    each = (_resident() - before) / max(1, extra)
    for one in (player, *others):
        one.environment.close()
    return {
        "capabilities": sorted(able),
        "num_tasks": count,
        "tasks": len(seeds),
        "expert": _share(expert),
        "random": _share(random),
        "random_over": "admissible" if ADMISSIBLE in able else f"{len(actions)} of the expert's",
        "turns": player.steps / len(seeds),
        "steps_per_s": _range(rates),
        "reset_ms": statistics.median(player.reset_s[: len(seeds)]) * 1e3,
        "first_mb": first,
        "extra_mb": each,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True, help="the environment: a package in envs/, or a module")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--split", default="train", choices=("train", "held_out"))
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3, help="repeats of the random play")
    parser.add_argument("--extra", type=int, default=8, help="number of further environments whose memory is measured")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the environment")
    parser.add_argument("--quick", action="store_true", help="small and fast, as a smoke test")
    parser.add_argument("--json", help="file to write the figures to")
    a = parser.parse_args()
    if a.quick:
        a.tasks, a.repeats, a.extra = 3, 1, 1
    if min(a.tasks, a.repeats, a.extra) < 1:
        raise UserError(f"--tasks={a.tasks}, --repeats={a.repeats} and --extra={a.extra} must be at least 1.")
    module = environment_module(a.name, "--name")
    figures = measure(module.make(a.preset, **_settings(a.set)), a.split, a.tasks, a.repeats, a.extra)
    count = figures["num_tasks"] or "unlimited"
    print(f"{a.name} {a.preset}, {a.split}: {', '.join(figures['capabilities'])}; num_tasks {count}")
    print(_row(f"{a.name} {a.preset}{''.join(f' {s}' for s in a.set)}", figures))
    if a.json:
        Path(a.json).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def _settings(pairs: list[str]) -> dict:
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise UserError(f"--set {pair!r} does not have the form NAME=VALUE.")
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[name] = value
    return found


def _row(name: str, f: dict) -> str:
    columns = {
        "environment": name,
        "tasks": f"{f['tasks']}",
        "expert": _show(f["expert"]),
        "random": _show(f["random"]),
        "random over": f["random_over"],
        "turns": f"{f['turns']:.1f}",
        "steps/s": "{median:,.0f} ({least:,.0f}–{most:,.0f})".format(**f["steps_per_s"]),
        "reset ms": f"{f['reset_ms']:.2f}",
        "MB first": f"{f['first_mb']:.0f}",
        "MB each": f"{f['extra_mb']:.2f}",
    }
    lines = [list(columns), ["---"] * len(columns), list(columns.values())]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _share(played: list[tuple[bool, float]]) -> dict | None:
    if not played:
        return None
    won, score = zip(*played, strict=True)
    return {"won": sum(won), "of": len(won), "score": statistics.fmean(score)}


def _show(share: dict | None) -> str:
    if share is None:
        return "none"
    return f"{100 * share['won'] / share['of']:.1f}% won, score {share['score']:.3f}"


def _range(values: list[float]) -> dict:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def _resident() -> float:
    """Returns the resident memory of this process in MB; NaN if the system does not report it."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except OSError:
        return float("nan")


if __name__ == "__main__":
    launcher(main)
