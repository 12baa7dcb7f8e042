"""Adapts the preset of a published model to the available devices.

`mesh.fit` of a preset lists the keys that the run may choose. `settle` chooses them: a mesh of all devices, whole weights if they fit and
adapters on frozen weights otherwise, the rows of a pass and of a rollout. A key that the user sets is never changed. The run saves the
config with the chosen values, and resumes with it.

Memory is estimated, not measured. The memory of models and optimizers follows exactly from their shapes. The memory of a pass is a formula
(`Needs`) that was fitted to programs compiled by the TPU compiler (docs/tpu.md).
"""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh

from stepreward import parallel, processes
from stepreward.config import TrackedConfig, leaves, load_config
from stepreward.errors import UserError
from stepreward.models import presets
from stepreward.models.published import SOURCES
from stepreward.training import preferring
from stepreward.training.abstract import abstract_parts, bytes_per_device, update_bytes, without_folders
from stepreward.training.decisions import DECIDED_FROM, reached
from stepreward.training.learner import Learner
from stepreward.training.minibatches import round_up

GIB = 2**30
RANK = 16  # rank of the adapters that are trained if whole weights do not fit
ADAPTER_RATE = 10.0  # learning rate of adapters relative to that of whole weights (Schulman et al., "LoRA Without Regret", 2025)
USABLE = 0.92  # share of a device's memory that the estimate may fill
_PER_DEVICE = (8, 4, 2, 1)  # rows per device in one pass, in order of preference
_MOST_DEVICES = 1024  # the largest number of devices that an error message suggests


@dataclasses.dataclass(frozen=True)
class Devices:
    """The devices of a run.

    Attributes:
      count: number of devices.
      memory: bytes of each device that a program can use; infinite if no limit is known.
      name: the kind of device, for messages.
    """

    count: int
    memory: float
    name: str

    def __str__(self) -> str:
        limit = "" if math.isinf(self.memory) else f", {self.memory / GIB:.2f} GiB each"
        return f"{self.count} device{'s' if self.count > 1 else ''} ({self.name}{limit})"


def devices_here() -> Devices:
    """Returns the devices of all processes of this job; `memory` is that of the smallest device."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    limits = [found["bytes_limit"] if found.get("bytes_limit") else math.inf for found in stats]
    return Devices(jax.device_count(), min(processes.gather_objects(min(limits))), jax.devices()[0].device_kind)


def settle(config, workdir: str | Path, devices: Devices | None = None):
    """Fills in the keys that the config leaves to the run: from the saved config of a run that has begun, else for these devices.

    Args:
      config: see `configs/`; tracked or not.
      workdir: the run's folder, which need not exist.
      devices: the devices to fit; None takes those of this job.

    Returns:
      The config, and one line that says what was chosen and why ("" if nothing was chosen).

    Raises:
      UserError: no allowed choice fits; the message says what would.
      ValueError: a number of rows that the user set is not a multiple of mesh.data × mesh.fsdp.
    """
    if not config.mesh.fit:
        return config, ""
    c = config.untracked if isinstance(config, TrackedConfig) else config
    begun, borrowed = processes.on_writer(lambda: (_saved(workdir), _saved(c.stages.sft)))
    if begun:
        c = _with(c, {key: begun[key] for key in open_keys(c) if key in begun}, closed=True)
        said = ""
    else:
        c, said = fit(_like_borrowed(c, borrowed), devices or devices_here())
    return (TrackedConfig(c, _read=config._read) if isinstance(config, TrackedConfig) else c), said


def open_keys(c) -> list[str]:
    """Returns the keys that the run may choose: those of `mesh.fit` whose values have not been changed from the ones listed there."""
    values = leaves(c)
    named = [(entry, values.get(entry)) if isinstance(entry, str) else entry for entry in c.mesh.fit]
    return [key for key, value in named if key in values and values[key] == value]


def fit(c, devices: Devices):
    """Returns the config with every open key chosen for these devices, and a line that says what was chosen.

    Raises:
      UserError, ValueError: the fixed keys do not fit the devices; the message says what would.
    """
    left, given = open_keys(c), c
    c = _on_mesh(c, devices.count, left)
    parts = c.mesh.data * c.mesh.fsdp
    if c.mesh.data < 1 or parts * c.mesh.tensor > devices.count:  # `setup.check` reports the wrong mesh
        return _with(c, {}, closed=True), ""
    fixed = {
        name: value
        for name, value in (("rollout.max_rows", c.rollout.max_rows), ("train.chunk_rows", c.train.chunk_rows))
        if name not in left
    }
    for name, value in fixed.items():
        if value % parts:
            raise ValueError(
                f"{name}={value} must be a multiple of mesh.data × mesh.fsdp = {parts} on {devices}: set it to "
                f"{round_up(value, parts)}, or leave it out and let the run choose it."
            )
    refused = []
    for way in _ways(c, left):
        needs = Needs.of(way)
        chosen = _rows(way, needs, devices.memory, left)
        if chosen is not None:
            chosen = _with(way, chosen, closed=True)
            return chosen, _said(given, chosen, left, refused, needs, devices)
        refused.append((way, needs))
    raise UserError(_refusal(c, left, refused, devices))


def on_fewer_devices(c):
    """Shrinks the mesh of a saved config to the devices of this job if it has more of them.

    Playing or exporting a model does not depend on the mesh.

    Returns:
      The config, and a line that tells the user of the change ("" if nothing changed).
    """
    count, wanted = jax.device_count(), max(c.mesh.data, 1) * c.mesh.fsdp * c.mesh.tensor
    if wanted <= count:
        return c, ""
    changes = {"mesh.data": 1, "mesh.fsdp": count, "mesh.tensor": 1}
    changes |= {key: round_up(leaves(c)[key], count) for key in ("rollout.max_rows", "train.chunk_rows")}
    return _with(c, changes), f"the run's mesh has {wanted} devices; this job uses {count}"


# --- The memory that a config needs ---


@dataclasses.dataclass(frozen=True)
class Needs:
    """Memory of one device, in bytes; numbers of rows are per device.

    Attributes:
      update: all models and optimizers, and the largest update without its activations.
      play: all models and optimizers, and a rollout without its rows.
      row_update: the activations of a row in a forward and backward pass.
      row_play: the key/value cache of a conversation, its copy, and the activations of the prompt.
      beside: what a rollout that is played during the updates needs beside them, without its rows: the parameters that it plays with and their
        copies. None if rollouts wait for updates.
    """

    update: float
    play: float
    row_update: float
    row_play: float
    beside: float | None = None

    def updating(self, rows: int) -> float:
        return self.update + rows * self.row_update

    def playing(self, rows: int) -> float:
        return self.play + rows * self.row_play

    def most(self, update_rows: int, play_rows: int) -> float:
        """The largest memory in use at any time, with these numbers of rows of a pass and of a rollout."""
        updating, playing = self.updating(update_rows), self.playing(play_rows)
        return max(updating, playing) if self.beside is None else max(playing, updating + self.beside + play_rows * self.row_play)

    @classmethod
    def of(cls, c) -> Needs:
        """Computes the needs of a config with a mesh. They do not depend on its numbers of rows."""
        c = without_folders(c)
        mesh = _abstract_mesh(c)
        rows = {"rollout.max_rows": c.mesh.data * c.mesh.fsdp, "train.chunk_rows": c.mesh.data * c.mesh.fsdp}
        c = _with(c, rows)
        parts = abstract_parts(c, mesh, 256, reads_images=False)
        shape, shards = parts.model_config, c.mesh.fsdp * c.mesh.tensor
        byte = jnp.dtype(shape.compute_dtype).itemsize
        update = play = 0.0
        beside = None
        for stage in DECIDED_FROM:
            learner = Learner(c, parts, jax.random.key(0))
            if (stage == "sft" and not c.sft.updates) or (stage in ("explore", "estimator") and not parts.method.has_progress):
                continue
            if stage == preferring.NAME and parts.preference is None:
                continue
            learner.reach(reached(stage), lambda: learner.start)
            seen: set[int] = set()
            held = sum(bytes_per_device(tree, seen) for tree in learner.held().values())
            states = [learner.policy, *(getattr(part, "state", None) for part in learner.components.values())]
            update = max(update, held + max(update_bytes(state.params) for state in states if state is not None))
            if stage in ("explore", preferring.NAME, "train"):
                weights = bytes_per_device(_numbers(learner.actor, byte))
                play = max(play, held + 2 * weights)
                if stage == "train" and c.rollout.ahead:
                    beside = bytes_per_device(learner.actor) + 2 * weights
        gathered = _layer_weights(shape) / c.mesh.tensor * (2 * byte + (4 if not c.lora.rank else 0)) if c.mesh.fsdp > 1 else 0.0
        logits = 512 * shape.vocab_size * 4 / shards
        grows = c.rollout.context == "episode"
        slots = (c.rollout.max_row_tokens if grows else c.rollout.max_prompt_tokens) + c.rollout.max_answer_tokens
        cache = 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * byte * slots
        prompt = 8 * shape.embed_dim * byte * c.rollout.max_prompt_tokens
        return cls(update + gathered + logits, play, c.rollout.max_row_tokens * _token_bytes(shape, byte), 2 * cache + prompt, beside)


def _token_bytes(shape, byte: int) -> float:
    """Bytes per token that a backward pass keeps: every layer's input, and the inner activations of one layer (all without remat)."""
    inside = (6 * shape.mlp_dim + 8 * shape.embed_dim) * byte
    return shape.num_layers * shape.embed_dim * byte + inside * (1 if shape.remat == "layer" else shape.num_layers)


def _layer_weights(shape) -> float:
    """Number of parameters in one layer's matrices."""
    attention = 2 * shape.embed_dim * (shape.num_heads + shape.num_kv_heads) * shape.head_dim
    return attention + 3 * shape.embed_dim * shape.mlp_dim


def _numbers(tree, byte: int):
    """The tree in a dtype of `byte` bytes: a rollout copies the weights in the compute dtype."""
    dtype = jnp.bfloat16 if byte == 2 else jnp.float32
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype, sharding=x.sharding), tree)


def _abstract_mesh(c) -> AbstractMesh:
    return AbstractMesh((c.mesh.data, c.mesh.fsdp, c.mesh.tensor), parallel.MESH_AXES)


# --- The choices ---


def _on_mesh(c, count: int, left: list[str]):
    """Returns the config with an explicit mesh: open axes use all devices, `fsdp` as many of them as divide the model's width."""
    data, fsdp, tensor = c.mesh.data, c.mesh.fsdp, c.mesh.tensor
    free = count // max(1, tensor * (1 if "mesh.data" in left or data < 1 else data) * (1 if "mesh.fsdp" in left else fsdp))
    if "mesh.fsdp" in left and data > 0:
        fsdp = max(free, 1)
        if "mesh.data" in left:
            width = _width(c)
            fsdp = max(n for n in range(1, fsdp + 1) if free % n == 0 and width % n == 0)
            data = free // fsdp if free else 1
    elif "mesh.data" in left or data == -1:
        data = max(free, 1)
    return _with(c, {"mesh.data": data, "mesh.fsdp": fsdp})


def _width(c) -> int:
    """The embedding width of the model, along which its weights are sharded."""
    one = _with(c, {"mesh.data": 1, "mesh.fsdp": 1, "mesh.tensor": 1})
    return abstract_parts(without_folders(one), _abstract_mesh(one), 256, reads_images=False).model_config.embed_dim


def _ways(c, left: list[str]):
    """Yields the variants to try, in order of preference: the config as it is, then with adapters (in the warm start too)."""
    changes = [{}]
    if "lora.rank" in left and not c.lora.rank:
        changes.append({"lora.rank": RANK, "lora.sft": True} if "lora.sft" in left else {"lora.rank": RANK})
    elif "lora.sft" in left and c.lora.rank and not c.lora.sft:
        changes.append({"lora.sft": True})
    for change in changes:
        yield _with_rates(_with(c, change), left)


def _with_rates(c, left: list[str]):
    """Raises the learning rates that the user has not set, if adapters are trained."""
    if not c.lora.rank:
        return c
    values, groups = leaves(c), ("sft", "prm", "policy") if c.lora.sft else ("prm", "policy")
    keys = [key for key in (f"{group}.learning_rate" for group in groups) if key in left]
    return _with(c, {key: float(f"{ADAPTER_RATE * values[key]:.6g}") for key in keys})


def _rows(c, needs: Needs, memory: float, left: list[str]) -> dict | None:
    """Returns the numbers of rows of a pass and of a rollout that fit, the first of the candidates; None if none fit."""
    parts = c.mesh.data * c.mesh.fsdp
    passes, plays = [c.train.chunk_rows], [c.rollout.max_rows]
    if "train.chunk_rows" in left:
        passes = [round_up(c.train.chunk_rows, parts)]
        if not math.isinf(memory):
            most = max(c.train.chunk_rows, c.policy.minibatch_rows)
            passes = [n * parts for n in _PER_DEVICE if n == 1 or n * parts <= most]
    if "rollout.max_rows" in left:
        plays = [round_up(c.rollout.max_rows, parts)]
        while plays[-1] > parts:
            plays.append(round_up(plays[-1] // 2, parts))
    chosen = ((passed, played) for played in plays for passed in passes if needs.most(passed // parts, played // parts) <= USABLE * memory)
    found = next(chosen, None)
    return None if found is None else {"train.chunk_rows": found[0], "rollout.max_rows": found[1]}


def _with(c, changes: dict, closed: bool = False):
    """Returns a copy of a config with some keys changed; `closed` empties its `mesh.fit`."""
    changed = c.copy_and_resolve_references()
    with changed.unlocked():
        changed.update_from_flattened_dict(changes | ({"mesh.fit": ()} if closed else {}))
    return changed.lock() if c.is_locked else changed


def _saved(workdir) -> dict | None:
    """Returns the saved config of the run in a folder, by dotted key; None if there is none."""
    path = Path(workdir or "", "config.json")
    return leaves(load_config(path)) if workdir and os.path.isfile(path) else None  # False also for an invalid file name


def _like_borrowed(c, saved: dict | None):
    """Copies from a borrowed warm start's config the open keys that it was trained with."""
    if saved is None:
        return c
    taken = ["lora.sft", "sft.learning_rate"] + ["lora.rank"] * bool(saved.get("lora.sft"))
    taken = {key: saved[key] for key in open_keys(c) if key in taken and key in saved}
    fit = tuple(entry for entry in c.mesh.fit if (entry if isinstance(entry, str) else entry[0]) not in taken)
    return _with(c, taken | {"mesh.fit": fit})


# --- Messages ---


def _gib(size: float) -> str:
    return f"{size / GIB:.1f}"


def _least(c, needs: Needs) -> float:
    """Bytes needed with the smallest number of rows."""
    return needs.most(1, 1)


def _trained(c) -> str:
    if not c.lora.rank:
        return "whole weights"
    return f"adapters of rank {c.lora.rank}" + ("" if c.lora.sft else " after a warm start of whole weights")


def _said(before, chosen, left: list[str], refused, needs: Needs, devices: Devices) -> str:
    parts, old, new = chosen.mesh.data * chosen.mesh.fsdp, leaves(before), leaves(chosen)
    shown = [f"{key}={new[key]}" for key in left if new[key] != old[key] or key in ("rollout.max_rows", "train.chunk_rows")]
    line = f"fitted to {devices}: {', '.join(shown) or 'nothing was left to choose'}"
    if math.isinf(devices.memory):
        return line
    need = needs.most(chosen.train.chunk_rows // parts, chosen.rollout.max_rows // parts)
    line += f"; estimated memory {_gib(need)} GiB per device"
    why = [f"{_trained(way)} would need about {_gib(_least(way, found))} GiB" for way, found in refused]
    return line + (f"; {' and '.join(why)}, so {_trained(chosen)} are trained" if why else "")


def _refusal(c, left: list[str], refused, devices: Devices) -> str:
    way, needs = refused[-1]
    line = f"{c.model.preset} with {_trained(way)} needs about {_gib(_least(way, needs))} GiB per device, but the run has {devices}"
    better = list(_would_fit(way, left, devices))
    return f"{line}; {'; '.join(better) or 'use a smaller model'}."


def _would_fit(c, left: list[str], devices: Devices):
    """Yields changes to the config or the devices with which it would fit."""
    rows = [key for key in ("rollout.max_rows", "train.chunk_rows") if key not in left]
    fits = lambda c, more: _rows(c, Needs.of(c), devices.memory, [*left, *more]) is not None
    adapters = _with(c, {"lora.rank": c.lora.rank or RANK, "lora.sft": True})
    if rows and fits(c, rows):
        yield f"leave out {' and '.join(rows)}: the run then chooses numbers of rows that fit"
        return
    if not (c.lora.rank and c.lora.sft) and fits(adapters, rows):
        yield f"adapters would fit (--config.lora.rank={adapters.lora.rank} --config.lora.sft=True)"
    for count in (devices.count * 2**n for n in range(1, 11)):
        if count > _MOST_DEVICES or not {"mesh.data", "mesh.fsdp"} & set(left):
            break
        larger = _on_mesh(c, count, left)
        if fits(larger, rows):
            yield f"{count} such devices would suffice"
            break
    size = lambda name: _parameters(presets.PUBLISHED[name])
    if c.model.preset in SOURCES and not c.prm.preset:
        smaller = [name for name in SOURCES if size(name) < size(c.model.preset) and presets.PUBLISHED[name].vision is None]
        for name in sorted(smaller, key=size, reverse=True):
            if fits(_with(c, {"model.preset": name, "model.path": SOURCES[name]}), rows):
                yield f"the preset {name} would fit here"
                break


def _parameters(shape) -> float:
    return shape.num_layers * _layer_weights(shape) + shape.vocab_size * shape.embed_dim * (1 if shape.tie_embeddings else 2)
