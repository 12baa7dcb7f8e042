"""Runs of VinePPO, SPO, TreeRPO and ARPO by name: their strategy is played, and the weights of tokens reach the policy's update."""

import dataclasses

import numpy as np
import pytest

from stepreward.training import setup
from stepreward.training.train import Runner

QUICK = {"sft.updates": 20, "sft.log_every": 20, "eval.episodes": 4, "rollout.groups": 2, "rollout.group_size": 4,
         "rollout.max_rows": 16, "train.env_steps": 1}  # fmt: skip
RUNS = {
    "vineppo": {"credit.method": "vineppo", "credit.options.k": 1},
    "spo": {"credit.method": "spo", "credit.options.tokens_per_cut": 2, "policy.ratio": "token"},
    "spo-tree": {"credit.method": "spo", "credit.options.form": "tree"},
    "treerpo": {"credit.method": "treerpo", "train.pack_rows": True},
    "arpo": {"credit.method": "arpo", "credit.options.advantage": "hard", "credit.options.p": 1.0},
}


@pytest.mark.parametrize("name", RUNS)
def test_methods_run_by_name(name, micro_config, tmp_path):
    runner = Runner(micro_config(QUICK | RUNS[name]), tmp_path / "run")
    seen, credit = [], runner.learner.credit
    runner.learner.credit = lambda batch, *arguments: seen.append((batch, credit(batch, *arguments))) or seen[-1][1]
    runner.run()
    (last,) = [record for record in runner.history() if record["stage"] == "train"]
    ((batch, credited),) = seen
    assert np.isfinite(last["policy/loss"]) and np.isfinite(last["credit/advantage_max"])
    for signal in runner.method.requires:
        known = batch.signals[signal][batch.step_mask]
        assert (known >= 0).any() if signal.endswith("id") else np.isfinite(known).any()
    assert (last["rollout/branch_steps"] > 0) == (runner.method.strategy == "restore")
    (update,) = [program for program in runner.learner.programs("train") if program.name == "policy/update"]
    weighted = runner.method.weights_tokens
    assert ("token_weight" in update.args[1].signals) == weighted == (credited.token_weight is not None)
    if name in ("spo-tree", "treerpo"):  # the first steps of the leaves are shared
        assert 0 < credited.token_weight[credited.token_weight > 0].min(initial=2.0) <= 1.0
        assert last["env_steps"] < batch.step_mask.sum()


def test_the_values_of_a_run_are_outcomes_in_its_unit(micro_config, tmp_path):
    """With `credit.outcome=return` and a scale of 0.5, values are half the returns of the continuations."""
    changes = RUNS["vineppo"] | {"credit.outcome": "return", "credit.outcome_scale": 0.5, "sft.updates": 0}
    runner = Runner(micro_config(QUICK | changes), tmp_path / "run")
    assert setup.make_strategy(runner.c, runner.method).outcome == "return"
    runner.begin_reinforcement()
    rollout, _, _ = runner.stages["train"].experience()
    batch = runner.pack(rollout)
    values = np.concatenate(rollout.signals["mc_value"])
    np.testing.assert_allclose(np.asarray(batch.signals["mc_value"])[batch.step_mask], 0.5 * values, rtol=1e-6)
    assert values.min() < 0  # success would be at least 0
    runner.close()


def test_the_outcome_of_a_strategy_is_the_runs(micro_config):
    for outcome in ("success", "return"):
        for run in RUNS.values():
            config = micro_config(QUICK | run | {"credit.outcome": outcome})
            method = setup.make_method(config)
            found = setup.make_strategy(config, method)
            assert found.outcome == outcome and dataclasses.replace(found, outcome="success").name == method.strategy
