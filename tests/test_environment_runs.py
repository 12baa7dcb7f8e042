"""Every experiment on a real environment runs through all of its phases in a few seconds."""

import shutil

import pytest

from stepreward.config import load_config_file
from stepreward.metrics import read_metrics
from stepreward.training.train import Runner


@pytest.mark.parametrize(
    "experiment, package",
    [("istar_webshop", None), ("istar_sotopia", None), ("spa_webshop", None), ("istar_virtualhome", "virtualhome_eval"),
     ("spa_virtualhome", "virtualhome_eval"), ("istar_alfworld", "alfworld"), ("spa_alfworld", "alfworld"),
     ("istar_textcraft", "textcraft"), ("spa_textcraft", "textcraft"), ("istar_scienceworld", "scienceworld"),
     ("istar_search_qa", None), ("spa_search_qa", None)],
)  # fmt: skip
def test_a_micro_run_ends_with_an_evaluation(root, tmp_path, experiment, package):
    if package is not None:
        pytest.importorskip(package)
    if package == "scienceworld" and shutil.which("java") is None:
        pytest.skip("needs Java")
    config = load_config_file(f"{root}/configs/{experiment}.py:micro")
    Runner(config, tmp_path / "run").run()
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert records[-1]["env_steps"] >= config.train.env_steps
    evaluated = [r for r in records if r.get("eval/success") is not None]
    assert evaluated and all(0 <= r["eval/executed"] <= 1 for r in evaluated)
    assert not any(r.get("rollout/failed_episodes") for r in records)
