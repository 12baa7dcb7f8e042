"""Runs whose methods branch: what they count, what they refuse, and that a killed one goes on bit for bit."""

import os
import signal
import subprocess
import sys

import pytest
from resuming import measured

from stepreward.config import save_config
from stepreward.credit import base as credit_base
from stepreward.metrics import read_metrics
from stepreward.training.train import Runner

QUICK = {"sft.updates": 20, "sft.log_every": 20, "eval.episodes": 4, "rollout.groups": 2, "rollout.group_size": 4,
         "rollout.max_rows": 16, "checkpoint.every": 1}  # fmt: skip

DRIVER = """
import os, signal, sys
import branching_methods
from stepreward.config import load_config
from stepreward.training.train import Runner

runner = Runner(load_config(sys.argv[1]), sys.argv[2])
play = runner.play
def kill_after_the_next_play(*arguments):
    found = play(*arguments)
    if runner.counters.iteration:
        runner.checkpoints.wait()
        os.kill(os.getpid(), signal.SIGKILL)
    return found
runner.play = kill_after_the_next_play
runner.run()
"""


@pytest.fixture
def methods(monkeypatch):
    """The methods of `branching_methods`, registered for one test."""
    monkeypatch.setattr(credit_base, "_METHODS", dict(credit_base._METHODS))
    sys.modules.pop("branching_methods", None)
    import branching_methods

    return branching_methods


@pytest.fixture(scope="module")
def base(micro_config, tmp_path_factory):
    """A run of the warm start, which the other runs take."""
    workdir = tmp_path_factory.mktemp("base") / "run"
    Runner(micro_config(QUICK), workdir).run("sft")
    return workdir


def config_of(micro_config, base, kind, **changes):
    return micro_config({**QUICK, "credit.method": f"by_{kind}", "stages.sft": str(base), **changes})


@pytest.mark.parametrize("kind", ["tree", "entropy_branch", "restore", "expert_prefix"])
def test_a_killed_run_branches_again_in_the_same_way(methods, micro_config, base, root, tmp_path, kind):
    budget = 110 if kind in ("tree", "entropy_branch") else 280  # more than one iteration takes
    config = config_of(micro_config, base, kind, **{"train.env_steps": budget})
    whole = Runner(config, tmp_path / "whole")
    rollouts, play = [], whole.play
    whole.play = lambda *arguments: rollouts.append(play(*arguments)) or rollouts[-1]
    whole.run()
    records = [record for record in read_metrics(tmp_path / "whole") if record["stage"] == "train"]
    assert len(records) >= 2
    total = lambda name: sum(getattr(rollout.cost, name) for rollout, _ in rollouts)
    assert records[-1]["env_steps"] == total("env_steps") and records[-1]["rollout/sampled_tokens"] == total("sampled_tokens")
    assert sum(record["rollout/replayed_steps"] for record in records) == total("replayed_steps")
    assert all(record["rollout/failed_branches"] == 0 <= record["rollout/branch_steps"] for record in records)
    if kind in ("tree", "entropy_branch"):  # every step is trained on
        assert all(record["rollout/branch_steps"] == 0 for record in records)

    save_config(config, tmp_path / "config.json")
    command = [sys.executable, "-c", DRIVER, str(tmp_path / "config.json"), str(tmp_path / "killed")]
    paths = {"PYTHONPATH": f"{root}:{root / 'tests'}"}
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, env={**os.environ, **paths})
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    resumed = Runner(config, tmp_path / "killed")
    assert resumed.counters.iteration == 1
    resumed.run()
    assert measured(tmp_path / "killed") == measured(tmp_path / "whole")


@pytest.mark.parametrize(
    "kind, changes, words",
    [
        ("tree", {"rollout.group_size": 6}, r"rollout.group_size=6 is not the number of leaves .* set rollout.group_size=4 \(= 2 · 2\)"),
        ("tree", {"rollout.max_steps": 2}, "would branch for the last time after 2 turns, but rollout.max_steps=2"),
        ("entropy_branch", {"rollout.group_size": 1}, "n0=2 episodes from the root are more than the rollout.group_size=1"),
        ("tree", {"train.mode": "offline", "exploration.rollouts": 4}, "needs those of the rollout strategy 'tree': set train.mode=online"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_before_anything_is_trained(methods, micro_config, tmp_path, kind, changes, words):
    with pytest.raises(ValueError, match=words):
        Runner(micro_config({**QUICK, "credit.method": f"by_{kind}", **changes}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
