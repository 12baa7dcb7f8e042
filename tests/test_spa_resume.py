"""A run of SPA that is killed during exploration or estimator training gives the metrics of an undisturbed run."""

import signal
import subprocess
import sys

import pytest
from resuming import measured

from stepreward.config import save_config
from stepreward.metrics import read_metrics
from stepreward.training.train import Runner

DRIVER = """
import os, signal, sys
from stepreward.config import load_config
from stepreward.training.train import Runner

workdir, config, when = sys.argv[1:]
kill = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
runner = Runner(load_config(config), workdir)
learner, counters = runner.learner, runner.counters
print("resumed at", counters.tick, counters.stage, flush=True)
if when == "a part is written and no checkpoint after it":
    record = runner.exploration.record
    def record_and_kill(part, episodes):
        record(part, episodes)
        if part == 1:
            runner.checkpoints.wait()
            kill()
    runner.exploration.record = record_and_kill
elif when == "in the second epoch of the estimator":
    train = learner.auxiliaries["estimator"].epoch
    def train_and_kill(*args):
        found = train(*args)
        if counters.of("estimator_epochs") == 1:
            runner.checkpoints.wait()
            kill()
        return found
    learner.auxiliaries["estimator"].epoch = train_and_kill
elif when == "after a refresh":
    update = learner.update_policy
    def update_and_kill(*args):
        update(*args)
        if counters.iteration == 2:
            runner.checkpoints.wait()
            kill()
    learner.update_policy = update_and_kill
runner.run()
"""
WHEN = ("a part is written and no checkpoint after it", "in the second epoch of the estimator", "after a refresh")


@pytest.fixture(scope="module")
def config(spa_base, spa_config):
    """All that its checkpoints can hold: critic, estimator and its batches, a coefficient that moves, the initial policy."""
    return spa_config({
        "stages.sft": str(spa_base.workdir), "estimator.refresh_every": 1, "credit.options.step_reward": "shuffled",
        "policy.kl_reward_coef": 0.1, "policy.kl_reward_target": 0.05, "policy.kl_reward_horizon": 100.0,
        "checkpoint.every": 1, "eval.final_episodes": 16,
    })  # fmt: skip


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """The workdir of a run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    Runner(config, workdir).run()
    phases = [r["stage"] for r in read_metrics(workdir)]
    assert phases == ["start", *["explore"] * 3, *["estimator"] * 2, *["train"] * 3, "evaluate"]
    return workdir


def test_a_run_killed_at_any_point_gives_the_same_metrics(whole, config, root, tmp_path):
    save_config(config, tmp_path / "config.json")
    workdir, started = tmp_path / "run", []
    for when in WHEN:
        command = [sys.executable, "-c", DRIVER, str(workdir), str(tmp_path / "config.json"), when]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
        started.append(int(done.stdout.split()[2]))
    last = Runner(config, workdir)
    started.append(last.counters.tick)
    assert len(last.learner.auxiliaries["estimator"].replay) == 1 and last.learner.kl_coef < 0.1
    last.run()
    assert started == [0, 2, 5, 8]
    assert measured(workdir) == measured(whole)
    assert (workdir / "evaluation.json").read_bytes() == (whole / "evaluation.json").read_bytes()


def test_an_interrupt_in_any_phase_loses_nothing(whole, config, tmp_path):
    ends = []
    for tick in (3, 5, 7):
        runner = Runner(config, tmp_path / "run")
        runner.on_tick = lambda r, _: r.counters.tick == tick and signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            runner.run()
        ends.append(len(read_metrics(tmp_path / "run")))
    Runner(config, tmp_path / "run").run()
    assert ends == [3, 5, 7] and measured(tmp_path / "run") == measured(whole)
