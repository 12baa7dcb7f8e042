"""Properties of a whole run: each rollout has its own random stream, and the reported times add up."""

import time

import jax
import numpy as np
import pytest

from stepreward.training.train import Runner
from stepreward.training.workdir import borrow_words, claim, release


@pytest.fixture(scope="module")
def finished(micro_config, tmp_path_factory):
    """(runner, [(where, key) of each rollout]) of a run with every phase that samples."""
    changes = {"train.env_steps": 150, "prm.warmup_batches": 2, "eval.final_episodes": 8, "eval.episodes": 8}
    runner, keys = Runner(micro_config(changes), tmp_path_factory.mktemp("streams") / "run"), []
    sample = runner.play

    def rollout(tasks, key, *more):
        keys.append(tuple(np.asarray(jax.random.key_data(key)).tolist()))
        return sample(tasks, key, *more)

    runner.play = rollout
    began = time.monotonic()
    runner.run()
    runner.took = time.monotonic() - began
    return runner, keys


def test_each_rollout_that_trains_has_a_key_of_its_own(finished):
    runner, keys = finished
    phases = [record["stage"] for record in runner.history()]
    assert len(keys) == len(set(keys)) == phases.count("prm_warmup") + phases.count("train") >= 3

    def key(*path):
        made = runner.key
        for part in path:
            made = jax.random.fold_in(made, part)
        return tuple(np.asarray(jax.random.key_data(made)).tolist())

    # Stream 1 of the seed samples for the PRM's warm-up, 2 for the iterations, 3 for evaluations: a resumed run draws the same.
    assert keys[:2] == [key(1, 0), key(1, 1)]
    assert set(keys[2:]) <= {key(2, iteration) for iteration in range(10)} and key(3) not in keys


def test_times_are_parts_of_the_run(finished):
    records = finished[0].history()
    walls = [0.0] + [record["wall_s"] for record in records]
    times = {(name, row) for row, record in enumerate(records) for name in record if name.startswith("time/")}
    assert {"time/rollout_s", "time/sft_s", "time/prm_s", "time/policy_s", "time/eval_s"} <= {name for name, _ in times}
    for name, row in times:
        assert 0 <= records[row][name] <= walls[row + 1], name
    assert walls == sorted(walls) and 0 < walls[1] and walls[-1] <= finished[0].took


def test_the_estimator_s_speed_counts_the_steps_that_it_was_trained_on(spa_base):
    epochs = [record for record in spa_base.history() if "estimator/steps_per_s" in record]
    steps = {round(record["estimator/steps_per_s"] * record["time/estimator_s"], 3) for record in epochs}
    assert epochs and all(count == round(count) > 0 for count in steps) and max(steps) <= spa_base.counters.of("explored_steps")


def test_a_copy_that_was_cut_off_is_made_again(micro_config, tmp_path):
    other, workdir = tmp_path / "other", tmp_path / "run"
    config = micro_config({"stages.sft": str(other)})
    release(claim(config, workdir))
    for name in ("tokenizer", "demonstrations"):
        (other / name).mkdir(parents=True)
        (other / name / "file").write_text("whole")
        (workdir / f".{name}.copy").mkdir(parents=True)
        (workdir / f".{name}.copy" / "file").write_text("ha")
    locks = claim(config, workdir)
    borrow_words(config, workdir)
    release(locks)
    assert not [path for path in workdir.iterdir() if path.name.endswith(".copy")]
    assert all((workdir / name / "file").read_text() == "whole" for name in ("tokenizer", "demonstrations"))
