"""A random tiny Qwen2.5-VL in fp32 equals transformers': its tower, positions, logits and greedy answers."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_vision import END, IMAGE, SIZES, START, VISION, embed, prompt, random_images, tower

from stepreward.models import decoder
from stepreward.models.cache import empty_cache
from stepreward.models.decoder import DecoderConfig
from stepreward.models.vision import VISION_TENSORS, vision_config
from stepreward.models.vision_inputs import multimodal_positions, vision_inputs

torch = pytest.importorskip("torch")

MODEL = DecoderConfig(
    vocab_size=64,
    num_layers=2,
    embed_dim=32,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_dim=48,
    rope_theta=1000.0,
    qkv_bias=True,
    tie_embeddings=False,
    mrope_sections=(2, 1, 1),
    vision=VISION,
)


@functools.cache
def published():
    """A random tiny Qwen2.5-VL of `transformers` in fp32."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(0)
    v = VISION
    config = Qwen2_5_VLConfig(
        vision_config=dict(
            depth=v.depth,
            hidden_size=v.embed_dim,
            num_heads=v.num_heads,
            intermediate_size=v.mlp_dim,
            out_hidden_size=v.out_dim,
            patch_size=v.patch_size,
            window_size=v.window_size,
            fullatt_block_indexes=list(v.full_attention_layers),
        ),
        text_config=dict(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            rms_norm_eps=1e-6,
            rope_parameters={"rope_type": "default", "rope_theta": 1000.0, "mrope_section": [2, 1, 1]},
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=0,
        ),
        image_token_id=IMAGE,
        video_token_id=63,
        vision_start_token_id=START,
        vision_end_token_id=END,
    )
    model = Qwen2_5_VLForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms too, and large enough that everything matters
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def test_the_configuration_is_read():
    assert vision_config(published().config.to_dict()) == VISION


def to_ours(layout, value, shape):
    """A published array in our layout, such as `(t n h) e -> e t n h`."""
    sides = [re.findall(r"\(([^)]*)\)|(\w+)", side) for side in layout.split("->")]
    file, ours = ([name for merged, single in side for name in (merged or single).split()] for side in sides)
    sizes = dict(zip(ours, shape)) if len(ours) == len(shape) else dict(zip(file, value.shape))
    return value.reshape([sizes[name] for name in file]).transpose([file.index(name) for name in ours]).reshape(shape)


def published_vision():
    """Parameters of the tower by their paths."""
    weights = {f"visual.{name}": value.detach().numpy() for name, value in published().model.visual.state_dict().items()}
    shapes = {"vision/" + "/".join(map(str, path)): leaf.shape for path, leaf in nnx.to_flat_state(tower()[1])}
    found = {}
    for path, name, layout in VISION_TENSORS:
        ours = path.replace("{}/", "")
        if ours == path:
            found[ours] = to_ours(layout, weights.pop(name), shapes[ours])
        else:
            found[ours] = np.stack([to_ours(layout, weights.pop(name.format(i)), shapes[ours][1:]) for i in range(VISION.depth)])
    assert not weights, "the table must name every tensor"
    return found


def filled(params, values):
    """The parameters with the values of a dict from paths to arrays, which must name each of them."""
    flat = {"/".join(map(str, path)): (path, leaf) for path, leaf in nnx.to_flat_state(params)}
    assert flat.keys() == values.keys()
    leaves = [(path, leaf.replace(jnp.asarray(values[name].reshape(leaf.shape)))) for name, (path, leaf) in flat.items()]
    return nnx.from_flat_state(leaves)


def published_tower():
    graphdef, params = tower()
    return graphdef, filled(params, {name.removeprefix("vision/"): value for name, value in published_vision().items()})


@functools.cache
def published_decoder():
    """`(graphdef, params)` of the whole model."""
    values = published_vision()
    names = {"embed_tokens.weight": "embedding", "norm.weight": "final_norm/scale"}
    for i in range(MODEL.num_layers):
        names[f"layers.{i}.input_layernorm.weight"] = f"layers/{i}/attention_norm/scale"
        names[f"layers.{i}.post_attention_layernorm.weight"] = f"layers/{i}/mlp_norm/scale"
        for letter, name in zip("qkvo", ("query", "key", "value", "output")):
            names[f"layers.{i}.self_attn.{letter}_proj.weight"] = f"layers/{i}/attention/{name}"
            names[f"layers.{i}.self_attn.{letter}_proj.bias"] = f"layers/{i}/attention/{name}_bias"
        names |= {f"layers.{i}.mlp.{name}_proj.weight": f"layers/{i}/mlp/{name}" for name in ("gate", "up", "down")}
    for name, value in published().model.language_model.state_dict().items():
        value = value.numpy()
        values[names[name]] = value.T if name.endswith("proj.weight") else value
    values["head"] = published().lm_head.weight.detach().numpy().T
    graphdef, params = decoder.build(MODEL, 0)
    return graphdef, filled(params, values)


def test_the_tower_equals_transformers():
    model, images = published(), random_images(SIZES)
    with torch.no_grad():
        expected = model.model.visual(torch.tensor(images.patches), torch.tensor(images.grids)).pooler_output.numpy()
    assert np.abs(expected).max() > 0.3
    np.testing.assert_allclose(embed(published_tower(), [images], 12)[0], expected, atol=2e-5)
    rows = [random_images([size], i)._replace(patches=part) for i, (size, part) in enumerate(zip(SIZES, _split(images)))]
    np.testing.assert_allclose(np.concatenate(embed(published_tower(), rows, 5)), expected, atol=2e-5)


def _split(images):
    return np.split(images.patches, np.cumsum([np.prod(grid) for grid in images.grids])[:-1])


@pytest.mark.parametrize("grids", [SIZES[:1], SIZES[1:2], SIZES], ids=["one", "oblong", "several"])
def test_positions_equal_transformers(grids):
    model = published()
    tokens = prompt(*grids)
    kinds = torch.tensor((tokens == IMAGE).astype(np.int32))[None]
    expected, delta = model.model.get_rope_index(torch.tensor(tokens)[None], kinds, image_grid_thw=torch.tensor(grids))
    positions, following, _ = multimodal_positions(tokens, grids, VISION)
    np.testing.assert_array_equal(positions, expected[:, 0].numpy())
    assert following == len(tokens) + int(delta[0, 0])


@functools.partial(jax.jit, static_argnums=0)
def _logits(graphdef, params, tokens, positions, segment_ids, vision):
    hidden, head = decoder.hidden_states(graphdef, params, tokens, positions, segment_ids, vision=vision)
    return hidden @ head


def logits(rows, images, length, blocks):
    """Logits of padded rows, `[t, V]` a row."""
    tokens = np.zeros((len(rows), length), np.int32)
    for padded, row in zip(tokens, rows):
        padded[: len(row)] = row
    segment_ids = np.arange(length) < np.array([[len(row)] for row in rows])
    positions = np.broadcast_to(np.arange(length), tokens.shape)
    vision = None if images is None else vision_inputs(rows, images, VISION, length=length, blocks=blocks)
    out = _logits(*published_decoder(), tokens, positions, segment_ids.astype(np.int32), vision)
    return [np.asarray(x)[: len(row)] for x, row in zip(out, rows)]


def expected_logits(row, images):
    tokens = torch.tensor(row)[None].long()
    seen = {}
    if images is not None:
        seen = dict(pixel_values=torch.tensor(images.patches), image_grid_thw=torch.tensor(images.grids))
        seen["mm_token_type_ids"] = (tokens == IMAGE).int()
    published().model.rope_deltas = None
    with torch.no_grad():
        return published()(input_ids=tokens, attention_mask=torch.ones_like(tokens), **seen).logits[0].numpy()


@pytest.mark.parametrize("grids", [SIZES[:1], SIZES], ids=["one image", "several images"])
def test_the_whole_model_equals_transformers(grids):
    row, images = prompt(*grids), random_images(grids)
    expected = expected_logits(row, images)
    assert np.abs(expected - expected_logits(np.where(row == IMAGE, 7, row), None)).max() > 0.1  # the images matter
    np.testing.assert_allclose(logits([row], [images], 64, 8)[0], expected, atol=1e-4)


def test_rows_of_images_and_of_text_with_padding_equal_transformers():
    rows = [prompt(SIZES[1], tail=3), prompt(tail=9), prompt(SIZES[0], SIZES[2], seed=1)]
    images = [random_images(SIZES[1:2], 1), None, random_images([SIZES[0], SIZES[2]], 2)]
    for found, row, seen in zip(logits(rows, images, 64, 8), rows, images):
        np.testing.assert_allclose(found, expected_logits(row, seen), atol=1e-4)


def test_text_alone_equals_transformers_with_and_without_inputs_of_images():
    row = prompt(tail=20)
    expected = expected_logits(row, None)
    without, empty = logits([row], None, 64, 0)[0], logits([row], [None], 64, 8)[0]
    np.testing.assert_allclose(without, expected, atol=1e-4)
    np.testing.assert_array_equal(without, empty)


@functools.partial(jax.jit, static_argnums=(0,))
def _prefill(graphdef, params, tokens, count, vision):
    caches = empty_cache(MODEL, len(tokens), 128)
    start = jnp.zeros_like(count)
    hidden, head, caches = decoder.cached_hidden_states(graphdef, params, tokens, start, caches, (count - 1)[:, None], vision)
    return jnp.argmax(hidden[:, 0] @ head, axis=-1), caches


@functools.partial(jax.jit, static_argnums=(0,))
def _decode(graphdef, params, token, count, caches, offset):
    def step(carry, index):
        token, caches = carry
        hidden, head, caches = decoder.cached_hidden_states(graphdef, params, token[:, None], count + index, caches, offset_B=offset)
        token = jnp.argmax(hidden[:, 0] @ head, axis=-1)
        return (token, caches), token

    return jax.lax.scan(step, (token, caches), jnp.arange(63))[1].T


def test_greedy_generation_with_a_cache_equals_transformers():
    model = published()
    rows = [prompt(SIZES[1], tail=3), prompt(SIZES[0], SIZES[2], seed=1)]
    images = [random_images(SIZES[1:2], 1), random_images([SIZES[0], SIZES[2]], 2)]
    tokens = np.zeros((2, 32), np.int32)
    for padded, row in zip(tokens, rows):
        padded[: len(row)] = row
    count = jnp.array([len(row) for row in rows])
    vision = vision_inputs(rows, images, VISION, length=32, blocks=4)
    graphdef, params = published_decoder()
    first, caches = _prefill(graphdef, params, tokens, count, vision)
    found = np.concatenate([first[:, None], _decode(graphdef, params, first, count, caches, jnp.asarray(vision.offset))], axis=1)
    for row, seen, sampled in zip(rows, images, found):
        ids = torch.tensor(row)[None].long()
        with torch.no_grad():
            whole = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                mm_token_type_ids=(ids == IMAGE).int(),
                pixel_values=torch.tensor(seen.patches),
                image_grid_thw=torch.tensor(seen.grids),
                max_new_tokens=64,
                do_sample=False,
            )
        np.testing.assert_array_equal(sampled, whole[0, len(row) :].numpy())
        assert len(set(sampled.tolist())) > 10
    wrong = _decode(graphdef, params, first, count, _prefill(graphdef, params, tokens, count, vision)[1], jnp.zeros(2, jnp.int32))
    assert (np.asarray(wrong) != found[:, 1:]).sum(axis=1).min() > 30  # so the positions behind an image matter
