"""Parameters, their optimizer, and its updates."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding

from stepreward import parallel


@struct.dataclass
class TrainState:
    """Parameters, optimizer state, and the number of updates (int32 scalar).

    `mesh` (static) is the mesh on which an update keeps every array; None is the default device.
    """

    params: Any
    opt_state: Any
    updates: jax.Array
    mesh: Mesh | None = struct.field(pytree_node=False, default=None)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a linear warm-up to a constant or linearly decaying learning rate, and clipping by global norm.

    Attributes:
      learning_rate: the learning rate after the warm-up.
      warmup_updates: number of updates until the rate is reached. Without a warm-up, Adam's full-size first steps on noisy gradients can
        destroy a warm-started policy.
      decay_updates: number of updates over which the rate then decays linearly to a tenth; 0 keeps it constant.
      b1, b2, weight_decay: the settings of AdamW.
      max_grad_norm: gradients with a larger global norm are scaled down to it.
      moment_dtype: dtype of the first moment; the second moment is float32.
    """

    learning_rate: float
    warmup_updates: int = 0
    decay_updates: int = 0
    b1: float = 0.9
    b2: float = 0.999
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    moment_dtype: str = "float32"

    @functools.cache  # noqa: B019 (a process has few settings)
    def make(self) -> optax.GradientTransformation:
        """Returns the optax optimizer; equal settings give the same object, so a second run in a process compiles nothing again."""
        peak = self.learning_rate
        parts = [optax.linear_schedule(0.0, peak, self.warmup_updates)] if self.warmup_updates else []
        parts.append(optax.linear_schedule(peak, 0.1 * peak, self.decay_updates) if self.decay_updates else optax.constant_schedule(peak))
        schedule = optax.join_schedules(parts, [self.warmup_updates]) if len(parts) > 1 else parts[0]
        return optax.chain(
            optax.clip_by_global_norm(self.max_grad_norm),
            optax.adamw(schedule, b1=self.b1, b2=self.b2, weight_decay=self.weight_decay, mu_dtype=self.moment_dtype),
        )


def make_optimizer(group, moment_dtype: str = "float32") -> optax.GradientTransformation:
    """Returns AdamW with the settings of a config group; `moment_dtype` is a key of the group `model`."""
    return OptimizerConfig(
        group.learning_rate,
        group.warmup_updates,
        max_grad_norm=group.max_grad_norm,
        weight_decay=group.weight_decay if "weight_decay" in group else 0.0,
        decay_updates=group.decay_updates if "decay_updates" in group else 0,
        moment_dtype=moment_dtype,
    ).make()


def create(params, optimizer: optax.GradientTransformation) -> TrainState:
    """Returns the initial state of training for parameters, on their mesh. Parameters are copied, since updates donate them."""
    params = parallel.copy(params)
    sharding = jax.tree.leaves(params)[0].sharding
    mesh = sharding.mesh if isinstance(sharding, NamedSharding) else None
    if parallel.is_abstract(params):
        state = jax.eval_shape(lambda params: fresh(params, optimizer), params).replace(mesh=mesh)
    else:
        state = fresh(params, optimizer).replace(mesh=mesh)
    return state if mesh is None else parallel.place_parameters(state, mesh)


def fresh(params, optimizer: optax.GradientTransformation) -> TrainState:
    """Returns the initial state of training for parameters. By default moments are float32 even if parameters are bfloat16, where adding
    0.1 % would be rounded away."""
    return TrainState(params, optimizer.init(widened(params)), jnp.zeros((), jnp.int32))


def widened(tree):
    """Casts every array to float32, or keeps a wider dtype."""
    return jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), tree)


def apply_gradients(state: TrainState, grads, optimizer) -> tuple[TrainState, dict[str, jax.Array]]:
    """Makes one optimizer update. A non-finite gradient changes nothing, and the metric `grad_norm` shows it."""
    norm = optax.global_norm(grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    key = jax.random.fold_in(jax.random.key(0), state.updates)
    new = TrainState(_add(state.params, updates, key), opt_state, state.updates + 1, state.mesh)
    finite = jnp.isfinite(norm)
    new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
    if state.mesh is not None:  # otherwise the compiler may choose other shardings, and the next update is compiled again
        new = jax.lax.with_sharding_constraint(new, parallel.parameter_sharding(new, state.mesh))
    return new, {"grad_norm": norm}


def mean_metrics(outs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns the means of the metrics of several updates, at least one."""
    return {name: float(np.mean([out[name] for out in outs])) for name in outs[0]}


def _add(params, updates, key: jax.Array):
    """Returns p + u. In bfloat16 the sum is rounded stochastically: rounding to nearest would always lose updates below 1/512 of the
    weight, and most updates of reinforcement learning are smaller."""
    leaves, structure = jax.tree.flatten(params)
    keys = [jax.random.fold_in(key, n) for n in range(len(leaves))]
    added = [
        _round(p + u, k) if p.dtype == jnp.bfloat16 else (p + u).astype(p.dtype) for p, u, k in zip(leaves, jax.tree.leaves(updates), keys)
    ]
    return jax.tree.unflatten(structure, added)


def _round(x: jax.Array, key: jax.Array) -> jax.Array:
    """Rounds float32 to bfloat16 stochastically, without changing the mean."""
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    bits += jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    rounded = jax.lax.bitcast_convert_type((bits >> 16).astype(jnp.uint16), jnp.bfloat16)
    return jnp.where(jnp.isfinite(x), rounded, x.astype(jnp.bfloat16))
