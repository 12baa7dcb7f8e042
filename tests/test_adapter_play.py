"""Adapters in 16 bits: training, playing and exporting use the same small update."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from stepreward.models import decoder
from stepreward.models.adapters import LoraConfig, merge_adapters, rounding_loss, split_adapters
from stepreward.models.decoder import DecoderConfig
from stepreward.models.log_probs import token_log_probs
from stepreward.rollout.engine import Engine
from stepreward.rollout.sampling import Sampling

WIDTH, ROWS, ANSWER = 256, 16, 8
LORA = LoraConfig(rank=2, alpha=4.0, targets=("value",))
PLAIN = DecoderConfig(
    vocab_size=32,
    num_layers=1,
    embed_dim=WIDTH,
    num_heads=2,
    num_kv_heads=2,
    head_dim=32,
    mlp_dim=16,
    scan_layers=True,
    tie_embeddings=False,
    compute_dtype=jnp.bfloat16,
)
CONFIG = dataclasses.replace(PLAIN, lora=LORA)
EXACT = dataclasses.replace(CONFIG, compute_dtype=jnp.float32)
CHANGE = 2e-4  # of each weight; bfloat16 numbers between 1/16 and 1/8 are 4.9e-4 apart


@pytest.fixture(scope="module")
def model():
    """A bfloat16 base and adapters whose update is below the base's resolution and yet changes what the model says: all weights
    change along one direction, which all tokens share."""
    rng = np.random.default_rng(0)
    base, adapters = split_adapters(decoder.initial_params(CONFIG, jax.random.key(0)))
    shared, heads, said = (np.sign(rng.normal(size=size)) for size in (WIDTH, 64, WIDTH))
    sign = lambda shape: np.sign(rng.normal(size=shape))
    value = sign((1, WIDTH, 2, 32)) * rng.uniform(1 / 16, 1 / 8, (1, WIDTH, 2, 32))
    output = np.outer(heads, said).reshape(1, 2, 32, WIDTH) * 0.05
    factors = {"value_lora_a": np.stack([shared, 0 * shared], -1)[None] / 16, "value_lora_b": np.zeros((1, 2, 2, 32))}
    factors["value_lora_b"][0, 0] = CHANGE * 16 / LORA.scale * heads.reshape(2, 32)
    head = np.outer(said, 3 * rng.normal(size=32)) / WIDTH
    replaced = {"head": head, "embedding": shared + 0.5 * rng.normal(size=(32, WIDTH)), "value": value, "output": output} | factors

    def put(path, leaf):
        name = [part.key for part in path if hasattr(part, "key")][-1]
        return jnp.asarray(replaced[name], leaf.dtype) if name in replaced else leaf

    base, adapters = (jax.tree_util.tree_map_with_path(put, tree) for tree in (base, adapters))
    return decoder.in_compute_dtype(CONFIG, base), adapters


def make_engine(config=CONFIG, **settings):
    return Engine(decoder.graph(config), config, Sampling((), ANSWER), 32, (8,), pad_id=0, lora=config.lora, **settings)


def played(engine, params):
    """Rows of a prompt and its answer, and the log-probabilities that the engine drew the answer with."""
    prompts = np.random.default_rng(1).integers(1, 32, (ROWS, 8)).astype(np.int32)
    keys = jax.vmap(jax.random.key)(jnp.arange(ROWS))
    _, answer = engine.turn(engine.prepare(params), engine.start(ROWS), list(prompts), keys)
    return np.concatenate([prompts, answer.tokens], axis=1), answer.log_prob


def trained(config, params, rows):
    """The log-probabilities that a training pass gives to the answers."""
    positions = np.broadcast_to(np.arange(rows.shape[1]), rows.shape)
    return np.asarray(token_log_probs(decoder.graph(config), params, rows, positions, np.ones_like(rows))[0])[:, -ANSWER:]


def wide(tree):
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def test_a_rollout_in_bfloat16_plays_what_was_trained(model):
    rows, sampled = played(make_engine(), model)
    gap = np.abs(trained(CONFIG, model, rows) - sampled).mean()
    assert gap < 0.03
    # The same engine on merged and rounded weights plays the model without its adapters.
    base, adapters = model
    lost = jax.tree.map(lambda merged, was: merged.astype(was.dtype), merge_adapters(base, adapters, LORA), base)
    rows, sampled = played(make_engine(PLAIN), lost)
    assert np.abs(trained(CONFIG, model, rows) - sampled).mean() > 10 * gap


def test_what_a_rollout_prepares_computes_what_training_computes_to_the_last_digit(model):
    """In float32 nothing but a rounding of the parameters could make a difference."""
    prepared = make_engine().prepare(model)
    rows = np.random.default_rng(2).integers(1, 32, (4, 16))
    plain = dataclasses.replace(EXACT, lora=None, scan_layers=False)
    of_rollout, of_training = trained(plain, wide(prepared), rows), trained(EXACT, (wide(model[0]), model[1]), rows)
    np.testing.assert_allclose(of_rollout, of_training, atol=1e-5)


def test_adapters_add_to_products_that_are_not_rounded_yet(model):
    """Each output is about 1.5, where bfloat16 numbers are 0.0078 apart; 0.001 more must show in every eighth of them."""
    base, adapters = model
    small = jax.tree.map(lambda x: x / 50, adapters)
    layer = nnx.merge(decoder.graph(CONFIG), base, small).layers
    attention = nnx.merge(*(nnx.split(layer)[0], jax.tree.map(lambda x: x[0], nnx.split(layer)[1]))).attention
    x = jax.random.normal(jax.random.key(3), (64, WIDTH)).astype(jnp.bfloat16) + jnp.sign(base["embedding"][...].mean(0))
    exact = np.asarray(x, np.float64) @ np.asarray(attention.value[...], np.float64).reshape(WIDTH, -1)
    found = np.asarray(decoder._apply(attention, "value", x, LORA, None), np.float64)
    without = np.asarray(decoder._apply(attention, "value", x, None, None), np.float64)
    a, b = (np.asarray(getattr(attention, f"value_lora_{part}")[...], np.float64) for part in "ab")
    delta = LORA.scale * np.asarray(x, np.float64) @ a @ b.reshape(2, -1)
    assert np.abs(delta).mean() < 0.4 * np.abs(np.spacing(exact.astype(jnp.bfloat16)).astype(np.float64)).mean()
    assert ((found - without) * delta).sum() / (delta**2).sum() == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("dtype, atol", [(jnp.float32, 1e-5), (jnp.bfloat16, 5e-2)])
def test_the_wide_product_has_the_gradients_of_the_plain_one(dtype, atol):
    from stepreward.models.adapters import wide_product

    x, w, g = (jax.random.normal(jax.random.key(n), shape).astype(dtype) for n, shape in enumerate([(5, 7), (7, 3), (5, 3)]))
    of = lambda product: jax.vjp(lambda x, w: product(x, w).astype(dtype), x, w)
    (out, back), (expected, expected_back) = of(wide_product), of(jnp.matmul)
    for ours, plain in zip((out, *back(g)), (expected, *expected_back(g))):
        assert ours.dtype == plain.dtype == dtype
        np.testing.assert_allclose(ours.astype(jnp.float32), plain.astype(jnp.float32), atol=atol, rtol=atol)


def test_scales_of_norms_are_played_as_they_are_trained():
    """Around 1, bfloat16 numbers are 0.004 to 0.008 apart, and norms compute in float32."""
    params = decoder.initial_params(PLAIN, jax.random.key(0))
    params = jax.tree.map(lambda x: x + 1e-4 if x.ndim < 3 and x.shape[-1:] == (WIDTH,) and (x == 1).all() else x, params)
    prepared = make_engine(PLAIN).prepare(params)
    for norm in (prepared["final_norm"], prepared["layers"][0]["attention_norm"], prepared["layers"][0]["mlp_norm"]):
        np.testing.assert_array_equal(norm["scale"][...], np.float32(1) + np.float32(1e-4))
    assert prepared["embedding"][...].dtype == jnp.bfloat16


def test_merging_adds_in_float32_and_says_what_rounding_loses(model):
    base, adapters = model
    merged = merge_adapters(base, adapters, LORA)
    value, was = (np.asarray(tree["layers"]["attention"]["value"][...], np.float64) for tree in (merged, base))
    np.testing.assert_allclose(np.abs(value - was), CHANGE, rtol=1e-3)
    assert merged["layers"]["attention"]["query"][...].dtype == jnp.bfloat16  # has no adapter
    share, noise = map(float, jax.jit(rounding_loss, static_argnums=2)(base, merged, jnp.bfloat16))
    rounded = np.asarray(merged["layers"]["attention"]["value"][...].astype(jnp.bfloat16), np.float64) - was
    assert share == pytest.approx((rounded * (value - was)).sum() / ((value - was) ** 2).sum(), abs=1e-4) and share < 0.1
    assert noise == pytest.approx(np.sqrt(((rounded - share * (value - was)) ** 2).sum() / ((value - was) ** 2).sum()), abs=1e-3)
    np.testing.assert_allclose(rounding_loss(base, merged, jnp.float32), [1, 0], atol=1e-3)
    np.testing.assert_array_equal(rounding_loss(base, base, jnp.bfloat16), [1, 0])


def test_an_engine_plays_a_model_before_and_after_it_has_adapters(model):
    """The supervised start has none; both are played by the engine of the run."""
    engine, (base, adapters) = make_engine(), model
    without, _ = played(engine, base)
    fresh, _ = played(engine, (base, jax.tree.map(jnp.zeros_like, adapters)))
    changed, _ = played(engine, model)
    np.testing.assert_array_equal(without, fresh)
    assert (changed != without).any()


MESH = """
import json, sys
sys.path.insert(0, "tests")
import dataclasses, jax, jax.numpy as jnp, numpy as np
from stepreward import parallel
from stepreward.models import decoder
from stepreward.models.adapters import TARGETS, LoraConfig, split_adapters
from test_adapter_play import PLAIN, ROWS, make_engine, played
lora = LoraConfig(rank=2, targets=TARGETS)
config = dataclasses.replace(PLAIN, compute_dtype=jnp.float32, lora=lora)
noise = lambda x: 0.1 * jax.random.normal(jax.random.key(x.size), x.shape)
base, adapters = split_adapters(decoder.initial_params(config, jax.random.key(0)))
model, found = (base, jax.tree.map(noise, adapters)), []
for mesh in (None, parallel.make_mesh(1, 4, 2)):
    c = dataclasses.replace(config, mesh=mesh)
    more = {} if mesh is None else dict(sharding=parallel.row_sharding(mesh), rows_multiple=4)
    params = model if mesh is None else parallel.place_parameters(model, mesh)
    tokens, log_prob = played(make_engine(c, **more), params)
    found.append((tokens.tolist(), np.asarray(log_prob).tolist()))
print(json.dumps(found))
"""


def test_a_mesh_of_devices_plays_adapters_as_one_device_does(root):
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-c", MESH],
        cwd=root,
        capture_output=True,
        text=True,
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{root}:{root}/tests"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (tokens, log_prob), (of_mesh, log_prob_of_mesh) = json.loads(done.stdout.splitlines()[-1])
    assert tokens == of_mesh
    np.testing.assert_allclose(log_prob, log_prob_of_mesh, atol=1e-4)
