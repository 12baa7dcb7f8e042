"""Measures what each credit method costs in one iteration of a preset: environment steps, tokens and models, beside RLOO.

    python experiments/method_costs.py --out=runs/costs
    python experiments/method_costs.py --out=runs/costs --only=vineppo,igpo

Each method runs by its name for one iteration, on an environment that offers what it needs (experiments/method_runs.py), with a short
warm start and a small evaluation; RLOO runs with the same experiment and settings. The script prints a table in Markdown:

* steps: environment steps that were played, branches included, over those of RLOO;
* sampled: tokens of answers that were sampled, over those of RLOO;
* read: tokens of prompts, of earlier conversations that were read again and of answers that were scored, over those of RLOO;
* models: the models that learn or are read beside the policy;
* released variant: whether `variant=released` gives what the public release computes; golden values: the file that tests them.

A finished run is kept in OUT, so an interrupted call can be repeated.
"""

from __future__ import annotations

import sys
from pathlib import Path

import method_runs

from stepreward import credit
from stepreward.config import Option, parse_arguments
from stepreward.errors import UserError, launcher
from stepreward.metrics import read_metrics
from stepreward.training.auxiliaries import AUXILIARIES

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = (
    Option("out", "folder for the runs", default=None),
    Option("only", "comma-separated names of methods (default: all)"),
    Option("preset", "preset of the experiments", default="tiny"),
)
# Warm start, exploration and evaluation are kept short: they are the same for every method.
SHORT = (
    "sft.episodes=200", "sft.updates=40", "train.env_steps=1", "eval.episodes=8", "eval.final_episodes=0",
    "exploration.tasks=16", "exploration.part_tasks=16", "estimator.epochs=1",
)  # fmt: skip
TITLES = ("method", "signals", "models beside the policy", "steps", "sampled", "read", "experiment", "released variant", "golden values")
_GOLDEN = dict.fromkeys(("outcome", "actor_critic", "istar", "gigpo"), "test_credit_golden") | {
    "potentials": "test_credit_spa", "temporal_phasing": "test_task_phasing", **dict.fromkeys(("vineppo", "spo", "trees"), "test_credit_branches"),
}  # fmt: skip
COSTS = {"steps": "env_steps", "sampled": "rollout/sampled_tokens", "read": "rollout/prompt_tokens"}


def main() -> int:
    options = parse_arguments(sys.argv[1:], options=OPTIONS, description=__doc__)
    if not options.out:
        raise UserError("give --out=FOLDER, the folder for the runs")
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    bases: dict[tuple[str, ...], str] = {}
    chosen = options.only.split(",") if options.only else list(credit.names())
    print(f"| {' | '.join(TITLES)} |\n|{'---|' * len(TITLES)}", flush=True)
    for name in chosen:
        method, trained = credit.make(name), out / "trained"
        if method.requires & method_runs.NEEDS_A_RUN:
            run(trained, [method_runs.config_flag("istar_sokoban", options.preset), "--config.credit.method=rloo"])
        flags = method_runs.flags(name, options.preset, str(trained.resolve()))
        base = [flag for flag in flags if not flag.startswith(("--config.credit.method=", "--config.frozen_pair."))]
        place = bases.setdefault(tuple(base), f"rloo_{name}")  # methods with equal settings share it
        mine, other = run(out / name, flags), run(out / place, [*base, "--config.credit.method=rloo"])
        ratios = [f"{mine[key] / other[key]:.2f}" for key in COSTS.values()]
        models = ", ".join(auxiliary.title for auxiliary in AUXILIARIES if auxiliary.wanted(method)) or "–"
        signals = ", ".join(f"`{signal}`" for signal in sorted(method.requires)) or "–"
        released = "yes" if "released" in method.variants else "–"
        cells = [f"`{name}`", signals, models, *ratios, method_runs.experiment(method), released, f"`tests/{golden(method)}.py`"]
        print(f"| {' | '.join(cells)} |", flush=True)
    return 0


def golden(method: credit.Method) -> str:
    """Returns the name of the test file with the method's golden values."""
    module = type(method).__module__.rsplit(".", 1)[-1]
    return "test_filters" if method.filter != "none" else _GOLDEN.get(module, f"test_credit_{module}")


def run(workdir: Path, flags: list[str]) -> dict:
    """Runs one iteration, unless the workdir has it, and returns its metrics.

    Raises:
      UserError: the run failed.
    """
    flags = [*flags, *(f"--config.{key}" for key in SHORT)]
    code, error = method_runs.train(flags, workdir)
    if code:
        raise UserError(f"launch/train.py {' '.join(flags)} --workdir={workdir} failed: {error}")
    return next(record for record in read_metrics(workdir / "metrics.jsonl") if record["stage"] == "train")


if __name__ == "__main__":
    launcher(main)
