"""The policy's update and the supervised warm start, on a one-layer model."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from stepreward.kernels import losses
from stepreward.models.log_probs import token_log_probs
from stepreward.training.auxiliaries.prm import score
from stepreward.training.minibatches import pad_rows, take_rows
from stepreward.training.policy import PolicyLoss, normalise_advantage, policy_step, sft_step
from stepreward.training.state import create

SGD = optax.sgd(1.0)  # parameters move by minus the gradient


def random_advantage(batch, seed=5):
    return np.random.default_rng(seed).normal(size=batch.tokens.shape).astype(np.float32) * batch.action_mask


def step(model, batch, advantage, loss=PolicyLoss(), chunk_rows=8, optimizer=SGD, temperature=1.0):
    graphdef, params = model
    return policy_step(
        create(params, optimizer),
        batch,
        advantage,
        graphdef=graphdef,
        optimizer=optimizer,
        loss=loss,
        chunk_rows=chunk_rows,
        temperature=temperature,
    )


def scored(model, params, batch):
    log_prob, entropy = score(params, batch, graphdef=model[0], chunk_rows=8, temperature=1.0)
    return np.asarray(log_prob), np.asarray(entropy)


@pytest.mark.parametrize(
    "loss",
    [
        PolicyLoss(),
        PolicyLoss(ratio="token", aggregation="token-mean", clip_high=0.28, dual_clip=1.5),
        PolicyLoss(aggregation="sequence-mean", entropy_coef=0.1),
        PolicyLoss(ratio="token", aggregation="constant", constant=3.0, kl_coef=0.2),
    ],
    ids=lambda loss: loss.aggregation,
)
def test_chunks_of_any_size_give_the_gradient_of_the_whole_mini_batch(model, make_batch, flat, assert_same, loss):
    graphdef, params = model
    batch = make_batch(noise=0.3)
    batch = batch.with_signals(log_prob_reference=batch.log_prob_old - 0.1 * batch.action_mask)
    advantage = random_advantage(batch)
    levels = dict(step_id_RxL=batch.step_id, num_episodes=batch.num_episodes, max_steps=batch.max_steps)
    how = dict(aggregation=loss.aggregation, constant=loss.constant, **levels)

    def whole(params):
        log_prob, entropy = token_log_probs(graphdef, params, batch.tokens, batch.positions, batch.segment_ids)
        total, _ = losses.ppo_clip(
            log_prob,
            batch.log_prob_old,
            advantage,
            batch.action_mask,
            ratio=loss.ratio,
            clip_low=loss.clip_low,
            clip_high=loss.clip_high,
            dual_clip=loss.dual_clip,
            **how,
        )
        kl = losses.kl_k3(log_prob, batch.signals["log_prob_reference"])
        total += loss.kl_coef * losses.aggregate(kl, batch.action_mask, **how)
        return total - loss.entropy_coef * losses.aggregate(entropy, batch.action_mask, **how)

    batch = jax.tree.map(jnp.asarray, batch)
    value, gradient = jax.jit(jax.value_and_grad(whole))(params)
    expected = flat(gradient)
    assert np.linalg.norm(expected) > 1e-2
    for chunk_rows in (4, 24):
        state, metrics = step(model, batch, advantage, loss, chunk_rows)
        assert_same(flat(params) - flat(state.params), expected)
        np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(metrics["grad_norm"], np.linalg.norm(expected), rtol=1e-4)


def test_empty_rows_and_the_order_of_rows_change_nothing(model, make_batch, assert_same):
    batch = make_batch(noise=0.3)
    advantage = random_advantage(batch)
    state, metrics = step(model, batch, advantage)
    order = np.random.default_rng(0).permutation(24)
    shuffled, capacity = take_rows(batch, order, 40), 40
    padded = pad_rows(advantage[order], capacity, np.float32(1e6))  # what stands in empty rows must not matter
    again, more = step(model, shuffled, padded)
    assert_same(again.params, state.params)
    for name in metrics:
        np.testing.assert_allclose(more[name], metrics[name], rtol=1e-5, atol=1e-7, err_msg=name)


def test_at_ratio_one_good_tokens_become_likelier_and_bad_ones_less(model, make_batch):
    batch = make_batch()
    row = np.flatnonzero(batch.action_mask.any(axis=1))[0]
    only = np.zeros(batch.tokens.shape, np.float32)
    for sign in (1.0, -1.0):
        only[row] = sign * batch.action_mask[row]
        state, metrics = step(model, batch, only, optimizer=optax.sgd(0.1))
        after, _ = scored(model, state.params, batch)
        assert sign * (after[row].sum() - batch.log_prob_old[row].sum()) > 1e-3
        np.testing.assert_allclose(metrics["ratio_mean"], 1.0, atol=1e-5)
        np.testing.assert_allclose(metrics["approx_kl"], 0.0, atol=1e-6)
        assert metrics["clip_fraction"] == 0


def test_the_ratio_is_of_two_policies_at_the_sampling_temperature(model, make_batch):
    """Before anything has moved it is 1 for every token; a policy at temperature 1 is another one."""
    batch = make_batch()
    log_prob, _ = score(model[1], batch, graphdef=model[0], chunk_rows=8, temperature=0.7)
    batch = batch.replace(log_prob_old=np.asarray(log_prob))
    _, metrics = step(model, batch, random_advantage(batch), temperature=0.7)
    np.testing.assert_allclose(metrics["ratio_mean"], 1.0, atol=1e-5)
    np.testing.assert_allclose(metrics["approx_kl"], 0.0, atol=1e-6)
    _, metrics = step(model, batch, random_advantage(batch), temperature=1.0)
    assert metrics["approx_kl"] > 1e-4


def test_approx_kl_is_the_mean_over_tokens_of_rho_minus_log_rho_minus_one(model, make_batch):
    """The old policy gave every token 0.3 nats more."""
    batch = make_batch()
    batch = batch.replace(log_prob_old=batch.log_prob_old + np.float32(0.3) * batch.action_mask)
    _, metrics = step(model, batch, random_advantage(batch), PolicyLoss(ratio="token"))
    np.testing.assert_allclose(metrics["approx_kl"], np.exp(-0.3) + 0.3 - 1, rtol=1e-4)
    np.testing.assert_allclose(metrics["ratio_mean"], np.exp(-0.3), rtol=1e-5)


def unequal_steps(make_batch, advantages):
    """A batch and `[R, L]` advantages: those of two steps, which have one token and several."""
    batch = make_batch(steps=1)
    length = np.bincount(batch.step_id[batch.action_mask])
    steps = np.flatnonzero(length)
    short, long = steps[length[steps] == 1][0], steps[length[steps] > 1][0]
    kept = np.isin(batch.step_id, (short, long))
    batch = batch.replace(action_mask=kept, step_id=np.where(kept, batch.step_id, -1))
    by_step = np.where(batch.step_id == short, advantages[0], advantages[1])
    return batch, np.where(kept, by_step, 0.0).astype(np.float32)


@pytest.mark.parametrize("norm, expected", [("none", (1.0, 5.0)), ("centre", (-2.0, 2.0)), ("whiten", (-1.0, 1.0))])
def test_advantages_are_normalised_over_steps_not_tokens(make_batch, norm, expected):
    """Steps of one token and of several weigh the same; the others of the batch do not count."""
    batch, advantage = unequal_steps(make_batch, (1.0, 5.0))
    _, wanted = unequal_steps(make_batch, expected)
    found = normalise_advantage(advantage, batch, norm)
    np.testing.assert_allclose(found, wanted, atol=2e-6)
    assert found.dtype == np.float32 and not found[~batch.action_mask].any()


@pytest.mark.parametrize("norm", ["centre", "whiten"])
def test_equal_advantages_are_normalised_to_zero(make_batch, norm):
    batch = make_batch()
    assert not normalise_advantage(np.float32(1000.1) * batch.action_mask, batch, norm).any()


def test_a_clipped_step_gives_no_gradient(model, make_batch, flat):
    batch = make_batch()
    batch = batch.replace(log_prob_old=batch.log_prob_old - 1.0 * batch.action_mask)  # every ratio is e or more
    state, metrics = step(model, batch, batch.action_mask.astype(np.float32))
    assert metrics["clip_fraction"] == 1 and metrics["grad_norm"] == 0
    np.testing.assert_array_equal(flat(state.params), flat(model[1]))


def test_the_entropy_bonus_raises_entropy(model, make_batch):
    batch = make_batch()
    zero = np.zeros(batch.tokens.shape, np.float32)
    _, before = scored(model, model[1], batch)
    state, metrics = step(model, batch, zero, PolicyLoss(entropy_coef=0.5), optimizer=optax.sgd(0.1))
    _, after = scored(model, state.params, batch)
    assert after.sum() > before.sum() + 1e-3
    np.testing.assert_allclose(metrics["entropy"], before.sum() / batch.action_mask.sum(), rtol=1e-5)


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_the_kl_term_pulls_towards_the_reference(model, make_batch, kind):
    batch = make_batch()
    other = jax.tree.map(lambda x: x + 0.05 * jax.random.normal(jax.random.key(1), x.shape), model[1])
    reference, _ = scored(model, other, batch)
    batch = batch.with_signals(log_prob_reference=reference)
    zero = np.zeros(batch.tokens.shape, np.float32)
    estimate = getattr(losses, f"kl_{kind}")
    mean = lambda log_prob: float((np.asarray(estimate(log_prob, reference)) * batch.action_mask).sum() / batch.action_mask.sum())
    state, metrics = step(model, batch, zero, PolicyLoss(kl_coef=0.5, kl=kind), optimizer=optax.sgd(0.1))
    after, _ = scored(model, state.params, batch)
    assert mean(after) < mean(batch.log_prob_old) - 1e-5
    np.testing.assert_allclose(metrics["kl_reference"], mean(batch.log_prob_old), rtol=1e-4, atol=1e-6)


def test_without_advantage_nothing_moves(model, make_batch, flat):
    batch = make_batch()
    state, metrics = step(model, batch, np.zeros(batch.tokens.shape, np.float32))
    np.testing.assert_array_equal(flat(state.params), flat(model[1]))
    assert metrics["grad_norm"] == 0


def test_a_non_finite_gradient_leaves_the_parameters_unchanged(model, make_batch, flat):
    batch = make_batch()
    advantage = random_advantage(batch)
    advantage[tuple(np.argwhere(batch.action_mask)[0])] = np.nan
    state, metrics = step(model, batch, advantage, optimizer=optax.adam(1e-2))
    np.testing.assert_array_equal(flat(state.params), flat(model[1]))
    assert not np.isfinite(metrics["grad_norm"]) and state.updates == 0


def test_sft_is_the_gradient_of_the_mean_negative_log_likelihood(model, make_batch, flat, assert_same):
    graphdef, params = model
    batch = make_batch()

    def whole(params):
        log_prob, _ = token_log_probs(graphdef, params, batch.tokens, batch.positions, batch.segment_ids)
        return -jnp.sum(jnp.where(batch.action_mask, log_prob, 0.0)) / batch.action_mask.sum()

    value, gradient = jax.jit(jax.value_and_grad(whole))(params)
    for chunk_rows in (4, 24):
        state, metrics = sft_step(create(params, SGD), batch, graphdef=graphdef, optimizer=SGD, chunk_rows=chunk_rows)
        assert_same(flat(params) - flat(state.params), flat(gradient))
        np.testing.assert_allclose(metrics["loss"], value, rtol=1e-6)


def test_the_number_of_rows_is_no_shape(model, make_batch):
    """Batches with other numbers of rows, steps and successes run the program that the first one compiled."""
    graphdef, params = model
    optimizer = optax.adam(1e-3)
    state = create(params, optimizer)
    counts, sizes = set(), []
    for seed in range(4):
        batch = make_batch(seed)
        counts.add(int(batch.action_mask.any(axis=1).sum()))
        state, _ = policy_step(
            state,
            batch,
            random_advantage(batch),
            graphdef=graphdef,
            optimizer=optimizer,
            loss=PolicyLoss(),
            chunk_rows=8,
            temperature=1.0,
        )
        sizes.append(policy_step._cache_size())
    assert len(counts) > 1 and len(set(sizes)) == 1


@pytest.mark.parametrize("options", [{"kl": "k2"}, {"aggregation": "mean"}, {"ratio": "episode"}])
def test_an_unknown_option_is_named(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"policy.{name}='{value}'"):
        PolicyLoss(**options)
