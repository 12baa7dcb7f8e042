"""Labels and numbers that a run's host computes from the episodes of a group, as arrays: what ProgRM, AgentPRM and ARD learn from."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


# --- ProgRM: progress along the longest common subsequence of the successes ---


def lcs_labels(code_NxT: Array, length_N: Array, success_N: Array) -> Array:
    """float32 `[N, T]`: the labels of `credit.potentials.lcs_progress_labels` for the N episodes of one group; −1 off their steps.

    Args:
      code_NxT: int32, a number for each pair of state and action.
      length_N: int32, the steps of each episode.
      success_N: bool.
    """
    steps = code_NxT.shape[1]

    def fold(carry, at):
        key, size, found = carry
        code, length, won = at
        both, both_size = common(key, size, code, length)
        key, size = (jnp.where(won, jnp.where(found, b, c), a) for a, b, c in ((key, both, code), (size, both_size, length)))
        return (key, size, found | won), None

    nothing = (jnp.zeros(steps, code_NxT.dtype), jnp.int32(0), jnp.bool_(False))
    (key, size, _), _ = jax.lax.scan(fold, nothing, (code_NxT, length_N.astype(jnp.int32), success_N))

    def walk(reached_N, code_N):
        wanted_N = key[jnp.minimum(reached_N, steps - 1)]
        reached_N = reached_N + ((reached_N < size) & (code_N == wanted_N))
        return reached_N, reached_N

    _, reached_TxN = jax.lax.scan(walk, jnp.zeros(len(code_NxT), jnp.int32), code_NxT.T)
    known = (size > 0) & (jnp.arange(steps)[None] < length_N[:, None])
    return jnp.where(known, reached_TxN.T / jnp.maximum(size, 1), -1.0).astype(jnp.float32)


def common(a_T: Array, a_size: Array, b_T: Array, b_size: Array) -> tuple[Array, Array]:
    """The longest common subsequence of two sequences, and its length: the one that the host's dynamic program finds."""
    steps = len(a_T)
    index = jnp.arange(steps)
    same_TxT = (a_T[:, None] == b_T[None]) & (index[:, None] < a_size) & (index[None] < b_size)

    def row(later_T1, same_T):
        best = jnp.where(same_T, 1 + later_T1[1:], later_T1[:-1])
        row_T1 = jnp.append(jax.lax.cummax(best, reverse=True), 0)
        return row_T1, row_T1

    last = jnp.zeros(steps + 1, jnp.int32)
    _, rows = jax.lax.scan(row, last, same_TxT, reverse=True)
    length = jnp.concatenate([rows, last[None]])

    def follow(carry, _):
        i, j, count, out_T = carry
        inside = (i < a_size) & (j < b_size)
        at_i, at_j = jnp.minimum(i, steps - 1), jnp.minimum(j, steps - 1)
        hit = inside & same_TxT[at_i, at_j]
        down = length[at_i + 1, at_j] >= length[at_i, at_j + 1]
        out_T = out_T.at[jnp.where(hit, count, steps)].set(a_T[at_i], mode="drop")
        return (i + (inside & (hit | down)), j + (inside & (hit | ~down)), count + hit, out_T), None

    zero = jnp.int32(0)
    (_, _, count, out_T), _ = jax.lax.scan(follow, (zero, zero, zero, jnp.zeros_like(a_T)), None, length=2 * steps)
    return out_T, count


# --- AgentPRM: outcomes pooled over equal histories ---


def pooled_labels(code_NxT: Array, mask_NxT: Array, outcome_N: Array, discount: float) -> Array:
    """float32 `[N, T]`: the labels of `credit.agentprm.monte_carlo_labels` with "end", for the episodes of one group; −1 off the mask.

    Args:
      code_NxT: int32, a number for each pair of observation and action.
    """
    steps_left = mask_NxT.sum(axis=1, keepdims=True) - 1 - jnp.arange(code_NxT.shape[1])
    return_NxT = discount ** jnp.maximum(steps_left, 0) * (2.0 * outcome_N[:, None] - 1.0)
    equal_NxNxT = (code_NxT[:, None] == code_NxT[None]) & mask_NxT[:, None] & mask_NxT[None]
    shared_NxNxT = jnp.cumprod(equal_NxNxT, axis=2)
    mean_NxT = (shared_NxNxT * return_NxT[None]).sum(axis=1) / jnp.maximum(shared_NxNxT.sum(axis=1), 1)
    return jnp.where(mask_NxT, (mean_NxT + 1) / 2, -1.0).astype(jnp.float32)


# --- ARD: distances that adapt while no episode succeeds ---


class Distances(NamedTuple):
    """The state of `credit.adaptation.Adaptation` by rank, as arrays: `distance` and `visits` `[Q]`, `eta` and `episodes` scalars."""

    distance: Array
    eta: Array
    episodes: Array
    visits: Array


def adapt(state: Distances, initial_Q: Array, reached_ExT: Array, success_E: Array, *, every: int, theta: Array) -> Distances:
    """The state after some episodes: after `every` in a row without success, the states no closer than the best one reached are put θ away.

    Args:
      initial_Q: float32, d_0; whole numbers, which are the ranks; 0 at acceptance.
      reached_ExT: int32, the automaton's state after each step, −1 off the steps.
      success_E: bool.
      every: as `ARD.every`.
      theta: θ.
    """
    states = len(initial_Q)

    def after(state: Distances, at):
        reached_T, won = at
        visits = state.visits + (reached_T[:, None] == jnp.arange(states)).sum(axis=0)
        episodes = state.episodes + 1
        due = ~won & (episodes >= every)
        seen = (visits > 0) & (initial_Q > 0)
        best = jnp.where(seen, initial_Q, jnp.inf).min()
        moved = due & seen.any()
        over = won | due
        return Distances(
            state.distance + jnp.where(moved, theta, 0.0) * (initial_Q >= best),
            jnp.where(moved, state.eta / theta, state.eta),
            jnp.where(over, 0, episodes),
            jnp.where(over, 0, visits),
        ), None

    return jax.lax.scan(after, state, (reached_ExT, success_E))[0]
