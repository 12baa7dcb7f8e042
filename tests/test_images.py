"""Conversion of images to patches: sizes, order of patches, settings of a model folder, and errors."""

import json

import numpy as np
import pytest

from stepreward.models.images import preprocess_images, processor_settings

# Pixels as they are, so that patches can be read.
PLAIN = {"patch_size": 2, "merge_size": 2, "min_pixels": 16, "max_pixels": 4096, "do_normalize": False, "do_rescale": False}


def test_patches_of_a_square_lie_next_to_each_other():
    image = np.zeros((4, 8, 3), np.uint8)
    image[..., 0] = np.repeat(np.repeat([[0, 1, 4, 5], [2, 3, 6, 7]], 2, axis=0), 2, axis=1)
    found = preprocess_images([image], PLAIN)
    np.testing.assert_array_equal(found.grids, [[1, 2, 4]])
    assert found.patches.dtype == np.float32
    # A patch is channels × 2 frames × 2 × 2 pixels; the still image stands in both frames.
    np.testing.assert_array_equal(found.patches, np.repeat(np.eye(3)[0], 8) * np.arange(8)[:, None])


def test_sizes_follow_the_limits_and_the_published_normalisation():
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (h, w, 3)).astype(np.uint8) for h, w in ((96, 96), (3, 40), (300, 200))]
    found = preprocess_images(images, {"min_pixels": 56 * 56, "max_pixels": 112 * 112})
    np.testing.assert_array_equal(found.grids, [[1, 6, 6], [1, 2, 16], [1, 8, 6]])
    assert found.patches.shape == (36 + 32 + 48, 1176)
    white = preprocess_images([np.full((56, 56, 3), 255, np.uint8)], {})
    mean, deviation = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    np.testing.assert_allclose(white.patches[0].reshape(3, -1)[:, 0], (1 - mean) / deviation, rtol=1e-5)


def test_settings_come_from_the_model_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no preprocessor_config.json"):
        preprocess_images([], tmp_path)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(PLAIN | {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor"}))
    assert processor_settings(tmp_path) == PLAIN
    image = np.random.default_rng(1).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    np.testing.assert_array_equal(preprocess_images([image], tmp_path).patches, preprocess_images([image], PLAIN).patches)
    file.write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        preprocess_images([image], tmp_path)


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3))])
def test_what_is_no_image_is_named(image):
    with pytest.raises(ValueError, match=r"image 0 is .*; it must be a non-empty uint8 \[H, W, 3\]"):
        preprocess_images([image], PLAIN)
