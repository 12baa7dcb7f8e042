"""What follows from the list of stages: their names, their order, and their progress on the display."""

import pytest

from stepreward.training import decisions
from stepreward.training.run import DONE
from stepreward.training.stages import STAGES
from stepreward.training.train import Runner


def test_the_stages_in_their_order():
    names = [stage.name for stage in STAGES]
    assert names == ["sft", "start", "explore", "estimator", "preference", "prm_warmup", "train", "evaluate"] and DONE not in names
    assert [stage.command for stage in STAGES] == ["sft", "sft", "explore", "estimator", "preference", "train", "train", "evaluate"]
    assert decisions.STAGES == ("sft", "explore", "estimator", "preference", "train", "evaluate")


def test_a_stage_that_decides_keys_comes_before_those_that_decide_none():
    assert list(decisions.DECIDED_FROM) == ["sft", "explore", "estimator", "preference", "train"]
    borrowed = {"stages.sft": "sft", "stages.exploration": "estimator", "stages.preference": "preference", "stages.estimator": "train"}
    assert borrowed == decisions.BORROWED_FOR


@pytest.mark.parametrize("name, expected", [
    ("sft", ("sft",)), ("start", ("sft",)), ("explore", ("sft", "explore")), ("preference", ("sft", "explore", "estimator", "preference")),
    ("prm_warmup", ("sft", "explore", "estimator", "preference", "train")),
    ("train", ("sft", "explore", "estimator", "preference", "train")), (DONE, decisions.STAGES),
])  # fmt: skip
def test_the_stages_that_a_run_has_begun(name, expected):
    assert decisions.reached(name) == expected


def test_every_stage_shows_its_progress(spa_config, tmp_path):
    runner = Runner(spa_config({"prm.warmup_batches": 1, "eval.final_episodes": 4}), tmp_path / "run")
    try:
        shown = {name: stage.progress() for name, stage in runner.stages.items() if stage.wanted()}
        assert shown == {
            "sft": ("warm start", 0, 100), "start": ("first look", 0, 1), "explore": ("exploration", 0, runner.exploration.parts),
            "estimator": ("estimator", 0, runner.c.estimator.epochs), "train": ("reinforcement", 0, runner.c.train.env_steps),
            "evaluate": ("evaluation", 0, 1),
        }  # fmt: skip
        assert runner.progress() == shown["sft"]
        runner.counters.stage = DONE
        assert runner.progress() == ("evaluation", 1, 1) and runner.finished
    finally:
        runner.close()
