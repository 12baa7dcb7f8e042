"""A model that attends to the whole episode: the same parameters, other outputs; and RBT's estimator in a run."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest

from stepreward.metrics import read_metrics
from stepreward.models import decoder
from stepreward.models.heads import head_outputs
from stepreward.training.backbones import Backbone, bidirectional
from stepreward.training.train import Runner

TOKENS = np.random.default_rng(0).integers(0, 16, (2, 12)).astype(np.int32)
POSITIONS = np.tile(np.arange(12, dtype=np.int32), (2, 1))
SEGMENTS = np.array([[1] * 10 + [0] * 2, [1] * 5 + [2] * 5 + [0] * 2], np.int32)


def outputs(headed, tokens, max_actions=None):
    graphdef, params = headed
    both = bidirectional(Backbone(graphdef, decoder.config_of(graphdef)))
    mask = (SEGMENTS > 0) & (np.arange(12) % 3 == 2)
    arrays = (jnp.asarray(tokens), jnp.asarray(POSITIONS), jnp.asarray(SEGMENTS))
    options = dict(action_mask_RxL=jnp.asarray(mask), before=False, max_actions=max_actions)
    return mask, [np.asarray(head_outputs(graph, params, *arrays, **options)) for graph in (graphdef, both.graphdef)]


def test_later_tokens_of_the_segment_are_read_and_no_others(headed):
    mask, (causal, both) = outputs(headed, TOKENS)
    changed = TOKENS.copy()
    changed[:, 8:] = (changed[:, 8:] + 1) % 16
    _, (causal_after, both_after) = outputs(headed, changed)
    early = mask & (np.arange(12) < 8)
    np.testing.assert_array_equal(causal[early], causal_after[early])
    assert (np.abs(both - both_after) > 1e-6)[0][early[0]].all()
    first = early[1] & (SEGMENTS[1] == 1)  # the second row changes in its second segment
    assert first.any() and (early[1] & ~first).any()
    np.testing.assert_array_equal(both[1][first], both_after[1][first])
    assert (np.abs(both - both_after) > 1e-6)[1][early[1] & ~first].all()


def test_padding_is_not_read(headed):
    changed = TOKENS.copy()
    changed[:, 10:] = 3
    np.testing.assert_array_equal(outputs(headed, TOKENS)[1][1], outputs(headed, changed)[1][1])


def test_the_last_layer_may_skip_other_tokens(headed):
    _, (_, whole) = outputs(headed, TOKENS)
    _, (_, some) = outputs(headed, TOKENS, max_actions=4)
    np.testing.assert_allclose(some, whole, atol=1e-5)


def test_it_cannot_decode(model):
    graphdef, params = model
    both = bidirectional(Backbone(graphdef, decoder.config_of(graphdef)))
    assert dataclasses.replace(both.config, causal=True) == decoder.config_of(graphdef)
    with pytest.raises(ValueError, match="cannot decode"):
        decoder.cached_hidden_states(both.graphdef, params, TOKENS, jnp.zeros(2, jnp.int32), ())


def test_a_run_of_rbt_reads_whole_episodes(spa_config, tmp_path):
    config = {
        "credit.method": "rbt", "estimator.attention": "bidirectional", "rollout.context": "episode", "rollout.max_row_tokens": 168,
        "sft.rows": 16, "sft.updates": 20, "estimator.epochs": 1, "train.env_steps": 60, "eval.final_episodes": 0, "eval.episodes": 4,
    }  # fmt: skip
    runner = Runner(spa_config(config), tmp_path / "run")
    runner.run()
    estimator, policy = runner.learner.auxiliaries["estimator"], runner.learner.model
    assert not estimator.model.config.causal and policy.config.causal and runner.learner.auxiliaries["critic"].model.config.causal
    records = [r for r in read_metrics(runner.workdir) if r["stage"] in ("estimator", "train")]
    assert {r["stage"] for r in records} == {"estimator", "train"}
    assert all(math.isfinite(v) for r in records for v in r.values() if not isinstance(v, str))
