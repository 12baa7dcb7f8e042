"""Compares a pool of processes with running all environments in one process.

    python benchmarks/pool.py                     # 64 environments: overhead, memory, and steps of 10 ms in both pools
    python benchmarks/pool.py --quick             # a smoke test; its figures mean nothing
    python benchmarks/pool.py --environments=16 --busy-ms=50 --json=pool.json

* overhead: rounds in which every environment answers at once; CPU microseconds per call, of this process and of the others.
* memory: of a process with a trivial environment, as proportional set size (a page that n processes share counts 1/n).
* steps that compute for `--busy-ms` of CPU: rounds of the process pool and of the pool in this process, alternately. On an idle
  machine, the ratio of their times is at most the number of cores. On a busy machine it can be larger, because many processes get
  a larger share of the cores than one. So the CPU seconds of the round in one process, its time on an idle machine, are shown, too.

Results on two x86 cores with other load are in docs/environments/pools.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from functools import partial
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

from stepreward.errors import UserError, launcher
from stepreward.rollout.environments import Call, EnvironmentPool
from stepreward.rollout.process_pool import ProcessPool


class Busy:
    """An environment whose step computes for `seconds` of CPU."""

    capabilities = frozenset()

    def __init__(self, seconds: float):
        self._seconds = seconds

    def step(self, action):
        end = time.process_time() + self._seconds
        while time.process_time() < end:
            pass
        return {"text": "a board of some size " * 5}, 0.0, False, False, {"won": False, "score": 0.0, "executed": True}

    def spent(self):
        """Returns the CPU seconds of the environment's process."""
        return time.process_time()

    def memory(self):
        """Returns the (proportional, resident) set size of the environment's process, in bytes."""
        return _memory("smaps_rollup", "Pss:"), _memory("status", "VmRSS:")

    def close(self):
        pass


def overhead(environments: int, rounds: int) -> dict:
    """Measures rounds whose steps do nothing."""
    module = sys.modules[__name__] if __name__ != "__main__" else __import__("pool")  # other processes cannot import the main script
    with ProcessPool(partial(module.Busy, 0.0)) as pool:
        calls = [Call(slot, "step", ("up",)) for slot in range(environments)]
        wall = time.perf_counter()
        pool.call_all(calls)
        start = time.perf_counter() - wall
        spent = [Call(slot, "spent") for slot in range(environments)]
        far = sum(pool.call_all(spent))
        near, walls = time.process_time(), []
        for _ in range(rounds):
            wall = time.perf_counter()
            pool.call_all(calls)
            walls.append(time.perf_counter() - wall)
        near = time.process_time() - near
        far = sum(pool.call_all(spent)) - far
        memory = pool.call_all([Call(slot, "memory") for slot in range(environments)])
    each = rounds * environments
    return {
        "start_seconds": start,
        "round_seconds": statistics.median(walls),
        "near_us": near / each * 1e6,
        "far_us": far / each * 1e6,
        "pss_mb": statistics.median(pss for pss, _ in memory) / 1e6,
        "rss_mb": statistics.median(rss for _, rss in memory) / 1e6,
    }


def gain(environments: int, busy_s: float, repeats: int) -> dict:
    """Measures a round in this process, and in a process pool."""
    module = sys.modules[__name__] if __name__ != "__main__" else __import__("pool")
    times: dict[str, list[float]] = {"inline": [], "inline_cpu": [], "process": []}
    factory = partial(module.Busy, busy_s)
    calls = [Call(slot, "step", ("up",)) for slot in range(environments)]
    with EnvironmentPool(factory) as inline, ProcessPool(factory) as process:
        for repeat in range(repeats + 1):  # the first makes the environments
            for name, pool in (("inline", inline), ("process", process)):
                wall, cpu = time.perf_counter(), time.process_time()
                pool.call_all(calls)
                if repeat and name == "inline":
                    times["inline_cpu"].append(time.process_time() - cpu)
                if repeat:
                    times[name].append(time.perf_counter() - wall)
    median = {f"{name}_seconds": statistics.median(found) for name, found in times.items()}
    ratios = [a / b for a, b in zip(times["inline"], times["process"], strict=True)]
    return median | {"ratio": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environments", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=100, help="rounds for the overhead")
    parser.add_argument("--busy-ms", type=float, default=10.0, help="CPU milliseconds of a step")
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds of each pool with busy steps")
    parser.add_argument("--quick", action="store_true", help="small and fast, as a smoke test")
    parser.add_argument("--json", help="file to write the figures to")
    a = parser.parse_args()
    if a.quick:
        a.environments, a.rounds, a.busy_ms, a.repeats = 2, 2, 1.0, 1
    if min(a.environments, a.rounds, a.repeats) < 1 or a.busy_ms <= 0:
        raise UserError("--environments, --rounds and --repeats must be at least 1, and --busy-ms greater than 0.")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    o = overhead(a.environments, a.rounds)
    print(f"{a.environments} environments on {cores} cores")
    print("  started in {start_seconds:.2f} s; {pss_mb:.1f} MB a process ({rss_mb:.1f} MB resident, mostly shared)".format(**o))
    print("  a call costs {near_us:.0f} µs of CPU here and {far_us:.0f} µs there; a round {round_seconds:.4f} s".format(**o))
    g = gain(a.environments, a.busy_ms / 1e3, a.repeats)
    print(
        f"  steps of {a.busy_ms:g} ms: a round takes {g['inline_seconds']:.3f} s in one process "
        f"({g['inline_cpu_seconds']:.3f} s of CPU), {g['process_seconds']:.3f} s in processes"
    )
    of_cpu = g["inline_cpu_seconds"] / g["process_seconds"]
    print("  processes are {ratio:.2f}× as fast ({least:.2f}–{most:.2f})".format(**g) + f", of CPU seconds {of_cpu:.2f}×")
    if a.json:
        Path(a.json).write_text(json.dumps({"cores": cores, "overhead": o, "gain": g}, indent=2) + "\n", encoding="utf-8")


def _memory(file: str, name: str) -> float:
    try:
        lines = Path(f"/proc/self/{file}").read_text(encoding="ascii").splitlines()
    except OSError:
        return float("nan")
    return next((float(line.split()[1]) * 1024 for line in lines if line.startswith(name)), float("nan"))


if __name__ == "__main__":
    launcher(main)
