"""Training on pairs: mini-batches, the loss against NumPy, and its gradient."""

import dataclasses
from functools import partial

import jax
import numpy as np
import optax
import pytest

from stepreward.batch import validate
from stepreward.preference import Pairs
from stepreward.training.auxiliaries.update import LogProbs, auxiliary_gradient, auxiliary_step
from stepreward.training.minibatches import row_episodes
from stepreward.training.preferring import PairLoss, pair_minibatches
from stepreward.training.state import create

PASS = dict(name="preference", outputs=LogProbs(1.0))
PAIRS = Pairs.of([((0, 0, 3), (1, 0, 2)), ((2, 1, 2), (3, 1, 2)), ((0, 2, 3), (5, 0, 1)), ((4, 0, 1), (6, 1, 3)), ((7, 0, 3), (4, 0, 3))])


def test_the_golden_losses():
    """T-28 of the catalogue: DPO with β = 0.5 and a gap of 2; IPR's sum with β = 0.1, a gap of 2 and log π(chosen) = −12."""
    from stepreward.kernels import dpo, dpo_with_sft

    np.testing.assert_allclose(dpo(0.5 * 2.0), 0.3133, atol=5e-5)
    np.testing.assert_allclose(dpo_with_sft(np.float32(0.1 * 2.0), np.float32(-12.0)), 12.5981, atol=5e-5)


def gradient(model, part, loss, chunk_rows):
    return jax.jit(partial(auxiliary_gradient, method=loss, graphdef=model[0], chunk_rows=chunk_rows, **PASS))(model[1], part)


def batch_for(make_batch, model):
    batch = make_batch(noise=0.3)
    reference = np.where(batch.action_mask, batch.log_prob_old, 0).astype(np.float32)
    return batch.with_signals(log_prob_reference=reference)


def expected(batch, log_prob, pairs, beta, sft):
    """The mean loss, by plain sums over the ranges' tokens."""
    total, weights = 0.0, 0.0
    of = lambda array, side: sum(
        array[batch.step_id == side[0] * batch.max_steps + step].sum(dtype=np.float64) for step in range(side[1], side[2])
    )
    for chosen, rejected, weight in zip(*pairs, strict=True):
        gains = [of(log_prob, side) - of(batch.signals["log_prob_reference"], side) for side in (chosen, rejected)]
        loss = np.log1p(np.exp(-beta * (gains[0] - gains[1]))) - sft * of(log_prob, chosen)
        total, weights = total + weight * loss, weights + weight
    return total / weights


@pytest.mark.parametrize("sft", [0.0, 1.0])
def test_the_loss_of_mini_batches_is_that_of_the_pairs(model, make_batch, sft):
    batch = batch_for(make_batch, model)
    weight = np.array([1, 2, 0.5, 1, 3], np.float32)
    pairs = PAIRS._replace(weight=weight)
    log_prob = np.where(batch.action_mask, np.random.default_rng(1).normal(-1, 0.3, batch.tokens.shape), 0).astype(np.float32)
    with_ours = batch.with_signals(log_prob_policy=log_prob)
    loss, seen, found = PairLoss(0.3, sft), 0.0, 0.0
    for part in pair_minibatches(with_ours, pairs, 2, 24, np.random.default_rng(0)):
        validate(dataclasses.replace(part, signals={}))
        assert part.num_episodes == 4 and len(part.tokens) == 24
    for part in pair_minibatches(with_ours, pairs, 2, 24, np.random.default_rng(0)):
        rows = [np.flatnonzero((batch.tokens == row).all(axis=1))[0] for row in part.tokens[part.action_mask.any(axis=1)]]
        mine = np.zeros(part.tokens.shape, np.float32)
        mine[part.action_mask.any(axis=1)] = log_prob[rows]
        share = part.signals["pair_weight"][0::2].sum()
        found += float(loss.losses["preference"](np.where(part.action_mask, mine, 0), part)[0]) * share
        seen += share
    np.testing.assert_allclose(seen, weight.sum())
    np.testing.assert_allclose(found / seen, expected(batch, log_prob, pairs, 0.3, sft), rtol=1e-5)


def test_a_mini_batch_holds_the_steps_of_the_ranges_alone(make_batch, model):
    batch = batch_for(make_batch, model)
    steps = np.asarray(batch.step_mask).sum(axis=1)
    one, other = np.argsort(-steps, kind="stable")[:2]
    assert steps[one] == steps[other] == 3
    (part,) = pair_minibatches(batch, Pairs.of([((one, 1, 2), (other, 0, 2))]), 3, 24, np.random.default_rng(0))
    assert sorted({int(x) for x in part.step_id[part.action_mask]}) == [1, batch.max_steps, batch.max_steps + 1]
    for place, (episode, step) in ((1, (one, 1)), (batch.max_steps, (other, 0))):
        np.testing.assert_array_equal(part.tokens[part.step_id == place], batch.tokens[batch.step_id == episode * batch.max_steps + step])
    assert part.signals["pair_weight"].tolist() == [1, 1, 0, 0, 0, 0] and sorted(set(row_episodes(part).tolist())) == [-1, 0, 1]
    assert list(pair_minibatches(batch, Pairs.of([]), 3, 24, np.random.default_rng(0))) == []


def test_chunks_of_any_size_give_the_gradient_of_the_whole_loss(model, make_batch, assert_same):
    (part,) = pair_minibatches(batch_for(make_batch, model), PAIRS, 5, 24, np.random.default_rng(0))
    grads = [gradient(model, part, PairLoss(0.5, 0.3), rows)[0] for rows in (24, 4)]
    assert_same(*grads)
    assert max(float(abs(x).max()) for x in jax.tree.leaves(grads[0])) > 1e-3


def test_updates_raise_the_chosen_against_the_rejected(model, make_batch):
    (part,) = pair_minibatches(batch_for(make_batch, model), PAIRS, 5, 24, np.random.default_rng(0))
    optimizer, outs = optax.adam(3e-3), []
    state = create(model[1], optimizer)
    for _ in range(12):
        state, out = auxiliary_step(state, part, method=PairLoss(0.5, 0.0), graphdef=model[0], optimizer=optimizer, chunk_rows=8, **PASS)
        outs.append({name: float(value) for name, value in out.items()})
    assert outs[-1]["loss"] < outs[0]["loss"] - 0.05 and outs[-1]["pair_margin"] > outs[0]["pair_margin"] + 0.1


def test_pairs_of_weight_zero_give_no_gradient(model, make_batch):
    pairs = PAIRS._replace(weight=np.zeros(5, np.float32))
    (part,) = pair_minibatches(batch_for(make_batch, model), pairs, 5, 24, np.random.default_rng(0))
    grads, metrics = gradient(model, part, PairLoss(0.5, 1.0), 8)
    assert float(metrics["loss"]) == 0.0 and all(not np.asarray(x).any() for x in jax.tree.leaves(grads))
