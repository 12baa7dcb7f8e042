"""Measures backward transfer between the environments of a mixture: how much training on one changes success on each.

    python experiments/transfer.py --config=configs/omni_three.py --out=runs/transfer --config.train.env_steps=20000
    python experiments/transfer.py --out=runs/transfer --runs=runs/a,runs/b,runs/c      # of finished runs

With --config, one run for each environment j is trained on j alone (mixture.order=sequential, mixture.sequence=j) and evaluated on all of
them, in the folder OUT/j; all runs have the same supervised policy. A run that is finished already is read. --runs names such runs.

The number for i and j is (success on i at the end of the run on j) − (success on i before), both on the same held-out tasks with the same
random draws. OUT/transfer.json holds the matrix, which --config.mixture.order=transfer --config.mixture.transfer=OUT/transfer.json reads,
and the order that forgets least.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from stepreward.config import Option, load_config, parse_arguments, parse_command_line
from stepreward.errors import UserError, launcher
from stepreward.metrics import read_metrics, write_atomically
from stepreward.training.transfer import order_by_transfer, total_transfer

OPTIONS = (Option("out", "folder of the runs and of transfer.json"), Option("runs", "workdirs of finished runs, joined by commas"))


def main() -> int:
    arguments = sys.argv[1:]
    if any(argument.startswith("--config") for argument in arguments):
        c, options = parse_command_line(arguments, extra=OPTIONS, description=__doc__)
    else:
        c, options = None, parse_arguments(arguments, options=OPTIONS, description=__doc__)
    if options.out is None or (c is None) == (options.runs is None):
        raise UserError("give --out=FOLDER, and --config=FILE to train the runs or --runs=A,B,C to read them")
    out = Path(options.out)
    folders = run_all(c, out) if c is not None else [Path(name) for name in options.runs.split(",")]
    found = measure(folders)
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "transfer.json", json.dumps(found, indent=2) + "\n")
    print(table(found["transfer"]))
    print(f"order that forgets least: {', '.join(found['order'])} (total {total_transfer(found['order'], found['transfer']):+.3f})")
    print(f"written to {out / 'transfer.json'}")
    return 0


def run_all(c, out: Path) -> list[Path]:
    """Trains on each environment of the mixture alone, or resumes these runs; returns their folders."""
    from stepreward.training import main_job

    names, folders = sorted(c.mixture.environments.keys()), []
    if len(names) < 2:
        raise UserError("transfer needs at least two environments: set mixture.environments.NAME.KEY")
    for name in names:
        alone = c.copy_and_resolve_references()
        alone.unlock()
        alone.mixture.update({"order": "sequential", "sequence": (name,), "transfer": ""})
        if folders and not alone.stages.sft:
            alone.stages.sft = str(folders[0])
        folders.append(out / name)
        main_job.train(alone.lock(), folders[-1], quiet=True)
    return folders


def measure(folders: list[Path]) -> dict:
    """Reads the matrix from finished runs, each trained on one environment.

    Returns:
      {"transfer": {measured: {trained: change}}, "before": {measured: success before}, "order": the order that forgets least}.

    Raises:
      UserError: a run was trained on several environments or on the same one as another, or has not two evaluations of all.
    """
    columns, before = {}, {}
    for folder in folders:
        sequence = tuple(load_config(folder / "config.json").get("mixture", {}).get("sequence", ()))
        if len(sequence) != 1 or sequence[0] in columns:
            raise UserError(
                f"{str(folder)!r} was trained on {', '.join(sequence) or 'all its environments'}: give one run for each environment"
            )
        records = read_metrics(folder / "metrics.jsonl")
        found = [{m[1]: r[key] for key in r if (m := re.fullmatch(r"eval/(\w+)/success", key))} for r in records]
        found = [each for each in found if each]
        if len(found) < 2:
            raise UserError(f"{str(folder)!r} has {len(found)} evaluations of each environment, and two are needed: finish the run")
        columns[sequence[0]] = {name: found[-1][name] - found[0][name] for name in found[0]}
        before |= {name: value for name, value in found[0].items() if name not in before}
    if missing := sorted(set(before) - set(columns)):
        raise UserError(f"no run was trained on {', '.join(missing)} alone")
    names = sorted(columns)
    transfer = {i: {j: columns[j][i] for j in names} for i in names}
    return {"transfer": transfer, "before": {name: before[name] for name in names}, "order": list(order_by_transfer(names, transfer))}


def table(transfer: dict) -> str:
    """Returns the matrix as text: a row for each environment that was measured, a column for each that was trained on."""
    names = list(transfer)
    width = max(12, *map(len, names)) + 2
    lines = ["measured".ljust(width) + "".join(name.rjust(width) for name in names)]
    return "\n".join(lines + [i.ljust(width) + "".join(f"{transfer[i][j]:+.3f}".rjust(width) for j in names) for i in names])


if __name__ == "__main__":
    launcher(main)
