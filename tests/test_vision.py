"""Properties of the vision tower and its inputs; `test_vision_parity.py` compares them with `transformers`."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from stepreward.models.rotary import rotary_angles
from stepreward.models.vision import VISION_TENSORS, VisionConfig, VisionTower, merge_image_embeddings, vision_config
from stepreward.models.vision_inputs import Images, lay_out, multimodal_positions, vision_inputs

IMAGE, START, END = 60, 61, 62
# A window is 2 × 2 merged squares, so 4 × 4 patches of 4 pixels.
VISION = VisionConfig(
    depth=3,
    embed_dim=16,
    num_heads=2,
    mlp_dim=24,
    out_dim=32,
    full_attention_layers=(1,),
    patch_size=4,
    window_size=16,
    image_token_id=IMAGE,
)
SIZES = ((1, 4, 4), (1, 6, 10), (1, 2, 2), (1, 8, 4))  # frames, rows and columns of patches


def random_images(grids, seed=0):
    patches = np.random.default_rng(seed).normal(size=(sum(t * h * w for t, h, w in grids), VISION.patch_dim))
    return Images(patches.astype(np.float32), np.array(grids))


def prompt(*grids, tail=5, seed=0):
    """Text, then each image between its two marks, then text."""
    rng = np.random.default_rng(seed)
    text = lambda n: rng.integers(0, 50, n)
    parts = [text(3)]
    for _, rows, columns in grids:
        parts += [[START], [IMAGE] * (rows * columns // 4), [END], text(2)]
    return np.concatenate([*parts, text(tail)]).astype(np.int32)


@functools.cache
def tower():
    graphdef, params = nnx.split(VisionTower(VISION, nnx.Rngs(params=jax.random.key(0))))
    return graphdef, jax.tree.map(lambda x: x + 0.02 * jax.random.normal(jax.random.key(1), x.shape), params)


@functools.partial(jax.jit, static_argnums=0)
def _apply(graphdef, params, x):
    return nnx.merge(graphdef, params)(x)


def embed(model, rows, blocks, block_patches=None):
    """Embeddings of the placeholders of some rows of images, in their order, `[Q, O]` a row."""
    tokens = [prompt(*images.grids, tail=1) for images in rows]
    length = max(map(len, tokens))
    x = vision_inputs(tokens, rows, VISION, length=length, blocks=blocks, block_patches=block_patches)
    embeddings = np.asarray(_apply(*model, x))
    assert np.isfinite(embeddings).all()
    return [e[s[s >= 0]] for e, s in zip(embeddings, x.source)]


# --- layout ------------------------------------------------------------------------------------------------------------------


def test_positions_of_text_images_and_text_again():
    tokens = [1, IMAGE, IMAGE, IMAGE, IMAGE, IMAGE, IMAGE, 2, 3]  # 4 × 6 patches: 2 × 3 squares
    positions, following, square = multimodal_positions(np.array(tokens), [(1, 4, 6)], VISION)
    np.testing.assert_array_equal(positions[0], [0, 1, 1, 1, 1, 1, 1, 4, 5])
    np.testing.assert_array_equal(positions[1], [0, 1, 1, 1, 2, 2, 2, 4, 5])
    np.testing.assert_array_equal(positions[2], [0, 1, 2, 3, 1, 2, 3, 4, 5])
    np.testing.assert_array_equal(square, [-1, 0, 1, 2, 3, 4, 5, -1, -1])
    assert following == 6
    later, end, _ = multimodal_positions(np.array(tokens), [(1, 4, 6)], VISION, start=10)
    np.testing.assert_array_equal(later, positions + 10)
    assert end == 16


def test_a_placeholder_that_the_model_said_is_text():
    tokens = np.array([IMAGE, 5, IMAGE, IMAGE])
    positions, following, square = multimodal_positions(tokens, [(1, 2, 2)], VISION)
    np.testing.assert_array_equal(square, [0, -1, -1, -1])  # behind the last image
    np.testing.assert_array_equal(positions, [[0, 1, 2, 3]] * 3)
    said = np.array([True, False, False, False])
    np.testing.assert_array_equal(multimodal_positions(tokens, [(1, 2, 2)], VISION, sampled=said)[2], [-1, -1, 0, -1])
    assert following == 4


@pytest.mark.parametrize(
    "tokens, grid, words",
    [
        ([IMAGE, 1, 2], (1, 4, 4), "needs 4 consecutive placeholder tokens"),
        ([IMAGE, 1, IMAGE], (1, 2, 4), "needs 2 consecutive placeholder tokens"),
        ([IMAGE], (2, 2, 2), "still images"),
        ([IMAGE], (1, 3, 2), "cannot be divided"),
    ],
)
def test_images_that_do_not_fit_their_placeholders_are_named(tokens, grid, words):
    with pytest.raises(ValueError, match=words):
        multimodal_positions(np.array(tokens), [grid], VISION)


def test_windows_share_blocks_and_lie_in_one():
    # 3 × 5 squares in windows of 2 × 2: of 4, 4, 2 squares above and 2, 2, 1 below.
    blocks = lay_out(VISION, [(1, 6, 10)], VISION.window_patches)
    assert [[len(squares) for _, squares in block] for block in blocks] == [[4], [4], [2, 2], [2, 1]]
    np.testing.assert_array_equal(blocks[0][0][1], [0, 1, 5, 6])
    assert sorted(np.concatenate([squares for block in blocks for _, squares in block])) == list(range(15))
    with pytest.raises(ValueError, match="16 is always enough"):
        lay_out(VISION, [(1, 4, 4)], 8)


def test_too_few_blocks_and_patches_that_do_not_fit_are_named():
    images = random_images([(1, 6, 10)])
    with pytest.raises(ValueError, match="need 4 blocks of 16 patches, but there are only 3"):
        vision_inputs([prompt(*images.grids)], [images], VISION, length=40, blocks=3)
    with pytest.raises(ValueError, match="must have patches of shape"):
        vision_inputs([prompt(*images.grids)], [images._replace(patches=images.patches[1:])], VISION, length=40, blocks=4)


# --- the tower ---------------------------------------------------------------------------------------------------------------


def test_padding_and_neighbours_change_nothing():
    first, second = random_images(SIZES[1:3], 1), random_images(SIZES[:1], 2)
    both = random_images([*SIZES[1:3], *SIZES[:1]])._replace(patches=np.concatenate([first.patches, second.patches]))
    alone = embed(tower(), [first], 5)[0], embed(tower(), [second], 1)[0]
    padded = embed(tower(), [second, first], 8)
    np.testing.assert_allclose(padded[1], alone[0], atol=1e-5)
    np.testing.assert_allclose(padded[0], alone[1], atol=1e-5)
    np.testing.assert_allclose(embed(tower(), [both], 7)[0], np.concatenate(alone), atol=1e-5)
    np.testing.assert_allclose(embed(tower(), [both], 4, 32)[0], np.concatenate(alone), atol=1e-5)


def test_images_of_other_sizes_do_not_retrace():
    _apply.clear_cache()
    for seed, size in enumerate(SIZES):
        x = vision_inputs([prompt(size)], [random_images([size], seed)], VISION, length=32, blocks=4)
        _apply(*tower(), x)
    assert _apply._cache_size() == 1


def test_windows_and_full_attention_see_what_they_should():
    """Which merged squares a change in one patch reaches: its window, and the whole image only if a layer sees it whole."""
    images = random_images([(1, 4, 8), (1, 4, 4)])
    changed = images.patches.copy()
    changed[0] += 1.0
    reached = {}
    for whole in ((), (1,)):
        config = dataclasses.replace(VISION, full_attention_layers=whole)
        model = nnx.split(VisionTower(config, nnx.Rngs(params=jax.random.key(0))))
        before, after = (embed(model, [images._replace(patches=p)], 3)[0] for p in (images.patches, changed))
        reached[whole] = np.flatnonzero(np.abs(before - after).max(-1) > 0)
    np.testing.assert_array_equal(reached[()], [0, 1, 4, 5])  # rows of 4 squares; the window is 2 × 2
    np.testing.assert_array_equal(reached[(1,)], range(8))


def test_recomputation_changes_no_gradient():
    x = vision_inputs([prompt(SIZES[0])], [random_images(SIZES[:1])], VISION, length=16, blocks=2)
    graphdef, params = tower()

    @functools.partial(jax.jit, static_argnums=1)
    def gradient(params, remat):
        loss = lambda p: jnp.sum(jnp.sin(nnx.merge(graphdef, p)(x, remat=remat)[:, :4]))
        return jax.grad(loss)(params)

    for kept, again in zip(jax.tree.leaves(gradient(params, False)), jax.tree.leaves(gradient(params, True))):
        assert np.isfinite(kept).all()
        np.testing.assert_allclose(again, kept, rtol=1e-4, atol=1e-5)


def test_embeddings_replace_the_placeholders():
    x = jnp.zeros((2, 3, 2))
    embeddings = jnp.arange(8.0).reshape(2, 2, 2) + 1
    merged = merge_image_embeddings(x, jnp.array([[-1, 1, 0], [1, -1, -1]]), embeddings)
    np.testing.assert_array_equal(merged, [[[0, 0], [3, 4], [1, 2]], [[7, 8], [0, 0], [0, 0]]])


def test_the_table_names_every_parameter_once():
    paths = ["vision/" + "/".join(map(str, path)) for path, _ in nnx.to_flat_state(tower()[1])]
    assert sorted(paths) == sorted(path.replace("{}/", "") for path, _, _ in VISION_TENSORS)
    assert len({name for _, name, _ in VISION_TENSORS}) == len(VISION_TENSORS)


def test_the_configuration_of_a_published_model():
    source = {"vision_config": {"depth": 32, "hidden_act": "silu", "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16,
                                "in_chans": 3, "out_hidden_size": 2048, "patch_size": 14, "spatial_merge_size": 2,
                                "spatial_patch_size": 14, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31],
                                "tokens_per_second": 2, "temporal_patch_size": 2}}  # fmt: skip
    config = vision_config(source)
    assert (config.embed_dim, config.head_dim, config.patch_dim, config.window_patches) == (1280, 80, 1176, 64)
    assert config.full_attention_layers == (7, 15, 23, 31) and config.image_token_id == 151_655
    with pytest.raises(ValueError, match="cannot read images"):
        vision_config({})
    with pytest.raises(ValueError, match="vision_config.depth=None must be a positive"):
        vision_config({"vision_config": {}})
    with pytest.raises(ValueError, match="multiple of 4 × num_heads=3"):
        dataclasses.replace(VISION, num_heads=3)
    with pytest.raises(ValueError, match="must be at least 0 and below depth=3"):
        dataclasses.replace(VISION, full_attention_layers=(3,))


def test_angles_of_text_are_the_ordinary_ones_and_sections_pick_their_axis():
    positions = np.array([[0, 1, 2, 7]])
    plain = rotary_angles(positions, 8, 100.0, None)
    text = rotary_angles(np.stack([positions] * 3), 8, 100.0, None, (2, 1, 1))
    np.testing.assert_array_equal(plain, text)
    apart = rotary_angles(np.stack([positions, positions + 1, positions + 2]), 8, 100.0, None, (2, 1, 1))
    for pair, shift in enumerate((0, 0, 1, 2)):
        np.testing.assert_array_equal(apart[0][..., pair], rotary_angles(positions + shift, 8, 100.0, None)[0][..., pair])
    with pytest.raises(ValueError, match="must add up to head_dim / 2 = 4"):
        rotary_angles(np.stack([positions] * 3), 8, 100.0, None, (2, 1, 2))
