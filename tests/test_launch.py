"""The two main commands as a user runs them: exit codes, and a one-line error for each mistake."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from stepreward.metrics import read_metrics

MICRO = "--config=configs/istar_sokoban.py:micro"


@pytest.fixture(scope="module")
def command(root):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}

    def run(script, *arguments):
        arguments = [sys.executable, f"launch/{script}.py", *arguments]
        return subprocess.run(arguments, cwd=root, env=environment, capture_output=True, text=True)

    return run


@pytest.fixture(scope="module")
def trained(command, tmp_path_factory):
    """`(workdir, the finished command)` of a micro run."""
    workdir = tmp_path_factory.mktemp("launch") / "run"
    done = command("train", MICRO, f"--workdir={workdir}", "--config.train.env_steps=200")
    assert done.returncode == 0, done.stderr[-3000:]
    return workdir, done


def assert_one_error(done, *words):
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and all(word in line for word in words), line


def test_training_writes_a_run_and_a_report(trained):
    workdir, done = trained
    shown = " ".join(done.stdout.split())
    assert "Run finished" in shown and str(workdir.name) in shown and "report.html" in shown
    names = {path.name for path in workdir.iterdir()}
    assert names >= {"config.json", "metrics.jsonl", "checkpoints", "episodes", "demonstrations", "tokenizer", "report.html"}
    assert json.loads((workdir / "config.json").read_text())["train"]["env_steps"] == 200


def test_the_same_command_again_says_that_it_is_finished(trained, command):
    workdir, _ = trained
    before = (workdir / "metrics.jsonl").read_bytes()
    done = command("train", MICRO, f"--workdir={workdir}", "--config.train.env_steps=200")
    shown = " ".join(done.stdout.split())
    assert done.returncode == 0 and "already finished" in shown and "larger --config.train.env_steps" in shown
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_evaluation_repeats_the_run_s_own(trained, command):
    workdir, _ = trained
    last = read_metrics(workdir)[-1]
    done = command("evaluate", f"--workdir={workdir}", f"--episodes={last['eval/episodes']}")
    assert done.returncode == 0, done.stderr[-2000:]
    found = re.search(r"success +([\d.]+) % +\(95 % interval ([\d.]+) to ([\d.]+), (\d+) of (\d+)\)", done.stdout)
    percent, low, high, won, played = (float(x) for x in found.groups())
    assert won / played == last["eval/success"] and played == last["eval/episodes"]
    assert low <= percent <= high and percent == pytest.approx(100 * won / played, abs=0.05)
    assert f"checkpoint  {last['tick']} (done, {last['env_steps']} environment steps), policy" in done.stdout


@pytest.mark.parametrize("script, words", [("train", "--workdir"), ("evaluate", "--episodes")])
def test_help(command, script, words):
    done = command(script, "--help")
    assert done.returncode == 0 and words in done.stdout and "Traceback" not in done.stderr


def test_help_with_a_config_lists_its_keys(command):
    done = command("train", MICRO, "--help")
    assert done.returncode == 0 and "--config.policy.learning_rate=0.001" in done.stdout


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((MICRO, "--config.policy.learning_rat=1"), ("'policy.learning_rat'", "'policy.learning_rate'")),
        ((MICRO, "--config.policy.epochs=many"), ("'policy.epochs'", "int")),
        (("--config=configs/istar_sokoban.py:tyni",), ("unknown preset 'tyni'", "tiny, micro, paper")),
        (("--config=configs/istar_sokobn.py",), ("no config file", "istar_sokoban.py")),
        ((MICRO, "--wrkdir=x"), ("'--wrkdir=x'", "'--workdir'")),
        ((), ("no config given",)),
    ],
)
def test_a_wrong_command_line_is_one_line(command, arguments, words):
    assert_one_error(command("train", *arguments), *words)


def test_a_model_that_cannot_be_loaded_is_one_line(command, tmp_path):
    done = command("train", "--config=configs/istar_sokoban.py:paper", f"--workdir={tmp_path / 'run'}", "--quiet")
    assert_one_error(done, "'Qwen/Qwen2.5-VL-7B-Instruct'", "--config.model.download=True")
    assert not (tmp_path / "run").exists()


def test_a_workdir_that_cannot_be_is_one_line(command, tmp_path):
    (tmp_path / "file").write_text("")
    assert_one_error(command("train", MICRO, f"--workdir={tmp_path / 'file'}", "--quiet"), "is a file: give another --workdir")
    assert_one_error(command("train", MICRO, f"--workdir={tmp_path / 'file' / 'run'}", "--quiet"), "cannot be written")
    assert_one_error(command("train", MICRO, f"--workdir={tmp_path}", "--quiet"), "not empty and contains no run")


def test_a_wrong_evaluation_is_one_line(trained, command, tmp_path):
    workdir, _ = trained
    assert_one_error(command("evaluate"), "--workdir is missing")
    assert_one_error(command("evaluate", f"--workdir={tmp_path}"), "is not the workdir of a run: it has no config.json")
    assert_one_error(command("evaluate", f"--workdir={workdir / 'metrics.jsonl'}"), "no workdir")
    assert_one_error(command("evaluate", f"--workdir={workdir}", "--step=77"), "no checkpoint 77", "existing: ")
    assert_one_error(command("evaluate", f"--workdir={workdir}", "--episodes=0"), "--episodes=0: give at least 1")
    assert_one_error(command("evaluate", f"--workdir={workdir}", "--which=prn"), "--which", "policy")


@pytest.mark.parametrize(
    "text, words",
    [("{", "is not valid JSON"), ("[]", "is not a JSON object"), ('{"seed": 0}', "is not the config of a run: it has no environment")],
)
def test_a_corrupt_config_is_one_line(command, tmp_path, text, words):
    (tmp_path / "config.json").write_text(text)
    assert_one_error(command("evaluate", f"--workdir={tmp_path}"), words)


def test_a_run_of_an_earlier_version_is_evaluated(trained, command, tmp_path):
    """Its config does not have the newest keys yet."""
    workdir, _ = trained
    shutil.copytree(workdir, tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    del config["credit"]["exact"], config["expert"]
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    told = [command("evaluate", f"--workdir={folder}", "--episodes=4").stdout.splitlines()[1:-1] for folder in (workdir, tmp_path / "run")]
    assert told[0] == told[1] and "success" in told[0][1]


def test_a_run_without_a_checkpoint_is_one_line(trained, command, tmp_path):
    workdir, _ = trained
    (tmp_path / "config.json").write_bytes((workdir / "config.json").read_bytes())
    assert_one_error(command("evaluate", f"--workdir={tmp_path}"), "holds no checkpoints")
    (tmp_path / "checkpoints").mkdir()
    assert_one_error(command("evaluate", f"--workdir={tmp_path}"), "no checkpoint", "existing: none")
    shutil.copytree(workdir / "demonstrations", tmp_path / "demonstrations")  # with which a run begins
    assert_one_error(command("train", MICRO, f"--workdir={tmp_path}", "--config.seed=5", "--quiet"), "another config (seed: 0 -> 5)")
