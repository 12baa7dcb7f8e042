"""Scalar heads on hidden states: which tokens they depend on, and how they share a forward pass with log-probabilities."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stepreward.models import decoder
from stepreward.models.decoder import DecoderConfig
from stepreward.models.heads import HEADS, action_positions, apply_head, decoder_of, head_outputs, init_head, with_head
from stepreward.models.log_probs import log_probs_and_values, token_log_probs

WIDTH, LENGTH = 16, 9
CONFIG = DecoderConfig(32, num_layers=1, embed_dim=WIDTH, num_heads=2, num_kv_heads=2, head_dim=8, mlp_dim=24)
GRAPH = decoder.graph(CONFIG)
TOKENS = np.random.default_rng(0).integers(0, 32, (3, LENGTH))
POSITIONS = np.broadcast_to(np.arange(LENGTH), TOKENS.shape)
# A step a row: a prompt, a short answer, padding. An episode a row: answers all along; also one that opens its row.
PACKINGS = {
    "step": (np.array([[1] * 7 + [0] * 2, [1] * 4 + [0] * 5, [1] * 9]),
             np.array([[0, 0, 0, 0, 0, 1, 1, 0, 0], [0, 1, 0, 0, 0, 0, 0, 0, 0], [0] * 9], bool)),
    "episode": (np.array([[1] * 9, [1] * 4 + [2] * 5, [1] * 9]),
                np.array([[0, 0, 1, 0, 1, 0, 1, 0, 0], [0, 1, 0, 0, 1, 0, 0, 1, 0], [1, 0, 0, 0, 1, 0, 0, 0, 1]], bool)),
}  # fmt: skip


def model_with(kind, seed=1):
    """A decoder and a head whose last layer is not zero."""
    params = with_head(decoder.build(CONFIG, 0)[1], jax.random.key(seed), WIDTH, kind)
    last = {"weight": jax.random.normal(jax.random.key(seed + 1), (WIDTH,)), "bias": jnp.float32(0.5)}
    return {**params, "scalar_head": params["scalar_head"] | last}


@partial(jax.jit, static_argnames=("before", "max_actions"))
def outputs(params, segments, mask, before, max_actions=None):
    return head_outputs(
        GRAPH, params, TOKENS, POSITIONS, segments, action_mask_RxL=jnp.asarray(mask), before=before, max_actions=max_actions
    )


def by_hand(head, hidden):
    """One hidden state through the head, in plain float64."""
    hidden = np.asarray(hidden, np.float64)
    if "hidden_weight" in head:
        x = hidden @ np.asarray(head["hidden_weight"], np.float64) + np.asarray(head["hidden_bias"])
        hidden = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return hidden @ np.asarray(head["weight"], np.float64) + float(head["bias"])


@pytest.mark.parametrize("kind", HEADS)
def test_a_fresh_head_says_zero_whatever_it_reads(kind):
    head = init_head(jax.random.key(0), WIDTH, kind)
    assert ("hidden_weight" in head) == (kind == "mlp")
    np.testing.assert_array_equal(apply_head(head, jax.random.normal(jax.random.key(1), (5, 3, WIDTH))), np.zeros((5, 3)))
    params = with_head(decoder.build(CONFIG, 0)[1], jax.random.key(0), WIDTH, kind)
    assert not np.asarray(outputs(params, *PACKINGS["step"], before=True)).any()


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("kind", HEADS)
def test_the_head_reads_the_state_that_predicts_the_token_or_has_seen_it(kind, before, packing):
    params, (segments, mask) = model_with(kind), PACKINGS[packing]
    hidden, _ = jax.jit(decoder.hidden_states, static_argnums=0)(GRAPH, params["decoder"], TOKENS, POSITIONS, segments)
    expected = np.zeros(mask.shape)
    for r, at in np.argwhere(mask):
        if not before or (at and segments[r, at] == segments[r, at - 1]):  # nothing is before what opens a segment
            expected[r, at] = by_hand(params["scalar_head"], hidden[r, at - before])
    found = outputs(params, segments, mask, before=before)
    assert found.dtype == jnp.float32 and np.abs(expected).max() > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("before", [True, False])
def test_what_comes_after_a_token_plays_no_part_and_the_token_itself_only_after_it(before):
    params, (segments, mask) = model_with("mlp"), PACKINGS["step"]
    at = lambda tokens: np.asarray(
        head_outputs(GRAPH, params, tokens, POSITIONS, segments, action_mask_RxL=jnp.asarray(mask), before=before)
    )[0, 5]
    changed = lambda place: np.where(np.arange(LENGTH) == place, (TOKENS + 1) % 32, TOKENS)
    assert at(changed(6)) == at(TOKENS)
    assert (at(changed(5)) == at(TOKENS)) == before
    assert at(changed(4)) != at(TOKENS)


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("before", [True, False])
def test_few_actions_a_row_give_what_all_places_give(before, packing):
    params, (segments, mask) = model_with("mlp"), PACKINGS[packing]
    mask = mask & np.pad(segments[:, 1:] == segments[:, :-1], ((0, 0), (1, 0)))  # an answer never opens a segment
    weight = jnp.asarray(np.random.default_rng(1).normal(size=mask.shape), jnp.float32)

    def total(params, max_actions):
        found = outputs(params, segments, mask, before=before, max_actions=max_actions)
        return jnp.sum(weight * found**2), found

    gradient = jax.jit(jax.value_and_grad(total, has_aux=True), static_argnums=1)
    (_, whole), expected = gradient(params, None)
    (_, found), grads = gradient(params, 3)
    np.testing.assert_allclose(found, whole, atol=1e-5)
    assert np.asarray(whole)[mask].all()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), grads, expected)
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(grads["decoder"])) > 1e-3
    assert all(float(jnp.abs(x).max()) > 1e-3 for x in jax.tree.leaves(grads["scalar_head"]))


def test_action_positions_of_a_literal_row():
    mask = jnp.array([[0, 0, 1, 0, 1], [1, 0, 0, 0, 1], [0, 0, 0, 0, 0], [0, 1, 1, 1, 0]], bool)
    at, kept = (np.asarray(x) for x in action_positions(mask, 2))
    assert [sorted(a[k].tolist()) for a, k in zip(at, kept)] == [[2, 4], [4], [], [1, 2]]
    assert at.min() >= 1 and at.shape == (4, 2)


@pytest.mark.parametrize("max_actions", [None, 3])
@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("kind", HEADS)
def test_one_pass_gives_log_probs_and_values_as_two_passes_do(kind, packing, max_actions):
    params, (segments, mask) = model_with(kind), PACKINGS[packing]
    options = dict(temperature=0.7, chunk=4, action_mask_RxL=jnp.asarray(mask), max_actions=max_actions)
    both = log_probs_and_values(GRAPH, params["decoder"], params["scalar_head"], TOKENS, POSITIONS, segments, **options)
    for ours, expected in zip(both, token_log_probs(GRAPH, params["decoder"], TOKENS, POSITIONS, segments, **options)):
        np.testing.assert_array_equal(ours, expected)
    values = np.where(mask, both[2], 0.0)  # without max_actions there is a value at every token
    np.testing.assert_allclose(values, outputs(params, segments, mask, before=True), atol=1e-5)
    assert np.abs(values).max() > 0.1
    none = log_probs_and_values(GRAPH, params["decoder"], None, TOKENS, POSITIONS, segments, **options)
    assert none[2] is None


def test_the_decoder_of_a_model_with_or_without_a_head_is_the_same():
    params = model_with("linear")
    assert decoder_of(params) is params["decoder"] and decoder_of(params["decoder"]) is params["decoder"]


def test_an_unknown_head_is_named():
    with pytest.raises(ValueError, match="the head must be one of linear, mlp, not 'conv'"):
        init_head(jax.random.key(0), WIDTH, "conv")
