"""Sokoban in pictures for tiny models: the image tokens, the tower in the model, and a run of a few seconds."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stepreward.config import load_config_file
from stepreward.envs import sokoban
from stepreward.errors import UserError
from stepreward.models import decoder, presets
from stepreward.models.images import ImageReader, native_settings, preprocess_images
from stepreward.models.log_probs import token_log_probs
from stepreward.models.tokenizer import (
    IMAGE_TOKENS,
    PLACEHOLDER_ID,
    load_tokenizer,
    train_piece_tokenizer,
    train_symbol_tokenizer,
)
from stepreward.rollout.chat import Chat
from stepreward.training.demonstrating import demonstration_episodes
from stepreward.training.train import Runner

WORDS = ("up", "down", "left", "right")


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    return Chat(train_symbol_tokenizer(["<image>#_OXP"], WORDS, tmp_path_factory.mktemp("words") / "t", images=True))


@pytest.fixture(scope="module")
def boards():
    """Two pictures of one room, before and after a move."""
    environment = sokoban.make("tiny_image")()
    observation, _ = environment.reset(seed=3)
    after = environment.step(environment.expert()[0])[0]
    return observation["image"], after["image"]


def model_and_rows(preset, chat, images):
    """`(graphdef, params, reader, tokens, vision)`: one row a picture, each with the answer `up`."""
    config = presets.decoder_config(preset, vocab_size=-(-chat.codec.vocab_size // 8) * 8)
    graphdef, params = decoder.build(config, jax.random.key(0))
    reader = ImageReader.sized(config.vision, native_settings(config.vision), images[:1])
    read = [reader.read(image) for image in images]
    turns = [chat.user_turn("<image>", first=True, image_tokens=reader.tokens(images)) for images in read]
    rows = [np.concatenate([turn, chat.answer("up")]) for turn in turns]
    return graphdef, params, reader, np.stack(rows), reader.inputs(rows, read, len(rows[0]))


@partial(jax.jit, static_argnums=0)
def answer_log_prob(graphdef, params, tokens, vision):
    ones = jnp.ones_like(tokens)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    log_prob, _ = token_log_probs(graphdef, params, tokens, positions, ones, action_mask_RxL=ones > 0, vision=vision)
    return log_prob[:, -2:]


# --- Tokens ---


def test_an_image_is_a_start_its_placeholders_and_an_end(chat):
    codec = chat.codec
    assert codec.image_ids == (5, 6, 7) and PLACEHOLDER_ID == 6 and codec.encode("up").tolist() == [8]
    assert chat.user_turn("<image>", first=True, image_tokens=[3]).tolist() == [codec.user_id, 5, 6, 6, 6, 7, codec.assistant_id]
    later = chat.user_turn("X<image>O<image>", first=False, closes_answer=True, image_tokens=[1, 2])
    x, o = codec.encode("X")[0], codec.encode("O")[0]
    assert later.tolist() == [codec.end_id, codec.user_id, x, 5, 6, 7, o, 5, 6, 6, 7, codec.assistant_id]


def test_image_tokens_come_from_no_text_and_show_in_none(chat):
    assert not set(chat.codec.image_ids) & set(chat.codec.encode("<|image_pad|><image>").tolist())
    assert chat.text(np.array([5, 6, 8, 7, chat.codec.end_id])) == "up"
    spelt = chat.user_turn("<image>", first=True)  # no image is told of: a word like any other
    assert len(spelt) == 2 + len("<image>")


def test_a_tokenizer_without_images_has_the_ids_it_had(tmp_path):
    codec = train_symbol_tokenizer(["ab"], WORDS, tmp_path / "text")
    assert codec.image_ids is None and codec.encode("up").tolist() == [5]
    with pytest.raises(ValueError, match="no tokens for images"):
        Chat(codec).user_turn("<image>", first=True, image_tokens=[4])
    with pytest.raises(ValueError, match="special token"):
        train_symbol_tokenizer([], [IMAGE_TOKENS[1]], tmp_path / "bad", images=True)


def test_pieces_of_words_go_with_images_too(tmp_path):
    codec = train_piece_tokenizer(["go up", "go down"], 280, tmp_path / "pieces", images=True)
    assert codec.image_ids == (5, 6, 7) and codec.decode(codec.encode("go up")) == "go up"


def test_the_folder_is_read_by_transformers(chat, tmp_path):
    transformers = pytest.importorskip("transformers")
    train_symbol_tokenizer(["<image>"], WORDS, tmp_path / "t", images=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "t")
    assert tokenizer.convert_tokens_to_ids(list(IMAGE_TOKENS)) == [5, 6, 7] == list(load_tokenizer(tmp_path / "t").image_ids)
    assert set(IMAGE_TOKENS) <= set(tokenizer.all_special_tokens)


# --- Pixels ---


@pytest.mark.parametrize("preset, patches, numbers", [("tiny-vision", 36, 768), ("tiny-vision-micro", 144, 192)])
def test_one_tile_is_one_embedding(preset, patches, numbers, boards):
    config = presets.PRESETS[preset].vision
    reader = ImageReader.sized(config, native_settings(config), boards[:1])
    read = reader.read(boards[0])
    assert read.patches.shape == (patches, numbers) and reader.tokens(read) == [36]
    side, unit = config.patch_size, config.merge**2
    tile = read.patches[7 * unit : 8 * unit].reshape(unit, 3, side, side)  # row 1, column 1: the squares go row by row
    pixels = np.zeros((16, 16, 3))
    for index, patch in enumerate(tile):
        top, left = (side * at for at in divmod(index, config.merge))
        pixels[top : top + side, left : left + side] = patch.transpose(1, 2, 0)
    np.testing.assert_allclose(pixels, boards[0][16:32, 16:32] / 127.5 - 1, atol=1e-6)


def test_pixels_that_are_no_whole_tiles_are_an_error():
    config = presets.PRESETS["tiny-vision"].vision
    with pytest.raises(ValueError, match="90 × 96 pixels.*16 × 16"):
        preprocess_images([np.zeros((90, 96, 3), np.uint8)], native_settings(config))


# --- The model ---


@pytest.mark.parametrize("preset", ["tiny-vision", "tiny-vision-micro"])
def test_the_picture_changes_the_answer_and_the_gradient_reaches_the_tower(preset, chat, boards):
    graphdef, params, _, tokens, vision = model_and_rows(preset, chat, boards)
    assert tokens.shape == (2, 1 + 38 + 1 + 2) and (tokens[0] == tokens[1]).all()
    log_prob = answer_log_prob(graphdef, params, tokens, vision)
    assert log_prob.shape == (2, 2) and np.isfinite(log_prob).all() and (np.abs(log_prob[0] - log_prob[1]) > 1e-6).all()
    again = answer_log_prob(graphdef, params, tokens, jax.tree.map(lambda x: x[::-1], vision))
    np.testing.assert_allclose(again, log_prob[::-1], rtol=1e-4)
    gradient = jax.jit(jax.grad(lambda p: answer_log_prob(graphdef, p, tokens, vision).sum()))(params)
    for name in ("patch_embedding", "merger", "layers"):
        assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(gradient["vision"][name])), name


# --- The prompt, the config, the run ---


def test_the_prompt_is_the_picture_alone():
    prompt = sokoban.prompts("compact_image")
    seen = {"text": "####"}
    assert prompt.first(seen) == prompt.later(seen) == prompt.window(seen, [(seen, "up")]) == "<image>"
    assert prompt.parse(" Up ") == "up" and prompt.parse("up up") is None and prompt.answer("left") == "left"


def test_the_rooms_are_those_of_the_text_preset():
    text, image = sokoban.make("tiny")(), sokoban.make("tiny_image")()
    for split in ("train", "held_out"):
        assert text.reset(seed=5, options={"split": split})[1] == image.reset(seed=5, options={"split": split})[1]


def test_the_config_offers_models_that_see(root):
    path = f"{root}/configs/istar_visual_sokoban.py"
    with pytest.raises(UserError, match="qwen2.5-7b sees no pictures"):
        load_config_file(f"{path}:qwen2.5-7b")
    assert load_config_file(f"{path}:qwen2.5-vl-7b").environment.preset == "istar_image"
    assert load_config_file(f"{path}:paper").to_dict() == load_config_file(f"{root}/configs/istar_sokoban.py:paper").to_dict()


def test_a_run_from_pixels(root, tmp_path):
    config = load_config_file(f"{root}/configs/istar_visual_sokoban.py:micro")
    runner = Runner(config, tmp_path / "run")
    runner.run()
    records = runner.history()
    sft = [r["sft/loss"] for r in records if "sft/loss" in r]
    assert sft[-1] < sft[0]
    rl = [r for r in records if r["stage"] == "train"]
    assert rl and max(r["policy/sampler_gap"] for r in rl) < 1e-4 and rl[-1]["eval/episodes"] == 8
    assert runner.parts.collector.reader.blocks == 9 and runner.learner.auxiliaries["prm"].model.config.vision is not None
    episode = demonstration_episodes(runner.parts.demonstrations[:1], runner.parts)[0]
    assert {len(step.prompt_tokens) for step in episode.steps} == {40}
