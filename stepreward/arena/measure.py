"""Measures in the arena: of learning curves, of the gradient that a credit implies, and of the credit of each step against the exact advantage."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from stepreward import credit
from stepreward.arena import exact, tables
from stepreward.arena.arms import Arm
from stepreward.arena.learn import Policies, Record, Settings, gradient_of, run
from stepreward.arena.play import chain, to_batch
from stepreward.arena.task import Task
from stepreward.credit.quality import step_quality

Array = jax.Array

LEVEL = 0.8  # of the best policy's success, for `steps_to`
SMALL = 1e-3  # length of a gradient step that stands for an infinitesimal one


# --- Learning curves ---


def best_success(task: Task) -> float:
    """The success of the best policy, which may depend on the step."""
    return float((task.start * exact.optimal(task).value[0]).sum())


def steps_to(success, cost, wanted: float) -> np.ndarray:
    """The environment steps that each run has played when its success first reaches `wanted`; infinity if it never does.

    Args:
      success: float `[runs, I]`, before each iteration.
      cost: float `[runs, I]`, the steps of each iteration, branches included.
    """
    success, cost = np.asarray(success, np.float64), np.asarray(cost, np.float64)
    before = np.cumsum(cost, axis=1) - cost
    reached = success >= wanted
    first = reached.argmax(axis=1)
    return np.where(reached.any(axis=1), before[np.arange(len(success)), first], np.inf)


def collapsed(success, best: float) -> np.ndarray:
    """bool `[runs]`: whether a run collapsed.

    It did if its mean success over the last tenth of the iterations is less than half of the highest success that it had before, and that was
    at least a fifth of the best policy's. A run that never learns has not collapsed.
    """
    success = np.asarray(success, np.float64)
    last = max(1, success.shape[1] // 10)
    highest = success[:, :-last].max(axis=1, initial=0.0)
    return (success[:, -last:].mean(axis=1) < 0.5 * highest) & (highest >= 0.2 * best)


def interval(values) -> float:
    """The half-width of the 95 % t-interval of a mean."""
    values = np.asarray(values, np.float64)
    return float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


# --- Gradients ---


def gradient_quality(gradient, truth) -> dict[str, float]:
    """Compares the gradients of many batches with the exact one. All measures ignore the size of the gradient, which an optimiser normalises.

    Args:
      gradient: float `[N, …]`, one for each batch.
      truth: float `[…]`.

    Returns:
      `cosine_of_mean`: the cosine of the expected gradient with the exact one; below 1 is bias. The squared length of the mean over N batches exceeds that
      of the expectation by noise / N, which is subtracted; NaN if nothing is left, as for a gradient that is noise alone.
      `bias`: the part of the expected gradient that is orthogonal to the exact one, as a share of the part along it, √(1/cos² − 1).
      `cosine`: the mean cosine of one batch's gradient with the exact one, 0 where a batch has none.
      `noise`: the trace of the covariance over the squared length of the mean gradient: about so many batches must be averaged for a signal of
      the size of the noise.
    """
    gradient, truth = np.asarray(gradient, np.float64).reshape(len(gradient), -1), np.asarray(truth, np.float64).reshape(-1)
    mean = gradient.mean(axis=0)
    length = (mean**2).sum()
    noise = ((gradient - mean) ** 2).sum() / max(len(gradient) - 1, 1) / length if length > 0 else np.inf
    left = 1 - noise / len(gradient)
    of_mean = min(_cosine(mean, truth) / np.sqrt(left), 1.0) if left > 0 else np.nan
    return {
        "cosine_of_mean": float(of_mean),
        "bias": float(np.sqrt(1 / of_mean**2 - 1)) if of_mean > 0 else float("nan"),
        "cosine": float(np.mean([_cosine(g, truth) for g in gradient])),
        "noise": float(noise),
    }


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    size = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / size) if size > 0 else 0.0


# --- Steps ---


def credit_quality(record: Record, truth: Array) -> dict[str, float]:
    """All measures of the records of several runs at one policy: `Record` with leading axes `[runs, I]`, and the exact gradient `[S, A]`."""
    flat = lambda x: np.asarray(x).reshape(-1, x.shape[-1])
    found = gradient_quality(np.asarray(record.gradient).reshape(-1, *truth.shape), truth)
    for name, given in (("reward", record.step_reward), ("advantage", record.step_advantage)):
        found |= {f"{name}_{key}": value for key, value in step_quality(flat(given), flat(record.exact), flat(record.mask)).items()}
    return found


def at_policy(arm: Arm, task: Task, logits: Array, trained: Array, rate: float, *, seeds: int = 10, batches: int = 20, burn_in: int = 20):
    """The records of an arm at a fixed policy. What learns beside the policy learns on `burn_in` batches before the records begin.

    Args:
      logits: `[S, A]` of that policy. What a method compares with its first policy compares with the uniform one.
      trained: `[S, A]`, see `half_trained`.
      rate: the PRM's learning rate.
    """
    settings = Settings(iterations=burn_in + batches, record=True, learns=False)
    policies = Policies(jnp.zeros_like(logits), logits, trained)
    rates = np.full(seeds, rate, np.float32)
    record = run(arm, settings, task, policies, rates, rates, np.arange(seeds)).record
    return jax.tree.map(lambda x: x[:, burn_in:], record)


@jax.jit
def half_trained(task: Task, rate: float = 0.1, share: float = 0.5) -> Array:
    """`[S, A]`: logits of a policy half way between the uniform one and the best: ascent on the exact gradient, by Adam, until it succeeds so often."""
    start = jnp.zeros(task.next_state.shape[:2])
    of = lambda logits: exact.success(task, jax.nn.log_softmax(logits))
    first, best = of(start), (task.start * exact.optimal(task).value[0]).sum()

    def climb(carry):
        learner, steps = carry
        return tables.descend(learner, -exact.policy_gradient(task, learner.table), rate), steps + 1

    unfinished = lambda carry: (of(carry[0].table) < first + share * (best - first)) & (carry[1] < 2000)
    return jax.lax.while_loop(unfinished, climb, (tables.fresh(start), 0))[0].table


# --- Is a synchronised PRM's log-ratio RLOO's update? ---


@partial(jax.jit, static_argnames=("groups", "size"))
def implicit_update(task: Task, logits: Array, seed: Array, groups: int = 2, size: int = 8) -> dict[str, Array]:
    """Correlations over the steps of one batch, for a PRM that is set to the policy and then learns from this batch by iStar's loss.

    At φ = π_old the gradient of the trajectory DPO loss is −β/2 times the mean over pairs of ∇log π(winner) − ∇log π(loser), which for groups of one
    size is proportional to the gradient of RLOO.

    Returns:
      `gradient`: the cosine of the two gradients. `small_step`, `adam_step`: Pearson's correlation of log π_prm − log π_old with log π_new − log π_old of
      RLOO, after a small step along each gradient, and after one step of Adam with the rate 0.1 for each. `rloo_exact`, `prm_exact`: the correlation of
      RLOO's advantage, and of the PRM's log-ratio after a small step, with the exact advantage.
    """
    log_policy = jax.nn.log_softmax(logits)
    episodes = chain(task, jnp.exp(log_policy), jax.random.key(seed), groups, size)
    batch, state = to_batch(episodes, log_policy), episodes.state
    advantage = credit.make("rloo").credit(batch).advantage
    ascent = gradient_of(advantage, None, batch, state, logits)
    istar = credit.make("istar")
    prm = -jax.grad(lambda x: istar.prm_loss(tables.log_probs(x, batch, state), batch)[0])(logits)
    ratio = lambda change: tables.log_probs(logits + change, batch, state) - batch.log_prob_old
    small = lambda x: SMALL * x / jnp.maximum(jnp.linalg.norm(x), 1e-12)
    adam = lambda x: tables.descend(tables.fresh(jnp.zeros_like(x)), -x, 0.1).table
    mask = batch.action_mask
    truth = exact.values(task, log_policy).advantage[jnp.arange(task.max_steps), state, batch.tokens]
    return {
        "gradient": (ascent * prm).sum() / jnp.maximum(jnp.linalg.norm(ascent) * jnp.linalg.norm(prm), 1e-20),
        "small_step": _pearson(ratio(small(prm)), ratio(small(ascent)), mask),
        "adam_step": _pearson(ratio(adam(prm)), ratio(adam(ascent)), mask),
        "rloo_exact": _pearson(advantage, truth, mask),
        "prm_exact": _pearson(ratio(small(prm)), truth, mask),
    }


def _pearson(x: Array, y: Array, mask: Array) -> Array:
    """Pearson's correlation over the True entries; NaN where one of the two is constant."""
    count = jnp.maximum(mask.sum(), 1)
    centred = lambda z: jnp.where(mask, z - jnp.where(mask, z, 0.0).sum() / count, 0.0)
    x, y = centred(x), centred(y)
    return (x * y).sum() / jnp.sqrt((x**2).sum() * (y**2).sum())
