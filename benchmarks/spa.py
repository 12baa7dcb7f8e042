"""Measures the cost of SPA's estimator and critic: training throughput, and the phases of a PPO iteration.

    python benchmarks/spa.py                # the tiny preset of configs/spa_sokoban.py
    python benchmarks/spa.py --quick        # the micro preset, as a smoke test; its figures mean nothing
    python benchmarks/spa.py --json=spa.json

Estimator: environment steps per second through one update of 16 episodes, compared with the same update whose gradient is computed
over all rows of the mini-batch at once (more memory, one forward pass less).
PPO: median seconds of the phases of an iteration with a separate critic, with a critic on the policy's backbone, and without a
critic (RLOO). Untimed iterations compile each arm first.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from stepreward.config import load_config_file
from stepreward.training import chunks
from stepreward.training.auxiliaries.update import StepOutputs, auxiliary_step
from stepreward.training.minibatches import row_episodes, take_episodes
from stepreward.training.state import apply_gradients, create
from stepreward.training.train import Runner

ARMS = {
    "separate critic": {},
    "shared backbone": {"critic.backbone": "shared"},
    "no critic (RLOO)": {"credit.method": "rloo", "policy.advantage_norm": "centre"},
}
PHASES = ("rollout", "scoring", "critic", "policy")


def make_runner(preset: str, folder: Path, changes: dict) -> Runner:
    """Makes a runner whose stages before reinforcement learning are short."""
    config = load_config_file(f"{ROOT}/configs/spa_sokoban.py:{preset}")
    never = {"eval.episodes": 16, "eval.every": 10**9, "train.env_steps": 10**12, "checkpoint.every": 10**9}
    never["eval.final_episodes"] = 0
    short = {"sft.updates": 20, "sft.log_every": 20, "exploration.tasks": 32, "exploration.part_tasks": 32, "estimator.epochs": 1}
    config.update_from_flattened_dict(never | short | changes)
    return Runner(config, folder)


def iterations(runner: Runner, repeats: int) -> dict[str, float]:
    """Returns the median seconds of each part of an iteration, and of whole iterations."""
    while runner.counters.stage != "train":
        runner.tick()
    times: dict[str, list[float]] = {name: [] for name in (*PHASES, "iteration")}
    steps = []
    for repeat in range(repeats + 2):
        started, before = time.perf_counter(), runner.counters.env_steps
        metrics = runner.stages["train"].tick()
        if repeat >= 2:
            times["iteration"].append(time.perf_counter() - started)
            steps.append(runner.counters.env_steps - before)
            for name in PHASES:
                times[name].append(metrics.get(f"time/{name}_s", 0.0))
    return {name: statistics.median(values) for name, values in times.items()} | {"env_steps": statistics.median(steps)}


@partial(jax.jit, static_argnames=("optimizer", "method", "graphdef", "max_actions"), donate_argnames="state")
def step_in_one_piece(state, batch, *, optimizer, method, graphdef, max_actions):
    """The alternative update: computes the gradient over all rows at once."""
    rows = {name: getattr(batch, name) for name in ("tokens", "positions", "segment_ids", "action_mask")}

    output = lambda params: chunks.head_outputs_of(graphdef, params, rows, max_actions, before=False)

    def loss(params):
        return method.progress_loss(StepOutputs().of_batch(output(params), batch), batch)[0]

    return apply_gradients(state, jax.grad(loss)(state.params), optimizer)


def estimator_steps(runner: Runner, repeats: int) -> dict[str, float]:
    """Returns the environment steps per second through one update, chunk by chunk and in one piece."""
    estimator, layout = runner.learner.auxiliaries["estimator"], runner.learner.layout
    episodes = runner.exploration.read()
    batch = layout.pack(episodes, row_multiple=1)
    size = estimator.c.minibatch_episodes
    part = take_episodes(batch, np.arange(size), layout.row_capacity(size), size, row_episodes(batch))
    placed, steps = layout.place(part), int(part.step_mask.sum())
    passes = {k: v for k, v in layout.passes(estimator.model).items() if k not in ("chunk_rows", "base")}
    common = dict(optimizer=estimator.optimizer, method=estimator.method)
    chunked = dict(name=estimator.name, outputs=StepOutputs())
    arms = {
        "chunked": lambda state: auxiliary_step(state, placed, **chunked, **common, **layout.passes(estimator.model))[0],
        "one piece": lambda state: step_in_one_piece(state, placed, **common, **passes)[0],
    }
    speed = {}
    for name, update in arms.items():
        state, seconds = create(estimator.best, estimator.optimizer), []
        for repeat in range(4 * repeats + 2):
            started = time.perf_counter()
            state = jax.block_until_ready(update(state))
            if repeat >= 2:
                seconds.append(time.perf_counter() - started)
        speed[name] = steps / statistics.median(seconds)
    return speed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the micro preset, one repeat")
    parser.add_argument("--repeats", type=int, default=7, help="timed iterations of each arm; the median counts")
    parser.add_argument("--json", metavar="PATH", help="file to write the figures to")
    options = parser.parse_args()
    preset, repeats = ("micro", 1) if options.quick else ("tiny", options.repeats)
    print(f"{preset} preset, {repeats} repeats, {jax.default_backend()}, {os.cpu_count()} cores")
    arms, speed = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, changes in ARMS.items():
            runner = make_runner(preset, Path(folder) / name.split()[0], changes)
            arms[name] = iterations(runner, repeats)
            if not speed:
                speed = estimator_steps(runner, repeats)
            runner.close()
    print(f"\n{'estimator update':>18} {'env steps/s':>12}")
    for name, value in speed.items():
        print(f"{name:>18} {value:>12,.0f}")
    print(f"chunked / one piece: {speed['chunked'] / speed['one piece']:.2f}×")
    print(f"\n{'seconds an iteration':>22} " + " ".join(f"{n:>9}" for n in (*PHASES, "iteration")) + f" {'env steps':>10}")
    for name, found in arms.items():
        print(f"{name:>22} " + " ".join(f"{found[n]:>9.3f}" for n in (*PHASES, "iteration")) + f" {found['env_steps']:>10,.0f}")
    base = arms["no critic (RLOO)"]
    for name in list(ARMS)[:2]:
        ratio = arms[name]["iteration"] / arms[name]["env_steps"] / (base["iteration"] / base["env_steps"])
        print(f"{name} / no critic, time per environment step: {ratio:.2f}×")
    if options.json:
        figures = {"preset": preset, "repeats": repeats, "backend": jax.default_backend(), "cores": os.cpu_count()}
        figures |= {"jax": jax.__version__, "estimator_steps_per_s": speed, "seconds": arms}
        Path(options.json).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
