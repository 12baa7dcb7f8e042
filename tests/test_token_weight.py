"""Weights of tokens in the policy's loss: what a weight of 0, of 1/2 and of 2 means, in every aggregation, update and packing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from stepreward import parallel
from stepreward.credit import make
from stepreward.kernels import aggregate, aggregation_denominator, entropy_bonus, ppo_clip
from stepreward.kernels.losses import AGGREGATIONS, RATIOS
from stepreward.models.log_probs import token_log_probs
from stepreward.rollout.bins import bin_rows
from stepreward.training.policy import PolicyLoss, normalise_advantage, policy_step
from stepreward.training.state import create

SGD = optax.sgd(1.0)  # parameters move by minus the gradient
R, L, E, S = 6, 10, 3, 4
CONSTANT = 7.0


@pytest.fixture
def rows():
    """Six rows of two steps each; masked tokens are NaN."""
    rng = np.random.default_rng(0)
    step_id = np.full((R, L), -1, np.int32)
    for r in range(R):
        first, second = rng.integers(1, 5, 2)
        step_id[r, 1 : 1 + first], step_id[r, 5 : 5 + second] = 2 * r, 2 * r + 1
    hide = lambda x: np.where(step_id >= 0, x, np.nan).astype(np.float32)
    old = rng.normal(-1, 0.3, (R, L))
    new, advantage = old + rng.normal(0, 0.2, (R, L)), rng.normal(size=(R, L))
    return dict(new=hide(new), old=hide(old), advantage=hide(advantage), mask=step_id >= 0, step_id=step_id)


def loss(rows, aggregation, ratio="token", weight=None, steps=S):
    """The loss of some rows, and its gradient with respect to the new log-probabilities."""

    def of(new):
        options = dict(step_id_RxL=rows["step_id"], num_episodes=E, max_steps=steps, ratio=ratio, constant=CONSTANT, dual_clip=3.0)
        return ppo_clip(
            new, rows["old"], rows["advantage"], rows["mask"], aggregation=aggregation, weight_RxL=weight, clip_low=0.1, **options
        )[0]

    return jax.value_and_grad(of)(jnp.asarray(rows["new"]))


each_aggregation = pytest.mark.parametrize("aggregation", AGGREGATIONS)
each_ratio = pytest.mark.parametrize("ratio", RATIOS)


def test_a_weighted_mean_on_paper():
    """Losses 1, 3 with the weights 1/2, 1/2, and 4, 6 with the weights 2 and 0."""
    x, weight = jnp.array([[1.0, 3.0], [4.0, 6.0]]), jnp.array([[0.5, 0.5], [2.0, 0.0]])
    options = dict(weight_RxL=weight, constant=8.0, step_id_RxL=jnp.array([[0, 0], [1, 1]]), num_episodes=1, max_steps=2)
    expected = {
        "token-mean": (0.5 + 1.5 + 8) / 3,
        "sequence-mean": (0.5 * 2 + 2 * 4) / 2.5,
        "sequence-sum": (2 + 8) / 2.5,
        "constant": (2 + 8) / (2.5 * 8),
        "step-mean": (0.5 * 2 + 2 * 4) / 2.5,
    }
    for aggregation, value in expected.items():
        np.testing.assert_allclose(aggregate(x, jnp.ones((2, 2), bool), aggregation, **options), value, rtol=1e-6)
    np.testing.assert_allclose(entropy_bonus(x, jnp.ones((2, 2), bool), 0.3, weight_RxL=weight), -0.3 * 10 / 3, rtol=1e-6)


@each_aggregation
@each_ratio
def test_weights_of_one_are_no_weights(rows, aggregation, ratio):
    ones = np.where(rows["mask"], 1.0, np.nan).astype(np.float32)  # what is off the mask is not read
    for found, expected in zip(loss(rows, aggregation, ratio, ones), loss(rows, aggregation, ratio), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)


def test_without_weights_losses_are_bit_for_bit_those_of_the_plain_formulas(rows):
    """Sums and counts of the mask alone, in the same order of operations."""
    mask, x = jnp.asarray(rows["mask"]), jnp.where(rows["mask"], rows["new"], 0.0)
    of_row, of_step = mask.sum(axis=1, keepdims=True), jnp.bincount(jnp.where(mask, rows["step_id"], 12).reshape(-1), length=13)
    in_step = jnp.where(mask, of_step[jnp.maximum(rows["step_id"], 0)], 0).astype(jnp.float32)
    number = lambda count: jnp.maximum(count.astype(jnp.float32), 1.0)
    expected = {
        "token-mean": x.sum() / number(mask.sum()),
        "sequence-mean": (x / jnp.maximum(of_row, 1)).sum() / number(mask.any(axis=1).sum()),
        "sequence-sum": x.sum() / number(mask.any(axis=1).sum()),
        "constant": x.sum() / (number(mask.any(axis=1).sum()) * CONSTANT),
        "step-mean": (x / jnp.maximum(in_step, 1.0)).sum() / number((of_step[:12] > 0).sum()),
    }
    for aggregation, value in expected.items():
        options = dict(step_id_RxL=rows["step_id"], num_episodes=E, max_steps=S, constant=CONSTANT)
        np.testing.assert_array_equal(aggregate(rows["new"], mask, aggregation, **options), value, err_msg=aggregation)


@each_aggregation
@each_ratio
def test_a_token_of_weight_zero_is_off_the_mask(rows, aggregation, ratio):
    kept = rows["mask"] & (np.random.default_rng(1).random((R, L)) < 0.6)
    kept[2] = False  # a whole row
    value, gradient = loss(rows, aggregation, ratio, kept.astype(np.float32))
    without, expected = loss(rows | {"mask": kept}, aggregation, ratio)
    np.testing.assert_array_equal(value, without)
    np.testing.assert_array_equal(gradient, expected)
    assert not np.asarray(gradient)[~kept].any() and np.asarray(gradient).any()


@each_aggregation
@each_ratio
def test_a_row_of_weight_two_is_two_rows(rows, aggregation, ratio):
    """Rows 0 and 3 twice, against weights of 2 there; all weights may be scaled by one number."""
    copied = np.array([0, 1, 2, 3, 4, 5, 0, 3])
    several = {name: x[copied] for name, x in rows.items()}
    ids = several["step_id"]
    ids[6:] = np.where(ids[6:] >= 0, ids[6:] % 2 + 12 + 2 * np.arange(2)[:, None], -1)  # copies have steps of their own
    weight = np.where(rows["mask"], np.array([2, 1, 1, 2, 1, 1])[:, None], 0).astype(np.float32)
    expected, gradient = loss(several, aggregation, ratio, steps=2 * S)
    gradient = np.array(gradient)
    gradient[[0, 3]] += gradient[6:]
    for scale in (1.0, 0.1):
        value, found = loss(rows, aggregation, ratio, scale * weight)
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        np.testing.assert_allclose(found, gradient[:R], atol=1e-6)


@each_aggregation
def test_micro_batches_of_weighted_rows_add_up(rows, aggregation):
    weight = np.where(rows["mask"], np.random.default_rng(2).random((R, L)).round(1), 0).astype(np.float32)
    levels = dict(step_id_RxL=rows["step_id"], num_episodes=E, max_steps=S, constant=CONSTANT)
    total = aggregation_denominator(rows["mask"], aggregation, weight_RxL=weight, **levels)
    whole = aggregate(rows["new"], rows["mask"], aggregation, weight_RxL=weight, **levels)
    parts = []
    for part in ([4, 0], [3, 1], [5, 2]):
        options = levels | {"step_id_RxL": rows["step_id"][part], "weight_RxL": weight[part], "denominator": total}
        parts.append(aggregate(rows["new"][part], rows["mask"][part], aggregation, **options))
    np.testing.assert_allclose(sum(parts), whole, rtol=1e-5)


@each_aggregation
def test_without_any_weight_the_loss_is_zero(rows, aggregation):
    value, gradient = loss(rows, aggregation, weight=np.zeros((R, L), np.float32))
    assert value == 0 and not np.asarray(gradient).any()


def test_metrics_are_plain_means_over_the_tokens_that_the_loss_reads(rows):
    weight = np.where(rows["mask"] & (np.arange(R) < 3)[:, None], 0.25, 0.0).astype(np.float32)
    _, metrics = ppo_clip(rows["new"], rows["old"], rows["advantage"], rows["mask"], weight_RxL=weight)
    _, expected = ppo_clip(*(rows[name][:3] for name in ("new", "old", "advantage", "mask")))
    for name in expected:
        np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-6, err_msg=name)


# --- Updates ---


def update(model, batch, advantage, loss=PolicyLoss(), chunk_rows=8, place=lambda x: x):
    common = dict(graphdef=model[0], optimizer=SGD, loss=loss, chunk_rows=chunk_rows, temperature=1.0)
    state, metrics = policy_step(create(model[1], SGD), place(batch), place(advantage), **common)
    return state.params, {k: float(v) for k, v in metrics.items()}


def weighted_batch(make_batch):
    """A batch, its advantages, and weights of which some are 0."""
    batch, rng = make_batch(noise=0.3), np.random.default_rng(7)
    weight = np.where(batch.action_mask, rng.integers(0, 4, batch.tokens.shape) / 2, 0).astype(np.float32)
    batch = batch.with_signals(token_weight=weight, log_prob_reference=batch.log_prob_old - 0.1 * batch.action_mask)
    return batch, rng.normal(size=batch.tokens.shape).astype(np.float32) * batch.action_mask


@pytest.mark.parametrize(
    "loss",
    [PolicyLoss(entropy_coef=0.1, kl_coef=0.2), PolicyLoss(ratio="token", aggregation="token-mean", dual_clip=1.5, kl_coef=0.2, kl="k1")],
    ids=lambda loss: loss.aggregation,
)
def test_an_update_is_the_gradient_of_the_weighted_loss_in_any_chunks(model, make_batch, flat, assert_same, loss):
    batch, advantage = weighted_batch(make_batch)
    levels = dict(step_id_RxL=batch.step_id, num_episodes=batch.num_episodes, max_steps=batch.max_steps)
    how = dict(aggregation=loss.aggregation, weight_RxL=batch.signals["token_weight"], **levels)

    def whole(params):
        from stepreward.kernels import losses

        log_prob, entropy = token_log_probs(model[0], params, batch.tokens, batch.positions, batch.segment_ids)
        clip = dict(ratio=loss.ratio, dual_clip=loss.dual_clip)
        total, _ = ppo_clip(log_prob, batch.log_prob_old, advantage, batch.action_mask, **clip, **how)
        kl = getattr(losses, f"kl_{loss.kl}")(log_prob, batch.signals["log_prob_reference"])
        total += loss.kl_coef * aggregate(kl, batch.action_mask, **how)
        return total - loss.entropy_coef * aggregate(entropy, batch.action_mask, **how)

    value, gradient = jax.jit(jax.value_and_grad(whole))(model[1])
    for chunk_rows in (4, 24):
        params, metrics = update(model, batch, advantage, loss, chunk_rows)
        assert_same(flat(model[1]) - flat(params), flat(gradient))
        np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5, atol=1e-6)
    unweighted, _ = update(model, batch.replace(signals={"log_prob_reference": batch.signals["log_prob_reference"]}), advantage, loss)
    assert np.abs(flat(unweighted) - flat(params)).max() > 1e-3


def test_metrics_of_the_policy_do_not_depend_on_chunks_or_on_weights_of_other_tokens(model, make_batch):
    batch, advantage = weighted_batch(make_batch)
    _, one = update(model, batch, advantage, chunk_rows=24)
    _, several = update(model, batch, advantage, chunk_rows=4)
    _, none = update(model, batch.replace(signals={}), advantage)
    for name in one:
        np.testing.assert_allclose(several[name], one[name], rtol=1e-4, atol=1e-6, err_msg=name)
    for name in ("entropy", "log_prob_gap"):  # of every action token: they describe the policy and the sampler
        np.testing.assert_allclose(one[name], none[name], rtol=1e-5)


def test_without_weights_an_update_is_as_with_weights_of_one(model, make_batch, assert_same):
    batch, advantage = weighted_batch(make_batch)
    ones = batch.replace(signals={"token_weight": batch.action_mask.astype(np.float32)})
    none, expected = update(model, batch.replace(signals={}), advantage)
    found, metrics = update(model, ones, advantage)
    assert_same(found, none)
    for name in expected:
        np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-6, atol=1e-7, err_msg=name)


def test_packed_rows_keep_their_weights(model, make_batch, assert_same):
    batch, advantage = weighted_batch(make_batch)
    expected, metrics = update(model, batch, advantage)
    packed, _ = bin_rows(batch.with_signals(advantage=advantage), length=16, row_multiple=24)
    found, other = update(model, packed, packed.signals["advantage"])
    assert_same(found, expected)
    np.testing.assert_allclose(other["loss"], metrics["loss"], rtol=1e-5)


def test_placed_rows_keep_their_weights(model, make_batch, assert_same):
    batch, advantage = weighted_batch(make_batch)
    expected, _ = update(model, batch, advantage)
    rows = parallel.row_sharding(parallel.make_mesh(-1, 1, 1))
    put = lambda tree: jax.tree.map(lambda x: jax.device_put(x, rows) if np.shape(x) == batch.tokens.shape else x, tree)
    found, _ = update(model, batch, advantage, place=put)
    assert_same(found, expected)


@pytest.mark.parametrize("norm", ["centre", "whiten"])
def test_advantages_are_normalised_with_the_weights_of_the_steps(make_batch, norm):
    """Steps of weight 0 count nothing, those of weight 2 twice; the tokens of a step that have the weight 0 do not count."""
    batch = make_batch(steps=1)
    ids = np.unique(batch.step_id[batch.action_mask])
    of_step = dict(zip(ids, np.random.default_rng(3).normal(size=len(ids))))
    times = dict(zip(ids, np.arange(len(ids)) % 3))
    read = lambda found: np.vectorize(lambda i: found.get(i, 0.0))(batch.step_id).astype(np.float32)
    advantage, weight = read(of_step), read(times)
    first = np.pad(batch.action_mask[:, :-1], ((0, 0), (1, 0))) < batch.action_mask  # the first token of each answer
    several = np.bincount(batch.step_id[batch.action_mask], minlength=ids.max() + 1) > 1
    weight[first & np.where(batch.action_mask, several[np.maximum(batch.step_id, 0)], False)] = 0.0
    repeated = np.repeat([of_step[i] for i in ids], [times[i] for i in ids])
    expected = (advantage - repeated.mean()) / (repeated.std() + 1e-6 if norm == "whiten" else 1.0)
    found = normalise_advantage(advantage, batch, norm, weight)
    np.testing.assert_allclose(found, np.where(batch.action_mask, expected, 0.0), atol=1e-5)


# --- A step that several episodes share ---


@pytest.mark.parametrize("aggregation", ["token-mean", "step-mean"])
def test_the_gradient_of_a_tree_is_that_of_each_edge_once(model, make_batch, flat, assert_same, aggregation):
    """Four leaves of two steps, [[1, 1], [1, 0]], whose first steps are two: as packed, and with one row for each step of the tree."""
    rng = np.random.default_rng(0)
    batch = make_batch(groups=1, group_size=4, steps=2, rows=8)
    tokens, row = batch.tokens.copy(), np.arange(4)
    tokens[:] = rng.integers(1, 16, tokens.shape)
    node = np.array([[0, 2], [0, 3], [1, 4], [1, 5]])
    shape = batch.tokens.shape
    step_id, mask = np.full(shape, -1, np.int32), np.zeros(shape, bool)
    for e in row:
        for t in range(2):
            r, answer = 2 * e + t, 1 + node[e, t] % 3
            tokens[r] = tokens[2 * np.flatnonzero(node[:, t] == node[e, t])[0] + t]  # the copies of a step are equal
            step_id[r, 3 : 3 + answer], mask[r, 3 : 3 + answer] = 2 * e + t, True
    filled = np.ones(shape, np.int32)
    values = np.array([[1, 1], [1, 1], [0.5, 1], [0.5, 0]], np.float32)
    batch = batch.replace(
        tokens=tokens, action_mask=mask, step_id=step_id, segment_ids=filled, step_mask=np.ones((4, 2), bool),
        episode_mask=np.ones(4, bool), group_id=np.zeros(4, np.int32), log_prob_old=np.where(mask, -1.5, 0).astype(np.float32),
    )  # fmt: skip
    of_tree = dict(node_id=node, segment_id=node, sibling_id=np.array([[9, 0], [9, 0], [9, 1], [9, 1]]), segment_value=values)
    credit = make("treerpo", tau=0.0).credit(batch.with_signals(**of_tree))
    loss, advantage = PolicyLoss(aggregation=aggregation), np.asarray(credit.advantage)
    found, _ = update(model, batch.with_signals(token_weight=np.asarray(credit.token_weight)), advantage, loss)
    once = np.array([0, 1, 3, 4, 5, 7])  # nodes 0, 2, 3, 1, 4, 5
    kept = np.isin(np.arange(8), once)[:, None]
    alone = batch.replace(action_mask=mask & kept, step_id=np.where(kept, step_id, -1))
    expected, _ = update(model, alone, np.where(kept, advantage, 0.0), loss)
    assert_same(found, expected)
    repeated, _ = update(model, batch, advantage, loss)
    assert np.abs(flat(repeated) - flat(found)).max() > 1e-3
