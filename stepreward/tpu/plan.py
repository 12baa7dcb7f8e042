"""Compiles a run's programs one by one for a TPU slice, and estimates the memory and time of each."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Iterator

import jax

from stepreward import parallel
from stepreward.errors import UserError
from stepreward.programs import Program
from stepreward.rollout import rows
from stepreward.rollout.play import possible
from stepreward.tpu import hlo
from stepreward.tpu.slices import Chip
from stepreward.training import preferring, setup
from stepreward.training.abstract import abstract_parts, bytes_per_device, without_folders
from stepreward.training.decisions import DECIDED_FROM, reached
from stepreward.training.learner import Learner


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What one program needs on one device; in bytes unless stated otherwise.

    Attributes:
      program: the program.
      held: memory that the run keeps on the device at that time, by name.
      arguments: memory of the program's other arguments: batches, prepared weights, caches.
      temporary: memory that the program needs while it runs, including results that do not reuse an argument's memory.
      cost: operations, memory traffic and collectives of one call; None if the program could not be compiled.
      overflow: the compiler's message if the program alone does not fit; else empty.
      compile_s: seconds that compiling took.
    """

    program: Program
    held: dict[str, float]
    arguments: float
    temporary: float
    cost: hlo.Cost | None = None
    overflow: str = ""
    compile_s: float = 0.0

    @property
    def resident(self) -> float:
        return sum(self.held.values()) + self.arguments + self.temporary

    def fits(self, chip: Chip) -> bool:
        return not self.overflow and self.resident <= chip.hbm

    def seconds(self, chip: Chip, devices: int) -> dict[str, float]:
        """Lower bounds on the time of a call, in seconds: compute, memory traffic and links, each at its peak rate."""
        flops = self.cost.flops + self.program.kernel_flops / devices
        return {
            "compute": flops / chip.flops,
            "memory": self.cost.bytes / chip.hbm_bandwidth,
            "links": self.cost.collective_bytes / chip.ici_bandwidth,
        }


def make_mesh(c, devices):
    """The config's mesh on these devices; if the config sets neither data nor fsdp, fsdp takes all devices.

    Raises:
      UserError: if the mesh does not have as many devices.
    """
    shape = [c.mesh.data, c.mesh.fsdp, c.mesh.tensor]
    if shape[:2] == [1, 1] and shape[2] > 0 and len(devices) % shape[2] == 0:
        shape[1] = len(devices) // shape[2]
    try:
        mesh = parallel.make_mesh(*shape, devices=devices)
    except ValueError as error:
        raise UserError(f"mesh.data × mesh.fsdp × mesh.tensor = {' × '.join(map(str, shape))}: {error}") from error
    if mesh.size != len(devices):
        raise UserError(
            f"mesh.data × mesh.fsdp × mesh.tensor = {' × '.join(map(str, shape))} is {mesh.size} devices, but the slice has {len(devices)}: "
            "omit mesh.data and mesh.fsdp to split the parameters over all of them, or give a mesh of that many devices."
        )
    return mesh


def programs(c, mesh, vocabulary: int = 256) -> Iterator[tuple[str, Program, dict]]:
    """Yields the stage of each program of a run, the program, and the trees that the run keeps on the devices in that stage.

    Args:
      c: the config.
      mesh: the mesh to compile for.
      vocabulary: vocabulary size to assume for a tiny preset, whose tokenizer is not made here.
    """
    c = without_folders(c)
    for stage in DECIDED_FROM:  # a final evaluation compiles nothing of its own
        parts = abstract_parts(c, mesh, vocabulary)
        learner = Learner(c, parts, jax.random.key(c.seed))
        learner.reach(reached(stage), lambda: learner.start)
        held, offline = learner.held(), c.train.mode == "offline"
        # An online run's exploration uses the same rollout programs as its iterations, with less memory held.
        plays = "explore" if offline else "train" if preferring.reinforces(c) else preferring.NAME
        if stage == plays:
            engine = setup.make_engine(c, parts.graphdef, parts.model_config, mesh, (0,), 0, parts.collector.reader)
            episodes = c.exploration.part_tasks * c.exploration.rollouts if offline else c.rollout.groups * c.rollout.group_size
            many = dict(turns=c.rollout.max_steps, batches=-(-episodes // c.rollout.max_rows))
            scores = setup.scores_answers(parts.method)
            if possible(c.rollout.schedule, parallel.hosts(mesh), parts.collector.reader is not None, scores) == "batch":
                grows = c.rollout.context == "episode"
                extends = grows and setup.make_strategy(c, parts.method).restarts
                played = engine.programs(learner.actor, c.rollout.max_rows, grows=grows, references=scores, extends=extends, **many)
            else:
                played = rows.programs(engine, learner.actor, c.rollout.max_rows, **many)
            for program in played:
                yield stage, program, held
        for program in learner.programs(stage):
            yield stage, program, held


def estimate(program: Program, held: dict, keep: Callable[[str, str], None] | None = None) -> Estimate:
    """Compiles one program and estimates what it needs.

    Args:
      program: the program.
      held: trees of shapes that the run keeps on the devices, by name.
      keep: called with the program's name and its HLO text, if given.
    """
    seen: set[int] = set()
    sizes = {name: bytes_per_device(tree, seen) for name, tree in held.items()}
    arguments = bytes_per_device((program.args, program.kwargs), seen)
    started = time.monotonic()
    try:
        compiled = program.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        found = re.search(r"Used ([\d.]+)([GMK]) of ([\d.]+)([GMK]) hbm", str(error))
        if not found:
            raise
        used = float(found[1]) * {"G": 2**30, "M": 2**20, "K": 2**10}[found[2]]
        known = bytes_per_device((program.args, program.kwargs))
        return Estimate(program, sizes, arguments, max(used - known, 0), overflow=found[0], compile_s=time.monotonic() - started)
    seconds = time.monotonic() - started
    memory, text = compiled.memory_analysis(), compiled.as_text()
    if keep is not None:
        keep(program.name, text)
    temporary = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Estimate(program, sizes, arguments, temporary, hlo.read(text, program.trips), compile_s=seconds)
