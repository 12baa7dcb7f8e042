"""Every implementation of attention equals a plain loop, in values and gradients, for any segments, lengths and head ratios."""

import importlib.util
import json
import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stepreward.models import attention
from stepreward.models.attention import cached_attention, causal_attention, resolve, selected_attention, splash_block, tail_attention


def make_inputs(batch, heads, groups, length, width, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    draw = lambda n: rng.normal(size=(batch, n, length, width)).astype(dtype)
    return draw(heads), draw(groups), draw(groups)


def make_segments(batch, length):
    """Rows of two segments and padding, of three segments that fill the row, of padding alone, and of one segment."""
    rows = np.zeros((batch, length), np.int32)
    for r in range(batch):
        cuts = {0: (length // 3, 3 * length // 4), 1: (1, length // 2, length), 2: (), 3: (length,)}[r % 4]
        for number, (start, end) in enumerate(zip((0, *cuts), cuts), 1):
            rows[r, start:end] = number
    return rows


def by_loop(query, key, value, segments, causal=True):
    """One softmax at a time, in float64; zero at padding."""
    out = np.zeros(query.shape)
    ratio = query.shape[1] // key.shape[1]
    for b, n, t in np.ndindex(query.shape[:3]):
        if segments[b, t]:
            seen = np.flatnonzero(segments[b, : t + 1 if causal else None] == segments[b, t])
            scores = key[b, n // ratio, seen].astype(np.float64) @ query[b, n, t] / np.sqrt(query.shape[3])
            weights = np.exp(scores - scores.max())
            out[b, n, t] = weights / weights.sum() @ value[b, n // ratio, seen]
    return out


def gradient(attend, inputs, segments):
    """Values at real tokens, and the gradient of a random sum of them."""
    weight = np.random.default_rng(9).normal(size=inputs[0].shape) * (segments > 0)[:, None, :, None]

    def loss(inputs):
        out = attend(*inputs, segments)
        return jnp.sum(out.astype(jnp.float32) * weight), out

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(tuple(jnp.asarray(x) for x in inputs))


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(attention, "BLOCK", 4)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("implementation", ["plain", "blocked"])
@pytest.mark.parametrize("heads, groups, length", [(4, 2, 13), (3, 3, 8), (4, 1, 1)])
def test_against_a_loop(small_blocks, implementation, heads, groups, length, causal):
    inputs, segments = make_inputs(4, heads, groups, length, 6), make_segments(4, length)
    out = jax.jit(partial(causal_attention, implementation=implementation, causal=causal))(*inputs, segments)
    assert out.shape == inputs[0].shape and np.isfinite(out).all()
    real = (segments > 0)[:, None, :, None]
    np.testing.assert_allclose(out * real, by_loop(*inputs, segments, causal), atol=1e-5)


def test_blocks_have_the_gradient_of_the_whole(small_blocks):
    inputs, segments = make_inputs(4, 4, 2, 13, 6), make_segments(4, 13)
    (_, out), grads = gradient(partial(causal_attention, implementation="blocked"), inputs, segments)
    (_, expected), expected_grads = gradient(partial(causal_attention, implementation="plain"), inputs, segments)
    real = (segments > 0)[:, None, :, None]
    np.testing.assert_allclose(out * real, expected * real, atol=1e-5)
    for found, whole in zip(grads, expected_grads):
        np.testing.assert_allclose(found, whole, atol=1e-5)
        assert float(jnp.abs(found).max()) > 0.1 and not np.asarray(found)[2].any()  # the row of padding


def test_blocks_never_hold_all_scores():
    def temporary(implementation):
        arrays = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((1, 2, 4096, 8), (1, 1, 4096, 8), (1, 1, 4096, 8))]
        segments = jax.ShapeDtypeStruct((1, 4096), jnp.int32)
        loss = lambda q, k, v, s: causal_attention(q, k, v, s, implementation=implementation).sum()
        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*arrays, segments).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    scores = 2 * 4096 * 4096 * 4
    assert temporary("plain") >= scores > 3 * temporary("blocked")


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_some_queries_get_what_they_get_among_all(small_blocks, causal):
    inputs, segments = make_inputs(4, 4, 2, 13, 6), make_segments(4, 13)
    whole = causal_attention(*inputs, segments, implementation="plain", causal=causal)
    for asked in (3, 9):
        at = np.sort(np.random.default_rng(asked).integers(0, 13, (4, asked)))
        take = lambda x: np.take_along_axis(np.asarray(x), at[:, None, :, None], axis=2)
        np.testing.assert_allclose(selected_attention(take(inputs[0]), *inputs[1:], segments, at, causal=causal), take(whole), atol=1e-5)


@pytest.mark.parametrize("time", [1, 3, 11])
def test_a_cache_is_seen_up_to_the_querys_own_slot(small_blocks, time):
    query, key, value = make_inputs(3, 4, 2, 16, 6)
    start = np.array([0, 2, 5])
    positions = start[:, None] + np.arange(time)
    stored = jnp.asarray(key, jnp.bfloat16)
    found, key = cached_attention(query[:, :, :time], stored, value, positions), np.asarray(stored, np.float32)
    for b in range(3):
        for t in range(time):
            seen = slice(0, positions[b, t] + 1)
            segments = np.ones((1, positions[b, t] + 1), np.int32)
            last = np.broadcast_to(query[b : b + 1, :, t : t + 1], (1, 4, positions[b, t] + 1, 6))
            expected = by_loop(last, key[b : b + 1, :, seen], value[b : b + 1, :, seen], segments)[0, :, -1]
            np.testing.assert_allclose(found[b, :, t], expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("time", [1, 5, 40])
def test_longer_rows_and_further_tiles_of_a_cache_change_no_bit(time, dtype):
    """For other slots than whole tiles too, it is the attention over the cache."""
    _, key, value = make_inputs(3, 4, 2, 512, 16)
    query = make_inputs(3, 4, 2, time, 16)[0]
    places = lambda *first: np.array(first)[:, None] + np.arange(time)
    short, long = places(0, 11, 127 - time), places(0, 11, 511 - time)
    key, value = jnp.asarray(key, dtype), jnp.asarray(value, dtype)
    attend = jax.jit(cached_attention, static_argnames="tiled")
    whole = attend(query, key, value, short, tiled=True)
    for slots in (128, 256, 384):
        np.testing.assert_array_equal(attend(query, key[:, :, :slots], value[:, :, :slots], short, tiled=True), whole)
    np.testing.assert_array_equal(attend(query, key, value, long, tiled=True)[:2], whole[:2])
    for positions in (short, long):
        np.testing.assert_allclose(attend(query, key, value, positions, tiled=True), attend(query, key, value, positions), atol=1e-5)
    np.testing.assert_allclose(attend(query, key[:, :, :131], value[:, :, :131], short, tiled=True), whole, atol=1e-5)


@pytest.mark.parametrize("tiled", [False, True])
def test_a_tail_is_as_good_as_a_longer_cache(tiled):
    """A token attends to its row's cache, and to the tail up to itself; what lies behind is never seen."""
    rng = np.random.default_rng(0)
    query, key, value = (rng.normal(size=(3, n, t, 8)).astype(np.float32) for n, t in ((4, 1), (2, 300), (2, 300)))
    tails = [rng.normal(size=(3, 2, 5, 8)).astype(np.float32) for _ in range(2)]
    length, index = np.array([0, 130, 256]), 2
    found = tail_attention(query, (key[:, :, :256], tails[0]), (value[:, :, :256], tails[1]), length, index, tiled=tiled)
    for row in range(3):
        for whole, tail in ((key, tails[0]), (value, tails[1])):
            whole[row, :, length[row] : length[row] + 5] = tail[row]
    expected = cached_attention(query, key, value, (length + index)[:, None])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_long_prefill_is_taken_in_blocks():
    def temporary(time):
        arrays = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((2, 4, time, 8), (2, 2, 2048, 8), (2, 2, 2048, 8))]
        compiled = jax.jit(cached_attention).lower(*arrays, jax.ShapeDtypeStruct((2, time), jnp.int32)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(1024) < 2 * temporary(256) < 2 * 4 * 2 * 4 * 1024 * 2048


def test_what_auto_stands_for():
    at = partial(resolve, "auto", length=4096, head_dim=128)
    assert at("cpu", dtype=jnp.float32) == "blocked" and at("cpu", dtype=jnp.bfloat16) == "blocked"
    assert at("gpu", dtype=jnp.bfloat16) == at("cuda", dtype=jnp.float16) == "cudnn"
    assert at("gpu", dtype=jnp.float32) == "blocked"
    assert at("tpu", dtype=jnp.bfloat16) == at("tpu", dtype=jnp.float32) == "splash"
    assert resolve("auto", "gpu", length=20, head_dim=20, dtype=jnp.bfloat16) == "plain"
    assert resolve("auto", "tpu", length=20, head_dim=128, dtype=jnp.bfloat16) == "plain"
    assert resolve("plain", "tpu", length=9999, head_dim=128, dtype=jnp.bfloat16) == "plain"
    assert resolve("cudnn", "gpu", length=20, head_dim=64, dtype=jnp.bfloat16) == "cudnn"


@pytest.mark.parametrize(
    "asked, platform, head_dim, dtype, message",
    [
        ("flash", "cpu", 64, jnp.float32, "model.attention='flash' is unknown; choose one of auto, plain, blocked, cudnn, splash"),
        ("cudnn", "cpu", 64, jnp.bfloat16, "'cudnn' needs an NVIDIA GPU, but this runs on cpu"),
        ("cudnn", "gpu", 64, jnp.float32, "needs bfloat16 or float16, but model.compute_dtype is float32"),
        ("cudnn", "gpu", 20, jnp.bfloat16, "needs a head width that is a multiple of 8 and at most 128, but this model's is 20"),
        ("splash", "gpu", 64, jnp.bfloat16, "'splash' needs a TPU, but this runs on gpu; 'auto' picks one that can run"),
    ],
)
def test_what_cannot_run_is_said_in_words(asked, platform, head_dim, dtype, message):
    with pytest.raises(ValueError, match=message):
        resolve(asked, platform, length=512, head_dim=head_dim, dtype=dtype)


def test_an_unresolved_name_is_an_error():
    with pytest.raises(ValueError, match="implementation='auto' is not one of plain, blocked, cudnn, splash"):
        causal_attention(*make_inputs(1, 1, 1, 2, 2), np.ones((1, 2), np.int32), implementation="auto")


# --- cuDNN ---


@pytest.mark.parametrize("packed, causal", [(True, True), (False, True), (False, False)])
@pytest.mark.parametrize("length", [8, 9])
def test_cudnn_is_handed_its_layout_and_a_mask_only_where_one_is_needed(monkeypatch, packed, causal, length):
    real, calls = jax.nn.dot_product_attention, []

    def stand_in(query, key, value, *, mask=None, is_causal, implementation):
        calls.append((query.shape, key.shape, None if mask is None else (mask.shape, mask.dtype), is_causal, implementation))
        return real(query, key, value, mask=mask, is_causal=is_causal)

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    inputs, segments = make_inputs(4, 4, 2, length, 8), make_segments(4, length)
    if not packed:
        segments = (np.arange(length) < np.array([[length], [3], [0], [1]])).astype(np.int32)
    attend = partial(causal_attention, packed=packed, causal=causal)
    (_, out), grads = gradient(partial(attend, implementation="cudnn"), inputs, segments)
    even = length + length % 2
    mask = ((4, 1, even, even), jnp.dtype(bool)) if packed or not causal else None
    assert calls[0] == ((4, even, 4, 8), (4, even, 2, 8), mask, causal, "cudnn")
    (_, expected), expected_grads = gradient(partial(attend, implementation="plain"), inputs, segments)
    keep = (segments > 0)[:, None, :, None]
    np.testing.assert_allclose(out * keep, expected * keep, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), grads, expected_grads)
    assert np.isfinite(out).all()


@pytest.mark.parametrize("packed, kernel", [(True, "fmhaScaleBiasSoftmax"), (False, "fmhaSoftmax")])
def test_cudnn_takes_the_shapes_that_it_is_handed(monkeypatch, packed, kernel):
    """Lowered for a GPU without one: JAX's own checks of the forward and backward kernels, at an odd length."""
    kernels = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(kernels, "check_cudnn_version", lambda: 91200)
    head = lambda n: jax.ShapeDtypeStruct((4, n, 257, 64), jnp.bfloat16)
    arrays = head(8), head(2), head(2), jax.ShapeDtypeStruct((4, 257), jnp.int32)
    loss = lambda *a: causal_attention(*a, implementation="cudnn", packed=packed).astype(jnp.float32).sum()
    text = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(*arrays).lower(lowering_platforms=("cuda",)).as_text()
    assert f"__cudnn${kernel}(" in text and f"__cudnn${kernel}Backward(" in text


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU")
@pytest.mark.parametrize("packed, length", [(True, 257), (False, 257), (True, 128)])
def test_cudnn_on_a_gpu(packed, length):
    inputs = make_inputs(4, 4, 2, length, 64, dtype=jnp.bfloat16)
    segments = make_segments(4, length) if packed else (np.arange(length) < np.array([[length], [3], [0], [1]])).astype(np.int32)
    (_, out), grads = gradient(partial(causal_attention, implementation="cudnn", packed=packed), inputs, segments)
    (_, expected), expected_grads = gradient(partial(causal_attention, implementation="plain"), inputs, segments)
    keep = (segments > 0)[:, None, :, None]
    assert np.isfinite(np.asarray(out, np.float32)).all()
    np.testing.assert_allclose(np.asarray(out * keep, np.float32), np.asarray(expected * keep, np.float32), atol=0.03)
    for found, whole in zip(grads, expected_grads):
        np.testing.assert_allclose(np.asarray(found, np.float32), np.asarray(whole, np.float32), atol=0.1, rtol=0.1)


# --- Splash ---


def test_blocks_of_the_splash_kernel():
    assert [splash_block(n) for n in (1, 128, 257, 300, 512, 600, 4096, 4097)] == [128, 128, 128, 128, 512, 128, 512, 512]
    for length in range(1, 5000, 37):
        block = splash_block(length)
        assert block == 128 or -(-length // block) * block <= 1.125 * length


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_splash_interpreted_equals_plain(causal):
    inputs, segments = make_inputs(2, 2, 1, 200, 16), make_segments(2, 200)
    attend = partial(causal_attention, causal=causal)
    (_, out), grads = gradient(partial(attend, implementation="splash", interpret=True), inputs, segments)
    (_, expected), expected_grads = gradient(partial(attend, implementation="plain"), inputs, segments)
    real = (segments > 0)[:, None, :, None]
    np.testing.assert_allclose(out * real, expected * real, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), grads, expected_grads)
    assert np.isfinite(out).all()


def environment(**more):
    return {**os.environ, "JAX_PLATFORMS": "cpu", **more}


ON_A_MESH = """
import sys
sys.path.insert(0, "tests")
import jax, numpy as np
from functools import partial
from stepreward import parallel
from stepreward.models.attention import causal_attention
from test_attention import gradient, make_inputs, make_segments

real = jax.nn.dot_product_attention
jax.nn.dot_product_attention = lambda *a, implementation, **k: real(*a, **k)
segments = make_segments(4, 10)
for shape in ((2, 1, 2), (1, 2, 4), (1, 4, 1), (1, 1, 8), (1, 8, 1)):
    mesh = parallel.make_mesh(*shape)
    for heads, groups in ((8, 2), (4, 4), (3, 3)):  # two key/value heads on four or eight devices: copied; three: not split
        inputs = make_inputs(4, heads, groups, 10, 8)
        found = gradient(partial(causal_attention, implementation="cudnn", mesh=mesh), inputs, segments)
        expected = gradient(partial(causal_attention, implementation="plain"), inputs, segments)
        keep = (segments > 0)[:, None, :, None]
        np.testing.assert_allclose(found[0][1] * keep, expected[0][1] * keep, atol=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found[1], expected[1])
print("same")
"""


def test_kernels_run_on_each_devices_rows_and_heads(root):
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    out = subprocess.run(
        [sys.executable, "-c", ON_A_MESH], cwd=root, env=environment(XLA_FLAGS=flags), capture_output=True, text=True, timeout=300
    )
    assert out.stdout.strip().endswith("same"), out.stderr[-2000:]


ON_A_TPU = """
import json
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from stepreward.models.attention import causal_attention
from stepreward.parallel import MESH_AXES

devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
mesh = Mesh(np.array(devices).reshape(1, 2, 2), MESH_AXES)
rows = ("data", "fsdp")
array = lambda shape, spec, dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*spec)))
head = lambda n, length: array((4, n, length, 64), (rows, "tensor"), jnp.bfloat16)
loss = lambda *a: causal_attention(*a, implementation="splash", mesh=mesh).astype(jnp.float32).sum()
found = []
for length in (512, 1000):
    arrays = head(4, length), head(2, length), head(2, length), array((4, length), (rows,), jnp.int32)
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*arrays).compile()
    found.append([compiled.as_text().count("tpu_custom_call"), compiled.memory_analysis().temp_size_in_bytes])
print(json.dumps(found))
"""


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the libtpu wheel, no TPU")
def test_splash_compiles_for_a_tpu_slice(root):
    more = dict(TPU_SKIP_MDS_QUERY="1", TPU_ACCELERATOR_TYPE="v5e-4", TPU_WORKER_HOSTNAMES="localhost", ALLOW_MULTIPLE_LIBTPU_LOAD="true")
    out = subprocess.run([sys.executable, "-c", ON_A_TPU], cwd=root, env=environment(**more), capture_output=True, text=True, timeout=300)
    assert out.returncode == 0, out.stderr[-2000:]
    for (kernels, temporary), length in zip(json.loads(out.stdout.splitlines()[-1]), (512, 1000)):
        assert kernels == 3  # forward; backward for queries; backward for keys and values
        assert temporary < 2 * 2 * length * length * 4  # the scores of a device's two rows and two heads
