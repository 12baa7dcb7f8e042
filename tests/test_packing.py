"""Episodes as rows: both packings agree, failed episodes have no row, and nothing is truncated."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from stepreward.kernels.levels import tokens_to_steps
from stepreward.models import decoder
from stepreward.models.decoder import DecoderConfig
from stepreward.models.log_probs import token_log_probs
from stepreward.rollout import packing
from stepreward.rollout.episode import Episode, Step, Task
from stepreward.rollout.packing import pack
from stepreward.training.layout import Layout

MAX_STEPS = 4
SHAPE = dict(max_steps=MAX_STEPS, row_length=40, row_multiple=8, pad_id=0)
TOKEN_LEVEL = ("tokens", "positions", "segment_ids", "action_mask", "step_id", "log_prob_old")
UPPER_LEVELS = ("step_mask", "env_reward", "executed", "episode_mask", "outcome", "success", "truncated", "group_id")


def make_step(rng, prompt=None, reward=0.0, executed=True):
    prompt = rng.integers(1, 13, rng.integers(1, 6)) if prompt is None else prompt
    action = rng.integers(1, 13, rng.integers(1, 4)).astype(np.int32)
    log_prob = -rng.random(len(action)).astype(np.float32)
    return Step(prompt.astype(np.int32), action, log_prob, log_prob * 0, "", "", "up", reward, executed, "")


def make_episodes():
    """Four episodes of 3, 4, 2 and 1 steps; the third failed after two."""
    rng = np.random.default_rng(0)
    episodes = [Episode(Task(seed=0, split="train", group=g)) for g in (7, 3, 7, 3)]
    for episode, count in zip(episodes, (3, 4, 2, 1)):
        episode.steps = [make_step(rng, reward=float(t + 1), executed=t != 1) for t in range(count)]
    episodes[0].success, episodes[1].truncated = True, True
    episodes[2].success, episodes[2].failure = True, "OSError: gone"
    return episodes


def whole_prompts(episode):
    """The same episode with each step's prompt written out: everything that was said before it."""
    said, steps = np.zeros(0, np.int32), []
    for step in episode.steps:
        prompt = np.r_[said, step.prompt_tokens]
        steps.append(Step(prompt, step.action_tokens, step.log_prob, *[getattr(step, f) for f in FIELDS]))
        said = np.r_[prompt, step.action_tokens]
    return Episode(episode.task, steps, episode.success, episode.truncated, episode.failure)


FIELDS = ("entropy", "observation", "output", "action", "reward", "executed", "state_key")


def test_both_packings_say_the_same_of_steps_and_episodes():
    episodes = make_episodes()
    as_episodes = pack(episodes, context="episode", **SHAPE)
    as_steps = pack([whole_prompts(e) for e in episodes], context="step", **SHAPE)
    for name in UPPER_LEVELS:
        np.testing.assert_array_equal(getattr(as_episodes, name), getattr(as_steps, name), err_msg=name)
    assert as_episodes.action_mask.any(1).sum() == 3 and as_steps.action_mask.any(1).sum() == 8
    sums = [step_sums(b, b.log_prob_old) for b in (as_episodes, as_steps)]
    np.testing.assert_allclose(*sums, atol=1e-6)
    for e in (0, 1, 3):
        for t, step in enumerate(episodes[e].steps):
            np.testing.assert_allclose(sums[0][e, t], step.log_prob.sum(), atol=1e-6)

    config = DecoderConfig(13, num_layers=1, embed_dim=8, num_heads=2, num_kv_heads=1, head_dim=4, mlp_dim=8)
    params = decoder.build(config, 0)[1]
    score = jax.jit(lambda *rows: token_log_probs(decoder.graph(config), params, *rows)[0])
    scored = [step_sums(b, score(b.tokens, b.positions, b.segment_ids)) for b in (as_episodes, as_steps)]
    np.testing.assert_allclose(*scored, atol=1e-5)
    assert (scored[0][as_episodes.step_mask] < 0).all()


def step_sums(batch, values):
    return np.asarray(tokens_to_steps(values, batch.step_id, batch.num_episodes, batch.max_steps))


def test_rows_hold_prompts_and_answers_in_order():
    episodes = make_episodes()
    batch = pack(episodes, context="episode", **SHAPE)
    assert batch.tokens.shape == (8, 40) and batch.positions.shape == (8, 40)
    for row, e in enumerate((0, 1, 3)):
        tokens, step_id, log_prob = [], [], []
        for t, step in enumerate(episodes[e].steps):
            tokens += [*step.prompt_tokens, *step.action_tokens]
            step_id += [-1] * len(step.prompt_tokens) + [e * MAX_STEPS + t] * len(step.action_tokens)
            log_prob += [0.0] * len(step.prompt_tokens) + [*step.log_prob]
        n = len(tokens)
        np.testing.assert_array_equal(batch.tokens[row], tokens + [0] * (40 - n))
        np.testing.assert_array_equal(batch.step_id[row], step_id + [-1] * (40 - n))
        np.testing.assert_array_equal(batch.segment_ids[row], [1] * n + [0] * (40 - n))
        np.testing.assert_allclose(batch.log_prob_old[row], log_prob + [0] * (40 - n))
    np.testing.assert_array_equal(batch.action_mask, batch.step_id >= 0)
    np.testing.assert_array_equal(batch.positions[5], np.arange(40))


def test_step_and_episode_levels():
    batch = pack(make_episodes(), context="step", **SHAPE)
    np.testing.assert_array_equal(batch.step_mask, np.arange(4) < np.array([[3], [4], [0], [1]]))
    np.testing.assert_array_equal(batch.env_reward, [[1, 2, 3, 0], [1, 2, 3, 4], [0] * 4, [1, 0, 0, 0]])
    np.testing.assert_array_equal(batch.executed, [[1, 0, 1, 0], [1, 0, 1, 1], [0] * 4, [1, 0, 0, 0]])
    np.testing.assert_array_equal(batch.episode_mask, [True, True, False, True])
    np.testing.assert_array_equal(batch.success, [True, False, False, False])  # what failed is no success
    np.testing.assert_array_equal(batch.truncated, [False, True, False, False])
    np.testing.assert_array_equal(batch.group_id, [0, 1, 0, 1])
    np.testing.assert_array_equal(batch.outcome, [6, 10, 0, 1])
    assert set(np.unique(batch.step_id)) == {-1, 0, 1, 2, 4, 5, 6, 7, 12}


def test_outcomes():
    episodes = make_episodes()
    np.testing.assert_array_equal(pack(episodes, context="step", outcome="success", **SHAPE).outcome, [1, 0, 0, 0])
    scaled = pack(episodes, context="step", outcome="return", outcome_scale=0.5, **SHAPE)
    np.testing.assert_array_equal(scaled.outcome, [3, 5, 0, 0.5])
    np.testing.assert_array_equal(scaled.env_reward[0], [1, 2, 3, 0])
    with pytest.raises(ValueError, match="outcome='score' is neither"):
        pack(episodes, context="step", outcome="score", **SHAPE)


@pytest.mark.parametrize("context", ["step", "episode"])
def test_a_row_that_is_too_long_is_an_error(context):
    episode = Episode(Task(0, "train", 0), [make_step(np.random.default_rng(0), np.arange(40))])
    with pytest.raises(ValueError, match="A row of 4[1-3] tokens exceeds row_length=40; raise rollout.max_row_tokens"):
        pack([episode], context=context, **SHAPE)


@pytest.mark.parametrize("context", ["step", "episode"])
def test_when_all_episodes_failed_one_block_of_padding_is_left(context):
    episodes = make_episodes()
    for episode in episodes:
        episode.failure = "gone"
    episodes[3].steps = []
    batch = pack(episodes, context=context, **SHAPE)
    assert batch.tokens.shape == (8, 40) and not batch.action_mask.any() and not batch.segment_ids.any()
    assert not batch.episode_mask.any() and not batch.step_mask.any() and not batch.outcome.any()


def test_levels_and_types():
    batch = pack(make_episodes(), context="episode", **SHAPE)
    integers = ("tokens", "positions", "segment_ids", "step_id", "group_id")
    floats = ("log_prob_old", "env_reward", "outcome")
    assert {getattr(batch, name).dtype for name in integers} == {np.dtype(np.int32)}
    assert {getattr(batch, name).dtype for name in floats} == {np.dtype(np.float32)}
    others = set(TOKEN_LEVEL + UPPER_LEVELS) - {*integers, *floats}
    assert {getattr(batch, name).dtype for name in others} == {np.dtype(bool)}


@pytest.mark.parametrize("on", [True, False])
def test_a_run_checks_the_batches_that_it_makes_unless_told_not_to(micro_config, monkeypatch, on):
    checked = []
    monkeypatch.setattr(packing, "validate", checked.append)
    config = micro_config({"train.check_batches": on, "rollout.max_steps": MAX_STEPS, "rollout.max_row_tokens": 40})
    batch = Layout.pack(SimpleNamespace(c=config, capacity=8, _pad_id=0, _reader=None), make_episodes())
    assert len(checked) == on and all(b is batch for b in checked)
    assert micro_config().train.check_batches
