"""A run's counters: their initial values, and saving and loading."""

import dataclasses
import json

from stepreward.training.counters import Counters
from stepreward.training.stages import STAGES


def test_a_fresh_run_has_done_nothing():
    fresh = dataclasses.asdict(Counters())
    assert fresh.pop("stage") == "sft" == STAGES[0].name and fresh.pop("taken") == [] and fresh.pop("count") == {}
    assert fresh == dict.fromkeys(
        ("tick", "iteration", "env_steps", "failed_episodes", "wall_s"), 0,
    )  # fmt: skip
    assert Counters().taken is not Counters().taken and Counters().count is not Counters().count
    for name in ("sft_updates", "explored_parts", "explored_steps", "estimator_epochs", "prm_batches"):
        assert Counters().of(name) == 0


def test_counters_come_back_from_json():
    counters = Counters(stage="train", tick=7, taken=["explore"], iteration=3, env_steps=40, wall_s=1.5)
    counters.add("sft_updates", 3)
    counters.add("sft_updates")
    assert counters.of("sft_updates") == 4
    assert Counters(**json.loads(json.dumps(dataclasses.asdict(counters)))) == counters
