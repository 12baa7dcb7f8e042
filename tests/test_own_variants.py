"""The variants under names of their own, which are in no paper: iStar with pairs of one state, SPA with an outcome at every step."""

import math

import pytest
from resuming import assert_same_after_a_kill

from stepreward.metrics import read_metrics

ISTAR = {
    "credit.variant": "state_pairs",
    "prm.replay": 1,
    "prm.warmup_batches": 1,
    "checkpoint.every": 1,
    "train.env_steps": 500,
    "eval.every": 2,
}
SPA = {"credit.method": "spa", "credit.variant": "every_step", "estimator.refresh_every": 2, "train.env_steps": 500, "eval.every": 2}


@pytest.mark.parametrize("options", [ISTAR, SPA], ids=["state_pairs", "every_step"])
def test_a_run_learns_from_its_labels_and_goes_on_after_a_kill(options, micro_config, tmp_path, root):
    whole = read_metrics(assert_same_after_a_kill(micro_config(options), tmp_path, root))
    trained = [record for record in whole if record["stage"] == "train" and "policy/loss" in record]
    assert all(math.isfinite(record["policy/loss"]) for record in trained)
    if options is ISTAR:
        assert any(record.get("prm/pairs", 0) > 0 for record in trained) and any("prm/train_pairs" in record for record in trained)
    else:
        assert any("estimator/held_out_loss" in record for record in whole)
