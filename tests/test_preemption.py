"""Preemption of a machine: SIGTERM to the command saves the tick, and the same command continues from there."""

import signal
import subprocess
import sys
import time

import pytest
from resuming import measured

from stepreward.checkpoint import Checkpoints
from stepreward.errors import Terminated, UserError, launcher
from stepreward.metrics import read_metrics
from stepreward.training.train import Runner

RUN = ("--config=configs/istar_sokoban.py:micro", "--config.checkpoint.every=100", "--config.train.env_steps=100", "--quiet")
CHANGES = {"checkpoint.every": 100, "train.env_steps": 100}  # no checkpoint but the last and the asked one


def start(root, workdir, *arguments):
    command = [sys.executable, "launch/train.py", *RUN, f"--workdir={workdir}", *arguments]
    return subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ticks(workdir):
    try:
        return len(read_metrics(workdir))
    except FileNotFoundError:
        return 0


def test_sigterm_saves_the_tick_and_the_same_command_goes_on(micro_config, root, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(root))
    workdir, elsewhere = tmp_path / "run", f"--config.checkpoint.folder={tmp_path / 'disk' / 'a'}"
    job = start(root, workdir, elsewhere)
    while ticks(workdir) < 1 and job.poll() is None:
        time.sleep(0.02)
    job.send_signal(signal.SIGTERM)
    shown, errors = job.communicate()
    assert job.returncode == 128 + signal.SIGTERM == 143, errors[-2000:]
    assert errors.splitlines()[-1] == "terminated" and "Traceback" not in errors
    stopped = read_metrics(workdir)
    assert Checkpoints(workdir, read_only=True, folder=str(tmp_path / "disk" / "a")).steps() == [len(stopped)]
    assert not (workdir / "checkpoints").exists() and stopped[-1]["stage"] != "done"

    again = start(root, workdir, elsewhere)
    shown, errors = again.communicate()
    assert again.returncode == 0, errors[-2000:]
    assert read_metrics(workdir)[: len(stopped)] == stopped  # not repeated
    Runner(micro_config(CHANGES), tmp_path / "whole").run()
    assert len(stopped) < ticks(workdir) and measured(workdir) == measured(tmp_path / "whole")


@pytest.mark.parametrize("raised, words, code", [(Terminated, "terminated", 143), (KeyboardInterrupt, "interrupted", 130)])
def test_exit_codes(capsys, raised, words, code):
    def main():
        raise raised

    with pytest.raises(SystemExit) as caught:
        launcher(main)
    assert caught.value.code == code and capsys.readouterr().err == words + "\n"


@pytest.mark.parametrize("number, kind", [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)])
def test_the_runner_tells_them_apart(micro_config, tmp_path, number, kind):
    runner = Runner(micro_config(), tmp_path / "run")
    runner.on_tick = lambda *_: signal.raise_signal(number)
    with pytest.raises(KeyboardInterrupt) as caught:
        runner.run()
    assert caught.type is kind and runner.counters.tick == 1


def test_checkpoints_of_another_run_are_not_taken_over(micro_config, tmp_path):
    changes = {"checkpoint.folder": str(tmp_path / "disk")}
    runner = Runner(micro_config(changes), tmp_path / "run")
    runner.save(wait=True)
    runner.close()
    with pytest.raises(UserError, match="contains checkpoints, but no run has begun in workdir '.*other': give another folder"):
        Runner(micro_config(changes), tmp_path / "other")
    assert not (tmp_path / "other").exists()
    with pytest.raises(UserError, match="checkpoint.folder: '.*disk' -> ''"):
        Runner(micro_config({"train.env_steps": 5}), tmp_path / "run")


def test_a_workdir_in_a_bucket_is_one_line(micro_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match="'gs:/bucket/run' is a URL, but a workdir must be a local folder; .*--config.checkpoint.folder=gs://"
    ):
        Runner(micro_config(), "gs://bucket/run")
    assert not list(tmp_path.iterdir())
