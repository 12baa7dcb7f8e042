"""A run's counters: their initial values, and saving and loading."""

import dataclasses
import json

from stepreward.training.counters import PHASES, Counters


def test_a_fresh_run_has_done_nothing():
    fresh = dataclasses.asdict(Counters())
    assert fresh.pop("phase") == "sft" == next(iter(PHASES)) and fresh.pop("taken") == []
    assert fresh == dict.fromkeys(
        ("tick", "sft_updates", "explored_parts", "explored_steps", "estimator_epochs", "prm_batches", "iteration", "env_steps",
         "failed_episodes", "wall_s"), 0,
    )  # fmt: skip
    assert Counters().taken is not Counters().taken


def test_counters_come_back_from_json():
    counters = Counters(phase="rl", tick=7, taken=["explore"], iteration=3, env_steps=40, wall_s=1.5)
    assert Counters(**json.loads(json.dumps(dataclasses.asdict(counters)))) == counters
