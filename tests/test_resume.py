"""A killed, interrupted or continued run gives bit-identical metrics to an uninterrupted one."""

import os
import signal
import subprocess
import sys

import pytest
from resuming import measured

from stepreward.config import save_config
from stepreward.errors import UserError
from stepreward.metrics import read_metrics
from stepreward.training import main_job
from stepreward.training.train import Runner

# Every phase, a replayed batch, the reference of PRIME's kind: all that a checkpoint can hold.
CHANGES = {"prm.warmup_batches": 1, "prm.replay": 1, "prm.resync": True, "credit.options.reference": "initial", "train.env_steps": 400}

DRIVER = """
import os, signal, sys
from stepreward.config import load_config
from stepreward.training.train import Runner

workdir, config, when = sys.argv[1:]
kill = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
runner = Runner(load_config(config), workdir)
print("resumed at", runner.counters.tick, runner.counters.stage, flush=True)
if when == "after the first sft tick":
    runner.on_tick = kill
elif when == "in the prm warm-up":
    runner.learner.auxiliaries["prm"].warm_up = lambda *_: (runner.checkpoints.wait(), kill())
elif when == "while a checkpoint is written":
    save = runner.checkpoints.save
    def save_and_kill(*args):
        save(*args)
        if runner.counters.stage == "train" and runner.counters.iteration:
            kill()
    runner.checkpoints.save = save_and_kill
elif when == "in an evaluation":
    runner.evaluate = lambda: (runner.checkpoints.wait(), kill()) if runner.counters.iteration > 1 else {}
runner.run()
"""
WHEN = ("after the first sft tick", "in the prm warm-up", "while a checkpoint is written", "in an evaluation")


@pytest.fixture(scope="module")
def whole(micro_config, tmp_path_factory):
    """The workdir of a run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    Runner(micro_config(CHANGES), workdir).run()
    assert [r["stage"] for r in read_metrics(workdir)] == ["sft", "sft", "prm_warmup", "train", "train", "train"]
    return workdir


def test_a_run_killed_at_any_point_gives_the_same_metrics(whole, micro_config, root, tmp_path):
    save_config(micro_config(CHANGES), tmp_path / "config.json")
    workdir, started = tmp_path / "run", []
    for when in WHEN:
        done = subprocess.run(
            [sys.executable, "-c", DRIVER, str(workdir), str(tmp_path / "config.json"), when], cwd=root, capture_output=True, text=True
        )
        assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
        started.append(int(done.stdout.split()[2]))
    last = Runner(micro_config(CHANGES), workdir)
    started.append(last.counters.tick)
    last.run()
    assert started[:3] == [0, 0, 2] and started[3] in (3, 4) and started[4] == 4
    assert measured(workdir) == measured(whole)


@pytest.mark.parametrize("number, tick", [(signal.SIGINT, 1), (signal.SIGTERM, 3), (signal.SIGTERM, 4)])
def test_an_interrupt_saves_the_tick_and_loses_nothing(whole, micro_config, tmp_path, number, tick):
    before = signal.getsignal(number)
    stopped = Runner(micro_config(CHANGES), tmp_path / "run")
    stopped.on_tick = lambda runner, _: runner.counters.tick == tick and signal.raise_signal(number)
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    assert signal.getsignal(number) is before
    again = Runner(micro_config(CHANGES), tmp_path / "run")
    assert again.counters.tick == stopped.counters.tick == tick == len(read_metrics(tmp_path / "run"))
    again.run()
    assert measured(tmp_path / "run") == measured(whole)


def test_an_interrupted_job_says_how_to_go_on(whole, micro_config, tmp_path, monkeypatch, capsys):
    tick = Runner.tick

    def interrupted(self):
        tick(self)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Runner, "tick", interrupted)
    with pytest.raises(KeyboardInterrupt):
        main_job.train(micro_config(CHANGES), tmp_path / "run")
    assert "stopped after tick 1; run the same command again to resume" in " ".join(capsys.readouterr().out.split())
    assert (tmp_path / "run" / "report.html").is_file()


def test_a_second_interrupt_does_not_wait(micro_config, tmp_path):
    runner = Runner(micro_config(), tmp_path / "run")
    reached = []

    def twice():
        signal.raise_signal(signal.SIGINT)
        reached.append(1)
        signal.raise_signal(signal.SIGINT)
        reached.append(2)

    runner.stage.tick = twice
    with pytest.raises(KeyboardInterrupt):
        runner.run()
    assert reached == [1] and not read_metrics(tmp_path / "run")


def test_a_larger_budget_continues_a_finished_run(whole, micro_config, tmp_path, capsys):
    workdir = tmp_path / "run"
    Runner(micro_config({**CHANGES, "train.env_steps": 300}), workdir).run()
    finished = measured(workdir)
    assert main_job.train(micro_config({**CHANGES, "train.env_steps": 300}), workdir) == 0
    assert "already finished" in capsys.readouterr().out and measured(workdir) == finished
    Runner(micro_config(CHANGES), workdir).run()
    continued, expected = measured(workdir), measured(whole)
    assert len(finished) < len(continued) == len(expected)
    # The tick where the first budget ended was evaluated for that reason only; all else is the same.
    last = len(finished) - 1
    assert expected[last].items() <= continued[last].items()
    assert continued[:last] + continued[last + 1 :] == expected[:last] + expected[last + 1 :]


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"policy.learning_rate": 0.5}, "policy.learning_rate: 0.001 -> 0.5"),
        ({"rollout.max_steps": 4, "eval.every": 1}, "rollout.max_steps: 8 -> 4"),
        ({"train.chunk_rows": 8}, "train.chunk_rows: 16 -> 8"),
    ],
)
def test_another_config_is_one_error_that_names_the_key(whole, micro_config, changes, words):
    held = (whole / "config.json").read_bytes()
    with pytest.raises(UserError, match="contains a run with another config") as caught:
        Runner(micro_config({**CHANGES, **changes}), whole)
    assert words in str(caught.value) and "eval.every" not in str(caught.value) and "\n" not in str(caught.value)
    assert (whole / "config.json").read_bytes() == held


def test_a_folder_that_is_no_run_is_left_alone(micro_config, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty and contains no run"):
        Runner(micro_config(), tmp_path)
    with pytest.raises(UserError, match="is a file"):
        Runner(micro_config(), tmp_path / "notes.txt")
    with pytest.raises(UserError, match="cannot be written: Not a directory"):
        Runner(micro_config(), tmp_path / "notes.txt" / "run")
    assert os.listdir(tmp_path) == ["notes.txt"]
