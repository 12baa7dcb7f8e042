"""Low-rank adapters (LoRA): what an adapted model trains instead of its weights.

A projection W with an adapter computes x·W + (α/r) · (x·A)·B. B starts at zero, so a fresh adapter changes nothing. Adapter
parameters are named after the parameter that they adapt: `query_lora_a` and `query_lora_b` beside `query`. Several models
(policy, reference, PRM, critic) can share one copy of the weights. Each is then a pair `(base, adapters)`, and every model
function accepts this pair as its parameters.

The factors are never merged into 16-bit weights, neither in training nor in rollouts nor in the server: a reinforcement-learning
update is often smaller than the gap between neighbouring bfloat16 numbers, so rounding the sum would lose it. `merge_adapters`
adds in float32.

We do not use qwix or similar libraries because they hook into `nnx.Linear`, which the decoder does not use.

Source: Hu et al. 2021, arXiv 2106.09685.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, struct

Array = jax.Array

TARGETS = ("query", "key", "value", "output", "gate", "up", "down")


class LoraParam(nnx.Param):
    """A parameter of an adapter."""


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Settings of the adapters.

    Attributes:
      rank: r, the inner width of an adapter.
      alpha: α; the output of an adapter is scaled by α / r.
      targets: the projections that get an adapter, from `TARGETS`.
      dropout: fraction of the adapter's inputs that a training pass drops, in [0, 1).

    Raises:
      ValueError: if the rank is below 1, a target is unknown or none is given, or the dropout is outside [0, 1).
    """

    rank: int
    alpha: float = 16.0
    targets: tuple[str, ...] = ("query", "value")
    dropout: float = 0.0

    def __post_init__(self):
        if self.rank < 1:
            raise ValueError(f"lora.rank={self.rank} must be at least 1.")
        unknown = [name for name in self.targets if name not in TARGETS]
        if unknown or not self.targets:
            raise ValueError(f"lora.targets={self.targets!r} must name one or more of {', '.join(TARGETS)}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"lora.dropout={self.dropout} must be at least 0 and less than 1.")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


@struct.dataclass
class Adapted:
    """Weights and adapters together with the adapters' config, as rollouts use them. Because it carries the config, it can be passed
    to the graph of a decoder without adapters, in place of that decoder's parameters.

    Attributes:
      base: the weights.
      adapters: the tree of `…_lora_a` and `…_lora_b` parameters.
      lora: rank, scale and targets of the adapters (static).
    """

    base: Any
    adapters: Any
    lora: LoraConfig = struct.field(pytree_node=False)


def add_adapter(
    module: nnx.Module, name: str, inputs: tuple[int, ...], outputs: tuple[int, ...], config: LoraConfig | None, rngs: nnx.Rngs
) -> None:
    """Adds an adapter for the parameter `name` to a module if the config asks for one: A `[*inputs, r]` is uniform in
    ±1/√(product of inputs), as in PEFT; B `[r, *outputs]` is zero."""
    if config is None or name not in config.targets:
        return
    fan_in = 1
    for size in inputs:
        fan_in *= size
    a = jax.random.uniform(rngs.params(), (*inputs, config.rank), jnp.float32, -1.0, 1.0) * fan_in**-0.5
    setattr(module, f"{name}_lora_a", LoraParam(a))
    setattr(module, f"{name}_lora_b", LoraParam(jnp.zeros((config.rank, *outputs), jnp.float32)))


def low_rank(module: nnx.Module, name: str, x_MxI: Array, config: LoraConfig, dropout_key: Array | None, *, flat: bool = True) -> Array:
    """(α/r) · (dropout(x)·A)·B, of shape `[M, O]`; with `flat=False` it keeps the output axes of B, `[M, *outputs]`."""
    a = getattr(module, f"{name}_lora_a")[...].astype(x_MxI.dtype).reshape(-1, config.rank)
    b = getattr(module, f"{name}_lora_b")[...].astype(x_MxI.dtype)
    if dropout_key is not None and config.dropout:
        # Folding in the name gives each adapter of a layer its own random draws.
        key = jax.random.fold_in(dropout_key, TARGETS.index(name))
        kept = jax.random.bernoulli(key, 1 - config.dropout, x_MxI.shape)
        x_MxI = jnp.where(kept, x_MxI / (1 - config.dropout), 0).astype(x_MxI.dtype)
    return config.scale * jnp.tensordot(x_MxI @ a, b.reshape(config.rank, -1) if flat else b, axes=1)


@jax.custom_vjp
def wide_product(x_MxI: Array, w_IxO: Array) -> Array:
    """x · W, `[M, O]`, as its unrounded float32 accumulator. Gradients are computed in the type of x, as usual.

    An adapter's output is often less than half the gap between neighbouring bfloat16 numbers. Added to a product that is already
    rounded, it would always vanish; added before the rounding, it is preserved on average.
    """
    return jnp.matmul(x_MxI, w_IxO, preferred_element_type=jnp.float32)


def _wide_product_forward(x_MxI, w_IxO):
    return wide_product(x_MxI, w_IxO), (x_MxI, w_IxO)


def _wide_product_backward(saved, grad_MxO):
    x_MxI, w_IxO = saved
    grad_MxO = grad_MxO.astype(x_MxI.dtype)  # loses nothing: the caller's sum was rounded to this type
    return grad_MxO @ w_IxO.T, x_MxI.T @ grad_MxO


wide_product.defvjp(_wide_product_forward, _wide_product_backward)


def split_adapters(params) -> tuple[Any, Any]:
    """Splits the whole state of an adapted model into `(base, adapters)`."""
    flat = nnx.to_flat_state(params)
    is_adapter = lambda path: str(path[-1]).endswith(("_lora_a", "_lora_b"))
    parts = ([(p, v) for p, v in flat if is_adapter(p) == wanted] for wanted in (False, True))
    return tuple(nnx.from_flat_state(part) for part in parts)


def join(base, params):
    """Combines a shared base with a model's own parameters into what the model functions take. A scalar head is kept.

    Args:
      base: the shared weights; None returns `params` unchanged.
      params: parameters or adapters, or a dict `{"decoder", "scalar_head"}` that holds one of these and a head.
    """
    if base is None:
        return params
    if isinstance(params, dict) and "scalar_head" in params:
        return {**params, "decoder": (base, params["decoder"])}
    return (base, params)


def merge_adapters(base, adapters, config: LoraConfig):
    """Merges the adapters into the weights, W + (α/r) · A·B, in the structure and sharding of `base`.

    The merged weights are float32 even if `base` has 16 bits, because 16 bits would round a small update away. Weights without an
    adapter keep their type. `rounding_loss` measures what is lost when the merged weights are rounded afterwards.
    """
    return _changed(base, dict(nnx.to_flat_state(adapters)), config, 1.0)


def unmerge_adapters(merged, adapters, config: LoraConfig):
    """Inverts `merge_adapters` up to rounding: W − (α/r) · A·B, in float32."""
    return _changed(merged, dict(nnx.to_flat_state(adapters)), config, -1.0)


def rounding_loss(base, merged, dtype) -> tuple[Array, Array]:
    """Measures how much of the adapters' change survives when the merged weights are rounded.

    With the change Δ = merged − base and the rounded change R = round(merged) − round(base), summed over all weights:

        share = Σ R·Δ / Σ Δ²,   noise = √(Σ (R − share·Δ)² / Σ Δ²)

    Args:
      base, merged: the weights before and after `merge_adapters`.
      dtype: the floating-point type that they are rounded to.

    Returns:
      `share` (1 if nothing is lost) and `noise` (relative to the size of the change), float32 scalars. If the adapters change
      nothing, `share` is 1 and `noise` is 0.
    """
    kind, along = jnp.finfo(dtype), jnp.zeros((), jnp.float32)
    square = left = along
    # A conversion to `dtype` and back would be removed by the compiler.
    rounded_to = lambda x: jax.lax.reduce_precision(x.astype(jnp.float32), kind.nexp, kind.nmant)
    for before, after in zip(jax.tree.leaves(base), jax.tree.leaves(merged), strict=True):
        change = after.astype(jnp.float32) - before.astype(jnp.float32)
        kept = rounded_to(after) - rounded_to(before)
        along += jnp.sum(kept * change)
        square += jnp.sum(jnp.square(change))
        left += jnp.sum(jnp.square(kept))
    changes, square = square > 0, jnp.where(square > 0, square, 1)
    share = jnp.where(changes, along / square, 1)
    return share, jnp.sqrt(jnp.where(changes, jnp.maximum(left / square - share**2, 0), 0))


def _changed(weights, adapters: dict, config: LoraConfig, sign: float):
    changed = []
    for path, leaf in nnx.to_flat_state(weights):
        a, b = (adapters.get((*path[:-1], f"{path[-1]}_lora_{part}")) for part in "ab")
        if a is not None:
            w, a, b = leaf[...], a[...].astype(jnp.float32), b[...].astype(jnp.float32)
            stacked = a.ndim + b.ndim - 2 - w.ndim  # 1 if layers are stacked: then both factors have the layer axis
            product = lambda a, b: (a.reshape(-1, config.rank) @ b.reshape(config.rank, -1)).reshape(w.shape[stacked:])
            delta = jax.vmap(product)(a, b) if stacked else product(a, b)
            leaf = leaf.replace(w.astype(jnp.float32) + sign * config.scale * delta)
        changed.append((path, leaf))
    return nnx.from_flat_state(changed)
