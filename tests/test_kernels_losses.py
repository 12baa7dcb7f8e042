"""Losses on hand-computed numbers, their gradients, and their sums over micro-batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stepreward.kernels import (
    aggregate,
    aggregation_denominator,
    dpo,
    dpo_pairs,
    dpo_with_sft,
    entropy_bonus,
    implicit_reward_cross_entropy,
    kl_k1,
    kl_k3,
    negative_log_likelihood,
    ppo_clip,
)
from stepreward.kernels.losses import AGGREGATIONS

CLOSE = dict(atol=1e-4, rtol=0)
R, L, E, S = 6, 10, 3, 4


@pytest.fixture
def rows():
    """Six rows of two steps each; masked tokens are NaN."""
    rng = np.random.default_rng(0)
    step_id = np.full((R, L), -1, np.int32)
    for r in range(R):
        first, second = rng.integers(1, 5, 2)
        step_id[r, 1 : 1 + first] = 2 * r
        step_id[r, 5 : 5 + second] = 2 * r + 1
    mask = step_id >= 0
    hide = lambda x: jnp.asarray(np.where(mask, x, np.nan), jnp.float32)
    old = rng.normal(-1, 0.3, (R, L))
    new = old + rng.normal(0, 0.2, (R, L))
    return dict(
        mask=jnp.asarray(mask),
        step_id=jnp.asarray(step_id),
        old=hide(old),
        new=hide(new),
        advantage=hide(rng.normal(size=(R, L))),
    )


def levels(rows):
    return dict(step_id_RxL=rows["step_id"], num_episodes=E, max_steps=S)


@pytest.mark.parametrize(
    "aggregation, constant, expected",
    [("token-mean", None, 1 / 3), ("sequence-mean", None, 0), ("sequence-sum", None, 1), ("constant", 8, 0.125)],
)
def test_aggregation_literal(aggregation, constant, expected):
    # Two sequences at ratio 1, advantage +1 over two tokens and -1 over four.
    mask = jnp.array([[1, 1, 0, 0], [1, 1, 1, 1]], bool)
    advantage, log_prob = jnp.array([[1.0] * 4, [-1.0] * 4]), jnp.full((2, 4), -0.5)
    loss, metrics = ppo_clip(log_prob, log_prob, advantage, mask, aggregation=aggregation, constant=constant)
    np.testing.assert_allclose(loss, expected, **CLOSE)
    assert metrics["clip_fraction"] == 0 and metrics["ratio_mean"] == 1 and metrics["tokens"] == 6


@pytest.mark.parametrize(
    "aggregation, expected",
    [("token-mean", 14 / 4), ("sequence-mean", (2 + 5) / 2), ("sequence-sum", 14 / 2), ("constant", 14 / (2 * 8)), ("step-mean", 12 / 3)],
)
def test_rows_without_a_token_are_no_rows(aggregation, expected):
    """Two rows with the losses 1, 3 (one step) and 4, 6 (two steps), and two rows of padding."""
    x = jnp.array([[1.0, 3.0], [9.0, 9.0], [4.0, 6.0], [9.0, 9.0]])
    step_id = jnp.array([[0, 0], [-1, -1], [4, 5], [-1, -1]])
    options = dict(constant=8.0, step_id_RxL=step_id, num_episodes=2, max_steps=3)
    np.testing.assert_allclose(aggregate(x, step_id >= 0, aggregation, **options), expected, rtol=1e-6)
    total = aggregation_denominator(step_id >= 0, aggregation, **options)
    counts = {"token-mean": 4, "sequence-mean": 2, "sequence-sum": 2, "constant": 16, "step-mean": 3}
    assert total == counts[aggregation]


def test_step_mean_weighs_steps_equally(rows):
    per_step = [np.asarray(rows["new"])[np.asarray(rows["step_id"]) == i].mean() for i in range(2 * R)]
    np.testing.assert_allclose(aggregate(rows["new"], rows["mask"], "step-mean", **levels(rows)), np.mean(per_step), rtol=1e-5)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("ratio", ["token", "step"])
def test_micro_batches_add_up_to_the_mini_batch(rows, aggregation, ratio):
    options = dict(aggregation=aggregation, constant=7.0)
    total = aggregation_denominator(rows["mask"], **options, **levels(rows))

    def loss(new, part, denominator):
        take = lambda x: x[part]
        return ppo_clip(
            new[part],
            *map(take, (rows["old"], rows["advantage"], rows["mask"])),
            step_id_RxL=rows["step_id"][part],
            num_episodes=E,
            max_steps=S,
            ratio=ratio,
            denominator=denominator,
            dual_clip=3.0,
            **options,
        )[0]

    step = jax.jit(jax.value_and_grad(loss))
    whole, gradient = step(rows["new"], jnp.arange(R), total)
    alone = loss(rows["new"], jnp.arange(R), None)
    np.testing.assert_allclose(whole, alone, rtol=1e-5)
    parts = [step(rows["new"], jnp.array(part), total) for part in ([4, 0], [3, 1], [5, 2])]
    np.testing.assert_allclose(sum(p[0] for p in parts), whole, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(sum(p[1] for p in parts), gradient, atol=1e-6)
    off = ~np.asarray(rows["mask"])
    assert np.isfinite(gradient).all() and not np.asarray(gradient)[off].any() and np.asarray(gradient).any()


def test_an_empty_batch_has_loss_zero(rows):
    nothing = jnp.zeros_like(rows["mask"])
    for aggregation in AGGREGATIONS:
        loss, metrics = ppo_clip(
            rows["new"], rows["old"], rows["advantage"], nothing, aggregation=aggregation, constant=4.0, **levels(rows)
        )
        assert loss == 0
        assert np.isfinite([v for k, v in metrics.items() if k != "ratio_min"]).all()


def ppo_loop(rows, clip_low, clip_high, dual_clip, ratio):
    new, old, advantage, ids = (np.asarray(rows[k], np.float64) for k in ("new", "old", "advantage", "step_id"))
    losses, clipped = [], 0
    for r, l in zip(*np.nonzero(np.asarray(rows["mask"]))):
        same = ids == ids[r, l]
        rho = np.exp((new - old)[same].sum() if ratio == "step" else new[r, l] - old[r, l])
        a = advantage[r, l]
        inner = min(rho * a, np.clip(rho, 1 - clip_low, 1 + clip_high) * a)
        clipped += inner < rho * a
        losses.append(-max(inner, dual_clip * a) if dual_clip and a < 0 else -inner)
    return np.mean(losses), clipped / len(losses)


@pytest.mark.parametrize("ratio", ["token", "step"])
@pytest.mark.parametrize("clip_low, clip_high, dual_clip", [(0.2, 0.2, None), (0.1, 0.28, 1.15)])
def test_ppo_clip_against_a_loop(rows, ratio, clip_low, clip_high, dual_clip):
    clip = dict(clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)
    loss, metrics = ppo_clip(rows["new"], rows["old"], rows["advantage"], rows["mask"], ratio=ratio, **clip, **levels(rows))
    expected, clipped = ppo_loop(rows, clip_low, clip_high, dual_clip, ratio)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    np.testing.assert_allclose(metrics["clip_fraction"], clipped, atol=1e-6)
    assert clipped > 0 and (dual_clip is None) == (metrics["dual_clip_fraction"] == 0)
    np.testing.assert_allclose(metrics["clip_fraction_low"] + metrics["clip_fraction_high"], clipped, atol=1e-6)


@pytest.mark.parametrize("ratio", ["token", "step"])
def test_gradient_at_ratio_one_is_the_policy_gradient(rows, ratio):
    # The advantages are constant within a step, as the step ratio assumes.
    advantage = jnp.asarray(np.random.default_rng(1).normal(size=2 * R), jnp.float32)[rows["step_id"]]
    aggregation = "step-mean" if ratio == "step" else "token-mean"
    options = dict(ratio=ratio, aggregation=aggregation, **levels(rows))
    gradient = jax.grad(lambda new: ppo_clip(new, rows["old"], advantage, rows["mask"], **options)[0])(rows["old"])
    # The expected gradient is that of mean_steps(A·Σ log π of the step), or of mean_tokens(A·log π).
    count = 2 * R if ratio == "step" else rows["mask"].sum()
    np.testing.assert_allclose(gradient, jnp.where(rows["mask"], -advantage / count, 0), atol=1e-6)


def test_no_gradient_flows_into_the_advantage(rows):
    loss = lambda a: ppo_clip(rows["new"], rows["old"], a, rows["mask"])[0]
    assert not np.asarray(jax.grad(loss)(rows["advantage"])).any()


def test_extreme_log_ratios_stay_finite():
    mask, advantage = jnp.ones((1, 2), bool), jnp.array([[1.0, -1.0]])
    loss = lambda new: ppo_clip(new, jnp.zeros((1, 2)), advantage, mask, dual_clip=3.0)[0]
    value, gradient = jax.value_and_grad(loss)(jnp.array([[200.0, 200.0]]))
    np.testing.assert_allclose(value, (-1.2 + 3.0) / 2, rtol=1e-6)
    assert np.isfinite(gradient).all()


def test_kl_estimators():
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(6)), rng.dirichlet(np.ones(6))
    exact = (p * np.log(p / q)).sum()
    log_p, log_q = jnp.log(jnp.asarray(p, jnp.float32)), jnp.log(jnp.asarray(q, jnp.float32))
    for estimator in (kl_k1, kl_k3):  # under p, the expectation of each estimate is the divergence
        np.testing.assert_allclose((p * estimator(log_p, log_q)).sum(), exact, rtol=1e-4)
    assert (np.asarray(kl_k3(log_p, log_q)) >= 0).all() and (np.asarray(kl_k1(log_p, log_q)) < 0).any()


def test_imitation_and_entropy_are_means_over_the_mask(rows):
    mean = np.nanmean(np.asarray(rows["new"]))
    np.testing.assert_allclose(negative_log_likelihood(rows["new"], rows["mask"]), -mean, rtol=1e-5)
    np.testing.assert_allclose(entropy_bonus(rows["new"], rows["mask"], 0.01), -0.01 * mean, rtol=1e-5)
    gradient = np.asarray(jax.grad(lambda x: negative_log_likelihood(x, rows["mask"]))(rows["new"]))
    np.testing.assert_allclose(gradient, np.where(rows["mask"], -1.0, 0.0) / rows["mask"].sum(), atol=1e-7)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"aggregation": "mean"}, "aggregation must be one of"),
        ({"aggregation": "constant"}, "aggregation='constant' needs constant="),
        ({"aggregation": "step-mean"}, "aggregation='step-mean' needs step_id_RxL"),
        ({"ratio": "step"}, "ratio='step' needs step_id_RxL"),
        ({"ratio": "row"}, "ratio must be one of"),
    ],
)
def test_bad_arguments_are_one_clear_error(rows, options, message):
    with pytest.raises(ValueError, match=message):
        ppo_clip(rows["new"], rows["old"], rows["advantage"], rows["mask"], **options)


def test_dpo_literal():
    np.testing.assert_allclose(dpo(jnp.array([0.0, 0.2, 1.0])), [0.6931, 0.5981, 0.3133], **CLOSE)
    np.testing.assert_allclose(dpo_with_sft(jnp.float32(0.2), jnp.float32(-12.0)), 12.5981, **CLOSE)
    np.testing.assert_allclose(dpo_with_sft(jnp.float32(0.2), jnp.float32(-12.0), 0.0), 0.5981, **CLOSE)


def test_dpo_pairs_literal():
    score = 0.05 * jnp.array([1.0, 0.2, -0.4])
    success, group, mask = jnp.array([1, 1, 0], bool), jnp.zeros(3, jnp.int32), jnp.ones(3, bool)
    loss, metrics = dpo_pairs(score, success, group, mask)
    np.testing.assert_allclose(loss, 0.6685, **CLOSE)
    assert metrics["pairs"] == 2 and metrics["pair_accuracy"] == 1
    tied = dpo_pairs(jnp.array([0.3, 0.3, 0.3]), success, group, mask)
    np.testing.assert_allclose([tied[0], tied[1]["pair_accuracy"]], [0.6931, 0.5], **CLOSE)


def test_dpo_of_one_pair_is_plain_dpo():
    one = lambda s: dpo_pairs(s, jnp.array([False, True]), jnp.array([1, 1]), jnp.ones(2, bool))[0]
    score = jnp.array([0.4, -0.3])
    np.testing.assert_allclose(one(score), dpo(score[1] - score[0]), rtol=1e-6)
    np.testing.assert_allclose(jax.grad(one)(score), jax.grad(lambda s: dpo(s[1] - s[0]))(score), rtol=1e-6)


def test_dpo_pairs_against_a_loop_and_the_closed_form_of_its_gradient():
    rng = np.random.default_rng(5)
    n = 14
    score, success, group, mask = rng.normal(size=n), rng.random(n) < 0.5, rng.integers(0, 4, n), rng.random(n) < 0.8
    is_pair = lambda i, j: success[i] and not success[j] and group[i] == group[j] and mask[i] and mask[j]
    pairs = [(i, j) for i in range(n) for j in range(n) if is_pair(i, j)]
    assert len(pairs) > 4
    sigmoid = lambda x: 1 / (1 + np.exp(-x))
    expected = np.zeros(n)
    for i, j in pairs:
        expected[i] -= sigmoid(score[j] - score[i]) / len(pairs)
        expected[j] += sigmoid(score[j] - score[i]) / len(pairs)
    given = jnp.asarray(np.where(mask, score, np.nan), jnp.float32)
    function = lambda s: dpo_pairs(s, jnp.asarray(success), jnp.asarray(group), jnp.asarray(mask))
    (loss, metrics), gradient = jax.value_and_grad(function, has_aux=True)(given)
    np.testing.assert_allclose(loss, np.mean([-np.log(sigmoid(score[i] - score[j])) for i, j in pairs]), rtol=1e-5)
    np.testing.assert_allclose(gradient, expected, atol=1e-6)
    assert metrics["pairs"] == len(pairs)
    np.testing.assert_allclose(metrics["pair_accuracy"], np.mean([score[i] > score[j] for i, j in pairs]), rtol=1e-5)
    np.testing.assert_allclose(metrics["pair_margin"], np.mean([score[i] - score[j] for i, j in pairs]), rtol=1e-4)


@pytest.mark.parametrize("success", [[1, 1, 1], [0, 0, 0], [1, 0, 0]])
def test_no_pair_means_exactly_zero(success):
    # In the last case, the winner and the losers are in different groups.
    success, group = jnp.array(success, bool), jnp.array([0, 1, 1])
    loss, gradient = jax.value_and_grad(lambda s: dpo_pairs(s, success, group, jnp.ones(3, bool))[0])(jnp.array([3.0, -2.0, 1.0]))
    assert loss == 0 and not np.asarray(gradient).any()


def test_cross_entropy_literal_and_masked():
    score, success = jnp.array([0.2, -0.1, jnp.nan]), jnp.array([1, 0, 1], bool)
    mask = jnp.array([1, 1, 0], bool)
    loss, metrics = implicit_reward_cross_entropy(score, success, mask)
    np.testing.assert_allclose(loss, 0.6213, **CLOSE)
    assert metrics["label_accuracy"] == 1
    gradient = jax.grad(lambda s: implicit_reward_cross_entropy(s, success, mask)[0])(score)
    sigmoid = lambda x: 1 / (1 + np.exp(-x))
    np.testing.assert_allclose(gradient, [(sigmoid(0.2) - 1) / 2, sigmoid(-0.1) / 2, 0], atol=1e-6)


def test_a_score_of_zero_predicts_a_failure():
    """Before training, an implicit reward scores every episode with 0."""
    score, success = jnp.zeros(4), jnp.array([1, 0, 0, 0], bool)
    loss, metrics = implicit_reward_cross_entropy(score, success, jnp.ones(4, bool))
    np.testing.assert_allclose([loss, metrics["label_accuracy"]], [np.log(2), 0.75], rtol=1e-6)
