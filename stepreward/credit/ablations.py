"""What is not a paper's definition: variants, controls and ablations. Each table maps the value of an option to a function.

The tables `*_VARIANTS` name sets of options: "paper" is a paper's definition, "released" what its public release computes instead
(`docs/releases.md`), and "stable" what this library recommends.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from stepreward.batch import Batch
from stepreward.credit.base import last_step, per_step, step_mask, token_count
from stepreward.credit.outcome import episode_advantage, outcome_reward
from stepreward.credit.pieces import constant_discounts, episodes_count_once
from stepreward.credit.units import Units
from stepreward.kernels import masked_mean, masked_std, steps_to_go

Array = jax.Array


# --- Variants ---

_STABLE_ISTAR = {"beta": 1.0, "step_advantage": "centre", "nll_coef": 1.0, "alpha": 0.3, "alpha_scaled": True}
ISTAR_VARIANTS = {
    "paper": {},
    # What stays stable with tiny models and few rooms, where the paper's form collapses; evidence in docs/log.md. Step rewards keep
    # their size (a PRM that knows nothing says nothing), the PRM keeps its mass on actions that winners took, and counts as far as it
    # ranks new pairs better than chance.
    "stable": _STABLE_ISTAR,
    # Not in the paper: "stable", but the PRM compares actions that were taken in the same state, as GiGPO does.
    "state_pairs": {**_STABLE_ISTAR, "prm_objective": "state_pairs"},
    "released": {
        "prm_frozen": True,
        "trajectory_reduce": "mean",
        "step_norm": "maxabs",
        "step_norm_floor": 1e-6,
        "episode_advantage": "rloo",
        "step_advantage": "rloo",
        "baseline": "first_seen",
        "singleton": "raw",
    },
}
PRIME_VARIANTS = {"paper": {}, "released": {"step_norm": "max_return", "step_norm_floor": 1e-6}}
_STABLE_SPA = {"enforce_sum": True, "residual": "last", "beta": 0.01, "discount": 1.0, "trace": 1.0}
SPA_VARIANTS = {
    "paper": {},
    # Where success ends the episode, rewards that do not sum to the outcome pay for going on without succeeding: what the estimator
    # gets wrong, and β for every step. Evidence in docs/log.md.
    "stable": _STABLE_SPA,
    # Not in the paper: the estimator learns advantages from the outcome at every step, and λ < 1 lets them count. With λ = 1 and rewards
    # that sum to the outcome, contributions only move reward between steps, and the advantage is R − Σ_{k<t} ĉ_k − V.
    "every_step": {**_STABLE_SPA, "fit": "every_step", "trace": 0.5},
    "released": {
        "step_reward": "leave_one_out",
        "alpha": 1.0,
        "beta": 0.5,
        "step_weight": "released",
        "singleton": "raw",
        "last_grounded": True,
        "level": "token",
        "observation": "decay",
        "kl_in_reward": True,
    },
}


# --- Controls: the same rewards at other steps ---


def step_permutation(rng: np.random.Generator, step_mask_ExS: np.ndarray) -> np.ndarray:
    """Draws the signal `step_permutation` of the "shuffled" control: a random permutation of the steps of each episode.

    Args:
      rng: NumPy random generator.
      step_mask_ExS: bool `[E, S]`.

    Returns:
      int32 `[E, S]`; the True entries of a row are permuted among themselves, and the others keep their place.
    """
    mask_ExS = np.asarray(step_mask_ExS, bool)
    permutation_ExS = np.tile(np.arange(mask_ExS.shape[1], dtype=np.int32), (mask_ExS.shape[0], 1))
    for row, mask in zip(permutation_ExS, mask_ExS):
        row[mask] = rng.permutation(np.flatnonzero(mask))
    return permutation_ExS


def drawn(requires: frozenset[str], batch: Batch, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The random signals of controls that a method requires."""
    return {"step_permutation": step_permutation(rng, batch.step_mask)} if "step_permutation" in requires else {}


def as_they_are(reward: Array, batch: Batch) -> Array:
    """The rewards themselves."""
    return reward


def shuffled(reward_ExS: Array, batch: Batch) -> Array:
    """The rewards of each episode in the order of the signal `step_permutation`."""
    return jnp.take_along_axis(reward_ExS, batch.signals["step_permutation"], axis=1)


def uniform(reward_ExS: Array, batch: Batch) -> Array:
    """The mean reward of its episode at each step."""
    return jnp.broadcast_to(masked_mean(reward_ExS, step_mask(batch), axis=1)[:, None], reward_ExS.shape)


# --- iStar ---

STEP_REWARD = {"prm": as_they_are, "shuffled": shuffled, "uniform": uniform}


def controlled(reward_ExS: Array, how: str, batch: Batch) -> Array:
    """The rewards of the counted steps, or what a control of `STEP_REWARD` makes of them; 0 elsewhere."""
    return jnp.where(step_mask(batch), STEP_REWARD[how](reward_ExS, batch), 0.0)


def largest_return(reward: Array, units: Units) -> Array:
    """The largest size of a sum of this and all later rewards of an episode (PRIME's release)."""
    return largest(units.return_to_go(reward), units)


def largest(reward: Array, units: Units) -> Array:
    """The largest size of a reward in the batch (iStar's release)."""
    return jnp.max(jnp.where(units.mask, jnp.abs(reward), 0.0), initial=0.0)


def standard_deviation(reward: Array, units: Units) -> Array:
    """The standard deviation of the rewards in the batch, ddof 1."""
    return masked_std(reward, units.mask, ddof=1)


STEP_NORM = {"none": None, "maxabs": largest, "std": standard_deviation, "max_return": largest_return}


def rescaled(reward: Array, units: Units, how: str, floor: float) -> Array:
    """Rewards divided by their size over the batch (`STEP_NORM`) plus the floor; "none" leaves them as they are."""
    size = STEP_NORM[how]
    return reward if size is None else reward / (size(reward, units) + floor)


def every_unit(units: Units) -> None:
    """Each unit counts once in the statistics of its group."""
    return None


def first_seen(units: Units) -> Array:
    """Only the first unit of each episode counts, as in iStar's release."""
    return units.first


BASELINE = {"all_steps": every_unit, "first_seen": first_seen, "episode_mean": episodes_count_once}


def mean_over_steps(score_E: Array, batch: Batch) -> Array:
    """Scores divided by the number of steps of the episode, as in iStar's release."""
    return score_E / jnp.maximum(step_mask(batch).sum(axis=1), 1)


def mean_over_tokens(score_E: Array, batch: Batch) -> Array:
    """Scores divided by the number of action tokens of the episode."""
    return score_E / jnp.maximum(token_count(batch).sum(axis=1), 1)


TRAJECTORY_REDUCE = {"sum": as_they_are, "mean": mean_over_steps, "token_mean": mean_over_tokens}


# --- SPA-RL: rewards that need no estimator, `(batch, singleton) -> [E, S]` ---


def terminal_outcome(batch: Batch, singleton: str) -> Array:
    """The outcome at the last step."""
    return outcome_reward(batch)


def uniform_outcome(batch: Batch, singleton: str) -> Array:
    """R / T at each of the T steps."""
    return per_step(batch.outcome.astype(jnp.float32) / jnp.maximum(step_mask(batch).sum(axis=1), 1), batch)


def leave_one_out_outcome(batch: Batch, singleton: str) -> Array:
    """R minus the mean of the others of the group, at every step: what SPA-RL's release trains on."""
    return per_step(episode_advantage(batch, "rloo", singleton=singleton), batch)


OUTCOME_REWARD = {"uniform": uniform_outcome, "terminal": terminal_outcome, "leave_one_out": leave_one_out_outcome}


def times_steps_to_go(reward_ExS: Array, batch: Batch) -> Array:
    """The reward of step t times T − t − 1, as in SPA-RL's release: the last step gets nothing."""
    return reward_ExS * steps_to_go(step_mask(batch))


STEP_WEIGHT = {"none": as_they_are, "released": times_steps_to_go}


def with_last_step(executed_ExS: Array, mask_ExS: Array) -> Array:
    """bool `[E, S]`: the executed steps, and the last step whatever it did, as in SPA-RL's release."""
    return executed_ExS | last_step(mask_ExS)


# --- Token-level advantage estimation as in TRL ---


def decaying_discounts(stream, shape: tuple[int, int], discount: float, trace: float) -> Array:
    """`[1, N]`: the discount from each action token to the next one, γ·(γλ)^g with g observed tokens between them.

    In TRL's recursion value and reward of these g tokens are 0 but still decay: A_t = r_t − V_t + (γλ)^g · γ · (V_{t'} + λ·A_{t'}),
    which is the usual step with that discount.
    """
    return constant_discounts(stream, shape, discount, trace) * (discount * trace) ** observed_before_next(stream, shape)


def observed_before_next(stream, shape: tuple[int, int]) -> Array:
    """`[1, N]`: how many tokens that nobody sampled are between an action token and the next one of its episode.

    Where the next step has a row of its own, they are the tokens of its prompt.
    """
    rows, length = shape
    row_1xN, column_1xN = (stream.take(x) for x in jnp.indices((rows, length)))
    later = lambda x_1xN: jnp.pad(x_1xN[:, 1:], ((0, 0), (0, 1)))
    same_row = later(row_1xN) == row_1xN
    return jnp.where(same_row, later(column_1xN) - column_1xN - 1, later(column_1xN)).astype(jnp.float32)


OBSERVATION = {"skip": constant_discounts, "decay": decaying_discounts}
