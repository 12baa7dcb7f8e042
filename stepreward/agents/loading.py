"""Loads an agent with the models that its credit method needs."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from stepreward.agents import catalogue
from stepreward.agents.catalogue import Place
from stepreward.checkpoint import Checkpoints
from stepreward.envs.protocol import TRANSITIONS
from stepreward.models import hugging_face
from stepreward.models.heads import decoder_of
from stepreward.training import decisions, setup
from stepreward.training.auxiliaries.exact import Exact
from stepreward.training.counters import Counters
from stepreward.training.evaluate import Played, load_checkpoint, open_workdir
from stepreward.training.learner import Learner
from stepreward.training.main_job import use_compilation_cache
from stepreward.training.minibatches import round_up
from stepreward.training.state import TrainState

_ROWS = 256  # rows that a model scores at once, at most
_SMALL = 2_000_000  # parameters


def parameter_count(params) -> int:
    """The number of parameters in a tree."""
    return sum(x.size for x in jax.tree.leaves(params))


@dataclasses.dataclass
class Loaded:
    """An agent that can play, and whose episodes can be credited.

    Attributes:
      config: the config of its run, with one group of tasks an iteration.
      learner: its models.
      facts: the content of `stepreward.json`; for a run, what a checkpoint says of itself.
      uncredited: why the credit method cannot be computed; "" if it can.
      small: whether compiling the models' programs takes longer than running them.
    """

    config: ConfigDict
    learner: Learner
    facts: dict[str, Any]
    uncredited: str = ""

    @property
    def small(self) -> bool:
        return jax.default_backend() == "cpu" and parameter_count(self.learner.policy.params) < _SMALL


def load(place: Place, step: int | None = None) -> Loaded:
    """Loads an agent to play one task at a time.

    Args:
      place: where it is.
      step: of a run, the tick of the checkpoint; None is the latest.

    Raises:
      UserError, FileNotFoundError, ValueError: the folder, the workdir or the checkpoint cannot be used.
    """
    return _of_run(place.path, step) if place.kind == "run" else _of_folder(place.path)


def load_player(place: Place, which: str = "policy", step: int | None = None) -> Played:
    """Loads one model of an agent to play many tasks at once, with the settings of its run; see `load_checkpoint`."""
    if place.kind == "run":
        return load_checkpoint(place.path, step, which)
    facts, config = _read(place.path)
    if which == catalogue.PRM:
        config.model.path = str(place.path / catalogue.PRM)
    parts = setup.build(config, place.path)
    learner = Learner(config, parts, jax.random.key(config.seed))
    params = decoder_of(learner.policy.params)
    return Played(config, parts, learner.model, params, config.model.path, int(facts.get("tick", 0)), facts.get("counters", {}))


def _read(folder: Path) -> tuple[dict[str, Any], ConfigDict]:
    """Reads the facts of an agent's folder, and the config of a run that starts from its model."""
    use_compilation_cache()
    facts = catalogue.read_facts(folder)
    config = catalogue.config_of(facts)
    config.model.path, config.model.preset = str(folder), "checkpoint"
    config.lora.rank, config.sft.updates = 0, 0  # adapters are merged; nothing is imitated
    config.mesh.update({"data": 1, "fsdp": 1, "tensor": 1, "fit": ()})
    if config.prm.preset:  # the PRM has a shape of its own
        kept = (folder / catalogue.PRM).is_dir()
        config.prm.update({"preset": "checkpoint", "path": str(folder / catalogue.PRM)} if kept else {"preset": "", "path": ""})
    return facts, config


def _alone(config: ConfigDict) -> ConfigDict:
    """Returns a copy of a config for one group of episodes at a time: with few rows, programs compile and run fast."""
    c = config.copy_and_resolve_references()
    with c.unlocked():
        c.rollout.groups, c.rollout.ahead, c.train.mode = 1, 0, "online"
        parts = c.mesh.data * c.mesh.fsdp
        c.rollout.max_rows = round_up(c.rollout.group_size, parts)
        rows = c.rollout.group_size * (c.rollout.max_steps if c.rollout.context == "step" else 1)
        c.train.chunk_rows = min(c.train.chunk_rows, round_up(rows, parts), max(parts, _ROWS))
        c.policy.kl_coef = 0.0  # nothing is trained
        c.prm.replay = 0
        c.credit.exact = False
    return c


def _with_exact(config: ConfigDict, parts: setup.Parts) -> None:
    """Asks for exact advantages where the environment knows its transitions and the prompt shows the whole state."""
    if parts.mixture is not None or TRANSITIONS not in parts.collector.pool.capabilities() or parts.collector.reader is not None:
        return
    try:
        Exact.check(config, parts.method)
    except ValueError:
        return
    with config.unlocked():
        config.credit.exact = True


def _of_folder(folder: Path) -> Loaded:
    facts, config = _read(folder)
    config = _alone(config)
    parts = setup.build(config, folder)
    _with_exact(config, parts)
    with _shapes_first(config, parts):
        learner = Learner(config, parts, jax.random.key(config.seed))
        learner.begin_rl()
    read = lambda folder, model: learner.layout.place_parameters(hugging_face.load_params(folder, model.config, mesh=model.config.mesh))
    learner.policy = learner.policy.replace(params=read(folder, learner.model))
    lacking = ["the policy before reinforcement learning"] if "log_prob_initial" in parts.method.requires else []
    for name, auxiliary in list(learner.auxiliaries.items()):
        if name == catalogue.PRM and (folder / catalogue.PRM).is_dir():
            auxiliary.state = auxiliary.state.replace(params=read(folder / catalogue.PRM, auxiliary.model))
        elif auxiliary.trains:
            lacking.append(f"the {auxiliary.title}")
            del learner.auxiliaries[name]
    return Loaded(config, learner, facts, f"the folder does not hold {' and '.join(lacking)}" if lacking else "")


def _of_run(workdir: Path, step: int | None) -> Loaded:
    saved, checkpoints = open_workdir(workdir, step)
    config = _alone(saved)
    parts = setup.build(config, workdir)
    _with_exact(config, parts)
    step = checkpoints.find(step)
    facts = checkpoints.counters(step)
    counters = Counters.read(facts)
    with _shapes_first(config, parts):
        learner = Learner(config, parts, jax.random.key(config.seed))
        learner.reach(decisions.reached(counters.stage), lambda: decisions.read_start(saved, workdir, learner.start))
    learner.open()
    _restore(learner, checkpoints, step, facts["learner"])
    asleep = [auxiliary.title for auxiliary in learner.auxiliaries.values() if not auxiliary.begun]
    why = f"the {' and the '.join(asleep)} of this run has not begun to learn" if asleep else ""
    untaught = not counters.iteration and any(found.trains and found.stage == "train" for found in learner.auxiliaries.values())
    if not learner.reinforcing or untaught:
        why = "reinforcement learning has not begun in this run"
        learner.auxiliaries = {name: found for name, found in learner.auxiliaries.items() if isinstance(found, Exact)}
        for auxiliary in learner.auxiliaries.values():
            auxiliary.begin(learner.model, learner.policy.params)
    learner.auxiliaries = {name: found for name, found in learner.auxiliaries.items() if found.begun}
    return Loaded(config, learner, {"tick": step, "counters": facts["counters"], "stated": None}, why)


@contextlib.contextmanager
def _shapes_first(config: ConfigDict, parts: setup.Parts) -> Iterator[None]:
    """Builds models as shapes, where a file has all of their numbers: nothing is initialised at random and compiled in vain."""
    parts.abstract = not config.lora.rank and not config.get("frozen_pair", {}).get("trained")
    try:
        yield
    finally:
        parts.abstract = False


def _restore(learner: Learner, checkpoints: Checkpoints, step: int, facts: dict) -> None:
    """Restores the parameters of all models from a checkpoint, without optimizers and replayed batches."""
    begun = {name: auxiliary for name, auxiliary in learner.auxiliaries.items() if auxiliary.begun}
    saved = {name: auxiliary.saved()[0] for name, auxiliary in begun.items()}
    template = {"policy": {"params": learner.policy.params}} | ({} if learner.initial is None else {"initial": learner.initial})
    template |= {name: {part: _bare(tree) for part, tree in trees.items()} for name, trees in saved.items() if trees}
    _, tree, _ = checkpoints.restore(template, step)
    learner.policy, learner.initial = learner.policy.replace(params=tree["policy"]["params"]), tree.get("initial")
    for name, auxiliary in begun.items():
        found = {part: _dressed(old, tree[name][part]) for part, old in saved[name].items()}
        auxiliary.load(found, facts["auxiliaries"].get(name, {}))


def _bare(tree):
    """Leaves the optimizer out."""
    return {"params": tree.params} if isinstance(tree, TrainState) else tree


def _dressed(old, found):
    return old.replace(params=found["params"]) if isinstance(old, TrainState) else found
