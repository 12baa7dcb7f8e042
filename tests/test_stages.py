"""Finished stages: what they save, which config keys decide them, and when another run may use them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stepreward.config import TrackedConfig, leaves, unread_keys
from stepreward.configs.common.base import base_config
from stepreward.errors import UserError
from stepreward.training.decisions import DECIDED_FROM, FREE, STAGES, covers, digest, fingerprint, first_stage
from stepreward.training.outputs import StageOutput, check, check_fit
from stepreward.training.workdir import begun, mark_begun

FIRST_STAGE = {
    "seed": "sft", "environment.preset": "sft", "model.preset": "sft", "model.compute_dtype": "sft", "sft.updates": "sft",
    "sft.stop_loss": "sft", "sft.learning_rate": "sft", "rollout.context": "sft", "rollout.history": "sft", "rollout.max_steps": "sft",
    "exploration.tasks": "explore", "exploration.part_tasks": "explore", "rollout.temperature": "explore",
    "rollout.top_p": "explore", "rollout.max_answer_tokens": "explore", "estimator.learning_rate": "estimator",
    "estimator.head": "estimator", "credit.outcome": "estimator", "credit.outcome_scale": "estimator",
    "sft.log_every": "train", "estimator.refresh_every": "train",
    "policy.learning_rate": "train", "credit.method": "train", "credit.options.beta": "train", "critic.head": "train",
    "rollout.groups": "train", "train.mode": "train", "mesh.data": "train", "model.remat": "train", "stages.sft": "train",
}  # fmt: skip


@pytest.mark.parametrize("key", FIRST_STAGE)
def test_a_key_decides_its_stage_and_all_later_ones(spa_config, key):
    assert key in leaves(spa_config({"credit.options.beta": 0.5}))
    assert [s for s in STAGES if covers(s, key)] == list(STAGES[STAGES.index(FIRST_STAGE[key]) :])


def test_every_key_has_one_first_stage_or_is_free():
    keys, classes = set(leaves(base_config())), [*DECIDED_FROM.values(), FREE]
    listed = [key for row in classes for key in row if not key.endswith(".")]
    groups = tuple(key for row in classes for key in row if key.endswith("."))
    assert len(listed) == len(set(listed))
    unknown = set(listed) - keys
    assert not unknown, f"these are keys no more: {sorted(unknown)}"
    forgotten = {key for key in keys - set(listed) if not key.startswith(groups)}
    assert not forgotten, f"name the stage whose output these decide first, in training/stages/: {sorted(forgotten)}"


@pytest.mark.parametrize("key, stage", [("model.system", "sft"), ("model.thinking", "sft"), ("environment.options.size", "sft"),
                                        ("rollout.max_prompt_tokens", "explore"), ("model.download", None), ("eval.every", None),
                                        ("credit.options.beta", "train"), ("train.chunk_rows", "train")])  # fmt: skip
def test_the_first_stage_of_a_key(key, stage):
    assert first_stage(key) == stage


def test_each_stage_is_decided_by_more_than_the_one_before(spa_config):
    keys = leaves(spa_config())
    sizes = [sum(covers(stage, key) for key in keys) for stage in STAGES]
    assert 10 < sizes[0] < sizes[1] < sizes[2] < sizes[3] < sizes[4] == sizes[5] == len(keys)


def test_a_fingerprint_is_plain_json_of_the_deciding_keys(spa_config):
    config = spa_config()
    found = fingerprint(config, "explore", tokenizer="abc")
    assert found == json.loads(json.dumps(found)) and found["tokenizer"] == "abc"
    keys = leaves(config)
    assert {k: v for k, v in found.items() if k != "tokenizer"} == {k: keys[k] for k in keys if covers("explore", k)}
    assert fingerprint(spa_config({"policy.learning_rate": 7.0}), "explore", tokenizer="abc") == found
    assert fingerprint(spa_config({"exploration.tasks": 7}), "explore", tokenizer="abc") != found


def test_how_often_the_loss_is_looked_at_decides_where_it_ends_the_imitation(spa_config):
    every = lambda n, loss: fingerprint(spa_config({"sft.log_every": n, "sft.stop_loss": loss}), "sft")
    assert every(7, 0.0) == every(8, 0.0)
    assert every(7, 0.5) != every(8, 0.5)


def test_taking_a_fingerprint_reads_no_key(spa_config):
    config = TrackedConfig(spa_config())
    assert fingerprint(config, "estimator") == fingerprint(spa_config(), "estimator")
    assert set(unread_keys(config)) == set(leaves(spa_config()))


def test_the_first_difference_is_named_with_both_values():
    check({"a": 1, "b": [2]}, {"b": [2], "a": 1}, "it")
    for found, expected, words in (
        ({"a": 1, "b": 2}, {"a": 1, "b": 3}, "it was made with b = 2, but this run has 3: set the same value, or run that stage"),
        ({"a": 1}, {"a": 1, "z": "new"}, "it was made with z = '(absent)', but this run has 'new'"),
        ({"a": 1, "c": 0}, {"a": 1}, "it was made with c = 0, but this run has '(absent)'"),
    ):
        with pytest.raises(UserError) as caught:
            check(found, expected, "it")
        assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_key_that_an_earlier_version_did_not_note_is_said_to_be_that():
    with pytest.raises(
        UserError,
        match="made with model.system = '.absent.', but this run has '' .an earlier version, which did not record this key, may have made it",
    ):
        check({"seed": 0}, {"seed": 0, "model.system": ""}, "it")


FIT = {"left out": 0, "max_prompt_tokens": 10, "max_answer_tokens": 2, "conversation": 12}


@pytest.mark.parametrize(
    "fit, limits, words",
    [
        ({}, {}, None),
        (FIT, {}, None),
        (FIT, {"max_prompt_tokens": 9}, "demonstrations that need rollout.max_prompt_tokens of at least 10, but this run has 9: raise it"),
        (
            FIT,
            {"max_row_tokens": 13},
            "need rollout.max_row_tokens - rollout.max_answer_tokens of at least 12, but this run has 11: raise it",
        ),
        (FIT | {"left out": 3, "max_prompt_tokens": 18, "conversation": 18}, {}, None),
        (
            FIT | {"left out": 3, "conversation": 18},
            {},
            "left out or cut 3 demonstrations to fit rollout.max_prompt_tokens = 10, but this run",
        ),
    ],
)
def test_a_warm_start_on_other_demonstrations_is_refused(spa_config, fit, limits, words):
    config = spa_config({f"rollout.{name}": value for name, value in limits.items()})
    assert (config.rollout.max_answer_tokens, spa_config().rollout.max_prompt_tokens, spa_config().rollout.max_row_tokens) == (2, 18, 20)
    if words is None:
        return check_fit(fit, config, "it")
    with pytest.raises(UserError) as caught:
        check_fit(fit, config, "it")
    assert words in str(caught.value)


def test_a_config_s_digest_counts_all_but_what_may_change(spa_config):
    same = {"train.env_steps": 1, "environment.pool": "process", "model.path": "elsewhere"}
    assert digest(spa_config(same)) == digest(spa_config()) != digest(spa_config({"policy.learning_rate": 7.0}))


# --- The output of a stage ---

FACTS = {"seed": 0, "model.preset": "tiny"}


def parameters(width=4):
    decoder = {"a": jnp.arange(width, dtype=jnp.float32), "b": jnp.full((2, width), 0.1)}
    return {"decoder": decoder, "scalar_head": {"bias": jnp.float32(3)}}


@pytest.fixture
def output(tmp_path):
    return StageOutput(tmp_path / "run", "estimator")


def template(width=4):
    return jax.tree.map(lambda x: jnp.full_like(x, -1), parameters(width))


def test_an_output_comes_back_bit_for_bit(output):
    assert not output.exists
    output.save(parameters(), FACTS, {"mse": 0.25})
    assert output.exists and json.loads((output.folder / "facts.json").read_text()) == {"facts": FACTS, "metrics": {"mse": 0.25}}
    params, metrics = output.read(template(), FACTS)
    assert metrics == {"mse": 0.25}
    jax.tree.map(np.testing.assert_array_equal, params, parameters())
    again, _ = StageOutput(output.folder.parent.parent, "estimator").read(template(), FACTS)
    jax.tree.map(np.testing.assert_array_equal, again, parameters())


def test_an_output_saved_twice_is_the_later_one(output):
    """A run that is killed between the output and its own checkpoint makes the stage's last tick, and its output, again."""
    output.save(parameters(), FACTS, {"mse": 0.25})
    later = jax.tree.map(lambda x: x + 1, parameters())
    output.save(later, FACTS, {"mse": 0.125})
    params, metrics = output.read(template(), FACTS)
    assert metrics == {"mse": 0.125}
    jax.tree.map(np.testing.assert_array_equal, params, later)


def one_error(output, facts=FACTS, width=4):
    with pytest.raises(UserError) as caught:
        output.read(template(width), facts)
    message = str(caught.value)
    assert "the estimator stage in" in message and str(output.folder.parent.parent) in message and "\n" not in message
    return message


def test_a_stage_that_is_not_finished_says_how_to_finish_it(output):
    assert "is not finished: first run it there with --stage=estimator." in one_error(output)
    output.save(parameters(), FACTS, {})
    (output.folder / "facts.json").unlink()  # killed before the stage was finished
    assert not output.exists and "is not finished" in one_error(output)


def test_a_stage_of_another_config_names_the_key_and_both_values(output):
    output.save(parameters(), FACTS, {})
    message = one_error(output, {**FACTS, "model.preset": "small"})
    assert "was made with model.preset = 'tiny', but this run has 'small'" in message


def test_a_stage_of_another_size_names_the_array_and_both_shapes(output):
    output.save(parameters(), FACTS, {})
    message = one_error(output, width=6)
    assert "array 'params/decoder/a' has shape (4,), but the config needs (6,)" in message


# --- What has begun ---


def test_what_has_begun_is_remembered(tmp_path):
    assert begun(tmp_path / "run") == set()
    mark_begun(tmp_path / "run", ["sft"])
    mark_begun(tmp_path / "run", ["explore", "sft"])
    assert begun(tmp_path / "run") == {"sft", "explore"}
    path = tmp_path / "run" / "stages" / "begun.json"
    written = path.stat().st_mtime_ns, path.read_bytes()
    mark_begun(tmp_path / "run", ["sft"])
    assert (path.stat().st_mtime_ns, path.read_bytes()) == written and begun(tmp_path / "run") == {"sft", "explore"}
    assert [p.name for p in path.parent.iterdir()] == ["begun.json"]
