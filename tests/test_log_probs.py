"""Log-probabilities of given tokens, compared with plain NumPy, and bounds on their memory."""

import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stepreward.models import decoder
from stepreward.models.decoder import DecoderConfig
from stepreward.models.log_probs import default_chunk, log_softmax, token_log_probs

VOCAB, ROWS, LENGTH = 64, 3, 9
CONFIG = DecoderConfig(VOCAB, num_layers=1, embed_dim=16, num_heads=2, num_kv_heads=2, head_dim=8, mlp_dim=24)
GRAPH = decoder.graph(CONFIG)
TOKENS = np.random.default_rng(0).integers(0, VOCAB, (ROWS, LENGTH))
POSITIONS = np.broadcast_to(np.arange(LENGTH), TOKENS.shape)
SEGMENTS = np.array([[1] * 9, [1] * 5 + [0] * 4, [1] * 4 + [2] * 5])


@pytest.fixture(scope="module")
def params():
    return decoder.build(CONFIG, 0)[1]


@partial(jax.jit, static_argnums=(1, 2))
def scored(params, temperature, chunk):
    return token_log_probs(GRAPH, params, TOKENS, POSITIONS, SEGMENTS, temperature=temperature, chunk=chunk)


def reference(params, temperature):
    hidden, head = jax.jit(decoder.hidden_states, static_argnums=0)(GRAPH, params, TOKENS, POSITIONS, SEGMENTS)
    logits = np.asarray(hidden, np.float64) @ np.asarray(head, np.float64) / temperature
    log_prob, entropy = np.zeros((ROWS, LENGTH)), np.zeros((ROWS, LENGTH))
    for r in range(ROWS):
        for t in range(1, LENGTH):
            if SEGMENTS[r, t] != SEGMENTS[r, t - 1]:
                continue  # nothing predicts what opens a segment
            p = np.exp(logits[r, t - 1]) / np.exp(logits[r, t - 1]).sum()
            log_prob[r, t] = np.log(p[TOKENS[r, t]])
            entropy[r, t] = -(p * np.log(p)).sum()
    return log_prob, entropy


@pytest.mark.parametrize("chunk, temperature", [(1024, 1.0), (7, 1.0), (7, 0.4), (1, 0.4)])
def test_against_numpy_whatever_the_chunk(params, chunk, temperature):
    found = scored(params, temperature, chunk)
    for value, expected in zip(found, reference(params, temperature)):
        assert value.shape == (ROWS, LENGTH) and value.dtype == jnp.float32
        np.testing.assert_allclose(value, expected, atol=1e-5)


def test_greedy_counts_as_temperature_one(params):
    for value, expected in zip(scored(params, 0.0, 1024), reference(params, 1.0)):
        np.testing.assert_allclose(value, expected, atol=1e-5)


def loss(params, chunk):
    log_prob, entropy = scored(params, 0.7, chunk)
    weight = jnp.asarray(np.random.default_rng(1).normal(size=(2, ROWS, LENGTH)), jnp.float32)
    return jnp.sum(weight[0] * log_prob + weight[1] * entropy)


def test_the_gradient_does_not_depend_on_the_chunk(params):
    whole, parts = (jax.jit(jax.grad(loss), static_argnums=1)(params, chunk) for chunk in (1024, 5))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), whole, parts)
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(whole)) > 0.1


# Fewer action tokens than places, at the second token too; as many; more than places: the first three count.
ACTIONS = np.array([[0, 1, 0, 0, 0, 0, 1, 0, 0], [0, 0, 1, 1, 1, 0, 0, 0, 0], [1, 0, 0, 1, 0, 0, 1, 1, 0]], bool)
FIRST_THREE = ACTIONS & (np.cumsum(ACTIONS, axis=1) <= 3) & (np.arange(LENGTH) > 0)


def at_actions(params):
    weight = jnp.asarray(np.random.default_rng(1).normal(size=(2, ROWS, LENGTH)), jnp.float32)
    settings = dict(temperature=0.7, action_mask_RxL=jnp.asarray(ACTIONS), max_actions=3, chunk=4)
    found = token_log_probs(GRAPH, params, TOKENS, POSITIONS, SEGMENTS, **settings)
    return jnp.sum(weight[0] * found[0] + weight[1] * found[1]), found


def test_action_tokens_alone_get_what_they_get_among_all(params):
    def masked(params):
        weight = jnp.asarray(np.random.default_rng(1).normal(size=(2, ROWS, LENGTH)), jnp.float32) * FIRST_THREE
        found = scored(params, 0.7, 1024)
        return jnp.sum(weight[0] * found[0] + weight[1] * found[1]), found

    (_, found), gradient = jax.jit(jax.value_and_grad(at_actions, has_aux=True))(params)
    (_, whole), expected = jax.jit(jax.value_and_grad(masked, has_aux=True))(params)
    for value, of_all in zip(found, whole):
        np.testing.assert_allclose(value, np.where(FIRST_THREE, of_all, 0), atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradient, expected)


def jaxprs_in(parameters):
    """The jaxprs among an equation's parameters: loops and branches."""
    for value in parameters.values():
        for item in value if isinstance(value, (tuple, list)) else [value]:
            inner = getattr(item, "jaxpr", item)
            if hasattr(inner, "eqns"):
                yield inner


def widest(jaxpr):
    """Most elements among the arrays of a jaxpr whose last axis is the vocabulary, loops and branches included."""
    most = 0
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            shape = variable.aval.shape
            if shape and shape[-1] == VOCAB and len(shape) > 1:
                most = max(most, int(np.prod(shape)))
        for inner in jaxprs_in(equation.params):
            most = max(most, widest(inner))
    return most


@pytest.mark.parametrize("function", [loss, jax.grad(loss)])
def test_logits_of_all_tokens_are_never_held_at_once(params, function):
    def measured(chunk):
        return widest(jax.make_jaxpr(function, static_argnums=1)(params, chunk).jaxpr)

    assert measured(1024) == ROWS * (LENGTH - 1) * VOCAB
    assert measured(4) < ROWS * (LENGTH - 1) * VOCAB


def test_the_default_chunk_holds_a_quarter_of_a_gigabyte_of_logits():
    assert [default_chunk(v) for v in (16, 32_000, 152_000, 10**9)] == [1024, 1024, 441, 64]
    assert default_chunk(152_000, devices=16) == 16 * 441


def test_memory_with_a_vocabulary_of_152_000():
    """Compiled, not run: values and gradients in less than half of what logits of all tokens at once take."""
    vocabulary, rows, length = 152_000, 4, 256
    config = DecoderConfig(vocabulary, num_layers=1, embed_dim=16, num_heads=1, num_kv_heads=1, head_dim=16, mlp_dim=16)
    graph = decoder.graph(config)
    params = jax.eval_shape(lambda: decoder.build(config, 0)[1])
    tokens = jax.ShapeDtypeStruct((rows, length), jnp.int32)

    def naive(params, tokens, positions, segments):
        hidden, head = decoder.hidden_states(graph, params, tokens, positions, segments)
        log_p = jax.nn.log_softmax((hidden[:, :-1] @ head).astype(jnp.float32), axis=-1)
        chosen = jnp.take_along_axis(log_p, tokens[:, 1:, None], axis=-1)
        return chosen.sum() - jnp.sum(jnp.exp(log_p) * log_p)

    def chunked(*arrays):
        return sum(x.sum() for x in token_log_probs(graph, *arrays))

    def temporary(function):
        compiled = jax.jit(jax.value_and_grad(function)).lower(params, tokens, tokens, tokens).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert 2 * temporary(chunked) < temporary(naive)


SHARDED = """
import dataclasses, re, sys
sys.path.insert(0, "tests")
import jax, jax.numpy as jnp, numpy as np
from stepreward import parallel
from stepreward.models import decoder
from stepreward.models.log_probs import token_log_probs
from test_log_probs import CONFIG

config = dataclasses.replace(CONFIG, vocab_size=4096, tie_embeddings=False)
tokens = jnp.asarray(np.random.default_rng(0).integers(0, 4096, (8, 16)))
arrays = (tokens, jnp.broadcast_to(jnp.arange(16), (8, 16)), jnp.ones((8, 16), int))
weight = np.random.default_rng(1).normal(size=(2, 8, 16))
found = []
for mesh in (None, parallel.make_mesh(2, 2, 2)):
    graph, params = decoder.build(dataclasses.replace(config, mesh=mesh), 0)
    loss = lambda params, *a: sum((w * x).sum() for w, x in zip(weight, token_log_probs(graph, params, *a, chunk=32)))
    rows = arrays if mesh is None else [jax.device_put(a, parallel.row_sharding(mesh)) for a in arrays]
    compiled = jax.jit(jax.value_and_grad(loss)).lower(params, *rows).compile()
    found.append(jax.device_get(compiled(params, *rows)))
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), *found)
# Logits come as a device's slice, 1,024 of 4,096 words for its half of the rows, and are never sent anywhere.
text = compiled.as_text()
assert "[4,4,1024]" in text or "[16,1024]" in text
sent = re.findall(r"(\\S+) (?:all-gather|all-to-all|collective-permute)\\(", text)
moved = [shape for shape in sent if re.search(r",(1024|2048|4096)\\]", shape)]
assert not moved, moved
print("same")
"""


def test_with_the_vocabulary_split_over_devices(root):
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    out = subprocess.run(
        [sys.executable, "-c", SHARDED],
        cwd=root,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert out.stdout.strip().endswith("same"), out.stderr[-2000:]


def test_log_softmax_of_literal_logits():
    hidden, head = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, np.log(3.0)], [5.0, 5.0]])
    np.testing.assert_allclose(jnp.exp(log_softmax(hidden, head, 1.0)), [[0.25, 0.75]], atol=1e-6)
    np.testing.assert_allclose(jnp.exp(log_softmax(hidden, head, 0.5)), [[0.1, 0.9]], atol=1e-6)
    assert log_softmax(hidden.astype(jnp.bfloat16), head, 1.0).dtype == jnp.float32
