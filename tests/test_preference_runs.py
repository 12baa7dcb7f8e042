"""Runs with the stage `preference`: every method end to end, killed and resumed, and recorded pairs that another run reuses."""

import signal
import subprocess
import sys

import numpy as np
import pytest
from resuming import measured

from stepreward import preference
from stepreward.config import save_config
from stepreward.errors import UserError
from stepreward.training.train import Runner

DRIVER = """
import os, signal, sys
from stepreward.config import load_config
from stepreward.training.pair_data import PairData
from stepreward.training.train import Runner

workdir, config, when = sys.argv[1:]
kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
runner = Runner(load_config(config), workdir)
counters = runner.counters
print("resumed at", counters.tick, counters.stage, flush=True)
if when == "a part is written and no checkpoint after it":
    record = PairData.record
    def record_and_kill(data, part, found):
        record(data, part, found)
        if part == 1:
            runner.checkpoints.wait()
            kill()
    PairData.record = record_and_kill
elif when == "in the second round":
    stage = runner.stages["preference"]
    epoch = stage._epoch
    def epoch_and_kill(number):
        found = epoch(number)
        if counters.of("preference_rounds") == 1 and number == 1:
            runner.checkpoints.wait()
            kill()
        return found
    stage._epoch = epoch_and_kill
runner.run()
"""
WHEN = ("a part is written and no checkpoint after it", "in the second round")

# The policy of two updates fails mostly, so that the expert is better.
QUICK = {
    "sft.updates": 2,
    "sft.log_every": 2,
    "eval.episodes": 4,
    "preference.tasks": 4,
    "preference.part_tasks": 2,
    "preference.epochs": 2,
}
SMALL = {
    "eto": {"rounds": 2},
    "ipr": {"rounds": 1, "n": 1},
    "rro": {"n": 1, "most": 3},
    "cso": {"rounds": 1, "n": 1, "alternatives": 2},
    "stepagent": {"rounds": 1},
    "online_dpo": {"rounds": 1, "samples": 4},
}


def config_of(micro_config, name, **changes):
    options = {f"preference.options.{key}": value for key, value in SMALL[name].items()}
    return micro_config(QUICK | {"preference.method": name} | options | changes)


@pytest.fixture(scope="module")
def finished(micro_config, tmp_path_factory):
    """`finished(name)`: a finished run of a method, which is made once."""
    made = {}

    def run(name):
        if name not in made:
            made[name] = Runner(config_of(micro_config, name), tmp_path_factory.mktemp(name) / "run")
            made[name].run()
        return made[name]

    return run


@pytest.mark.parametrize("name", preference.names())
def test_a_method_runs_by_its_name(name, finished):
    runner = finished(name)
    records = [record for record in runner.history() if record["stage"] == "preference"]
    rounds = SMALL[name].get("rounds", 1)
    assert len(records) == rounds * (2 + 2) and runner.finished
    assert sum("eval/success" in record for record in records) == rounds
    explored = [record for record in records if "preference/pairs" in record]
    assert len(explored) == 2 * rounds and records[-1]["env_steps"] > 0
    assert [record["preference/pairs_in_all"] for record in explored] == np.cumsum([r["preference/pairs"] for r in explored]).tolist()
    trained = [record for record in records if "preference/loss" in record]
    if name in ("eto", "stepagent"):  # against the expert there is always something to learn
        assert len(trained) == 2 * rounds and all(np.isfinite(record["preference/grad_norm"]) for record in trained)
        assert trained[1]["preference/loss"] < trained[0]["preference/loss"]


@pytest.fixture(scope="module")
def eto(micro_config, tmp_path_factory):
    """A finished run of two rounds, with half a reference each, and reinforcement learning after them."""
    changes = {"preference.reference": "round", "preference.then_train": True, "train.env_steps": 200, "credit.method": "rloo"}
    runner = Runner(config_of(micro_config, "eto", **changes), tmp_path_factory.mktemp("eto") / "run")
    runner.run()
    return runner


def test_reinforcement_goes_on_from_the_pairs_policy(eto):
    stages = [record["stage"] for record in eto.history()]
    assert stages == ["sft"] + ["preference"] * 8 + ["train"] * stages.count("train") and "train" in stages
    steps = [record["env_steps"] for record in eto.history()]
    assert steps == sorted(steps) and steps[-1] >= 200  # the steps of exploring count in the budget
    assert eto.learner.initial is None and (eto.workdir / "preference" / "round-01" / "pairs-00001.npz").exists()


def killed_and_resumed(config, when, root, folder):
    """The metrics of a run that is killed with SIGKILL and goes on."""
    save_config(config, folder / "config.json")
    command = [sys.executable, "-c", DRIVER, str(folder / "run"), str(folder / "config.json")]
    options = dict(cwd=root, capture_output=True, text=True)
    killed = subprocess.run([*command, when], **options)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = subprocess.run([*command, "never"], **options)
    assert resumed.returncode == 0, resumed.stderr
    assert "preference" in resumed.stdout.split("resumed at")[-1]
    return measured(folder / "run")


@pytest.mark.parametrize("when", WHEN)
def test_a_killed_run_gives_the_same_metrics(when, eto, root, tmp_path):
    assert killed_and_resumed(eto.c, when, root, tmp_path) == measured(eto.workdir)


@pytest.mark.parametrize("name", sorted(set(preference.names()) - {"eto"}))
def test_a_killed_run_of_each_method_gives_the_same_metrics(name, finished, root, tmp_path):
    runner = finished(name)
    assert killed_and_resumed(runner.c, WHEN[0], root, tmp_path) == measured(runner.workdir)


def test_recorded_pairs_are_trained_on_again(eto, micro_config, tmp_path):
    changes = {"stages.sft": str(eto.workdir), "stages.preference": str(eto.workdir), "preference.options.beta": (0.3,)}
    runner = Runner(config_of(micro_config, "eto", **changes), tmp_path / "run")
    runner.run()
    records = [record for record in runner.history() if record["stage"] == "preference"]
    assert len(records) == 4 and not any("preference/pairs" in record for record in records) and records[-1]["env_steps"] == 0
    assert all(np.isfinite(record["preference/loss"]) for record in records)
    with pytest.raises(UserError, match="the pairs of round 3: no recordings folder"):
        Runner(config_of(micro_config, "eto", **changes | {"preference.options.rounds": 3}), tmp_path / "more").run()


def test_adapters_are_trained_against_their_own_start(micro_config, tmp_path):
    runner = Runner(config_of(micro_config, "stepagent", **{"lora.rank": 2}), tmp_path / "run")
    runner.run()
    assert runner.learner.model.base is not None
    first, last = [record for record in runner.history() if "preference/loss" in record]
    assert first["preference/loss"] == pytest.approx(np.log(2), abs=0.05) and last["preference/loss"] < first["preference/loss"]


@pytest.mark.parametrize("changes, words", [
    ({"preference.method": "eta"}, "unknown preference method 'eta'"), ({"preference.epochs": 0}, "preference.epochs=0 must be at least 1"),
    ({"preference.options.betta": 1.0}, "no option 'betta' .did you mean 'beta'"), ({"preference.reference": "end"}, "preference.reference='end'"),
    ({"preference.method": "", "stages.preference": "runs/x"}, "set preference.method, which trains on them"),
    ({"train.mode": "offline", "preference.then_train": True, "credit.method": "rloo"}, "train.mode must be online"),
])  # fmt: skip
def test_a_wrong_config_is_one_line(changes, words, micro_config, tmp_path):
    with pytest.raises(ValueError, match=words):
        Runner(config_of(micro_config, "eto", **changes), tmp_path / "run")


def test_a_finished_stage_cannot_be_asked_for(eto, micro_config, tmp_path):
    runner = Runner(config_of(micro_config, "eto"), tmp_path / "run")
    with pytest.raises(UserError, match="this run has no stage train: preference.method=eto ends it, unless preference.then_train is set"):
        runner.run("train")
