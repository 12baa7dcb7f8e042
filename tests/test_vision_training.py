"""Images from a game to a gradient: trainer and sampler see the same images, and a text model reads the same rows."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from stepreward import batch as batch_module
from stepreward.envs import sokoban
from stepreward.models import decoder
from stepreward.models.decoder import DecoderConfig
from stepreward.models.heads import with_head
from stepreward.models.images import ImageReader
from stepreward.models.vision import VisionConfig
from stepreward.rollout.engine import Engine
from stepreward.rollout.environments import EnvironmentPool
from stepreward.rollout.episode import Task
from stepreward.rollout.packing import pack
from stepreward.rollout.play import Collector
from stepreward.rollout.reference import Spoken
from stepreward.rollout.sampling import Sampling
from stepreward.training.auxiliaries.critic import values
from stepreward.training.auxiliaries.prm import score
from stepreward.training.minibatches import take_groups, take_rows
from stepreward.training.policy import PolicyLoss, policy_step
from stepreward.training.state import create

IMAGE, STOP = 12, 3
VISION = VisionConfig(
    depth=2,
    embed_dim=8,
    num_heads=1,
    mlp_dim=12,
    out_dim=16,
    full_attention_layers=(1,),
    patch_size=8,
    window_size=32,
    image_token_id=IMAGE,
)
CONFIG = DecoderConfig(
    vocab_size=16,
    num_layers=1,
    embed_dim=16,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    mlp_dim=24,
    mrope_sections=(2, 1, 1),
    vision=VISION,
)
PROCESSOR = {"patch_size": 8, "min_pixels": 256, "max_pixels": 2304}  # a 96 × 96 picture becomes 48 × 48: 6 × 6 patches
LENGTH = 20


class Chat:
    """Messages of one image between two marks."""

    def user_turn(self, text, *, image_tokens, **_):
        assert text == "look"
        return np.array([1, *[IMAGE] * sum(image_tokens), 2], np.int32)

    def text(self, tokens):
        return "up" if tokens[0] % 2 else "down"


class Prompt:
    def window(self, observation, history):
        return "look"

    def parse(self, text):
        return text


@functools.cache
def reader():
    return ImageReader.sized(VISION, PROCESSOR, [np.zeros((96, 96, 3), np.uint8)])


@functools.cache
def model():
    graphdef, params = decoder.build(CONFIG, 0)
    return graphdef, jax.tree.map(lambda x: 3 * x, params)  # so that images move the answers


def make_engine(reader):
    sampling = Sampling((STOP,), 3)
    return Engine(decoder.graph(CONFIG), CONFIG, sampling, max_length=LENGTH, buckets=(16,), pad_id=0, reader=reader)


@functools.cache
def played():
    """Two groups of two episodes, and their rows."""
    factory = sokoban.make("tiny", max_steps=3, observation="image")
    collector = Collector(make_engine(reader()), EnvironmentPool(factory), Prompt(), Chat(), "step", 0, 3, 4, reader=reader())
    episodes = collector.collect(model()[1], [Task(seed, "train", seed) for seed in (1, 1, 2, 2)], jax.random.key(0))
    assert all(e.failure is None for e in episodes)
    batch = pack(episodes, context="step", max_steps=3, row_length=LENGTH, row_multiple=16, pad_id=0, reader=reader())
    batch_module.validate(batch)
    return episodes, batch


def test_the_reader_has_just_the_room_that_is_needed():
    assert (reader().blocks, reader().block_patches) == (3, 16)  # windows of 16, 8, 8 and 4 patches; the eights share a block
    images = reader().read(np.zeros((96, 96, 3), np.uint8))
    assert reader().tokens(images) == [9]
    with pytest.raises(ValueError, match="patch_size=14, but the vision tower has 8"):
        ImageReader.sized(VISION, {}, [np.zeros((96, 96, 3), np.uint8)])


def test_sampler_and_trainer_agree_on_images():
    _, batch = played()
    log_prob, _ = score(model()[1], batch, graphdef=model()[0], chunk_rows=4, temperature=1.0, max_actions=3)
    np.testing.assert_allclose(log_prob, batch.log_prob_old, atol=2e-5)
    blind, _ = score(model()[1], batch.replace(vision=None), graphdef=model()[0], chunk_rows=4, temperature=1.0, max_actions=3)
    assert np.abs(blind - log_prob)[batch.action_mask].max() > 1e-2  # the images matter


def test_a_model_of_text_reads_the_same_rows_and_says_so_when_shown_images():
    _, batch = played()
    graphdef, params = decoder.build(dataclasses.replace(CONFIG, vision=None, mrope_sections=None), 1)
    options = dict(graphdef=graphdef, chunk_rows=16, temperature=1.0)
    log_prob, _ = score(params, batch.replace(vision=None), **options)
    assert np.isfinite(log_prob).all() and (np.asarray(log_prob)[batch.action_mask] < 0).all()
    with pytest.raises(ValueError, match="has no vision tower"):
        score(params, batch, **options)


def test_parts_of_a_batch_take_their_images_along():
    _, batch = played()
    whole = score(model()[1], batch, graphdef=model()[0], chunk_rows=4, temperature=1.0, max_actions=3)[0]
    for part, index in (
        (take_rows(batch, np.array([5, 0]), 4), [5, 0]),
        (take_groups(batch, np.array([1]), 8), np.flatnonzero(batch.step_id.max(axis=1) >= 6)),
        (batch.rows(np.array([3, 1, 2, 0])), [3, 1, 2, 0]),
    ):
        found = score(model()[1], part, graphdef=model()[0], chunk_rows=4, temperature=1.0, max_actions=3)[0]
        np.testing.assert_allclose(found[: len(index)], np.asarray(whole)[index], atol=1e-5)
    assert (take_rows(batch, np.array([0]), 4).vision.source[1:] == -1).all()


def test_a_policy_step_reaches_the_tower_and_is_the_same_in_any_chunks():
    _, batch = played()
    advantage = np.where(batch.action_mask, np.random.default_rng(0).normal(size=batch.tokens.shape), 0).astype(np.float32)
    optimizer, stepped = optax.sgd(1.0), []
    for chunk_rows in (4, 16):
        params = jax.tree.map(jnp.copy, model()[1])
        state, metrics = policy_step(
            create(params, optimizer),
            batch,
            advantage,
            graphdef=model()[0],
            optimizer=optimizer,
            loss=PolicyLoss(),
            chunk_rows=chunk_rows,
            temperature=1.0,
            max_actions=3,
        )
        assert abs(float(metrics["ratio_mean"]) - 1) < 1e-4
        stepped.append(state.params)
    for new, again, old in zip(*(jax.tree.leaves(tree["vision"]) for tree in (*stepped, model()[1]))):
        # Chunks only reorder float32 sums, so the two steps agree to a thousandth of the longest step within the array.
        np.testing.assert_allclose(new, again, atol=1e-3 * float(jnp.abs(new - old).max()), rtol=0)
    moved = [float(jnp.abs(a - b).max()) for a, b in zip(*(jax.tree.leaves(t["vision"]) for t in (stepped[0], model()[1])))]
    assert np.mean(np.array(moved) > 0) > 0.9


def test_a_critic_sees():
    _, batch = played()
    headed = with_head(model()[1], jax.random.key(1), CONFIG.embed_dim, "linear")
    headed["scalar_head"]["weight"] = jnp.ones(CONFIG.embed_dim)
    seen, blind = (values(headed, b, graphdef=model()[0], chunk_rows=16) for b in (batch, batch.replace(vision=None)))
    assert np.abs(seen - blind)[batch.action_mask].max() > 1e-2


def test_a_conversation_goes_on_behind_its_images():
    """Two turns with an image each on one cache equal one pass over the whole row."""
    engine, keys = make_engine(reader()), jax.random.split(jax.random.key(3), 2)
    engine = dataclasses.replace(engine, max_length=40)
    rng = np.random.default_rng(0)
    pictures = [[reader().read(rng.integers(0, 256, (96, 96, 3)).astype(np.uint8)) for _ in range(2)] for _ in range(2)]
    state, row, log_prob, images = engine.start(2), [np.zeros(0, np.int32)] * 2, [[], []], [[], []]
    for turn in range(2):
        said = [np.array([1, *[IMAGE] * 9, 2], np.int32), np.array([5, 6, 7], np.int32)]  # the second row is text
        row = [np.r_[a, b] for a, b in zip(row, said)]
        new = [r[n:] for r, n in zip(row, state.length)]
        state, answer = engine.turn(model()[1], state, new, keys, [pictures[turn][0], None])
        images[0].append(pictures[turn][0])
        for i in range(2):
            sampled = answer.tokens[i, : answer.count[i]]
            log_prob[i] += [0.0] * len(said[i]) + answer.log_prob[i, : answer.count[i]].tolist()
            row[i] = np.r_[row[i], sampled]
    assert state.offset.tolist() == [-12, 0]  # 9 tokens of an image take 3 positions
    whole = [type(images[0][0])(*(np.concatenate(x) for x in zip(*images[0]))), None]
    big = dataclasses.replace(reader(), blocks=6)
    length = max(map(len, row))
    tokens = np.stack([np.pad(r, (0, length - len(r))) for r in row])
    segment = (np.arange(length) < np.array([[len(r)] for r in row])).astype(np.int32)
    sampled = [np.array(p) != 0 for p in log_prob]
    vision = big.inputs(row, whole, length, sampled=sampled)
    hidden, head = decoder.hidden_states(*model(), tokens, None, segment, vision=vision)
    expected = jax.nn.log_softmax(hidden @ head)
    for i in range(2):
        for t in np.flatnonzero(sampled[i]):
            np.testing.assert_allclose(log_prob[i][t], expected[i, t - 1, row[i][t]], atol=1e-4)


def test_a_text_behind_an_image_is_scored_as_a_pass_over_the_row_scores_it():
    engine, rng = dataclasses.replace(make_engine(reader()), max_length=40), np.random.default_rng(0)
    said = [np.array([1, *[IMAGE] * 9, 2], np.int32), np.array([5, 6, 7], np.int32)]  # the second row is text
    picture, text = reader().read(rng.integers(0, 256, (96, 96, 3)).astype(np.uint8)), Spoken(np.array([5, 6, 7], np.int32), 2)
    keys = jax.random.split(jax.random.key(3), 2)
    state, _ = engine.turn(model()[1], engine.start(2), said, keys, [picture, None])
    found = engine.mean_log_prob(model()[1], state, np.array([11, 3]), np.array([2, 7]), [text, text])
    tokens = np.stack([np.pad(np.r_[row, text.tokens], (0, 11 - len(row))) for row in said])
    segment = (np.arange(14) < np.array([[14], [6]])).astype(np.int32)
    hidden, head = decoder.hidden_states(*model(), tokens, None, segment, vision=reader().inputs(tokens, [picture, None], 14))
    log_p = np.asarray(jax.nn.log_softmax(hidden @ head))
    truth = [np.mean([log_p[row, at - 1, tokens[row, at]] for at in (end - 2, end - 1)]) for row, end in enumerate((14, 6))]
    np.testing.assert_allclose(found, truth, atol=1e-4)


def test_images_that_cannot_be_shown_are_errors():
    with pytest.raises(ValueError, match="an engine without a reader"):
        engine = make_engine(None)
        engine.turn(model()[1], engine.start(1), [np.array([1], np.int32)], jax.random.split(jax.random.key(0), 1), [None])
    pool = EnvironmentPool(sokoban.make("tiny"))
    with pytest.raises(ValueError, match="by an environment that has them"):
        Collector(make_engine(reader()), pool, Prompt(), Chat(), "step", 0, 3, 4, reader=reader())
