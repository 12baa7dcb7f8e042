"""Low-rank adapters: what they add, how they merge, and what they share."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from stepreward.models import decoder
from stepreward.models.adapters import TARGETS, LoraConfig, join, low_rank, merge_adapters, split_adapters, unmerge_adapters
from stepreward.models.decoder import DecoderConfig
from stepreward.training.layout import Layout

PLAIN = DecoderConfig(vocab_size=13, num_layers=2, embed_dim=16, num_heads=4, num_kv_heads=2, head_dim=4, mlp_dim=24)
LORA = LoraConfig(rank=3, alpha=6.0, targets=TARGETS)
TOKENS = np.array([[3, 1, 4, 1, 5, 9, 2]])
POSITIONS, SEGMENTS = np.arange(7)[None], np.ones((1, 7), int)


def run(config, params, **options):
    return decoder.hidden_states(decoder.graph(config), params, TOKENS, POSITIONS, SEGMENTS, **options)[0]


def adapted(scan: bool, **changes):
    """A config with adapters on everything, its base, and adapters whose B is not zero."""
    lora = dataclasses.replace(LORA, **changes)
    config = dataclasses.replace(PLAIN, lora=lora, scan_layers=scan)
    base, fresh = split_adapters(decoder.build(config, 0)[1])
    noise = lambda path, x: 0.1 * jax.random.normal(jax.random.key(len(path)), x.shape)
    return config, base, fresh, jax.tree_util.tree_map_with_path(noise, fresh)


@pytest.mark.parametrize("scan", [False, True])
def test_a_fresh_adapter_changes_nothing_and_a_merged_one_says_the_same(scan):
    config, base, fresh, trained = adapted(scan)
    plain = dataclasses.replace(config, lora=None)
    assert len(jax.tree.leaves(fresh)) == 2 * len(TARGETS) * (1 if scan else 2)
    np.testing.assert_allclose(run(config, (base, fresh)), run(plain, base), atol=1e-6)
    merged = merge_adapters(base, trained, config.lora)
    assert jax.tree.structure(merged) == jax.tree.structure(decoder.build(plain, 0)[1])
    with_adapters = run(config, (base, trained))
    assert np.abs(with_adapters - run(plain, base)).max() > 0.05
    np.testing.assert_allclose(with_adapters, run(plain, merged), atol=1e-4)
    back = unmerge_adapters(merged, trained, config.lora)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), back, base)


def test_the_adapter_by_hand():
    config, base, _, trained = adapted(False, targets=("query",))
    merged = merge_adapters(base, trained, config.lora)
    attention = trained["layers"][1]["attention"]
    a, b = np.asarray(attention["query_lora_a"][...]), np.asarray(attention["query_lora_b"][...])
    expected = np.asarray(base["layers"][1]["attention"]["query"][...]) + 2.0 * np.einsum("er,rnh->enh", a, b)
    np.testing.assert_allclose(merged["layers"][1]["attention"]["query"][...], expected, atol=1e-6)


def test_gradients_reach_the_adapters_alone():
    config, base, _, trained = adapted(True)
    loss = lambda adapters: jnp.sum(jnp.square(run(config, join(base, adapters))[:, :, :3]))
    grads = jax.jit(jax.grad(loss))(trained)
    assert jax.tree.structure(grads) == jax.tree.structure(trained)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads))


def test_join_keeps_a_head_and_needs_no_base():
    assert join(None, "params") == "params"
    assert join("base", "adapters") == ("base", "adapters")
    assert join("base", {"decoder": "adapters", "scalar_head": 1}) == {"decoder": ("base", "adapters"), "scalar_head": 1}


def test_dropout_acts_in_training_only_and_keeps_the_mean():
    config, base, _, trained = adapted(True, dropout=0.5)
    same = run(config, (base, trained))
    np.testing.assert_array_equal(same, run(config, (base, trained)))
    keys = jax.random.split(jax.random.key(0), 2)
    first, second = (run(config, (base, trained), dropout_key=key) for key in keys)
    assert np.abs(first - same).max() > 1e-3 and np.abs(first - second).max() > 1e-3
    np.testing.assert_array_equal(first, run(config, (base, trained), dropout_key=keys[0]))
    unused = adapted(True)
    np.testing.assert_array_equal(run(unused[0], unused[1::2], dropout_key=keys[0]), run(unused[0], unused[1::2]))


def test_dropout_keeps_the_mean_of_what_an_adapter_adds():
    lora = dataclasses.replace(LORA, dropout=0.4)
    a, b = (jax.random.normal(jax.random.key(n), shape) for n, shape in enumerate([(16, 3), (3, 5)]))
    module, x = SimpleNamespace(query_lora_a=a, query_lora_b=b), jnp.ones((2, 16))
    keys = jax.random.split(jax.random.key(2), 4000)
    drawn = np.asarray(jax.vmap(lambda key: low_rank(module, "query", x, lora, key))(keys))
    whole = low_rank(module, "query", x, lora, None)
    assert drawn.std(0).min() > 0.1  # something is dropped
    np.testing.assert_allclose(drawn.mean(0), whole, atol=5 * drawn.std(0).max() / 4000**0.5)


def test_dropout_drops_the_share_that_is_asked():
    """Of an adapter that passes its inputs through: the rest is scaled up by the share that is kept."""
    lora = LoraConfig(rank=64, alpha=64.0, targets=("query",), dropout=0.25)
    module = SimpleNamespace(query_lora_a=jnp.eye(64), query_lora_b=jnp.eye(64))
    out = np.asarray(low_rank(module, "query", jnp.ones((100, 64)), lora, jax.random.key(0)))
    np.testing.assert_allclose(np.unique(out), [0, 1 / 0.75], rtol=1e-6)
    assert (out == 0).mean() == pytest.approx(0.25, abs=0.02)


def test_dropout_masks_differ_between_layers_and_between_an_input_s_adapters(monkeypatch):
    """Query and value read the same numbers: with one mask for both, they would lose the same ones."""
    config, base, _, trained = adapted(False, dropout=0.5)
    draw, masks = jax.random.bernoulli, []

    def noted(key, p, shape):
        masks.append((p, np.asarray(draw(key, p, (7, 16)))))
        return draw(key, p, shape)

    monkeypatch.setattr(jax.random, "bernoulli", noted)
    run(config, (base, trained), dropout_key=jax.random.key(0))
    assert len(masks) == config.num_layers * len(TARGETS) and {p for p, _ in masks} == {0.5}
    assert len({mask.tobytes() for _, mask in masks}) == len(masks)


def test_dropout_is_the_same_in_listed_and_stacked_layers():
    stacked, base, _, trained = adapted(True, dropout=0.5)
    listed = dataclasses.replace(stacked, scan_layers=False)
    key = jax.random.key(3)
    of_list = run(listed, tuple(decoder.unstack(tree, 2) for tree in (base, trained)), dropout_key=key)
    np.testing.assert_allclose(of_list, run(stacked, (base, trained), dropout_key=key), atol=1e-5)


def test_dropout_masks_differ_between_updates_and_between_models():
    model = SimpleNamespace(config=SimpleNamespace(lora=dataclasses.replace(LORA, dropout=0.5)))
    key = lambda seed, update: jax.random.key_data(Layout.training(None, model, seed, update)["dropout_key"]).tobytes()
    assert key([0, 5, 1], 0) == key([0, 5, 1], 0)
    assert len({key(seed, update) for seed in ([0, 5, 1], [0, 5, 2], [0, 4, 1]) for update in range(3)}) == 9
    without = SimpleNamespace(config=SimpleNamespace(lora=LORA))
    assert Layout.training(None, without, [0], 0) == {}  # nothing is dropped


def test_adapters_have_their_own_type_in_the_graph():
    config, *_ = adapted(False)
    model = nnx.merge(decoder.graph(config), decoder.build(config, 0)[1])
    from stepreward.models.adapters import LoraParam

    assert len(jax.tree.leaves(nnx.state(model, LoraParam))) == 2 * 2 * len(TARGETS)


@pytest.mark.parametrize(
    "change, words",
    [(dict(rank=0), "lora.rank=0"), (dict(targets=("qkv",)), "lora.targets"), (dict(targets=()), "lora.targets"), (dict(dropout=1.0), "lora.dropout")],
)  # fmt: skip
def test_what_an_adapter_refuses(change, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(LORA, **change)


def test_the_adapters_of_spa_have_as_many_parameters_as_its_authors_count():
    """2,296,833 trainable ones with the value head's 3,073: rank 8 on the queries and values of Llama-3.2-3B."""
    from stepreward.models.heads import init_head
    from stepreward.models.presets import decoder_config

    config = decoder_config("llama3.2-3b", lora=LoraConfig(8, 16.0, ("query", "value")))
    adapters = jax.eval_shape(lambda: split_adapters(decoder.initial_params(config, jax.random.key(0)))[1])
    count = lambda tree: sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))
    assert count(adapters) == 2_293_760 and count(adapters) + count(init_head(jax.random.key(0), 3072, "linear")) == 2_296_833
