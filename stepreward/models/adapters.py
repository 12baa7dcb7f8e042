"""Low-rank adapters (LoRA): what an adapted model trains instead of its weights.

A projection W with an adapter computes x·W + (α/r) · (x·A)·B; B starts at zero, so a fresh adapter changes nothing. Adapter
parameters bear the name of what they adapt, `query_lora_a` and `query_lora_b` beside `query`. Several models (policy,
reference, PRM, critic) can share one copy of the weights: a model is then the pair `(base, adapters)`, which every model
function takes where it takes parameters.

The factors are never added to weights of 16 bits, in training, in a rollout or in a server: an update of reinforcement learning
is smaller than the distance of two neighbouring bfloat16 numbers, and the sum would round it away. `merge_adapters` adds in
float32.

A module of our own: qwix and its kin hook into `nnx.Linear`, which the decoder does not use.

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
    """Which projections carry an adapter.

    Attributes:
      rank: r.
      alpha: α; the adapter's output is scaled by α / r.
      targets: names out of `TARGETS`.
      dropout: share of the adapter's inputs that a training pass drops.
    """

    rank: int
    alpha: float = 16.0
    targets: tuple[str, ...] = ("query", "value")
    dropout: float = 0.0

    def __post_init__(self):
        if self.rank < 1:
            raise ValueError(f"lora.rank={self.rank}: give at least 1.")
        unknown = [name for name in self.targets if name not in TARGETS]
        if unknown or not self.targets:
            raise ValueError(f"lora.targets={self.targets!r}: give some of {', '.join(TARGETS)}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"lora.dropout={self.dropout} is a share: give at least 0 and less than 1.")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


@struct.dataclass
class Adapted:
    """Weights with adapters beside them, as a rollout plays them. They say themselves which adapters they have, so that they stand
    where the parameters of a decoder without adapters do.

    Attributes:
      base: the weights.
      adapters: the tree of `…_lora_a` and `…_lora_b`.
      lora: the adapters' rank, scale and targets (static).
    """

    base: Any
    adapters: Any
    lora: LoraConfig = struct.field(pytree_node=False)


def add_adapter(
    module: nnx.Module, name: str, inputs: tuple[int, ...], outputs: tuple[int, ...], config: LoraConfig | None, rngs: nnx.Rngs
) -> None:
    """Gives a module the adapter of its parameter `name`, where the config asks for one: A `[*inputs, r]` uniform in
    ±1/√inputs (as PEFT does), B `[r, *outputs]` zero."""
    if config is None or name not in config.targets:
        return
    fan_in = 1
    for size in inputs:
        fan_in *= size
    a = jax.random.uniform(rngs.params(), (*inputs, config.rank), jnp.float32, -1.0, 1.0) * fan_in**-0.5
    setattr(module, f"{name}_lora_a", LoraParam(a))
    setattr(module, f"{name}_lora_b", LoraParam(jnp.zeros((config.rank, *outputs), jnp.float32)))


def low_rank(module: nnx.Module, name: str, x_MxI: Array, config: LoraConfig, dropout_key: Array | None, *, flat: bool = True) -> Array:
    """(α/r) · (dropout(x)·A)·B, `[M, O]`, or with the axes of B's outputs, `[M, *outputs]`, where it is not to be `flat`."""
    a = getattr(module, f"{name}_lora_a")[...].astype(x_MxI.dtype).reshape(-1, config.rank)
    b = getattr(module, f"{name}_lora_b")[...].astype(x_MxI.dtype)
    if dropout_key is not None and config.dropout:
        # The name tells the draws of one layer's adapters apart.
        key = jax.random.fold_in(dropout_key, TARGETS.index(name))
        kept = jax.random.bernoulli(key, 1 - config.dropout, x_MxI.shape)
        x_MxI = jnp.where(kept, x_MxI / (1 - config.dropout), 0).astype(x_MxI.dtype)
    return config.scale * jnp.tensordot(x_MxI @ a, b.reshape(config.rank, -1) if flat else b, axes=1)


@jax.custom_vjp
def wide_product(x_MxI: Array, w_IxO: Array) -> Array:
    """x · W as the float32 sums that it is accumulated in, `[M, O]`. Its gradients are products in the type of x, as usual.

    What an adapter adds is often less than half the distance of two neighbouring bfloat16 numbers: added to a product that is
    rounded already, it would always vanish. Added before the rounding, it remains on average.
    """
    return jnp.matmul(x_MxI, w_IxO, preferred_element_type=jnp.float32)


def _wide_product_forward(x_MxI, w_IxO):
    return wide_product(x_MxI, w_IxO), (x_MxI, w_IxO)


def _wide_product_backward(saved, grad_MxO):
    x_MxI, w_IxO = saved
    grad_MxO = grad_MxO.astype(x_MxI.dtype)  # it comes from a sum that was rounded to this type
    return grad_MxO @ w_IxO.T, x_MxI.T @ grad_MxO


wide_product.defvjp(_wide_product_forward, _wide_product_backward)


def split_adapters(params) -> tuple[Any, Any]:
    """`(base, adapters)` of an adapted model's whole state."""
    flat = nnx.to_flat_state(params)
    is_adapter = lambda path: str(path[-1]).endswith(("_lora_a", "_lora_b"))
    parts = ([(p, v) for p, v in flat if is_adapter(p) == wanted] for wanted in (False, True))
    return tuple(nnx.from_flat_state(part) for part in parts)


def join(base, params):
    """What a model function takes: `params` alone, or on a shared base; a model with a head keeps it.

    Args:
      base: the weights, or None.
      params: parameters, adapters, or a dict `{"decoder", "scalar_head"}` of one of these and a head.
    """
    if base is None:
        return params
    if isinstance(params, dict) and "scalar_head" in params:
        return {**params, "decoder": (base, params["decoder"])}
    return (base, params)


def merge_adapters(base, adapters, config: LoraConfig):
    """The weights with the adapters in them, W + (α/r) · A·B, in the structure and sharding of `base`.

    Sums are float32, also over weights of 16 bits, which would round a small update away; other weights keep their type. Whoever
    rounds the sums can ask `rounding_loss` what that costs.
    """
    return _changed(base, dict(nnx.to_flat_state(adapters)), config, 1.0)


def unmerge_adapters(merged, adapters, config: LoraConfig):
    """The weights that `merge_adapters` began with, to rounding, in float32."""
    return _changed(merged, dict(nnx.to_flat_state(adapters)), config, -1.0)


def rounding_loss(base, merged, dtype) -> tuple[Array, Array]:
    """What is left of the adapters' change when the merged weights are rounded.

    With the change Δ = merged − base and what rounding leaves of it, R = round(merged) − round(base), over all weights:

        share = Σ R·Δ / Σ Δ²,   noise = √(Σ (R − share·Δ)² / Σ Δ²)

    Args:
      base, merged: weights before `merge_adapters` and after.
      dtype: what they are rounded to.

    Returns:
      `share`, 1 where nothing is lost, and `noise`, which is relative to the size of the change; float32 scalars. Adapters that
      change nothing have the share 1.
    """
    kind, along = jnp.finfo(dtype), jnp.zeros((), jnp.float32)
    square = left = along
    # Not two conversions, of which a compiler makes none.
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
            stacked = a.ndim + b.ndim - 2 - w.ndim  # 1 where the layers lie in one array: then both have its axis
            product = lambda a, b: (a.reshape(-1, config.rank) @ b.reshape(config.rank, -1)).reshape(w.shape[stacked:])
            delta = jax.vmap(product)(a, b) if stacked else product(a, b)
            leaf = leaf.replace(w.astype(jnp.float32) + sign * config.scale * delta)
        changed.append((path, leaf))
    return nnx.from_flat_state(changed)
