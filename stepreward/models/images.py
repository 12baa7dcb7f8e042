"""Cuts images into patches with the published image processor of the Qwen2-VL family; needs neither torch nor torchvision."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from stepreward.models.vision import VisionConfig, VisionInputs
from stepreward.models.vision_inputs import Images, image_tokens, lay_out, vision_inputs, windows

# The keys of `preprocessor_config.json` that determine how an image becomes patches; the others do not affect the result.
_SETTINGS = (
    "do_resize", "resample", "size", "min_pixels", "max_pixels", "do_rescale", "rescale_factor", "do_normalize", "image_mean",
    "image_std", "do_convert_rgb", "patch_size", "temporal_patch_size", "merge_size",
)  # fmt: skip
_NAME = "preprocessor_config.json"


def preprocess_images(images: Sequence[np.ndarray], processor: str | os.PathLike | Mapping) -> Images:
    """Resizes images, normalises them and cuts them into patches.

    Resizing makes sides multiples of patch × merge pixels and keeps the area between min_pixels and max_pixels.

    Args:
      images: uint8 `[H, W, 3]` each, of any sizes.
      processor: a model folder with a `preprocessor_config.json`, or its settings as a mapping. Missing settings take the family's
        defaults, so {} is allowed.

    Returns:
      patches float32 `[P, U]` and grids int64 `[I, 3]`; see `vision_inputs.Images`.

    Raises:
      FileNotFoundError: if the folder has no `preprocessor_config.json`.
      ValueError: if an image is empty or not uint8 `[H, W, 3]`; if the processor refuses its shape; if it is not resized and does
        not consist of whole squares; or if the file is not JSON.
    """
    for index, image in enumerate(images):
        if np.ndim(image) != 3 or np.shape(image)[2] != 3 or not np.size(image) or np.asarray(image).dtype != np.uint8:
            raise ValueError(f"image {index} is {np.asarray(image).dtype}{np.shape(image)}; it must be a non-empty uint8 [H, W, 3].")
    settings = processor_settings(processor)
    side = settings.get("patch_size", 14) * settings.get("merge_size", 2)
    for index, image in enumerate(images):
        if not settings.get("do_resize", True) and (image.shape[0] % side or image.shape[1] % side):
            raise ValueError(
                f"image {index} has {image.shape[0]} × {image.shape[1]} pixels, which is not a whole number of squares of {side} × {side}, "
                "and the processor does not resize: give whole squares, or a processor that resizes."
            )
    process = _processor(json.dumps(settings, sort_keys=True))
    try:
        found = process(images=list(images), input_data_format="channels_last", return_tensors="np")
    except ValueError as error:  # an aspect ratio that the processor refuses
        sizes = ", ".join(f"{image.shape[0]} × {image.shape[1]}" for image in images)
        raise ValueError(f"the image processor refuses images of {sizes} pixels: {error}") from None
    return Images(np.asarray(found["pixel_values"], np.float32), np.asarray(found["image_grid_thw"], np.int64))


def native_settings(config: VisionConfig) -> dict:
    """Image-processor settings for a tower without a model folder: no resizing, and colours scaled to [−1, 1]."""
    sizes = {"patch_size": config.patch_size, "temporal_patch_size": config.temporal_patch, "merge_size": config.merge}
    return {"do_resize": False, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, **sizes}


def processor_settings(processor: str | os.PathLike | Mapping) -> dict:
    """The settings in a model folder's `preprocessor_config.json` (or in a mapping) that determine how an image becomes patches.

    The argument and the errors are those of `preprocess_images`.
    """
    if not isinstance(processor, Mapping):
        file = Path(processor) / _NAME
        if not file.is_file():
            raise FileNotFoundError(f"{str(processor)!r} holds no {_NAME}: copy it from the model's repository.")
        try:
            processor = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{str(file)!r} is not JSON: {error}") from None
    return {name: processor[name] for name in _SETTINGS if processor.get(name) is not None}


@functools.lru_cache(maxsize=8)
def _processor(settings: str):
    from transformers import Qwen2VLImageProcessorPil  # takes a second to import, and only images need it

    return Qwen2VLImageProcessorPil(**json.loads(settings))


@dataclasses.dataclass(frozen=True)
class ImageReader:
    """Converts the images of a run to inputs of its model, in arrays of fixed shape.

    Attributes:
      config: the config of the model's vision tower.
      settings: the settings of the image processor, see `processor_settings`.
      blocks, block_patches: blocks of a row and patches of a block, see `vision_inputs.vision_inputs`.
      most_tokens: placeholder tokens of the largest image that fits.
    """

    config: VisionConfig
    settings: Mapping
    blocks: int
    block_patches: int
    most_tokens: int = 0

    @classmethod
    def sized(
        cls, config: VisionConfig, processor: str | os.PathLike | Mapping, images: Sequence[np.ndarray], most_tokens: int = 0
    ) -> ImageReader:
        """Makes the reader with the smallest arrays that hold any one of these images, or any image of at most `most_tokens` tokens.

        Args:
          config: the config of the model's vision tower.
          processor: as in `preprocess_images`.
          images: uint8 `[H, W, 3]`, of any sizes, at least one.
          most_tokens: the largest number of placeholder tokens of further images of any shape; 0 means that no other image is
            larger than those given.

        Raises:
          ValueError: if the processor and the tower have different patch sizes, an image cannot be read, or an image has more than
            `most_tokens` tokens.
        """
        settings = processor_settings(processor)
        ours = {"patch_size": config.patch_size, "temporal_patch_size": config.temporal_patch, "merge_size": config.merge}
        theirs = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2} | settings
        for name, size in ours.items():
            if theirs[name] != size:
                raise ValueError(
                    f"the image processor has {name}={theirs[name]}, but the vision tower has {size}: take both from one model."
                )
        grids = {tuple(map(int, preprocess_images([image], settings).grids[0])) for image in images}
        largest = max(image_tokens(config, grid) for grid in grids)
        if most_tokens and largest > most_tokens:
            raise ValueError(f"an image has {largest} tokens, more than the limit of {most_tokens}.")
        sides = {(side, most_tokens // side) for side in range(1, most_tokens + 1)}  # the largest shapes within the limit
        sides = {(rows, columns) for rows, columns in sides if (rows, columns + 1) not in sides and (rows + 1, columns) not in sides}
        grids |= {(1, rows * config.merge, columns * config.merge) for rows, columns in sides}
        patches = max(len(squares) for grid in grids for _, squares in windows(config, [grid])) * config.merge**2
        blocks = max(len(lay_out(config, [grid], patches)) for grid in grids)
        return cls(config, settings, blocks, patches, max(largest, most_tokens))

    def read(self, image: np.ndarray) -> Images:
        """Cuts one uint8 `[H, W, 3]` image into patches.

        Raises:
          ValueError: if the image cannot be read (see `preprocess_images`) or does not fit.
        """
        images = preprocess_images([image], self.settings)
        grid = tuple(map(int, images.grids[0]))
        if not _has_room(self.config, grid, self.blocks, self.block_patches):
            raise ValueError(
                f"an image of {image.shape[0]} × {image.shape[1]} pixels has {image_tokens(self.config, grid)} tokens, but there is room "
                f"for only {self.most_tokens}: set rollout.max_image_tokens to the tokens of the largest image, and raise "
                "rollout.max_prompt_tokens and rollout.max_row_tokens above it."
            )
        return images

    def tokens(self, images: Images) -> list[int]:
        """The number of placeholder tokens of each image."""
        return [image_tokens(self.config, grid) for grid in images.grids]

    def inputs(self, tokens, images, length: int, *, start=None, sampled=None) -> VisionInputs:
        """`vision_inputs` of some rows, in this reader's shapes."""
        sizes = dict(length=length, blocks=self.blocks, block_patches=self.block_patches)
        return vision_inputs(tokens, images, self.config, start=start, sampled=sampled, **sizes)

    def shapes(self, rows: int, length: int) -> VisionInputs:
        """The shapes and dtypes of what `inputs` returns for `rows` rows of `length` tokens, as `jax.ShapeDtypeStruct`."""
        one = self.inputs([np.zeros(length, np.int32)], [None], length)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), one)


@functools.lru_cache(maxsize=4096)
def _has_room(config: VisionConfig, grid: tuple[int, int, int], blocks: int, block_patches: int) -> bool:
    largest = max(len(squares) for _, squares in windows(config, [grid])) * config.merge**2
    return largest <= block_patches and len(lay_out(config, [grid], block_patches)) <= blocks


def join_images(parts: Sequence[Images | None]) -> Images | None:
    """Joins the images of several turns into those of one row; None if there are none."""
    parts = [part for part in parts if part is not None]
    if not parts:
        return None
    return Images(np.concatenate([part.patches for part in parts]), np.concatenate([part.grids for part in parts]))
