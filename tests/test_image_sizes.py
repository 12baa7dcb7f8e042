"""Pictures of several sizes: the room reserved for them, what is refused at the start, and what fails only its own episode."""

import functools
import types

import jax
import numpy as np
import pytest
from test_collect import Script, Words

from stepreward.models import presets
from stepreward.models.images import ImageReader, native_settings, preprocess_images
from stepreward.models.tokenizer import train_symbol_tokenizer
from stepreward.rollout.chat import Chat
from stepreward.rollout.checked import checked
from stepreward.rollout.environments import EnvironmentPool
from stepreward.rollout.episode import Task
from stepreward.rollout.play import Collector
from stepreward.training.setup import image_reader

VISION = presets.PRESETS["tiny-vision"].vision  # an embedding a tile of 16 × 16 pixels
SETTINGS = native_settings(VISION)


def picture(rows, columns):
    return np.zeros((16 * rows, 16 * columns, 3), np.uint8)


class Growing:
    """Shows a picture of 2 × 2 tiles, or of 3 × 4 where the seed is even; after a step of `grows` one of 6 × 6."""

    capabilities = frozenset({"image"})

    def __init__(self, grows=()):
        self.grows = grows

    def see(self, image):
        return {"text": "x", "image": image}, {"won": False, "executed": True, "state_key": "x"}

    def reset(self, *, seed, options):
        self.seed = seed
        return self.see(picture(2, 2) if seed % 2 else picture(3, 4))

    def step(self, action):
        observation, info = self.see(picture(6, 6) if self.seed in self.grows else picture(2, 2))
        return observation, 0.0, False, False, info

    def close(self):
        pass


def pool(*settings):
    return EnvironmentPool(checked(functools.partial(Growing, *settings)))


def test_one_size_has_just_the_room_that_it_needs():
    alone, twice = (ImageReader.sized(VISION, SETTINGS, [picture(6, 6)] * n) for n in (1, 2))
    assert alone == twice and alone.most_tokens == 36


def test_the_largest_of_several_sizes_decides():
    reader = ImageReader.sized(VISION, SETTINGS, [picture(2, 2), picture(3, 4)])
    assert reader.most_tokens == 12
    rows = [reader.read(image) for image in (picture(2, 2), picture(3, 4))]
    assert [reader.tokens(images) for images in rows] == [[4], [12]]
    tokens = [np.full(sum(reader.tokens(images)), VISION.image_token_id, np.int32) for images in rows]
    inputs = reader.inputs(tokens, rows, 12)
    assert (inputs.source >= 0).sum(axis=1).tolist() == [4, 12]


def test_a_larger_picture_is_named_with_the_keys():
    reader = ImageReader.sized(VISION, SETTINGS, [picture(2, 2)])
    with pytest.raises(ValueError, match="64 × 64 pixels has 16 tokens, .* for only 4: set rollout.max_image_tokens .*max_prompt_tokens"):
        reader.read(picture(4, 4))


@pytest.mark.parametrize("rows, columns", [(1, 40), (40, 1), (6, 6), (2, 20), (7, 5)])
def test_room_may_be_asked_for(rows, columns):
    reader = ImageReader.sized(VISION, SETTINGS, [picture(2, 2)], 40)
    assert reader.tokens(reader.read(picture(rows, columns))) == [rows * columns]


def test_more_than_was_asked_for_is_refused():
    with pytest.raises(ValueError, match="an image has 36 tokens, more than the limit of 12"):
        ImageReader.sized(VISION, SETTINGS, [picture(6, 6)], 12)


@pytest.mark.parametrize("image", [np.zeros((0, 16, 3), np.uint8), np.zeros((1, 400, 3), np.uint8)])
def test_pictures_that_no_processor_takes_are_named(image):
    with pytest.raises(ValueError, match="must be a non-empty uint8|refuses images of 1 × 400 pixels"):
        preprocess_images([image], {})


def test_a_run_sizes_its_reader_by_many_tasks():
    config = types.SimpleNamespace(vision=VISION)
    assert image_reader(config, None, pool(), 0, 16).most_tokens == 12
    assert image_reader(config, None, pool(), 14, 16).most_tokens == 14


@pytest.mark.parametrize(
    "most, prompt, words",
    [
        (0, 12, "pictures have up to 12 tokens and do not fit into rollout.max_prompt_tokens=12: raise rollout.max_prompt_tokens"),
        (8, 40, "an image has 12 tokens, more than the limit of 8.*rollout.max_image_tokens=8; 0 allows the largest picture"),
    ],
)
def test_pictures_without_room_are_refused_at_the_start(most, prompt, words):
    with pytest.raises(ValueError, match=words):
        image_reader(types.SimpleNamespace(vision=VISION), None, pool(), most, prompt)


def test_a_model_or_environment_of_text_has_no_reader():
    assert image_reader(types.SimpleNamespace(vision=None), None, None, 0, 16) is None


def test_a_picture_that_grows_costs_its_episode_alone(tmp_path, caplog):
    class Seeing(Script):
        def turn(self, params, state, new_tokens, keys, images):
            return super().turn(params, state, new_tokens, keys)

    class Shows(Words):
        def window(self, observation, history):
            return "<image>"

    chat = Chat(train_symbol_tokenizer(["x"], ("up",), tmp_path / "t", images=True))
    up = [int(chat.codec.encode("up")[0]), chat.codec.end_id]
    environments = pool((2, 4))
    reader = image_reader(types.SimpleNamespace(vision=VISION), None, environments, 0, 16)
    collector = Collector(Seeing(lambda said: up), environments, Shows(), chat, "step", 0, 3, 4, reader=reader)
    episodes = collector.collect(None, [Task(seed, "train", seed) for seed in (1, 2, 3, 4)], jax.random.key(0))
    assert [e.failure is None for e in episodes] == [True, False, True, False]
    assert "96 × 96 pixels has 36 tokens" in episodes[1].failure and "rollout.max_image_tokens" in caplog.text
    assert [len(e.steps) for e in episodes] == [3, 1, 3, 1]
