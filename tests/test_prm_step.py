"""The process reward model's update.

In the public release of iStar, the scores are detached before the loss, so the PRM gets no gradient and never learns. These tests
compare the gradient with finite differences through the model; it is exactly zero only with `prm_frozen`.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from stepreward import credit
from stepreward.models.log_probs import token_log_probs
from stepreward.training.auxiliaries.prm import score
from stepreward.training.auxiliaries.update import LogProbs, auxiliary_gradient, auxiliary_step
from stepreward.training.state import create

PRM = {"name": "prm", "outputs": LogProbs(temperature=1.0)}
METHODS = {
    "istar": credit.make("istar", beta=1.0),
    "istar of the release, but trained": credit.make("istar", variant="released", prm_frozen=False, beta=1.0),
    "istar against the initial policy": credit.make("istar", reference="initial", nll_coef=0.3, beta=1.0),
    "prime": credit.make("prime", beta=1.0),
}


def batch_for(make_batch, **options):
    """A batch whose reference is some way off the PRM, so that the loss is at no special point."""
    batch = make_batch(noise=0.5, **options)
    return jax.tree.map(jnp.asarray, batch.with_signals(log_prob_initial=batch.log_prob_old))


def whole_loss(params, graphdef, method, batch):
    """The loss through the model, all rows at once, without chunks or cotangents."""
    log_prob, _ = token_log_probs(graphdef, params, batch.tokens, batch.positions, batch.segment_ids)
    return method.prm_loss(jnp.where(batch.action_mask, log_prob, 0.0), batch)[0]


def gradient_of(model, method, batch, chunk_rows=8):
    function = partial(auxiliary_gradient, graphdef=model[0], method=method, chunk_rows=chunk_rows, **PRM)
    return jax.jit(function)(model[1], batch)


@pytest.mark.parametrize("name", METHODS)
def test_the_gradient_equals_finite_differences_through_the_model(model, make_batch, flat, name):
    """Fails for the public release, whose gradient is zero in every direction."""
    graphdef, params = model
    method, batch = METHODS[name], batch_for(make_batch)
    grads, metrics = gradient_of(model, method, batch)
    assert metrics["pairs"] == 3 + 4 and np.linalg.norm(flat(grads)) > 1e-2
    loss = jax.jit(partial(whole_loss, graphdef=graphdef, method=method, batch=batch))
    slopes = []
    for seed in range(4):
        keys = jax.random.split(jax.random.key(seed), len(jax.tree.leaves(params)))
        direction = jax.tree.unflatten(
            jax.tree.structure(params),
            [jax.random.normal(k, x.shape) * jnp.std(x) if x.ndim > 1 else 0 * x for k, x in zip(keys, jax.tree.leaves(params))],
        )
        eps = 2e-3
        ahead, behind = (loss(jax.tree.map(lambda p, d: p + s * eps * d, params, direction)) for s in (1, -1))
        slopes.append(((ahead - behind) / (2 * eps), flat(grads) @ flat(direction)))
    measured, computed = np.array(slopes, np.float64).T
    assert np.abs(measured).max() > 1e-2
    np.testing.assert_allclose(computed, measured, rtol=1e-2, atol=5e-3)


@pytest.mark.parametrize("name", METHODS)
def test_chunks_of_any_size_give_the_gradient_of_the_whole_loss(model, make_batch, assert_same, name):
    method, batch = METHODS[name], batch_for(make_batch)
    value, expected = jax.jit(jax.value_and_grad(partial(whole_loss, graphdef=model[0], method=method, batch=batch)))(model[1])
    for chunk_rows in (4, 24):
        grads, metrics = gradient_of(model, method, batch, chunk_rows)
        assert_same(grads, expected)
        np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)


def test_the_order_of_rows_changes_nothing(model, make_batch, assert_same):
    """The rows of an episode may lie in different chunks, in any order."""
    batch = batch_for(make_batch)
    order = np.arange(24)[::-1]
    grads, _ = gradient_of(model, METHODS["istar"], batch)
    turned, _ = gradient_of(model, METHODS["istar"], batch.rows(order))
    assert_same(turned, grads)


def test_failed_episodes_are_in_no_pair(model, make_batch, flat):
    whole, masked = batch_for(make_batch), batch_for(make_batch, failed=(0,))
    _, metrics = gradient_of(model, METHODS["istar"], whole)
    grads, without = gradient_of(model, METHODS["istar"], masked)
    assert metrics["pairs"] == 7 and without["pairs"] == 4  # the first group's only success failed
    noisy = masked.replace(success=~masked.success ^ masked.episode_mask, outcome=masked.outcome + ~masked.episode_mask * 9.0)
    np.testing.assert_array_equal(flat(gradient_of(model, METHODS["istar"], noisy)[0]), flat(grads))


def train(model, method, batch, updates, optimizer=optax.adam(3e-3)):
    state, outs = create(model[1], optimizer), []
    for _ in range(updates):
        state, out = auxiliary_step(state, batch, graphdef=model[0], optimizer=optimizer, method=method, chunk_rows=8, **PRM)
        outs.append({k: float(v) for k, v in out.items()})
    return state, outs


@pytest.mark.parametrize("name", ["istar", "prime"])
def test_updates_separate_successes_from_failures(model, make_batch, name):
    _, outs = train(model, METHODS[name], batch_for(make_batch), 15)
    assert outs[-1]["loss"] < outs[0]["loss"] - 0.05
    assert outs[-1]["pair_margin"] > outs[0]["pair_margin"] + 0.1
    assert outs[-1]["pair_accuracy"] > outs[0]["pair_accuracy"]


def test_the_paper_s_defaults_learn_too(model, make_batch):
    """β is 0.05 and PRM equals policy at the start: the gradient is small there, and not zero."""
    state, outs = train(model, credit.make("istar", variant="paper"), make_batch(), 15)
    assert outs[0]["grad_norm"] > 1e-3
    np.testing.assert_allclose(outs[0]["loss"], np.log(2), rtol=1e-5)
    assert outs[-1]["pair_margin"] > outs[0]["pair_margin"] + 1e-2


@pytest.mark.parametrize(
    "method",
    [credit.make("istar", variant="released"), credit.make("istar", prm_frozen=True, nll_coef=1.0)],
    ids=["released", "frozen"],
)
def test_a_frozen_prm_gets_exactly_no_gradient(model, make_batch, flat, method):
    """What the public release computes, as an option: parameters stay bit-identical however long it trains."""
    batch = batch_for(make_batch)
    grads, metrics = gradient_of(model, method, batch)
    assert metrics["pairs"] == 7 and not flat(grads).any()
    state, outs = train(model, method, batch, 3)
    for old, new in zip(jax.tree.leaves(model[1]), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_array_equal(np.asarray(old), np.asarray(new))
    assert [o["grad_norm"] for o in outs] == [0.0] * 3


def test_a_batch_without_pairs_gives_no_gradient(model, make_batch, flat):
    batch = batch_for(make_batch)
    grads, metrics = gradient_of(model, METHODS["istar"], batch.replace(success=np.zeros_like(batch.success)))
    assert metrics["pairs"] == 0 and not flat(grads).any()


def test_the_score_is_the_log_probability_of_action_tokens(model, make_batch):
    graphdef, params = model
    batch = make_batch()
    whole, entropy = token_log_probs(graphdef, params, batch.tokens, batch.positions, batch.segment_ids, temperature=0.7)
    for chunk_rows in (4, 24):
        found = score(params, batch, graphdef=graphdef, chunk_rows=chunk_rows, temperature=0.7)
        for ours, expected in zip(found, (whole, entropy)):
            np.testing.assert_allclose(ours, np.where(batch.action_mask, expected, 0.0), atol=1e-5)
