"""The policy in hindsight: which rows it reads, what it says of them, and which steps have no hindsight."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stepreward import credit, parallel
from stepreward.credit import base as credit_base
from stepreward.models.log_probs import token_log_probs
from stepreward.training.train import Runner

SMALL = {
    "credit.method": "hindsight_reader", "eval.every": 100, "eval.episodes": 2, "eval.prm_as_policy_every": 0, "eval.final_episodes": 0,
    "sft.updates": 40, "sft.log_every": 40, "train.env_steps": 60, "rollout.max_steps": 4, "rollout.groups": 2,
    "hindsight.text": "end: {state}",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class HindsightReader(credit.Method):
    """The outcome's advantage, and the signal among its metrics."""

    name: ClassVar[str] = "hindsight_reader"
    requires: ClassVar[frozenset[str]] = frozenset({"log_prob_hindsight"})

    def assign(self, batch):
        found = credit.make("rloo").assign(batch)
        return found.replace(metrics=found.metrics | {"hindsight": jnp.nan_to_num(batch.signals["log_prob_hindsight"]).sum()})


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setattr(credit_base, "_METHODS", credit_base._METHODS | {HindsightReader.name: HindsightReader})


def scored(runner, won=(0, 3)):
    """A batch whose episodes `won` are successes, with its signals and metrics."""
    rollout, metrics = runner.play(runner.held_out * 4, jax.random.key(1))
    for index, episode in enumerate(rollout.episodes):
        episode.success = index in won
    batch = runner.pack(rollout)
    metrics |= runner.learner.prepare(batch, rollout.episodes)
    return rollout.episodes, runner.learner.score(batch, metrics), metrics


def begun(config, workdir):
    runner = Runner(config, workdir)
    runner.begin_reinforcement()
    return runner


@pytest.mark.parametrize("context", ["step", "episode"])
def test_the_values_are_those_of_a_pass_over_the_told_conversation(micro_config, tmp_path, context):
    changes = {"rollout.context": context, "rollout.max_row_tokens": 20 if context == "step" else 100}
    runner = begun(micro_config(SMALL | changes), tmp_path / "run")
    try:
        episodes, batch, metrics = scored(runner)
        chat, params = runner.parts.chat, runner.learner.policy.params
        found, steps = batch.signals["log_prob_hindsight"], 0
        for e, episode in enumerate(episodes):
            before = []
            for t, step in enumerate(episode.steps):
                at = batch.step_id == e * batch.max_steps + t
                if not episode.success:
                    assert (found[at] == 0).all()
                    continue
                note = chat.codec.encode(f"end: {episode.final_observation}")
                said = [*before, step.prompt_tokens[:-1], note, step.prompt_tokens[-1:], step.action_tokens]
                row = np.concatenate(said).astype(np.int32)[None]
                before += [step.prompt_tokens, step.action_tokens] if context == "episode" else []
                positions = np.arange(row.shape[1])[None]
                truth = token_log_probs(runner.parts.graphdef, params, row, positions, np.ones_like(row))[0]
                np.testing.assert_allclose(found[at], np.asarray(truth)[0, -len(step.action_tokens) :], atol=1e-4)
                steps += 1
        assert steps == metrics["hindsight/steps"] > 1 and metrics["hindsight/dropped"] == 0
        assert (found[~batch.action_mask] == 0).all()
    finally:
        runner.close()


def test_a_step_that_does_not_fit_has_no_hindsight_and_is_counted(micro_config, tmp_path):
    runner = begun(micro_config(SMALL | {"hindsight.max_tokens": 0}), tmp_path / "run")
    try:
        episodes, batch, metrics = scored(runner, won=(1,))
        count = len(episodes[1].steps)
        assert metrics["hindsight/dropped"] == count > 0 == metrics["hindsight/steps"]
        told = (batch.step_id // batch.max_steps == 1) & batch.action_mask
        values = batch.signals["log_prob_hindsight"]
        assert np.isnan(values[told]).all() and (values[~told] == 0).all()
    finally:
        runner.close()


def test_a_text_is_added_to_the_end_of_a_message_as_plain_text(micro_config, tmp_path):
    runner = Runner(micro_config(SMALL), tmp_path / "run")
    try:
        chat = runner.parts.chat
        turn, note = chat.user_turn("up", first=True), "up<|end|>"
        found = chat.noted(turn, note)
        np.testing.assert_array_equal(found, np.r_[turn[:-1], chat.codec.encode(note), turn[-1]])
        assert chat.codec.end_id not in found
    finally:
        runner.close()


def test_a_text_without_the_state_is_refused(micro_config, tmp_path):
    with pytest.raises(ValueError, match="hindsight.text='the end' must hold {state}"):
        Runner(micro_config(SMALL | {"hindsight.text": "the end"}), tmp_path / "run")


@pytest.mark.parametrize("changes", [{}, {"lora.rank": 2, "lora.share_base": False}])
def test_a_run_computes_the_signal(micro_config, tmp_path, changes):
    runner = Runner(micro_config(SMALL | changes), tmp_path / "run")
    runner.run()
    lines = [line for line in runner.history() if line["stage"] == "train"]
    assert lines and all(line["hindsight/dropped"] == 0 for line in lines)
    assert all((line["credit/hindsight"] < 0) == (line["hindsight/steps"] > 0) for line in lines)


def test_the_plan_lists_the_pass(micro_config):
    from stepreward.tpu import plan

    config = micro_config(SMALL)
    (program,) = [p for _, p, _ in plan.programs(config, parallel.make_mesh(1, 1, 1)) if p.name == "hindsight/score"]
    assert program.args[1].tokens.shape[1] == config.rollout.max_row_tokens + config.hindsight.max_tokens
    program.lower()
