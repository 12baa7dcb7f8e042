"""Shared code of the benchmarks: model shapes, interleaved timing, counts of work, and a client of Tunix in its own process."""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from stepreward.errors import UserError
from stepreward.models import presets
from stepreward.models.decoder import DecoderConfig

# Small enough for a CPU, and possible in Tunix's Llama 3, too (whose rotary base is always 10⁶, whatever its config says).
SHAPES = {
    "llama-tiny": DecoderConfig(
        vocab_size=2048, num_layers=4, embed_dim=256, num_heads=8, num_kv_heads=4, head_dim=32, mlp_dim=768, rope_theta=1e6
    ),
    "llama-micro": DecoderConfig(
        vocab_size=64, num_layers=1, embed_dim=16, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=24, rope_theta=1e6
    ),
}
Key = TypeVar("Key", bound=Hashable)
MODELS = sorted({*SHAPES, *presets.PRESETS})


def model_config(name: str, dtype: str, *, vocab: int = 2048, params: str | None = None, **changes) -> DecoderConfig:
    """Returns the config of the shape `name`, computing in `dtype`, with parameters in `params` (None: `dtype`).

    `vocab` is the vocabulary's size for presets without one.
    """
    if name not in MODELS:
        raise UserError(f"--model={name} is unknown; the models are {', '.join(MODELS)}.")
    shape = SHAPES.get(name) or presets.PRESETS[name]
    changes |= {"compute_dtype": presets.DTYPES[dtype], "param_dtype": presets.DTYPES[params or dtype]}
    return dataclasses.replace(shape, vocab_size=shape.vocab_size or vocab, **changes)


class Time(NamedTuple):
    """Wall-clock seconds, and CPU seconds of this process on all its cores."""

    wall: float
    cpu: float


def timed(function: Callable[[], object]) -> Time:
    """Returns the time until the result of `function` is computed."""
    wall, cpu = time.perf_counter(), time.process_time()
    jax.block_until_ready(function())
    return Time(time.perf_counter() - wall, time.process_time() - cpu)


def in_turn(arms: dict[Key, Callable[[], Time]], repeats: int, warm_up: int = 1) -> dict[Key, list[Time]]:
    """Times the arms in the order A B C A B C …, so that all of them see the same load of the machine.

    Args:
      arms: functions that run an arm once and return its time.
      repeats: number of timed runs of each arm.
      warm_up: number of earlier runs of each arm, which compile it and are not kept.
    """
    times: dict[Key, list[Time]] = {name: [] for name in arms}
    for repeat in range(warm_up + repeats):
        for name, run in arms.items():
            found = run()
            if repeat >= warm_up:
                times[name].append(found)
    return times


def summary(times: list[Time]) -> dict[str, float]:
    """Returns the median, fastest and slowest run in seconds, and the median of the CPU seconds."""
    wall = [t.wall for t in times]
    found = {"seconds": statistics.median(wall), "fastest": min(wall), "slowest": max(wall)}
    return found | {"cpu_seconds": statistics.median(t.cpu for t in times)}


def spread(r: dict) -> str:
    """Formats the range of a `summary` for a table."""
    return f"({r['fastest']:.3f}–{r['slowest']:.3f})"


def ratio(above: list[Time], below: list[Time]) -> dict[str, float]:
    """Returns the median and the range of above / below over the repeats, whose pairs were measured back to back.

    Also returns the ratio of the fastest runs and that of the median CPU seconds, which other load on the machine affects less.
    """
    found = [a.wall / b.wall for a, b in zip(above, below, strict=True)]
    a, b = summary(above), summary(below)
    found = {"median": statistics.median(found), "least": min(found), "most": max(found)}
    return found | {"of_fastest": a["fastest"] / b["fastest"], "of_cpu": a["cpu_seconds"] / b["cpu_seconds"]}


def show_ratio(name: str, r: dict[str, float], target: str = "") -> str:
    """Formats one line of the table of ratios."""
    line = f"{name:>34} {r['median']:>6.2f}× ({r['least']:.2f}–{r['most']:.2f}), of the fastest {r['of_fastest']:.2f}×"
    if jax.default_backend() == "cpu":
        line += f", of CPU seconds {r['of_cpu']:.2f}×"
    return line + (f", target {target}" if target else "")


def machine() -> dict:
    """Returns facts about the machine."""
    device = jax.devices()[0]
    return {"backend": jax.default_backend(), "device": device.device_kind, "cores": os.cpu_count(), "jax": jax.__version__}


def peak_memory_gib() -> float | None:
    """Returns the peak memory of the first device in GiB; None if it does not report it."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats["peak_bytes_in_use"] / 2**30 if "peak_bytes_in_use" in stats else None


def matrix_parameters(config: DecoderConfig, params) -> int:
    """Returns the number of parameters that multiply each token: all except an embedding that is only looked up."""
    total = sum(x.size for x in jax.tree.leaves(params))
    return total if config.tie_embeddings else total - config.vocab_size * config.embed_dim


def forward_flops(config: DecoderConfig, params, rows: int, length: int) -> float:
    """Returns the FLOPs of a forward pass: 2 · parameters · tokens, plus causal attention (over half the row on average)."""
    attention = 2 * rows * length * length * config.num_layers * config.num_heads * config.head_dim
    return 2.0 * matrix_parameters(config, params) * rows * length + attention


def decode_bytes(config: DecoderConfig, params, batch: int, lengths) -> float:
    """Returns the bytes that decoding must read: for each token step, all weights once, and the keys and values of every row.

    Args:
      config, params: the model.
      batch: number of rows.
      lengths: number of tokens in the cache at each token step.
    """
    weights = sum(x.nbytes for x in jax.tree.leaves(params))
    if not config.tie_embeddings:
        weights -= weights * config.vocab_size * config.embed_dim // sum(x.size for x in jax.tree.leaves(params))
    slot = 2 * config.num_layers * config.num_kv_heads * config.head_dim * jnp.dtype(config.compute_dtype).itemsize
    return float(sum(weights + batch * slot * length for length in lengths))


def write_json(path: str | None, figures: dict) -> None:
    """Writes the figures, if there is a path."""
    if path:
        Path(path).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


class TunixArm:
    """Tunix in its own virtual environment: one process that answers requests in JSON lines (see `tunix_arm.py`).

    Args:
      python: the interpreter of that environment.
      folder: folder for exchanging arrays.
      config, params: the model; Tunix gets the same parameters.

    Raises:
      UserError: the model is not supported, or `python` is not a file.
    """

    def __init__(self, python: str, folder: str, config: DecoderConfig, params):
        if config.qkv_bias or config.qk_norm or not config.tie_embeddings or config.rope_scaling or config.rope_theta != 1e6:
            raise UserError("the Tunix arm supports only Llama with tied embeddings and a rotary base of 10⁶: use --model=llama-tiny.")
        if config.compute_dtype != jnp.float32:
            raise UserError("the Tunix arm supports only float32: leave out --dtype.")
        if not Path(python).is_file():
            raise UserError(f"--tunix-python={python} is not a file; benchmarks/tunix_arm.py explains how to create that environment.")
        self._folder, self._count = Path(folder), 0
        script = str(Path(__file__).parent / "tunix_arm.py")
        self._process = subprocess.Popen([python, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        names = ("num_layers", "vocab_size", "embed_dim", "num_heads", "num_kv_heads", "head_dim", "mlp_dim", "norm_eps")
        shape = {name: getattr(config, name) for name in names}
        weights = {"/".join(str(part) for part in path): np.asarray(x) for path, x in _named(params)}
        self.facts = self.ask("start", shape=shape, weights=self.save(**weights))

    def ask(self, do: str, **arguments) -> dict:
        """Sends one request and waits for its answer."""
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise UserError(f"the Tunix process ended during the request {do!r}; see its own message above.")
        return json.loads(line)

    def time(self, do: str, **arguments) -> Time:
        """Sends a request whose answer contains its times."""
        answer = self.ask(do, **arguments)
        return Time(answer["seconds"], answer["cpu_seconds"])

    def save(self, **arrays) -> str:
        """Saves arrays to a file; returns its path, for use in a request."""
        self._count += 1
        path = self._folder / f"arrays-{self._count}.npz"
        np.savez(path, **arrays)
        return str(path)

    def close(self) -> None:
        """Ends the process."""
        self._process.stdin.close()
        self._process.wait()


def _named(params):
    """Yields `(path, array)` for every parameter, without the last part of the key path, which is the variable's value slot."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        yield [part.key for part in path if isinstance(part, jax.tree_util.DictKey)], leaf
