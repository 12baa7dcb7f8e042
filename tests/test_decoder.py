"""Properties of the decoder: its dependencies, its options, and its rotary positions."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from stepreward.models import decoder, presets
from stepreward.models.cache import LayerCache, empty_cache
from stepreward.models.decoder import DecoderConfig
from stepreward.models.rotary import RopeScaling, apply_rotary, rotary_angles

CONFIG = DecoderConfig(vocab_size=13, num_layers=2, embed_dim=16, num_heads=4, num_kv_heads=2, head_dim=4, mlp_dim=24, rope_theta=100.0)


@functools.cache
def _built(config):
    return decoder.build(config, 0)[1]


def parameters(config):
    """A copy that a test may change."""
    return jax.tree.map(lambda x: x, _built(config))


@functools.partial(jax.jit, static_argnums=0)
def _hidden_states(config, params, *rows):
    return decoder.hidden_states(decoder.graph(config), params, *rows)[0]


def run(config, params, tokens, segment_ids=None, positions=None):
    """Hidden states of rows that are one segment each unless told."""
    tokens = np.asarray(tokens)
    segment_ids = np.ones_like(tokens) if segment_ids is None else np.asarray(segment_ids)
    positions = np.arange(tokens.shape[1]) if positions is None else np.asarray(positions)
    positions = np.broadcast_to(positions, tokens.shape)
    return _hidden_states(config, params, tokens, positions, segment_ids)


TOKENS = np.array([[3, 1, 4, 1, 5, 9, 2]])


def paths(params):
    return {"/".join(map(str, path)): leaf.shape for path, leaf in nnx.to_flat_state(params)}


def influence(segment_ids, positions):
    """[t, j]: does the hidden state at t depend on the embedding of token j? All tokens differ, so a row of the
    embedding is one position's."""
    params = parameters(CONFIG)
    tokens = jnp.arange(len(segment_ids))[None]
    direction = jax.random.normal(jax.random.key(1), (CONFIG.embed_dim,))

    def projected(table):
        changed = jax.tree.map(lambda x: x, params)
        changed["embedding"][...] = table
        return (run(CONFIG, changed, tokens, [segment_ids], [positions]) @ direction)[0]

    gradient_TxVxE = jax.jit(jax.jacrev(projected))(params["embedding"][...])
    return np.asarray(jnp.abs(gradient_TxVxE).max(-1) > 0)[:, : len(segment_ids)]


def test_a_hidden_state_depends_on_its_own_and_earlier_tokens_only():
    np.testing.assert_array_equal(influence([1] * 7, range(7)), np.tril(np.ones((7, 7), bool)))


def test_segments_do_not_see_each_other():
    segment_ids = np.array([1, 1, 1, 2, 2, 2, 2])
    expected = np.tril(segment_ids[:, None] == segment_ids[None])
    np.testing.assert_array_equal(influence(segment_ids, [0, 1, 2, 0, 1, 2, 3]), expected)


def test_a_packed_segment_equals_its_own_row_and_padding_changes_nothing():
    first, second = [3, 1, 4], [1, 5, 9, 2]
    tokens = np.array([first + second, first + [0] * 4, second + [7] * 3, first + [11] * 4])
    segment_ids = np.array([[1] * 3 + [2] * 4, [1] * 3 + [0] * 4, [1] * 4 + [0] * 3, [1] * 3 + [0] * 4])
    positions = np.array([[0, 1, 2, 0, 1, 2, 3], *[range(7)] * 3])
    hidden = run(CONFIG, parameters(CONFIG), tokens, segment_ids, positions)
    np.testing.assert_allclose(hidden[0, :3], hidden[1, :3], atol=1e-5)
    np.testing.assert_allclose(hidden[0, 3:], hidden[2, :4], atol=1e-5)
    np.testing.assert_allclose(hidden[1, :3], hidden[3, :3], atol=1e-6)
    assert np.abs(hidden[1, 3:] - hidden[3, 3:]).max() > 0.1  # padding reads itself, which nobody reads
    assert np.isfinite(hidden).all()


def test_a_row_does_not_depend_on_its_neighbours_or_its_padded_length():
    params = parameters(CONFIG)
    alone = run(CONFIG, params, TOKENS)
    padded = np.zeros((4, 9), int)
    padded[2, :7] = TOKENS[0]
    segment_ids = (np.arange(9) < 7) * np.array([[0], [1], [1], [0]])
    hidden = run(CONFIG, params, padded, segment_ids)
    np.testing.assert_allclose(hidden[2, :7], alone[0], atol=1e-5)
    assert np.isfinite(hidden).all()


@pytest.mark.parametrize(
    "switch, added, removed",
    [
        (dict(qkv_bias=True), {"query_bias": (4, 4), "key_bias": (2, 4), "value_bias": (2, 4)}, ()),
        (dict(qk_norm=True), {"query_norm/scale": (4,), "key_norm/scale": (4,)}, ()),
    ],
)
def test_a_switch_adds_its_parameters_to_each_layer(switch, added, removed):
    plain = paths(parameters(CONFIG))
    switched = paths(parameters(dataclasses.replace(CONFIG, **switch)))
    expected = {f"layers/{layer}/attention/{name}": shape for layer in (0, 1) for name, shape in added.items()}
    assert {k: v for k, v in switched.items() if k not in plain} == expected
    assert {k: v for k, v in switched.items() if k in plain} == plain


def test_biases_reach_the_hidden_states():
    config = dataclasses.replace(CONFIG, qkv_bias=True)
    params = parameters(config)
    tokens = TOKENS
    before = run(config, params, tokens)
    np.testing.assert_allclose(before, run(CONFIG, parameters(CONFIG), tokens), atol=1e-6)  # zero at first
    for name in ("query_bias", "key_bias", "value_bias"):
        changed = parameters(config)
        bias = changed["layers"][0]["attention"][name]
        bias[...] = jax.random.normal(jax.random.key(2), bias[...].shape)
        assert np.abs(run(config, changed, tokens) - before).max() > 1e-3, name


def test_qk_norm_takes_the_scale_out_of_queries_and_keys():
    tokens = TOKENS
    for qk_norm in (False, True):
        config = dataclasses.replace(CONFIG, qk_norm=qk_norm)
        params = parameters(config)
        before = run(config, params, tokens)
        params["layers"][0]["attention"]["query"][...] *= 3.0
        changed = np.abs(run(config, params, tokens) - before).max()
        assert changed < 1e-4 if qk_norm else changed > 1e-3


def test_grouped_queries_equal_full_attention_with_repeated_keys_and_values():
    params = parameters(CONFIG)
    full = dataclasses.replace(CONFIG, num_kv_heads=4)
    repeated = parameters(full)
    grouped_leaves = dict(nnx.to_flat_state(params))
    for path, leaf in nnx.to_flat_state(repeated):
        value = grouped_leaves[path][...]
        leaf[...] = jnp.repeat(value, 2, axis=1) if path[-1] in ("key", "value") else value
    tokens = TOKENS
    np.testing.assert_allclose(run(CONFIG, params, tokens), run(full, repeated, tokens), atol=1e-5)


def test_the_head_is_the_embedding_or_its_own():
    tied, params = decoder.graph(CONFIG), parameters(CONFIG)
    np.testing.assert_array_equal(nnx.merge(tied, params).head_DxV(), params["embedding"][...].T)
    config = dataclasses.replace(CONFIG, tie_embeddings=False)
    untied, params = decoder.graph(config), parameters(config)
    assert paths(params)["head"] == (16, 13)
    np.testing.assert_array_equal(nnx.merge(untied, params).head_DxV(), params["head"][...])


def test_remat_gives_the_same_loss_and_gradient():
    params = parameters(CONFIG)

    def loss(params, config):
        return jnp.sum(jnp.square(run(config, params, TOKENS)) * jnp.arange(16))

    values = [
        jax.jit(jax.value_and_grad(loss), static_argnums=1)(params, dataclasses.replace(CONFIG, remat=remat))
        for remat in ("none", "layer", "dots")
    ]
    for other in values[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), values[0], other)


STACKED = dataclasses.replace(CONFIG, scan_layers=True)


@pytest.mark.parametrize("remat", ["none", "layer"])
def test_stacked_layers_equal_a_list_of_them(remat):
    config = dataclasses.replace(STACKED, remat=remat)
    params = parameters(STACKED)
    assert paths(params)["layers/attention/query"] == (2, 16, 4, 4)
    listed = decoder.unstack(params, CONFIG.num_layers)
    assert paths(listed) == paths(parameters(CONFIG))
    assert jax.tree.structure(listed) == jax.tree.structure(parameters(CONFIG))
    np.testing.assert_allclose(run(config, params, TOKENS), run(CONFIG, listed, TOKENS), atol=1e-5)
    keep = np.array([[5, 0, 2]])
    some = _hidden_states(config, params, TOKENS, np.arange(7)[None], np.ones_like(TOKENS), keep)
    np.testing.assert_allclose(some, run(config, params, TOKENS)[:, keep[0]], atol=1e-5)


@pytest.mark.parametrize("tiled", [False, True])
def test_stacked_layers_decode_as_listed_ones(tiled):
    """Two turns of ragged rows; the caches hold the same keys and values."""
    params, rng = parameters(STACKED), np.random.default_rng(0)
    kinds = {STACKED: params, CONFIG: decoder.unstack(params, CONFIG.num_layers)}
    tokens, length = [rng.integers(0, 16, (3, n)) for n in (7, 4, 1)], jnp.array([0, 2, 5])
    found = {}
    for config, of in kinds.items():
        run = jax.jit(functools.partial(decoder.cached_hidden_states, decoder.graph(config), tiled=tiled))
        caches, start, hidden = empty_cache(config, 3, 24), length, []
        for new in tokens:
            out, _, caches = run(of, new, start, caches)
            hidden, start = [*hidden, out], start + new.shape[1]
        found[config] = (*hidden, *map(jnp.stack, _keys_and_values(caches)))
    for one, other in zip(*found.values(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def _keys_and_values(caches):
    return [list(x) for x in (caches[:2] if isinstance(caches, LayerCache) else zip(*(cache[:2] for cache in caches)))]


def test_parameters_of_another_type_are_cast_where_they_are_used():
    config = dataclasses.replace(CONFIG, param_dtype=jnp.bfloat16)
    params = parameters(config)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    np.testing.assert_allclose(run(config, params, TOKENS), run(CONFIG, wide, TOKENS), atol=1e-6)


def test_hidden_states_at_some_positions_are_those_of_the_whole_row():
    params, positions = parameters(CONFIG), np.arange(7)[None]
    keep = np.array([[5, 0, 2]])
    some = _hidden_states(CONFIG, params, TOKENS, positions, np.ones_like(TOKENS), keep)
    np.testing.assert_allclose(some, run(CONFIG, params, TOKENS)[:, keep[0]], atol=1e-5)


def test_the_graph_alone_and_the_seed():
    graphdef, params = decoder.build(CONFIG, 7)
    assert graphdef == decoder.graph(CONFIG)
    jax.tree.map(np.testing.assert_array_equal, params, decoder.build(CONFIG, jax.random.key(7))[1])
    assert np.abs(params["embedding"][...] - parameters(CONFIG)["embedding"][...]).max() > 0.1


@pytest.mark.parametrize("change, words", [(dict(num_kv_heads=3), "num_kv_heads=3"), (dict(head_dim=5), "head_dim=5")])
def test_impossible_shapes_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(CONFIG, **change)


def test_presets():
    config = presets.decoder_config("tiny-0.1m", vocab_size=24, compute_dtype="bfloat16", remat="layer")
    assert (config.vocab_size, config.embed_dim, config.compute_dtype, config.remat) == (24, 64, jnp.bfloat16, "layer")
    assert presets.PRESETS["tiny-0.1m"].vocab_size == 0
    hidden = run(config, parameters(config), TOKENS)
    assert hidden.dtype == jnp.bfloat16 and np.isfinite(hidden.astype(jnp.float32)).all()
    with pytest.raises(ValueError, match="did you mean 'tiny-0.1m'.*tiny-micro"):
        presets.decoder_config("tiny-01m", vocab_size=24)
    with pytest.raises(ValueError, match="model.compute_dtype='float23'.*did you mean 'float32'"):
        presets.decoder_config("tiny-0.1m", vocab_size=24, compute_dtype="float23")


# Rotary positions


def test_rotary_turns_channel_pairs_by_the_angle_of_the_position():
    angles = rotary_angles(jnp.array([[0, 1, 3]]), 4, theta=100.0, scaling=None)  # frequencies 1 and 0.1
    x = jnp.array([1.0, 2.0, 0.0, 0.0])  # channels 0, 1 turn with 2, 3
    turned = apply_rotary(jnp.broadcast_to(x, (1, 1, 3, 4)), angles)[0, 0]
    expected = [[math.cos(p), 2 * math.cos(0.1 * p), math.sin(p), 2 * math.sin(0.1 * p)] for p in (0, 1, 3)]
    np.testing.assert_allclose(turned, expected, atol=1e-6)


def test_rotary_scores_depend_on_the_distance_alone():
    query, key = jax.random.normal(jax.random.key(0), (2, 1, 1, 5, 8))
    positions = jnp.array([[0, 1, 2, 7, 30]])

    def scores(shift):
        angles = rotary_angles(positions + shift, 8, 100.0, None)
        return jnp.einsum("bnth,bnsh->ts", apply_rotary(query, angles), apply_rotary(key, angles))

    np.testing.assert_allclose(scores(0), scores(11), atol=1e-4)
    unturned = jnp.einsum("bnth,bnsh->ts", query, key)
    assert np.abs(scores(0) - unturned).max() > 0.1  # positions do matter
    params = parameters(CONFIG)
    positions = np.arange(7)[None]
    near = run(CONFIG, params, TOKENS)
    np.testing.assert_allclose(near, run(CONFIG, params, TOKENS, positions=positions + 9), atol=1e-4)
    assert np.abs(near - run(CONFIG, params, TOKENS, positions=positions * 4)).max() > 1e-3


def test_llama_3_scaling_against_the_published_formula():
    head_dim, theta, scaling = 128, 500_000.0, RopeScaling(8.0, 1.0, 4.0, 8192)
    expected, bands = [], set()
    for i in range(head_dim // 2):
        frequency = theta ** (-2 * i / head_dim)
        wavelength = 2 * math.pi / frequency
        if wavelength < 8192 / 4.0:
            band, scaled = "kept", frequency
        elif wavelength > 8192 / 1.0:
            band, scaled = "stretched", frequency / 8.0
        else:
            smooth = (8192 / wavelength - 1.0) / (4.0 - 1.0)
            band, scaled = "between", (1 - smooth) * frequency / 8.0 + smooth * frequency
        bands.add(band)
        expected.append(scaled)
    assert bands == {"kept", "between", "stretched"}
    cos, sin = rotary_angles(jnp.array([[1]]), head_dim, theta, scaling)
    np.testing.assert_allclose(np.arctan2(sin, cos)[0, 0], expected, rtol=1e-5)
    # By hand: head_dim 4 and theta 10⁴ have the frequencies 1 and 0.01; their wavelengths are 6.3 and 628.
    cos, sin = rotary_angles(jnp.array([[100]]), 4, 1e4, RopeScaling(2.0, 1.0, 4.0, 100))
    np.testing.assert_allclose(np.arctan2(sin, cos)[0, 0], [100 % (2 * math.pi) - 2 * math.pi, 0.5], rtol=1e-5)


# Numbers of parameters as published with the models.
COUNTS = {
    "smollm2-135m": 134_515_008,
    "qwen2.5-0.5b": 494_032_768, "qwen2.5-1.5b": 1_543_714_304, "qwen2.5-7b": 7_615_616_512, "qwen2.5-vl-7b": 8_292_166_656,
    "llama3.2-3b": 3_212_749_824, "llama3.1-8b": 8_030_261_248,
}  # fmt: skip


@pytest.mark.parametrize("name", presets.PUBLISHED)
def test_published_shapes_have_the_published_number_of_parameters(name):
    shapes = decoder.abstract_params(presets.decoder_config(name))
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(shapes)) == COUNTS[name]
