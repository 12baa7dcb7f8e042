"""Properties of every public kernel: masked values are ignored, any input dtype gives float32, and empty inputs are no error.

Each case is one kernel with arrays of one small batch, and the masks that say where it reads each array.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stepreward import kernels
from stepreward.kernels import discrimination, losses

E, S, R, L = 6, 3, 9, 5
rng = np.random.default_rng(0)

STEPS = np.array([3, 1, 2, 3, 0, 2])  # the fifth episode has none, and the mask excludes the sixth
MASK_E = np.array([1, 1, 1, 1, 0, 0], bool)
MASK_S = (np.arange(S) < STEPS[:, None]) & MASK_E[:, None]
GROUP = np.array([0, 0, 3, 3, 3, 0], np.int32)
SUCCESS = np.array([1, 0, 0, 1, 1, 0], bool)
STEP_ID = np.full((R, L), -1, np.int32)
for row, step in enumerate(np.flatnonzero(MASK_S)):  # nine steps, one per row, of one to three tokens
    STEP_ID[row, 1 : 2 + row % 3] = step
MASK_T = STEP_ID >= 0
STEP_END = MASK_T & (np.roll(STEP_ID, -1, axis=1) != STEP_ID)

COUNT_E = np.array([3, 2, 4, 5, 0, 0], np.int32)
LEVELS = dict(step_id_RxL=jnp.asarray(STEP_ID), num_episodes=E, max_steps=S)
STREAM = kernels.token_stream(jnp.asarray(STEP_ID), jnp.asarray(MASK_T), S)


@dataclasses.dataclass
class Case:
    """A kernel as `run(*arrays)`, which reads each float array only where its mask is True."""

    run: Callable
    masks: tuple
    size: float = 1.0  # standard deviation of the numbers

    def arrays(self, dtype=np.float64):
        numbers = np.random.default_rng(3)
        drawn = [self.size * numbers.normal(size=mask.shape) for mask in self.masks]
        # Every dtype can represent these multiples of 1/16, so results can differ only by their computation.
        return [np.round(16 * x).astype(dtype) / 16 if np.dtype(dtype) != bool else x > 0 for x in drawn]


def tokens(run, count=1, **more):
    return Case(run, (MASK_T,) * count, **more)


def steps(run, *others, **more):
    return Case(run, (MASK_S, *others), **more)


def episodes(run, **more):
    return Case(run, (MASK_E,), **more)


def grouped(x, mask, group, **options):
    return kernels.group_normalise(x, group, mask, num_groups=E, **options)


WEIGHT = np.where(MASK_E, 0.5, 0.0).astype(np.float32)
WEIGHT_T = np.where(MASK_T, 0.5 + np.arange(L) / L, np.nan).astype(np.float32)
STATES = np.random.default_rng(4).integers(-1, 4, (2, E, S))  # of an automaton, before and after each step
GROUP_S = np.broadcast_to(GROUP[:, None], (E, S))
MASKED = {
    "grpo": episodes(lambda x: kernels.grpo(x, GROUP, MASK_E)),
    "dr_grpo": episodes(lambda x: kernels.dr_grpo(x, GROUP, MASK_E)),
    "rloo": episodes(lambda x: kernels.rloo(x, GROUP, MASK_E)),
    "reinforce_plus_plus": episodes(lambda x: kernels.reinforce_plus_plus(x, COUNT_E, MASK_E)),
    "reinforce_plus_plus_baseline": episodes(lambda x: kernels.reinforce_plus_plus_baseline(x, GROUP, COUNT_E, MASK_E)),
    "tokens_to_steps": tokens(lambda x: kernels.tokens_to_steps(x, STEP_ID, E, S)),
    "steps_to_tokens": steps(lambda x: kernels.steps_to_tokens(x, STEP_ID)),
    "masked_mean": tokens(lambda x: kernels.masked_mean(x, MASK_T)),
    "masked_mean of rows": tokens(lambda x: kernels.masked_mean(x, MASK_T, axis=1)),
    "masked_var": tokens(lambda x: kernels.masked_var(x, MASK_T, ddof=1)),
    "masked_std": tokens(lambda x: kernels.masked_std(x, MASK_T, ddof=1)),
    "masked_whiten": tokens(lambda x: kernels.masked_whiten(x, MASK_T)),
    "weighted_whiten": episodes(lambda x: kernels.weighted_whiten(x, 2 * WEIGHT)),
    "group_sum": steps(lambda x: kernels.group_sum(x, GROUP_S, MASK_S, E)),
    "group_statistics": steps(lambda x: kernels.group_statistics(x, GROUP_S, MASK_S, num_groups=E, ddof=0)),
    "group_normalise": steps(lambda x: grouped(x, MASK_S, GROUP_S, scale="std")),
    "group_normalise, weighted": episodes(lambda x: grouped(x, MASK_E, GROUP, scale="leave_one_out", weight=WEIGHT)),
    "group_normalise, raw": episodes(lambda x: grouped(x, MASK_E, np.arange(E), scale="std", singleton="raw")),
    "linear_recurrence": Case(kernels.linear_recurrence, (np.ones((2, 5), bool),) * 2),
    "return_to_go": steps(lambda x: kernels.return_to_go(x, MASK_S, 0.9)),
    "return_to_go, discounts": steps(lambda x, d: kernels.return_to_go(x, MASK_S, d), MASK_S),
    "gae": steps(lambda r, v: kernels.generalized_advantage_estimation(r, v, MASK_S, 0.9, 0.8), MASK_S),
    "gae, discounts": steps(lambda r, v, d: kernels.generalized_advantage_estimation(r, v, MASK_S, d, 0.8), MASK_S, MASK_S),
    "bi-level gae": tokens(lambda r, v, d: kernels.bi_level_generalized_advantage_estimation(r, v, MASK_T, STEP_END, step_discount=d), 3),
    "leave_one_out_return_to_go": steps(lambda x: kernels.leave_one_out_return_to_go(x, GROUP, MASK_S, MASK_E)),
    "clipped_value_loss": tokens(lambda *x: kernels.clipped_value_loss(*x, MASK_T), 3),
    "explained_variance": tokens(lambda v, g: kernels.explained_variance(v, g, MASK_T), 2),
    "bag_sum_loss": steps(lambda c, r: kernels.bag_sum_loss(c, r, MASK_S, bag_size=2), MASK_S),
    "contribution_sum_loss": steps(lambda c, r: kernels.contribution_sum_loss(c, r, MASK_S), MASK_E),
    "return_prediction_loss": steps(lambda c, r: kernels.return_prediction_loss(c, r, MASK_S), MASK_E),
    "potential_differences": steps(lambda x: kernels.potential_differences(x, MASK_S)),
    "potential_differences of two": steps(lambda x, y: kernels.potential_differences(x, MASK_S, y), MASK_S),
    "spread_residual": steps(lambda c, r: kernels.spread_residual(c, r, MASK_S), MASK_E),
    "spread_residual at the last": steps(lambda c, r: kernels.spread_residual(c, r, MASK_S, "last"), MASK_E),
    "progress_reward": Case(lambda d, k: kernels.progress_reward(*STATES, MASK_S, d, k), (np.ones(4, bool),) * 2),
    "hybrid_reward": Case(lambda d, k: kernels.hybrid_reward(*STATES, MASK_S, d, k, eta=0.25), (np.ones(4, bool),) * 2),
    "dpo_pairs": episodes(lambda x: kernels.dpo_pairs(x, SUCCESS, GROUP, MASK_E)),
    "discriminator_loss": steps(lambda x: kernels.discriminator_loss(x, SUCCESS, MASK_S)),
    **{
        f"discriminator_reward, {form}": steps(lambda x, form=form: jnp.where(MASK_S, kernels.discriminator_reward(x, form), 0.0))
        for form in discrimination.REWARDS
    },
    "implicit_reward_cross_entropy": episodes(lambda x: kernels.implicit_reward_cross_entropy(x, SUCCESS, MASK_E)),
    "ppo_clip of tokens": tokens(lambda *x: kernels.ppo_clip(*x, MASK_T, dual_clip=3.0), 3, size=0.3),
    "ppo_clip of steps": tokens(lambda *x: kernels.ppo_clip(*x, MASK_T, ratio="step", aggregation="step-mean", **LEVELS), 3, size=0.3),
    "ppo_clip, weighted": tokens(
        lambda *x: kernels.ppo_clip(*x, MASK_T, ratio="step", aggregation="step-mean", weight_RxL=WEIGHT_T, **LEVELS), 3, size=0.3
    ),
    "aggregate, weights": tokens(lambda x: kernels.aggregate(x, MASK_T, "sequence-mean", weight_RxL=WEIGHT_T)),
    "entropy_bonus": tokens(lambda x: kernels.entropy_bonus(x, MASK_T, 0.1)),
    "negative_log_likelihood": tokens(lambda x: kernels.negative_log_likelihood(x, MASK_T)),
    # Elementwise kernels have no mask; `aggregate` applies one to their results.
    "aggregate of kl_k1": tokens(lambda a, b: kernels.aggregate(kernels.kl_k1(a, b), MASK_T), 2),
    "aggregate of kl_k3": tokens(lambda a, b: kernels.aggregate(kernels.kl_k3(a, b), MASK_T), 2),
    "aggregate of dpo": tokens(lambda x: kernels.aggregate(kernels.dpo(x), MASK_T)),
    "aggregate of dpo_with_sft": tokens(lambda x, y: kernels.aggregate(kernels.dpo_with_sft(x, y), MASK_T), 2),
    **{
        f"aggregate, {how}": tokens(lambda x, how=how: kernels.aggregate(x, MASK_T, how, constant=4.0, **LEVELS))
        for how in losses.AGGREGATIONS
    },
    "token stream": tokens(lambda x: jnp.where(STREAM.mask, STREAM.take(kernels.masked_whiten(x, MASK_T)), 0.0)),
}
# Kernels without maskable numbers, or that run on the host.
OTHERS = {"aggregation_denominator", "token_stream", "preference_pairs", "paired_winners", "steps_to_go", "adaptive_kl_coefficient"}
PARTS = {"TokenStream", "generalized_advantage_estimation", "bi_level_generalized_advantage_estimation", "ppo_clip"}
each_case = pytest.mark.parametrize("name", MASKED)


def test_every_public_kernel_is_here():
    public = {name for name, value in vars(kernels).items() if callable(value)}
    named = {word for name in MASKED for word in name.replace(",", " ").split()}
    assert public - named - OTHERS - PARTS == set()


def of_every_kernel(arrays):
    return {name: MASKED[name].run(*arrays[name]) for name in MASKED}


def with_gradients(arrays):
    """Returns each kernel's results, and the gradient of their weighted sum with respect to each array."""

    def total(name, *arrays):
        result = MASKED[name].run(*arrays)
        return sum((x * jnp.cos(jnp.arange(x.size)).reshape(x.shape)).sum() for x in jax.tree.leaves(result)), result

    found = {}
    for name, x in arrays.items():
        (_, result), gradients = jax.value_and_grad(partial(total, name), argnums=tuple(range(len(x))), has_aux=True)(*x)
        found[name] = result, gradients
    return found


# All kernels in one program, which compiles once per dtype.
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
run, run_with_gradients = (jax.jit(function, compiler_options=FAST) for function in (of_every_kernel, with_gradients))


def hidden_by(value):
    """Returns the arrays of every kernel, with `value` at all masked entries."""
    arrays = {name: zip(case.arrays(), case.masks) for name, case in MASKED.items()}
    return {name: [np.where(mask, x, value).astype(np.float32) for x, mask in pairs] for name, pairs in arrays.items()}


@pytest.fixture(scope="module")
def found():
    """Every kernel's results and gradients, with 7, NaN and the infinities at the masked entries."""
    return {str(value): run_with_gradients(hidden_by(value)) for value in (7.0, np.nan, np.inf, -np.inf)}


@each_case
def test_masked_values_affect_neither_results_nor_gradients(name, found):
    result, gradients = found["7.0"][name]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((result, gradients)))
    for gradient, mask in zip(gradients, MASKED[name].masks):
        assert not np.asarray(gradient)[~mask].any()
    for hidden in ("nan", "inf", "-inf"):
        jax.tree.map(np.testing.assert_array_equal, found[hidden][name], (result, gradients))


@pytest.fixture(scope="module")
def results():
    """Every kernel's results for arrays of each dtype, and for the same numbers in float32."""

    def of(dtype):
        given = {name: case.arrays(bool if dtype is bool else np.float64) for name, case in MASKED.items()}
        if dtype is np.int32:
            given = {name: [np.round(x) for x in arrays] for name, arrays in given.items()}
        return tuple(run({n: [jnp.asarray(x, d) for x in given[n]] for n in given}) for d in (dtype, jnp.float32))

    return {dtype: of(dtype) for dtype in (jnp.bfloat16, jnp.float16, np.int32, bool)}


@each_case
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, np.int32, bool], ids=["bfloat16", "float16", "int32", "bool"])
def test_any_input_dtype_gives_float32(name, dtype, results):
    ours, expected = (jax.tree.leaves(result[name]) for result in results[dtype])
    for a, b in zip(ours, expected, strict=True):
        if name != "steps_to_tokens":  # it only copies values
            assert a.dtype == jnp.float32
        np.testing.assert_allclose(np.asarray(a, np.float32), b, rtol=1e-5, atol=1e-6)


NOTHING = {
    "grpo": lambda n: kernels.grpo(n(1), n(1, int), n(1, bool)),
    "reinforce_plus_plus": lambda n: kernels.reinforce_plus_plus(n(1), n(1), n(1, bool)),
    "reinforce_plus_plus_baseline": lambda n: kernels.reinforce_plus_plus_baseline(n(1), n(1, int), n(1), n(1, bool)),
    "rloo": lambda n: kernels.rloo(n(1), n(1, int), n(1, bool)),
    "tokens_to_steps": lambda n: kernels.tokens_to_steps(n(2), n(2, int), 0, 3),
    "steps_to_tokens": lambda n: kernels.steps_to_tokens(n(2), n(2, int) - 1),
    "masked statistics": lambda n: [
        kernels.masked_mean(n(2), n(2, bool)), kernels.masked_mean(n(2), n(2, bool), axis=0), kernels.masked_whiten(n(2), n(2, bool)),
        kernels.masked_std(n(2), n(2, bool), ddof=1),
    ],
    "group_statistics": lambda n: kernels.group_statistics(n(2), n(2, int), n(2, bool), num_groups=1, ddof=1),
    "linear_recurrence": lambda n: kernels.linear_recurrence(n(2), n(2)),
    "return_to_go": lambda n: kernels.return_to_go(n(2), n(2, bool), 0.9),
    "gae": lambda n: kernels.generalized_advantage_estimation(n(2), n(2), n(2, bool), 0.9, 0.9),
    "bi-level gae": lambda n: kernels.bi_level_generalized_advantage_estimation(n(2), n(2), n(2, bool), n(2, bool)),
    "leave_one_out_return_to_go": lambda n: kernels.leave_one_out_return_to_go(n(2), n(1, int), n(2, bool), n(1, bool)),
    "clipped_value_loss": lambda n: kernels.clipped_value_loss(n(2), n(2), n(2), n(2, bool)),
    "explained_variance": lambda n: kernels.explained_variance(n(2), n(2), n(2, bool)),
    "contribution_sum_loss": lambda n: kernels.contribution_sum_loss(n(2), n(1), n(2, bool)),
    "bag_sum_loss": lambda n: kernels.bag_sum_loss(n(2), n(2), n(2, bool), bag_size=2),
    "return_prediction_loss": lambda n: kernels.return_prediction_loss(n(2), n(1), n(2, bool)),
    "potential_differences": lambda n: kernels.potential_differences(n(2), n(2, bool)),
    "spread_residual": lambda n: [kernels.spread_residual(n(2), n(1), n(2, bool), how) for how in ("none", "last", "uniform")],
    "progress_reward": lambda n: kernels.progress_reward(n(2, int), n(2, int), n(2, bool), n(1), n(1)),
    "hybrid_reward": lambda n: kernels.hybrid_reward(n(2, int), n(2, int), n(2, bool), n(1), n(1), eta=0.1),
    "steps_to_go": lambda n: kernels.steps_to_go(n(2, bool)),
    "dpo_pairs": lambda n: kernels.dpo_pairs(n(1), n(1, bool), n(1, int), n(1, bool)),
    "pairs": lambda n: (kernels.preference_pairs(n(1, bool), n(1, int), n(1, bool)), kernels.paired_winners(n(1, bool), n(1, int), n(1, bool))),
    "discriminator_loss": lambda n: kernels.discriminator_loss(n(2), n(1, bool), n(2, bool)),
    "implicit_reward_cross_entropy": lambda n: kernels.implicit_reward_cross_entropy(n(1), n(1, bool), n(1, bool)),
    "kl": lambda n: (kernels.kl_k1(n(2), n(2)), kernels.kl_k3(n(2), n(2)), kernels.dpo(n(1))),
    "token_stream": lambda n: kernels.token_stream(n(2, int), n(2, bool), 3).take(n(2)),
    **{
        f"ppo_clip, {how}": lambda n, how=how: kernels.ppo_clip(
            n(2), n(2), n(2), n(2, bool), aggregation=how, constant=3.0, step_id_RxL=n(2, int) - 1, num_episodes=2, max_steps=3,
            ratio="step" if how == "step-mean" else "token",
        )
        for how in losses.AGGREGATIONS
    },
}  # fmt: skip


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0), (4, 4)], ids=["no rows", "no columns", "neither", "all masked"])
@pytest.mark.parametrize("name", NOTHING)
def test_empty_inputs_give_zero(name, shape):
    def nothing(rank, dtype=float):
        size = shape[:rank]
        return jnp.full(size, jnp.nan) if dtype is float else jnp.zeros(size, dtype)

    for leaf in jax.tree.leaves(NOTHING[name](nothing)):
        if name not in ("linear_recurrence", "kl", "token_stream") or not leaf.size:  # these have no mask
            assert np.isfinite(leaf).all() and not np.asarray(leaf).any()
