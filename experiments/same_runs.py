"""Checks that a change of the code changes no run: records the metrics of short runs, and compares them with an earlier record.

    python experiments/same_runs.py --out=before                      # on the old code
    python experiments/same_runs.py --out=after --before=before       # on the changed code
    python experiments/same_runs.py --out=after --before=before --only=istar_sokoban,ppo

There is one run for each experiment in configs/ with a preset `micro`, one for each credit method and variant, and one for each
feature of the trainer that affects its computation (FEATURES). Each run writes OUT/NAME.jsonl, with its metrics except those that
measure time. Existing records are kept, so an interrupted call can be repeated. Two runs are the same if all lines have the same names
and bit-identical numbers. Metrics that only the later run has are listed, but do not count as a difference. The script prints a table,
and exits with 1 if a run differs. Records from different machines, or different versions of jax, need not be equal.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import method_runs
from kill_trial import measured

from stepreward import credit
from stepreward.config import Option, parse_arguments
from stepreward.errors import UserError, launcher

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = (
    Option("out", "folder for the records", default=None),
    Option("before", "folder of the earlier records to compare with"),
    Option("only", "comma-separated names of runs (default: all)"),
    Option("renamed", "renamed metrics and values of text, such as stages, as old=new,old=new"),
)

_TRAINED = "TRAINED"  # stands for the workdir of a finished run, which methods with a frozen pair of policies read
_SPA, _ISTAR = "configs/spa_sokoban.py:micro", "configs/istar_sokoban.py:micro"
# Features that no experiment's micro preset enables: (config, flags).
FEATURES = {
    "adapters": (_ISTAR, ("lora.rank=2", "lora.dropout=0.1", "lora.share_base=False")),
    "adapters_from_the_start": (_SPA, ("lora.rank=2", "lora.sft=True")),
    "prm_warmup_and_replay": (_ISTAR, ("prm.warmup_batches=2", "prm.replay=2", "prm.epochs=2")),
    "prm_resync": (_ISTAR, ("prm.resync=True", "eval.prm_as_policy_every=1")),
    "prm_post": (_ISTAR, ("credit.options.reward_from=post",)),
    "penalties": (_ISTAR, ("policy.kl_coef=0.01", "policy.entropy_coef=0.01", "policy.epochs=2", "policy.stop_kl=0.5")),
    "offline": (_SPA, ("train.mode=offline",)),
    "estimator_refresh": (_SPA, ("estimator.refresh_every=2",)),
    "shared_critic": (_SPA, ("critic.backbone=shared",)),
    "kl_in_the_reward": (_SPA, ("policy.kl_reward_coef=0.01", "policy.kl_reward_target=0.1")),
    "steps_with_history": (_ISTAR, ("rollout.context=step", "rollout.history=2")),
    "packed_rows": (_ISTAR, ("train.pack_rows=True", "policy.aggregation=token-mean")),
    "chunks": (_ISTAR, ("train.chunk_rows=4",)),
}


def runs() -> dict[str, list[str]]:
    """Returns the flags of each run, by name."""
    found = {}
    for path in sorted((ROOT / "configs").glob("[a-z]*.py")):
        if ":micro" in path.read_text(encoding="utf-8"):
            found[path.stem] = [f"--config=configs/{path.name}:micro"]
    for name in credit.names():
        found[f"method_{name}"] = method_runs.flags(name, trained=_TRAINED)
        for variant in credit.make(name).variants:
            if variant != credit.recommended_variant(name):
                found[f"method_{name}_{variant}"] = [*found[f"method_{name}"], f"--config.credit.variant={variant}"]
    for name, (config, flags) in FEATURES.items():
        found[name] = [f"--config={config}", *(f"--config.{flag}" for flag in flags)]
    return found


def main() -> int:
    options = parse_arguments(sys.argv[1:], options=OPTIONS, description=__doc__)
    if not options.out:
        raise UserError("give --out=FOLDER, the folder for the records")
    known = runs()
    chosen = options.only.split(",") if options.only else list(known)
    if unknown := sorted(set(chosen) - set(known)):
        raise UserError(f"--only: unknown run {', '.join(unknown)}; the runs are {', '.join(known)}")
    renamed = dict(pair.split("=", 1) for pair in options.renamed.split(",")) if options.renamed else {}
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    differ = 0
    print("| run | lines | against the record before | new metrics |\n|---|---|---|---|", flush=True)
    for name in chosen:
        path = out / f"{name}.jsonl"
        if not path.exists():
            lines = record(known[name])
            path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        after = read(path)
        verdict, new = "–", set()
        if options.before:
            verdict, new = compare(read(Path(options.before) / f"{name}.jsonl"), after, renamed)
            differ += verdict != "same"
        if "error" in after[0]:
            verdict = f"not run: {after[0]['error']}"
        print(f"| {name} | {len(after)} | {verdict} | {', '.join(sorted(new)) or '–'} |", flush=True)
    return int(differ > 0)


def record(flags: list[str]) -> list[dict]:
    """Returns the metrics of a run, or one line with its error if it failed."""
    with tempfile.TemporaryDirectory() as folder:
        reads = any(flag.endswith(f"={_TRAINED}") for flag in flags)
        wanted = [([f"--config={_ISTAR}"], "trained")] * reads + [(flags, "run")]
        for arguments, name in wanted:
            given = [flag.replace(_TRAINED, f"{folder}/trained") for flag in arguments]
            code, error = method_runs.train(given, Path(folder) / name, JAX_PLATFORMS="cpu")
            if code:
                return [{"exit code": code, "error": error.replace(folder, "FOLDER")}]
        return measured(Path(folder) / "run")


def read(path: Path) -> list[dict]:
    if not path.exists():
        raise UserError(f"there is no record {path}; run the old code with --out={path.parent} first")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def compare(before: list[dict], after: list[dict], renamed: dict[str, str]) -> tuple[str, set[str]]:
    """Returns "same" or the first difference, and the metrics that only the later run has."""
    new = {key for line in after for key in line} - {renamed.get(key, key) for line in before for key in line}
    for number, (old, now) in enumerate(zip(before, after), 1):
        for key, value in old.items():
            name, value = renamed.get(key, key), renamed.get(value, value) if isinstance(value, str) else value
            # Compare as JSON, so that NaN equals NaN; Python's text of a float determines its bits.
            if name not in now or json.dumps(now[name]) != json.dumps(value):
                return f"line {number}: {name} was {value}, is {now.get(name, 'absent')}", new
    if len(before) != len(after):
        return f"{len(before)} lines before, {len(after)} after", new
    return "same", new


if __name__ == "__main__":
    launcher(main)
