"""Evaluates a checkpoint of a workdir, with the same rollout settings as in training."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from stepreward import processes
from stepreward.checkpoint import Checkpoints
from stepreward.config import load_config
from stepreward.errors import UserError
from stepreward.metrics import wilson_interval
from stepreward.models.heads import decoder_of
from stepreward.rollout.episode import ROW_FULL, TOO_LONG, Episode, lost, summary
from stepreward.training import decisions, fitting, setup, streams
from stepreward.training.backbones import Backbone
from stepreward.training.counters import Counters
from stepreward.training.learner import Learner
from stepreward.training.main_job import use_compilation_cache
from stepreward.training.playing import by_environment
from stepreward.training.tasks import held_out

_GROUPS = ("environment", "model", "lora", "mesh", "rollout", "sft", "credit", "policy", "critic", "stages", "checkpoint")


@dataclasses.dataclass
class Played:
    """A model loaded from a checkpoint.

    Attributes:
      config: the run's config.
      parts: the run's parts.
      model, params: the backbone, and the parameters of its decoder.
      path: the Hugging Face model that training started from, as named in the config; "" for random weights.
      step: the tick of the checkpoint.
      counters: the run's counters in the checkpoint.
    """

    config: ConfigDict
    parts: setup.Parts
    model: Backbone
    params: Any
    path: str
    step: int
    counters: dict


def load_checkpoint(workdir: str | Path, step: int | None, which: str) -> Played:
    """Loads a run's policy, PRM or initial policy from a checkpoint.

    Args:
      step: the tick of the checkpoint; None takes the latest.
      which: "policy", "prm" or "initial".

    Raises:
      UserError, FileNotFoundError, ValueError: the workdir or checkpoint is missing, incomplete or lacks this model.
    """
    workdir = Path(workdir)
    config, checkpoints = open_workdir(workdir, step)
    parts = setup.build(config, workdir)
    learner = Learner(config, parts, jax.random.key(config.seed))
    facts = checkpoints.counters(step) if step in (None, *checkpoints.steps()) else None
    start = lambda: decisions.read_start(config, workdir, learner.start)
    if facts is not None:  # `restore` below reports a missing checkpoint
        stages = decisions.reached(Counters.read(facts).stage)
        if which == "initial" and not learner.needs_initial:  # then the initial policy is only in the warm start's output
            learner.take(start())
            learner.reach(stages, lambda: learner.policy.params)
            step = checkpoints.steps()[-1] if step is None else step
            params = decoder_of(learner.policy.params)
            return Played(config, parts, learner.model, params, config.model.path, step, facts["counters"])
        learner.reach(stages, start)
    model, template = _template(which, learner)
    step, tree, facts = checkpoints.restore(template, step)
    params = jax.tree.leaves(tree, is_leaf=lambda x: not isinstance(x, dict))[0]
    own = which == "prm" and model is not learner.model and (config.prm.preset or config.prm.path)
    path = config.prm.path if own else config.model.path
    return Played(config, parts, model, params, path, step, facts["counters"])


def open_workdir(workdir: Path, step: int | None) -> tuple[ConfigDict, Checkpoints]:
    """Opens the workdir of a run for reading.

    Args:
      step: the tick of the checkpoint that is wanted; None is the latest.

    Returns:
      The run's config, with a mesh for the devices of this job, and its checkpoints.

    Raises:
      UserError, FileNotFoundError, ValueError: the workdir or checkpoint is missing or incomplete.
    """
    if not workdir.is_dir():
        raise UserError(f"no workdir {str(workdir)!r}: give the folder that train.py wrote")
    if not (workdir / "config.json").is_file():
        raise UserError(f"{str(workdir)!r} is not the workdir of a run: it has no config.json")
    use_compilation_cache()
    processes.initialize()
    config = load_config(workdir / "config.json")
    absent = [group for group in _GROUPS if group not in config]
    if absent:
        raise UserError(f"{str(workdir / 'config.json')!r} is not the config of a run: it has no {', '.join(absent)}")
    config, spread = fitting.on_fewer_devices(config)
    if spread and processes.is_writer():
        print(spread, file=sys.stderr, flush=True)
    checkpoints = Checkpoints(workdir, read_only=True, folder=config.checkpoint.get("folder", ""))
    checkpoints.find(step)
    _check_whole(config, workdir)
    return config, checkpoints


def _check_whole(c, workdir: Path) -> None:
    """Raises a UserError if the workdir lacks a folder that only a run makes."""
    needed = {"tokenizer": not c.model.path, "demonstrations": not c.model.path or c.sft.updates}
    absent = [name for name, wanted in needed.items() if wanted and not (workdir / name).is_dir()]
    if absent:
        raise UserError(f"workdir {str(workdir)!r} lacks the folder {' and '.join(absent)}: resume the run with train.py to make it again.")


def evaluate_workdir(workdir: str | Path, episodes: int, step: int | None, which: str, seed: int) -> int:
    """Plays `episodes` held-out episodes with a checkpoint's model and prints the success rate with its 95 % interval.

    Args:
      step: the tick of the checkpoint; None takes the latest.
      which: "policy", "prm" or "initial".
      seed: the seed of the sampled answers; it does not change the tasks.

    Returns:
      The exit code: 0.

    Raises:
      UserError, FileNotFoundError, ValueError: an argument is out of range, the workdir or checkpoint cannot be used, or every
        environment failed.
    """
    check_arguments(episodes, seed)
    found = load_checkpoint(workdir, step, which)
    stage, steps = found.counters["stage"], found.counters["env_steps"]
    about = [("workdir", str(workdir)), ("checkpoint", f"{found.step} ({stage}, {steps:,} environment steps), {which}")]
    return evaluate_model(found, about, episodes, seed)


def check_arguments(episodes: int, seed: int) -> None:
    """Raises a UserError if the number of episodes or the seed of an evaluation is out of range."""
    if episodes < 1:
        raise UserError(f"--episodes={episodes}: give at least 1")
    if not 0 <= seed < 2**31:
        raise UserError(f"--seed={seed}: give a whole number from 0 to {2**31 - 1}")


def play_held_out(found: Played, episodes: int, seed: int) -> list[Episode]:
    """Plays the first `episodes` held-out tasks with a loaded model, and closes its environments.

    Args:
      seed: the seed of the sampled answers; it does not change the tasks.

    Returns:
      The episodes; those whose environment failed have a `failure`.

    Raises:
      UserError: every environment failed.
    """
    config, parts = found.config, found.parts
    key = jax.random.fold_in(jax.random.key(config.seed), streams.DEVICE["evaluate"] + seed)
    with parts.collector.pool:
        tasks = held_out(config, parts, episodes)
        played = setup.collector_of(config, parts, found.model).collect(found.model.join(found.params), tasks, key)
    if all(e.failure is not None for e in played):
        raise UserError(f"every environment failed, the first one with: {played[0].failure}")
    return played


def evaluate_model(found: Played, about: Sequence[tuple[str, str]], episodes: int, seed: int) -> int:
    """Plays held-out episodes with a loaded model and prints the success rate with its 95 % interval.

    Args:
      about: rows of (name, text) that are printed above the figures.
      episodes, seed: see `play_held_out`.

    Returns:
      The exit code: 0.
    """
    started, parts = time.monotonic(), found.parts
    if processes.is_writer():
        print(f"choosing and playing {episodes:,} held-out tasks", file=sys.stderr, flush=True)
    played = play_held_out(found, episodes, seed)
    if not processes.is_writer():
        return 0
    good = [e for e in played if e.failure is None]
    won = sum(e.success for e in good)
    low, high = wilson_interval(won, len(good))
    found = summary(good)
    for name, text in about:
        print(f"{name:<11} {text}")
    print(f"success     {100 * won / len(good):.1f} %  (95 % interval {100 * low:.1f} to {100 * high:.1f}, {won} of {len(good)})")
    for name, those in by_environment(parts, good).items() if parts.mixture is not None else ():
        if those:
            low, high = wilson_interval(successes := sum(e.success for e in those), len(those))
            interval = f"95 % interval {100 * low:.1f} to {100 * high:.1f}, {successes} of {len(those)}"
            print(f"  {name:<9} {100 * successes / len(those):.1f} %  ({interval})")
    print(f"score       {found['score']:.3f}")
    print(f"return      {found['return']:.3f} an episode, {found['steps_per_episode']:.1f} steps")
    if len(good) < len(played):
        print(f"failed      {len(played) - len(good)} environments, whose episodes are not counted")
    cut = lost(good)
    for name, key in (("too long", TOO_LONG), ("row full", ROW_FULL)):
        if key in cut:
            print(f"{name:<11} {cut[key]:.0f} episodes ended early for this reason; see the warning")
    if "observations_cut" in cut:
        print(f"cut         {cut['observations_cut']:.0f} prompts have observations that were cut to fit")
    print(f"time        {time.monotonic() - started:.1f} s")
    return 0


def _template(which: str, learner: Learner) -> tuple[Backbone, dict]:
    """Returns the model, and the tree that restores only its decoder's parameters from a checkpoint."""
    policy = decoder_of(learner.policy.params)
    if which == "policy":
        headed = policy is not learner.policy.params
        return learner.model, {"policy": {"params": {"decoder": policy} if headed else policy}}
    if which == "initial":
        return learner.model, {"initial": policy if learner.initial is None else learner.initial}
    found = learner.auxiliaries.get(which)
    model, params = (found.model, found.params) if found is not None and found.begun else (learner.model, policy)
    return model, {which: {"state": {"params": params}}}
