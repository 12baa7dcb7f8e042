"""Packing several rows into one: nothing is lost, and models, losses and gradients do not change."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from stepreward import credit
from stepreward.batch import TOKEN_LEVEL, validate
from stepreward.models.heads import head_outputs
from stepreward.models.log_probs import log_probs_and_values
from stepreward.rollout.bins import bin_rows, first_fit, unbin
from stepreward.training.auxiliaries.prm import score
from stepreward.training.auxiliaries.update import LogProbs, auxiliary_gradient
from stepreward.training.policy import PolicyLoss, policy_step
from stepreward.training.state import create

UPPER_LEVELS = ("step_mask", "env_reward", "executed", "episode_mask", "outcome", "success", "truncated", "group_id")
LENGTH = 24  # of packed rows: room for three to six of the batch's


@pytest.fixture(scope="module")
def batch(make_batch):
    batch = make_batch(noise=0.3)
    rng = np.random.default_rng(4)
    advantage = rng.normal(size=batch.tokens.shape).astype(np.float32) * batch.action_mask
    return batch.with_signals(advantage=advantage, progress=rng.random(batch.step_mask.shape), log_prob_initial=batch.log_prob_old)


@pytest.fixture(scope="module")
def packed(batch):
    return bin_rows(batch, LENGTH, row_multiple=4)


def test_bins_of_literal_sizes():
    bin_of, start_of, used = first_fit(np.array([3, 0, 5, 2, 4, 1]), 6)
    assert used == 3  # 5 + 1, 4 + 2, 3
    assert bin_of.tolist() == [2, 0, 0, 1, 1, 0] and start_of.tolist() == [0, 0, 0, 4, 0, 5]
    assert first_fit(np.zeros(3, int), 6)[2] == 0 and first_fit(np.zeros(0, int), 6)[2] == 0


@pytest.mark.parametrize("seed", range(8))
def test_first_fit_never_overfills_and_leaves_no_two_bins_that_fit_into_one(seed):
    rng = np.random.default_rng(seed)
    length = int(rng.integers(8, 64))
    counts = rng.integers(0, length + 1, int(rng.integers(1, 200)))
    bin_of, start_of, used = first_fit(counts, length)
    owner = np.full((used, length), -1)
    for item in np.flatnonzero(counts):
        place = owner[bin_of[item], start_of[item] : start_of[item] + counts[item]]
        assert place.size == counts[item] and (place == -1).all()
        place[:] = item
    filled = (owner >= 0).sum(axis=1)
    for first in range(used):  # what opened a later bin found no room in an earlier one
        assert filled[first] > 0 and (filled[first] + filled[first + 1 :] > length).all()


@pytest.mark.parametrize("length, multiple", [(None, 1), (LENGTH, 4), (100, 8)])
def test_nothing_is_lost(batch, length, multiple):
    packed, bins = bin_rows(batch, length, multiple)
    validate(packed)
    assert packed.tokens.shape == bins.shape and bins.shape[0] % multiple == 0 and bins.shape[1] == (length or 8)
    real = batch.segment_ids > 0
    assert (packed.segment_ids > 0).sum() == real.sum()
    for name in (*TOKEN_LEVEL, "advantage", "log_prob_initial"):
        get = lambda b: b.signals[name] if name in b.signals else getattr(b, name)
        assert get(packed).dtype == get(batch).dtype
        if name != "segment_ids":
            np.testing.assert_array_equal(unbin(get(packed), bins)[real], get(batch)[real], err_msg=name)
    for name in UPPER_LEVELS:
        assert getattr(packed, name) is getattr(batch, name)
    assert packed.signals["progress"] is batch.signals["progress"]
    padding = packed.segment_ids == 0
    assert (packed.step_id[padding] == -1).all() and not packed.action_mask[padding].any()


def test_every_row_is_a_segment_of_its_own_in_one_piece(batch, packed):
    packed, bins = packed
    ids = unbin(packed.segment_ids, bins)
    for row in packed.segment_ids:
        borders = row[np.flatnonzero(np.diff(row, prepend=0))]
        assert borders[borders > 0].tolist() == list(range(1, row.max() + 1))  # 1, 2, …, each once
    for r, real in enumerate(batch.segment_ids > 0):
        assert len(set(ids[r, real])) <= 1
        if real.any():
            places = bins.place_RxL[r, real]
            assert len(set(places // LENGTH)) == 1 and (np.diff(places) == 1).all()
    np.testing.assert_array_equal(packed.positions[np.diff(packed.segment_ids, prepend=0, axis=1) > 0], 0)
    assert bins.shape[0] < (batch.segment_ids > 0).any(axis=1).sum() / 2


def test_rows_that_are_packed_already_can_be_packed_again(batch, packed):
    once, bins = packed
    twice, again = bin_rows(once, 2 * LENGTH)
    for name in ("tokens", "step_id", "advantage"):
        get = lambda b: b.signals[name] if name in b.signals else getattr(b, name)
        real = batch.segment_ids > 0
        np.testing.assert_array_equal(unbin(unbin(get(twice), again), bins)[real], get(batch)[real])
    for row in twice.segment_ids:
        assert set(row) - {0} == set(range(1, row.max() + 1))


def test_a_row_that_is_too_long_is_an_error(batch):
    with pytest.raises(ValueError, match="A row of 7 tokens does not fit into packed rows of 6"):
        bin_rows(batch, 6)
    with pytest.raises(ValueError, match=r"shape \(2, 3\) is not one of packed rows"):
        unbin(np.zeros((2, 3)), bin_rows(batch)[1])


def test_a_batch_without_a_token_is_one_block_of_padding(batch):
    empty = batch.replace(segment_ids=batch.segment_ids * 0, step_id=batch.step_id * 0 - 1, action_mask=batch.action_mask & False)
    packed, bins = bin_rows(empty, LENGTH, 4)
    assert packed.tokens.shape == (4, LENGTH) and not packed.segment_ids.any() and (packed.step_id == -1).all()
    assert unbin(packed.log_prob_old, bins).shape == batch.tokens.shape


def test_models_see_no_difference(headed, batch, packed):
    packed, bins = packed
    graphdef, params = headed
    real = batch.action_mask

    @jax.jit
    def outputs(tokens, positions, segment_ids, action_mask):
        rows = (tokens, positions, segment_ids)
        scored = log_probs_and_values(graphdef, params["decoder"], params["scalar_head"], *rows, temperature=0.7)
        heads = [head_outputs(graphdef, params, *rows, action_mask_RxL=action_mask, before=b) for b in (True, False)]
        return *scored, *heads

    inputs = lambda b: (b.tokens, b.positions, b.segment_ids, b.action_mask)
    for found, expected in zip(outputs(*inputs(packed)), outputs(*inputs(batch))):
        np.testing.assert_allclose(unbin(np.asarray(found), bins)[real], np.asarray(expected)[real], atol=2e-5)
        assert np.abs(np.asarray(expected)[real]).max() > 0.1


def test_nothing_is_said_of_a_token_that_opens_a_segment(headed, packed):
    packed, _ = packed
    graphdef, params = headed
    opens = np.diff(packed.segment_ids, prepend=0, axis=1) > 0
    mask = jnp.asarray(opens)
    rows = (packed.tokens, packed.positions, packed.segment_ids)

    @partial(jax.jit, static_argnums=0)
    def outputs(max_actions):
        options = dict(action_mask_RxL=mask, max_actions=max_actions)
        before, after = (head_outputs(graphdef, params, *rows, before=b, **options) for b in (True, False))
        return *log_probs_and_values(graphdef, params["decoder"], params["scalar_head"], *rows, **options), before, after

    inner = opens & (np.arange(LENGTH) > 0)
    for max_actions in (None, 8):
        *found, after = (np.asarray(x) for x in outputs(max_actions))
        assert not any(x[opens].any() for x in found) and after[inner].all() and inner.sum() > 5


SGD = optax.sgd(1.0)


def test_the_policys_loss_and_gradient_stay(model, batch, packed, flat):
    graphdef, params = model
    copy = lambda: create(jax.tree.map(jnp.copy, params), SGD)
    step = partial(policy_step, graphdef=graphdef, optimizer=SGD, temperature=1.0, loss=PolicyLoss(entropy_coef=0.1))
    (expected, metrics), (found, of_packed) = (
        step(copy(), b, b.signals["advantage"], chunk_rows=rows) for b, rows in ((batch, 8), (packed[0], 2))
    )
    np.testing.assert_allclose(flat(found.params), flat(expected.params), atol=1e-5)
    assert np.abs(flat(found.params) - flat(params)).max() > 1e-3
    for name, value in metrics.items():
        np.testing.assert_allclose(of_packed[name], value, atol=1e-5, err_msg=name)


def test_the_prms_loss_and_gradient_stay(model, batch, packed, flat):
    graphdef, params = model
    what = dict(name="prm", outputs=LogProbs(1.0), method=credit.make("istar", beta=1.0))
    gradient = partial(auxiliary_gradient, graphdef=graphdef, **what)
    (expected, metrics), (found, of_packed) = (
        jax.jit(partial(gradient, chunk_rows=rows))(params, b) for b, rows in ((batch, 8), (packed[0], 2))
    )
    np.testing.assert_allclose(flat(found), flat(expected), atol=1e-5)
    assert np.abs(flat(expected)).max() > 1e-3
    for name, value in metrics.items():
        np.testing.assert_allclose(of_packed[name], value, atol=1e-5, err_msg=name)


def test_scores_come_back_to_their_rows(model, batch, packed):
    graphdef, params = model
    scored = lambda b, rows: np.asarray(score(params, b, graphdef=graphdef, chunk_rows=rows, temperature=1.0)[0])
    np.testing.assert_allclose(unbin(scored(packed[0], 2), packed[1]), scored(batch, 8), atol=1e-5)
