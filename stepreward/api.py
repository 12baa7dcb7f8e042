"""The library in a few lines of Python: `stepreward.train` runs an experiment, `stepreward.load` returns a trained agent.

run = stepreward.train("istar_sokoban", env_steps=20_000, workdir="runs/first")
print(run.success)
print(run.agent().play(seed=7))
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from stepreward.agents.agent import Agent, clear_errors
from stepreward.config import clean_config, config_name, leaves, load_config_file, override
from stepreward.errors import UserError, did_you_mean
from stepreward.metrics import Success, read_metrics
from stepreward.training import main_job


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that `train` has ended.

    Attributes:
      workdir: its folder; docs/runs.md lists what it holds.
      success: the success on held-out tasks in the last evaluation; None if there was none.
      start: the same of the first evaluation.
    """

    workdir: Path
    success: Success | None
    start: Success | None

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The measurements of each tick, the lines of `metrics.jsonl`."""
        return read_metrics(self.workdir / "metrics.jsonl")

    @property
    def report(self) -> Path:
        """The file of the report."""
        return self.workdir / "report.html"

    def agent(self, step: int | None = None) -> Agent:
        """The trained agent, from the latest checkpoint or that of the tick `step`."""
        return Agent(self.workdir, step=step)


def train(
    config: str | os.PathLike | ConfigDict,
    *,
    workdir: str | os.PathLike | None = None,
    options: Mapping[str, Any] | None = None,
    stage: str | None = None,
    quiet: bool = False,
    **overrides: Any,
) -> Run:
    """Trains an agent, or resumes the run in `workdir`; the same as `stepreward train`.

    Args:
      config: the name of an installed experiment ("istar_sokoban", or "istar_sokoban:micro" with a preset), a file, or a config.
      workdir: the folder of the run. The same call on the same folder resumes it. By default `runs/NAME`.
      options: keys of the config by their dotted names, such as {"policy.learning_rate": 1e-4}.
      stage: run only this stage: "sft", "explore", "estimator", "preference", "train" or "evaluate".
      quiet: print only the last line.
      **overrides: keys of the config by the last part of their names, such as `env_steps=20_000` for `train.env_steps`, where only one
        key ends so; or a group with a dict, such as `credit={"method": "gigpo"}`.

    Returns:
      The run, with its success on held-out tasks.

    Raises:
      UserError: a key, a value, the config or the workdir is wrong.
      KeyboardInterrupt: the run was interrupted; its last finished tick is saved.
    """
    with clear_errors():
        c = _config(config)
        for key, value in {**_by_name(c, overrides), **(options or {})}.items():
            _override(c, key, value)
        clean_config(c)
        if workdir is None:
            if isinstance(config, ConfigDict):
                raise UserError("workdir is missing: a config that is no file has no name, so name the folder of the run")
            workdir = Path("runs") / config_name(os.fspath(config))
        main_job.train(c, workdir, quiet=quiet, stage=stage)
        facts = main_job.table_facts(read_metrics(Path(workdir) / "metrics.jsonl"))
        return Run(Path(workdir), *(_success(facts.get(name)) for name in ("end", "start")))


def load(source: str | os.PathLike = "sokoban", *, step: int | None = None) -> Agent:
    """Loads a trained agent.

    Args:
      source: the name of an agent that comes with the package (`stepreward.agents.catalogue.shipped`), the workdir of a run, or a folder
        that `stepreward export` wrote. A folder of the name comes first.
      step: of a run, the tick of the checkpoint; None is the latest.

    Raises:
      UserError: there is no such agent, or it cannot be loaded.
    """
    return Agent(source, step=step)


def _config(config: str | os.PathLike | ConfigDict) -> ConfigDict:
    if isinstance(config, ConfigDict):
        return config.copy_and_resolve_references().lock()  # the caller's config is not changed
    if not isinstance(config, (str, os.PathLike)):
        raise UserError(f"config={config!r}: give the name of an experiment, a file, or a ConfigDict")
    return load_config_file(os.fspath(config))


def _by_name(c: ConfigDict, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Returns overrides by dotted key: `env_steps` becomes `train.env_steps`, and a group with a dict becomes its keys."""
    known, found = list(leaves(c)), {}
    for name, value in overrides.items():
        if isinstance(c.get(name), ConfigDict):
            if not isinstance(value, Mapping):
                raise UserError(f"{name}={value!r}: {name} is a group of keys, so give a dict, such as {name}={{{_example(c[name])}}}")
            found |= {f"{name}.{key}": item for key, item in value.items()}
            continue
        keys = [key for key in known if key.rpartition(".")[2] == name]
        if not keys:
            raise UserError(f"the config has no key {name!r}{did_you_mean(name, [key.rpartition('.')[2] for key in known])}")
        if len(keys) > 1:
            raise UserError(f"{name!r} is the name of several keys ({', '.join(keys)}): write options={{{keys[0]!r}: {value!r}}}")
        found[keys[0]] = value
    return found


def _example(group: ConfigDict) -> str:
    return ", ".join(f"{key!r}: …" for key in list(group)[:1])


def _override(c: ConfigDict, key: str, value: Any) -> None:
    """Sets a key to a Python value, with the checks of the command line."""
    value = value.item() if type(value).__module__ == "numpy" and getattr(value, "ndim", 1) == 0 else value
    value = os.fspath(value) if isinstance(value, os.PathLike) else value
    if isinstance(value, float) and value.is_integer() and type(leaves(c).get(key)) is int:
        value = int(value)  # such as 2e5 steps
    override(c, key, value if isinstance(value, str) else repr(value))


def _success(counts: tuple[int, int] | None) -> Success | None:
    return None if counts is None or counts[1] < 1 else Success.of(*counts)
