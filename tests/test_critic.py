"""The critic: values before each action token, its update, and the variant that shares the policy's backbone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import VOCABULARY
from ml_collections import ConfigDict

from stepreward import signals
from stepreward.credit.base import first_token
from stepreward.kernels import clipped_value_loss
from stepreward.models.heads import head_outputs
from stepreward.models.presets import decoder_config
from stepreward.training.auxiliaries.critic import ValueLoss, critic_step, value_signals, values
from stepreward.training.backbones import Backbone
from stepreward.training.layout import Layout
from stepreward.training.minibatches import take_rows
from stepreward.training.policy import PolicyLoss, policy_step, update_policy
from stepreward.training.state import create

SGD = optax.sgd(1.0)  # parameters move by minus the gradient


def outputs(headed, params, batch):
    mask = jnp.asarray(batch.action_mask)
    return head_outputs(headed[0], params, batch.tokens, batch.positions, batch.segment_ids, action_mask_RxL=mask, before=True)


@pytest.fixture
def batch(headed, make_batch):
    """With earlier values near the present ones, so that some are clipped and some are not, and targets for the first tokens."""
    batch, rng = make_batch(noise=0.3), np.random.default_rng(4)
    now = np.asarray(outputs(headed, headed[1], batch))
    noise = lambda scale: scale * rng.normal(size=now.shape).astype(np.float32)
    mask = np.asarray(first_token(batch))
    return batch.with_signals(value=now + noise(0.3), returns=now + noise(1.0), value_mask=mask)


def step(headed, batch, loss=ValueLoss(), chunk_rows=8, **options):
    state = create(headed[1], SGD)
    return critic_step(state, batch, graphdef=headed[0], optimizer=SGD, loss=loss, chunk_rows=chunk_rows, **options)


def whole_value_loss(params, headed, batch, clip):
    signals = [batch.signals[k] for k in ("value", "returns", "value_mask")]
    return clipped_value_loss(outputs(headed, params, batch), *signals, clip=clip)


@pytest.mark.parametrize("chunk_rows, options", [(4, {}), (24, {}), (4, {"max_actions": 2})])
@pytest.mark.parametrize("clip", [0.2, None])
def test_chunks_of_any_size_give_the_gradient_of_the_whole_loss(headed, batch, flat, assert_same, clip, chunk_rows, options):
    batch = jax.tree.map(jnp.asarray, batch)
    (value, expected), gradient = jax.value_and_grad(whole_value_loss, has_aux=True)(headed[1], headed, batch, clip)
    if clip:
        assert 0 < expected["value_clip_fraction"] < 1
    assert np.linalg.norm(flat(gradient["decoder"])) > 1e-3
    state, metrics = step(headed, batch, ValueLoss(clip, 7.0), chunk_rows, **options)  # the weight is of a shared backbone only
    assert_same(flat(headed[1]) - flat(state.params), flat(gradient))
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    for name in expected:
        np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-5)


def test_only_masked_values_and_filled_rows_are_read(headed, batch, flat, assert_same):
    state, metrics = step(headed, batch)
    mask = batch.signals["value_mask"]
    assert mask.sum() == batch.step_mask.sum() < batch.action_mask.sum()
    elsewhere = {k: np.where(mask, batch.signals[k], np.float32(1e6)) for k in ("value", "returns")}
    order, noise = np.random.default_rng(0).permutation(24), np.random.default_rng(1)
    shuffled = take_rows(batch.with_signals(**elsewhere), order, 40)
    empty = ~shuffled.action_mask.any(axis=1, keepdims=True)
    tokens = np.where(empty, noise.integers(0, 16, shuffled.tokens.shape), shuffled.tokens).astype(np.int32)
    again, more = step(headed, shuffled.replace(tokens=tokens))
    assert_same(again.params, state.params)
    np.testing.assert_allclose(more["loss"], metrics["loss"], rtol=1e-5)
    moved = step(headed, batch.with_signals(returns=batch.signals["returns"] + mask))[0]
    assert np.abs(flat(moved.params) - flat(state.params)).max() > 1e-3


def test_updates_lower_the_error(headed, batch):
    optimizer, errors = optax.adam(3e-3), []
    state = create(headed[1], optimizer)
    for _ in range(15):
        state, out = critic_step(state, batch, graphdef=headed[0], optimizer=optimizer, loss=ValueLoss(None), chunk_rows=8)
        errors.append(float(out["value_error"]))
    assert errors[-1] < 0.7 * errors[0]


@pytest.mark.parametrize("chunk_rows, max_actions", [(4, None), (24, 2)])
def test_values_stand_at_the_token_that_they_precede(headed, batch, chunk_rows, max_actions):
    found = np.asarray(values(headed[1], batch, graphdef=headed[0], chunk_rows=chunk_rows, max_actions=max_actions))
    np.testing.assert_allclose(found, outputs(headed, headed[1], batch), atol=1e-5)
    assert (found[batch.action_mask] != 0).all() and not found[~batch.action_mask].any()
    # The value of a state does not know the action: other answers leave it as it was.
    row, at = np.argwhere(batch.signals["value_mask"])[0]
    tokens = batch.tokens.copy()
    tokens[row, at:] = (tokens[row, at:] + 1) % 16
    other = values(headed[1], batch.replace(tokens=tokens), graphdef=headed[0], chunk_rows=4)
    np.testing.assert_allclose(other[row, at], found[row, at], rtol=1e-6)


# --- A shared backbone ---

POLICY = PolicyLoss(entropy_coef=0.1)


def advantage_of(batch):
    return np.random.default_rng(5).normal(size=batch.tokens.shape).astype(np.float32) * batch.action_mask


@pytest.mark.parametrize("chunk_rows, options", [(4, {}), (24, {"max_actions": 2})])
def test_the_shared_update_is_the_policy_s_gradient_plus_the_weighted_critic_s(headed, batch, flat, assert_same, chunk_rows, options):
    common = dict(graphdef=headed[0], optimizer=SGD, temperature=1.0, chunk_rows=chunk_rows, loss=POLICY, **options)
    moved = lambda old, new: flat(old) - flat(new)
    alone, policy = policy_step(create(headed[1]["decoder"], SGD), batch, advantage_of(batch), **common)
    critic, value = step(headed, batch, ValueLoss(0.2))
    both, metrics = policy_step(create(headed[1], SGD), batch, advantage_of(batch), value_loss=ValueLoss(0.2, 0.7), **common)
    decoder, head = headed[1]["decoder"], headed[1]["scalar_head"]
    of_policy, of_critic = moved(decoder, alone.params), moved(decoder, critic.params["decoder"])
    assert min(np.linalg.norm(of_policy), np.linalg.norm(of_critic)) > 1e-2
    assert_same(moved(decoder, both.params["decoder"]), of_policy + 0.7 * of_critic)
    of_head = moved(head, critic.params["scalar_head"])
    assert_same(moved(head, both.params["scalar_head"]), 0.7 * of_head)
    np.testing.assert_allclose(metrics["loss"], policy["loss"] + 0.7 * value["loss"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(metrics["value_loss"], value["loss"], rtol=1e-5)
    for name in ("clip_fraction", "approx_kl", "ratio_mean", "entropy"):
        np.testing.assert_allclose(metrics[name], policy[name], rtol=1e-5, atol=1e-7)
    assert set(metrics) == set(policy) | {"value_loss", "value_error", "value_clip_fraction"}


def test_the_signals_of_a_value_loss_are_taken_from_the_batch(batch):
    signals.add("other", signals.EPISODE, np.float32, "A signal that no value loss reads.")
    found = value_signals(batch.with_signals(other=np.zeros(3)))
    assert set(found) == {"value", "returns", "value_mask"} and found["value"] is batch.signals["value"]


# --- Several epochs ---


def updated(model, batch, **changes):
    """The state and metrics after `update_policy` with a large rate."""
    config = decoder_config("tiny-micro", vocab_size=VOCABULARY)
    c = ConfigDict(dict(minibatch_rows=4, epochs=3, stop_kl=0.0) | changes)
    model_options = dict(graphdef=model[0], chunk_rows=4, temperature=1.0, max_actions=None)
    layout = object.__new__(Layout)
    c_train = ConfigDict({"train": {"chunk_rows": 4}})
    vars(layout).update(c=c_train, capacity=24, scoring=lambda model: model_options, place=lambda part: part)
    optimizer, metrics = optax.sgd(0.3), {}
    batch = batch.with_signals(advantage=advantage_of(batch))
    state = update_policy(
        create(model[1], optimizer),
        batch,
        c,
        layout,
        metrics,
        [0],
        model=Backbone(model[0], config),
        optimizer=optimizer,
        loss=PolicyLoss(),
        value_loss=None,
    )
    return state, metrics


def test_updates_end_once_the_policy_has_gone_too_far(model, make_batch, flat):
    batch = make_batch()
    parts = -(-int(batch.action_mask.any(axis=1).sum()) // 4)
    state, metrics = updated(model, batch)
    assert int(state.updates) == 3 * parts and "policy/updates" not in metrics
    far, of_far = updated(model, batch, stop_kl=1e9)
    assert of_far["policy/updates"] == 3 * parts
    np.testing.assert_array_equal(flat(far.params), flat(state.params))
    ends = [updated(model, batch, stop_kl=kl) for kl in (1e-2, 1e-4)]
    counts = [int(end.updates) for end, _ in ends]
    assert counts == [m["policy/updates"] for _, m in ends] and 1 < counts[1] <= counts[0] < 3 * parts
    assert metrics["policy/sampler_gap"] < 1e-5  # of the first mini-batch, before anything moved
    assert all(m["policy/sampler_gap"] == metrics["policy/sampler_gap"] for _, m in ends)
