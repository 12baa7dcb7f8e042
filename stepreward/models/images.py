"""Images to patches, by the published image processor of the Qwen2-VL family; neither torch nor torchvision is needed."""

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

# What of a `preprocessor_config.json` says how an image becomes patches; the rest is bookkeeping.
_SETTINGS = (
    "do_resize", "resample", "size", "min_pixels", "max_pixels", "do_rescale", "rescale_factor", "do_normalize", "image_mean",
    "image_std", "do_convert_rgb", "patch_size", "temporal_patch_size", "merge_size",
)  # fmt: skip
_NAME = "preprocessor_config.json"


def preprocess_images(images: Sequence[np.ndarray], processor: str | os.PathLike | Mapping) -> Images:
    """Resizes images (sides to multiples of patch × merge, the area within min_pixels … max_pixels), normalises and cuts them.

    Args:
      images: uint8 `[H, W, 3]` each, of any sizes.
      processor: a model folder with a `preprocessor_config.json`, or such settings as a mapping (missing ones take the family's
        defaults; {} is fine).

    Returns:
      patches float32 `[P, D]` and grids int64 `[I, 3]`; see `vision_inputs.Images`.

    Raises:
      FileNotFoundError: the folder has no such file.
      ValueError: an image is not uint8 `[H, W, 3]`, has no pixels or sides that the processor refuses, or is not resized and no whole
        number of squares; the file is not JSON.
    """
    for index, image in enumerate(images):
        if np.ndim(image) != 3 or np.shape(image)[2] != 3 or not np.size(image) or np.asarray(image).dtype != np.uint8:
            raise ValueError(f"image {index} is {np.asarray(image).dtype}{np.shape(image)}; give uint8 [H, W, 3].")
    settings = processor_settings(processor)
    side = settings.get("patch_size", 14) * settings.get("merge_size", 2)
    for index, image in enumerate(images):
        if not settings.get("do_resize", True) and (image.shape[0] % side or image.shape[1] % side):
            raise ValueError(
                f"image {index} has {image.shape[0]} × {image.shape[1]} pixels, read as they are in squares of {side} × {side}: "
                "give whole squares, or a processor that resizes."
            )
    process = _processor(json.dumps(settings, sort_keys=True))
    try:
        found = process(images=list(images), input_data_format="channels_last", return_tensors="np")
    except ValueError as error:  # sides of a ratio that it does not take
        sizes = ", ".join(f"{image.shape[0]} × {image.shape[1]}" for image in images)
        raise ValueError(f"the processor does not take images of {sizes} pixels: {error}") from None
    return Images(np.asarray(found["pixel_values"], np.float32), np.asarray(found["image_grid_thw"], np.int64))


def native_settings(config: VisionConfig) -> dict:
    """Settings of an image processor that reads pixels as they are, for a tower without a model folder; colours from −1 to 1."""
    sizes = {"patch_size": config.patch_size, "temporal_patch_size": config.temporal_patch, "merge_size": config.merge}
    return {"do_resize": False, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, **sizes}


def processor_settings(processor: str | os.PathLike | Mapping) -> dict:
    """The settings in a model folder's `preprocessor_config.json` (or a mapping) that say how an image becomes patches; arguments
    and errors as in `preprocess_images`."""
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
    from transformers import Qwen2VLImageProcessorPil  # a second to import, and only needed with images

    return Qwen2VLImageProcessorPil(**json.loads(settings))


@dataclasses.dataclass(frozen=True)
class ImageReader:
    """How the images of a run become inputs of its model, in arrays of one shape.

    Attributes:
      config: the model's vision tower.
      settings: of the image processor, see `processor_settings`.
      blocks, block_patches: how much a row of tokens may hold of images, see `vision_inputs.vision_inputs`.
      most_tokens: placeholder tokens of the largest image that this is the room for.
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
        """The reader with just the room that a row needs which holds one of these images, or one of at most `most_tokens` tokens.

        Args:
          config: the model's vision tower.
          processor: as in `preprocess_images`.
          images: uint8 `[H, W, 3]`, of any sizes.
          most_tokens: placeholder tokens that other images may have, whatever their shape; 0: none have more than those given.

        Raises:
          ValueError: processor and tower cut images in different ways; no image can be read, or one is larger than `most_tokens`.
        """
        settings = processor_settings(processor)
        ours = {"patch_size": config.patch_size, "temporal_patch_size": config.temporal_patch, "merge_size": config.merge}
        theirs = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2} | settings
        for name, size in ours.items():
            if theirs[name] != size:
                raise ValueError(f"the processor has {name}={theirs[name]}, the vision tower {size}: take both from one model.")
        grids = {tuple(map(int, preprocess_images([image], settings).grids[0])) for image in images}
        largest = max(image_tokens(config, grid) for grid in grids)
        if most_tokens and largest > most_tokens:
            raise ValueError(f"an image has {largest} tokens, more than the {most_tokens} that it may have.")
        sides = {(side, most_tokens // side) for side in range(1, most_tokens + 1)}  # the largest shapes of so many tokens
        sides = {(rows, columns) for rows, columns in sides if (rows, columns + 1) not in sides and (rows + 1, columns) not in sides}
        grids |= {(1, rows * config.merge, columns * config.merge) for rows, columns in sides}
        patches = max(len(squares) for grid in grids for _, squares in windows(config, [grid])) * config.merge**2
        blocks = max(len(lay_out(config, [grid], patches)) for grid in grids)
        return cls(config, settings, blocks, patches, max(largest, most_tokens))

    def read(self, image: np.ndarray) -> Images:
        """One uint8 `[H, W, 3]` image as patches.

        Raises:
          ValueError: it cannot be read, see `preprocess_images`, or is larger than there is room for.
        """
        images = preprocess_images([image], self.settings)
        grid = tuple(map(int, images.grids[0]))
        if not _has_room(self.config, grid, self.blocks, self.block_patches):
            raise ValueError(
                f"a picture of {image.shape[0]} × {image.shape[1]} pixels has {image_tokens(self.config, grid)} tokens, and there is room "
                f"for {self.most_tokens}: set rollout.max_image_tokens to the most that a picture has, and rollout.max_prompt_tokens and "
                "rollout.max_row_tokens above it."
            )
        return images

    def tokens(self, images: Images) -> list[int]:
        """How many placeholder tokens each image stands for."""
        return [image_tokens(self.config, grid) for grid in images.grids]

    def inputs(self, tokens, images, length: int, *, start=None, sampled=None) -> VisionInputs:
        """`vision_inputs` of some rows in this reader's shapes."""
        sizes = dict(length=length, blocks=self.blocks, block_patches=self.block_patches)
        return vision_inputs(tokens, images, self.config, start=start, sampled=sampled, **sizes)

    def shapes(self, rows: int, length: int) -> VisionInputs:
        """What `inputs` returns for so many rows of so many tokens, as `jax.ShapeDtypeStruct`."""
        one = self.inputs([np.zeros(length, np.int32)], [None], length)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), one)


@functools.lru_cache(maxsize=4096)
def _has_room(config: VisionConfig, grid: tuple[int, int, int], blocks: int, block_patches: int) -> bool:
    largest = max(len(squares) for _, squares in windows(config, [grid])) * config.merge**2
    return largest <= block_patches and len(lay_out(config, [grid], block_patches)) <= blocks


def join_images(parts: Sequence[Images | None]) -> Images | None:
    """The images of several turns as those of one row; None where there are none."""
    parts = [part for part in parts if part is not None]
    if not parts:
        return None
    return Images(np.concatenate([part.patches for part in parts]), np.concatenate([part.grids for part in parts]))
