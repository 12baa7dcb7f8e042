"""Numerical accuracy where a naive formula fails in float32: shifts, outliers, large log-ratios, many episodes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stepreward.kernels import (
    adaptive_kl_coefficient,
    dpo_pairs,
    dr_grpo,
    explained_variance,
    group_normalise,
    group_statistics,
    grpo,
    kl_k3,
    masked_mean,
    masked_std,
    masked_var,
    masked_whiten,
    paired_winners,
    ppo_clip,
    preference_pairs,
    reinforce_plus_plus,
    rloo,
)

THOUSAND = np.float32(1000)
NEXT = np.nextafter(THOUSAND, np.float32(2000))  # 1000 + 2⁻¹⁴
BIT = float(NEXT - THOUSAND)
modes = pytest.mark.parametrize("mode", [lambda f: f, jax.jit], ids=["eager", "jit"])


def one_group(x, mask=None, group=None):
    x = np.asarray(x, np.float32)
    return x, np.zeros(len(x), np.int32) if group is None else group, np.ones(len(x), bool) if mask is None else mask


@modes
def test_neighbouring_numbers_keep_their_difference(mode):
    pair = one_group([THOUSAND, NEXT])
    half = BIT / 2
    z = half / (np.sqrt(2) * half + 1e-6)
    np.testing.assert_allclose(mode(grpo)(*pair), [-z, z], rtol=1e-6)
    np.testing.assert_allclose(z, 0.6911, atol=1e-4)
    np.testing.assert_array_equal(mode(dr_grpo)(*pair), [-half, half])
    np.testing.assert_array_equal(mode(rloo)(*pair), [-BIT, BIT])


@modes
def test_neighbouring_numbers_beside_masked_ones_and_other_groups(mode):
    x = [7.0, THOUSAND, np.nan, NEXT, -3.0]
    arrays = one_group(x, np.array([1, 1, 0, 1, 1], bool), np.array([2, 0, 0, 0, 2], np.int32))
    np.testing.assert_array_equal(mode(dr_grpo)(*arrays), [5, -BIT / 2, 0, BIT / 2, -5])


@modes
@pytest.mark.parametrize("n", [8, 1000, 100_000])
@pytest.mark.parametrize("outlier", [1e6, -1e6])
def test_an_outlier_does_not_round_the_others_away(mode, n, outlier):
    x = np.random.default_rng(0).normal(size=n).astype(np.float32)
    x[n // 2] = outlier
    arrays = one_group(x)
    exact = x.astype(np.float64) - x.astype(np.float64).mean()
    tolerance = dict(rtol=3e-7, atol=2e-3)  # float32 precision at the size of the mean, or of the other numbers
    np.testing.assert_allclose(mode(dr_grpo)(*arrays), exact, **tolerance)
    np.testing.assert_allclose(mode(rloo)(*arrays), exact * n / (n - 1), **tolerance)
    np.testing.assert_allclose(mode(grpo)(*arrays), exact / exact.std(ddof=1), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(mode(masked_whiten)(arrays[0], arrays[2]), exact / exact.std(ddof=1), rtol=1e-5, atol=1e-5)


@modes
def test_many_small_numbers_beside_an_outlier_have_no_rounding_bias(mode):
    """A float32 running sum of 10⁶ is a multiple of 1/16, so each 0.3 would count as 5/16 and shift the mean by 0.006."""
    x = np.where(np.arange(100_000) % 2, np.float32(0.3), np.float32(0.0))
    x[0] = 1e6
    exact = x.astype(np.float64) - x.astype(np.float64).mean()
    np.testing.assert_allclose(mode(dr_grpo)(*one_group(x)), exact, rtol=3e-7, atol=1e-4)
    np.testing.assert_allclose(mode(masked_mean)(x, np.ones(len(x), bool)), x.astype(np.float64).mean(), rtol=1e-5)


@modes
@pytest.mark.parametrize("value", [1000.1, -1000.1, 0.1, 1e6 + 0.3, 16777216.0])
def test_equal_numbers_have_their_own_mean_and_no_variance(mode, value):
    x, group, mask = one_group(np.full(1000, value))
    mask[::7], x[::7] = False, np.nan
    assert mode(masked_mean)(x, mask) == np.float32(value)
    assert mode(lambda x, m: masked_var(x, m, ddof=1))(x, mask) == 0
    assert mode(lambda x, m: masked_std(x, m, ddof=0))(x, mask) == 0
    assert not np.asarray(mode(masked_whiten)(x, mask)).any()
    for kernel in (grpo, dr_grpo, rloo):
        assert not np.asarray(mode(kernel)(x, group, mask)).any()
    tokens = np.full(1000, 3.0, np.float32)
    assert not np.asarray(mode(reinforce_plus_plus)(x, tokens, mask)).any()
    mean, std, n = mode(lambda *a: group_statistics(*a, num_groups=2, ddof=1))(x, group, mask)
    assert (np.asarray(mean)[mask] == np.float32(value)).all() and not np.asarray(std).any() and (np.asarray(n)[mask] == mask.sum()).all()


@modes
def test_statistics_do_not_depend_on_a_shift(mode):
    x = np.random.default_rng(1).integers(-40, 40, 500) / 8  # multiples of 1/8: exact beside 100,000
    mask = np.arange(500) % 3 > 0
    far = (x + 1e5).astype(np.float32)
    exact = x[mask]
    np.testing.assert_allclose(mode(lambda x: masked_var(x, mask, ddof=1))(far), exact.var(ddof=1), rtol=1e-5)
    white = (exact - exact.mean()) / exact.std(ddof=1)
    np.testing.assert_allclose(np.asarray(mode(lambda x: masked_whiten(x, mask))(far))[mask], white, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(mode(lambda x: masked_mean(x, mask))(far) - 1e5, exact.mean(), atol=1 / 128)
    group = (np.arange(500) % 2).astype(np.int32)
    near, shifted = (mode(lambda x: group_normalise(x, group, mask, num_groups=2, scale="std"))(y) for y in (x.astype(np.float32), far))
    np.testing.assert_allclose(shifted, near, rtol=1e-4, atol=1e-5)
    rows = far.reshape(50, 10), mask.reshape(50, 10)
    expected = [row[m].mean() for row, m in zip(x.reshape(50, 10), rows[1])]
    np.testing.assert_allclose(mode(lambda x: masked_mean(x, rows[1], axis=1))(rows[0]) - 1e5, expected, atol=1 / 128)


@modes
def test_explained_variance_does_not_depend_on_a_shift(mode):
    rng = np.random.default_rng(2)
    returns = rng.integers(-16, 16, 300) / 8
    value = returns + rng.integers(-4, 4, 300) / 8
    expected = 1 - (returns - value).var() / returns.var()
    found = mode(explained_variance)((value + 1e5).astype(np.float32), (returns + 1e5).astype(np.float32), np.ones(300, bool))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_gradient_of_a_mean_is_one_over_n_and_of_a_deviation_sums_to_zero():
    x, mask = jnp.array([THOUSAND, NEXT, np.nan, 5.0]), np.array([1, 1, 0, 1], bool)
    np.testing.assert_allclose(jax.grad(masked_mean)(x, mask), [1 / 3, 1 / 3, 0, 1 / 3], rtol=1e-6)
    gradient = jax.grad(lambda x: dr_grpo(x, np.zeros(4, np.int32), mask)[0])(x)
    np.testing.assert_allclose(gradient, [2 / 3, -1 / 3, 0, -1 / 3], rtol=1e-5)


def slope(function, x):
    return jax.value_and_grad(function)(jnp.float32(x))


@modes
@pytest.mark.parametrize("ahead", [1.0, 20.0, 30.0, 90.0, 500.0])
def test_k3_of_a_token_that_became_likelier_is_exact(mode, ahead):
    """For log π = log π_ref + ahead, k3 is exp(−ahead) + ahead − 1, which is 29 at 30, with gradient 1 − exp(−ahead)."""
    value, gradient = mode(lambda x: slope(lambda x: kl_k3(x, jnp.float32(-600.0)), x))(ahead - 600.0)
    np.testing.assert_allclose(value, np.expm1(-ahead) + ahead, rtol=1e-6)
    np.testing.assert_allclose(gradient, -np.expm1(-ahead), rtol=1e-6)


@modes
@pytest.mark.parametrize("behind", [1.0, 10.0, 19.9, 20.0])
def test_k3_of_a_token_that_became_rarer_is_exact_up_to_twenty_nats(mode, behind):
    value, gradient = mode(lambda x: slope(lambda x: kl_k3(x, jnp.float32(0.0)), x))(-behind)
    d = np.float64(np.float32(behind))
    np.testing.assert_allclose(value, np.expm1(d) - d, rtol=3e-6)
    np.testing.assert_allclose(gradient, -np.expm1(d), rtol=3e-6)


@modes
@pytest.mark.parametrize("behind", [21.0, 30.0, 100.0, 1e4])
def test_k3_is_linear_beyond_twenty_nats(mode, behind):
    value, gradient = mode(lambda x: slope(lambda x: kl_k3(x, jnp.float32(0.0)), x))(-behind)
    np.testing.assert_allclose(value, np.expm1(20) - 20 + np.expm1(20) * (behind - 20), rtol=1e-6)
    np.testing.assert_allclose(gradient, -np.expm1(20), rtol=1e-6)


def test_k3_shows_a_nan_in_its_value():
    value, gradient = slope(lambda x: kl_k3(x, jnp.float32(0.0)), np.nan)
    assert np.isnan(value) and gradient == 0


def clip_loss(log_ratio, advantage, **options):
    mask = jnp.ones((1, 1), bool)
    loss = lambda x: ppo_clip(x.reshape(1, 1), jnp.zeros((1, 1)), jnp.full((1, 1), advantage), mask, **options)[0]
    return slope(loss, log_ratio)


@pytest.mark.parametrize("log_ratio", [0.5, 19.0, 21.0, 60.0, 1000.0])
def test_a_bad_action_is_pushed_down_however_much_likelier_it_became(log_ratio):
    loss, gradient = clip_loss(log_ratio, -2.0)
    near, beyond = min(log_ratio, 20.0), max(log_ratio - 20.0, 0.0)
    np.testing.assert_allclose(loss, 2 * (np.exp(near) + np.exp(20.0) * beyond), rtol=1e-5)
    np.testing.assert_allclose(gradient, 2 * np.exp(near), rtol=1e-5)


@pytest.mark.parametrize("log_ratio", [-21.0, -60.0])
def test_a_good_action_that_was_given_up_keeps_the_gradient_of_its_ratio(log_ratio):
    loss, gradient = clip_loss(log_ratio, 1.0)
    np.testing.assert_allclose([loss, gradient], -np.exp(log_ratio), rtol=1e-5)


def test_dual_clip_has_no_gradient_where_it_is_active_and_the_full_one_elsewhere():
    loss, gradient = clip_loss(np.log(4.0), -2.0, dual_clip=3.0)
    np.testing.assert_allclose([loss, gradient], [6.0, 0.0], rtol=1e-6)
    loss, gradient = clip_loss(np.log(2.5), -2.0, dual_clip=3.0)
    np.testing.assert_allclose([loss, gradient], [5.0, 5.0], rtol=1e-6)


def test_the_metrics_of_ppo_clip_are_numbers():
    """Good tokens with ratios 2 and 3, bad ones with ratios 1/2 and 4 (the latter in the dual clip), and one masked token."""
    ratio, mask = np.array([[2.0, 3.0, 0.5, 4.0, 9.0]]), np.array([[1, 1, 1, 1, 0]], bool)
    advantage = jnp.array([[1.0, 2.0, -1.0, -1.0, 1.0]])
    loss, metrics = ppo_clip(jnp.log(ratio) - 3.0, jnp.full((1, 5), -3.0), advantage, mask, dual_clip=3.0)
    np.testing.assert_allclose(loss, (-1.2 - 2.4 + 0.8 + 3.0) / 4, rtol=1e-5)
    counted = ratio[mask]
    expected = dict(
        clip_fraction=0.75,
        clip_fraction_high=0.5,
        clip_fraction_low=0.25,
        dual_clip_fraction=0.25,
        ratio_mean=counted.mean(),
        ratio_max=4,
        ratio_min=0.5,
        tokens=4,
        approx_kl=(counted - np.log(counted) - 1).mean(),
    )
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)


def test_approx_kl_is_of_the_old_policy_against_the_new_one():
    """For one token with log ρ = −1, it is ρ − log ρ − 1 = 1/e; the other direction would give e − 2."""
    one = lambda x: jnp.full((1, 1), x)
    _, metrics = ppo_clip(one(-2.0), one(-1.0), one(1.0), jnp.ones((1, 1), bool))
    np.testing.assert_allclose(metrics["approx_kl"], np.exp(-1), rtol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 5, 16])
def test_pairs_by_groups_equal_those_of_the_whole_table(size):
    rng = np.random.default_rng(size)
    group = rng.permutation(np.repeat(np.arange(12), size)).astype(np.int32)
    n = len(group)
    score, success, mask = rng.normal(size=n).astype(np.float32), rng.random(n) < 0.5, rng.random(n) < 0.9
    table = np.asarray(preference_pairs(success, group, mask))
    margin = (score[:, None] - score[None, :]).astype(np.float64)[table]
    loss, metrics = jax.jit(dpo_pairs)(score, success, group, mask)
    np.testing.assert_array_equal(paired_winners(success, group, mask), table.any(axis=1))
    if not table.any():
        assert loss == 0 and metrics["pairs"] == 0
        return
    np.testing.assert_allclose(loss, np.logaddexp(0, -margin).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["pairs"], len(margin))
    np.testing.assert_allclose(metrics["pair_accuracy"], (margin > 0).mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["pair_margin"], margin.mean(), rtol=1e-4, atol=1e-6)


def test_a_hundred_thousand_episodes_need_no_table_of_pairs():
    n = 100_000
    group, success = (np.arange(n) // 8).astype(np.int32), np.arange(n) % 8 < 3
    run = jax.jit(jax.value_and_grad(lambda s: dpo_pairs(s, success, group, np.ones(n, bool))[0]))
    assert run.lower(jnp.zeros(n)).compile().memory_analysis().temp_size_in_bytes < 100 * 4 * n
    loss, gradient = run(jnp.zeros(n))
    np.testing.assert_allclose(loss, np.log(2), rtol=1e-5)
    pairs = n // 8 * 15
    np.testing.assert_allclose(gradient, np.where(success, -5, 3) * 0.5 / pairs, rtol=1e-4)


def test_pairs_can_be_differentiated_forwards_and_backwards():
    success, group = np.array([1, 0, 0, 1], bool), np.zeros(4, np.int32)
    loss = lambda s: dpo_pairs(s, success, group, np.ones(4, bool))[0]
    score = jnp.array([0.3, -0.2, 0.9, 0.0])
    np.testing.assert_allclose(jax.jacfwd(loss)(score), jax.grad(loss)(score), rtol=1e-6)


def test_an_unknown_kl_leaves_the_coefficient_as_it_is():
    assert adaptive_kl_coefficient(0.3, float("nan"), target=6.0, horizon=10, episodes=10) == 0.3
