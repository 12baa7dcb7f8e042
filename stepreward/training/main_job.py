"""The main job, with display, final table and report."""

from __future__ import annotations

import os
from pathlib import Path

from stepreward import processes
from stepreward.config import clean_config
from stepreward.display import RunDisplay, summary_rows
from stepreward.envs.choosing import environment_module
from stepreward.metrics import is_number, read_metrics
from stepreward.report import write_report
from stepreward.report.tables import estimator_quality, failed_episodes, final_evaluation
from stepreward.training.mixture import views


def use_compilation_cache() -> None:
    """Keeps compiled programs in the user's cache folder, so that only the first run on a machine waits for the compiler.

    The environment variable `JAX_COMPILATION_CACHE_DIR` chooses another folder; an empty value turns the cache off.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        import jax

        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(base / "stepreward" / "jax"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def train(config, workdir: str | Path, quiet: bool = False, stage: str | None = None) -> int:
    """Runs or resumes `workdir`, writes the report and prints the final table.

    If several processes were started, they run together (see `stepreward/processes.py`); only the writer prints and writes the report.

    Args:
      config: see `configs/`.
      workdir: the run's folder.
      quiet: print only the last line.
      stage: run only this stage; see `decisions.STAGES`.

    Returns:
      The exit code: 0.

    Raises:
      UserError, ValueError: the config, the workdir or their content is wrong.
      KeyboardInterrupt: the run was interrupted, after its last finished tick was saved; `Terminated` after SIGTERM.
    """
    use_compilation_cache()
    processes.initialize()
    from stepreward.training.fitting import settle
    from stepreward.training.train import Runner

    clean_config(config)  # calls from Python do not pass the command line's checks
    workdir = Path(workdir)
    config, fitted = settle(config, workdir)
    if not processes.is_writer():
        runner = Runner(config, workdir)
        if runner.finished and stage is None:
            runner.close()
        else:
            runner.run(stage)
        return 0
    display = RunDisplay(quiet=quiet)
    if fitted:
        _say(display, fitted)
    _say(display, f"workdir {workdir}: preparing demonstrations and models")
    runner = Runner(config, workdir, on_tick=lambda runner, metrics: _show(display, runner, metrics))
    if runner.finished and stage is None:
        runner.close()
        report = _report(config, workdir)  # again: the job may have been killed before it wrote the report
        _table(display, workdir, runner.counters.wall_s, report, "This run is already finished")
        _say(display, "give another --workdir for a new run, or a larger --config.train.env_steps to continue this one")
        return 0
    if runner.counters.tick:
        _say(display, f"resuming after tick {runner.counters.tick} ({runner.counters.env_steps:,} environment steps)")
    try:
        with display:
            runner.run(stage)
    except KeyboardInterrupt:
        _say(display, f"stopped after tick {runner.counters.tick}; run the same command again to resume")
        _report(config, workdir)
        raise
    report = _report(config, workdir)
    _table(display, workdir, runner.counters.wall_s, report, "Run finished" if runner.finished else f"Stage {stage} finished")
    if not runner.finished:
        _say(display, f"next: --stage={runner.stage.command}, or the same command without --stage for all remaining stages")
    return 0


def _say(display: RunDisplay, text: str) -> None:
    if not display.quiet:
        display.console.print(text, highlight=False)


def _report(config, workdir: Path) -> Path:
    modules = {view.environment.name: environment_module(view.environment.name) for view in views(config).values()}
    module = next(iter(modules.values())) if len(modules) == 1 else None  # boards of several environments are shown as text
    options = {"board_renderer": module.board_html} if hasattr(module, "board_html") else {}
    return write_report(workdir, **options)


def _show(display: RunDisplay, runner, metrics: dict) -> None:
    words, done, total = runner.progress()
    success = metrics.get("eval/success", metrics.get("rollout/success"))
    names = (
        {"rollout": "rollout", "scoring": "scoring"} | {n: a.title for n, a in runner.learner.auxiliaries.items()} | {"policy": "policy"}
    )
    seconds = {title: metrics[f"time/{name}_s"] for name, title in names.items() if f"time/{name}_s" in metrics}
    display.update(
        stage=words,
        completed=done,
        total=total,
        success=success,
        tokens_per_second=metrics.get("rollout/tokens_per_s"),
        sampled_tokens=metrics.get("rollout/sampled_tokens"),
        seconds=seconds or None,
    )


def _table(display: RunDisplay, workdir: Path, wall_s: float, report: Path, title: str) -> None:
    display.final_table(summary_rows(wall_s=wall_s, report=report, **table_facts(read_metrics(workdir / "metrics.jsonl"))), title)


def table_facts(records: list[dict]) -> dict:
    """Returns the arguments of `summary_rows` that follow from metrics: the final or else the first and last evaluation, and counts.

    Args:
      records: lines of `metrics.jsonl`.
    """
    facts: dict = {"start": None, "end": None}
    final = final_evaluation(records)
    ends = [final["start"], final["end"]] if final else []
    if ends and all(is_number(row.get("episodes")) for row in ends):
        facts["counted"] = "tasks of the final evaluation"
    else:
        evaluated = [r for r in records if r.get("eval/success") is not None]
        ends = [{k.removeprefix("eval/"): v for k, v in r.items() if k.startswith("eval/")} for r in evaluated[:1] + evaluated[-1:]]
    if ends:
        facts |= {k: (round(row["success"] * row["episodes"]), int(row["episodes"])) for k, row in zip(("start", "end"), ends)}
    for name, key in (("grounding", "executed"), ("steps", "steps_per_episode")):
        if ends and all(is_number(row.get(key)) for row in ends):
            facts[name] = tuple(row[key] for row in ends)
    if failed := failed_episodes(records):
        facts["failed"] = failed
    total = lambda *keys: int(sum(r[key] for r in records for key in keys if is_number(r.get(key))))
    cut = total("rollout/too_long", "rollout/row_full"), total("rollout/observations_cut")
    facts |= {"cut": cut} if any(cut) else {}
    found = estimator_quality(records)
    if "mse_of_mean" in found:
        facts["estimator"] = found["mse"], found["mse_of_mean"]
    return facts
