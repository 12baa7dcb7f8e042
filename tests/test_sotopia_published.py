"""iStar's experiment on SOTOPIA's own package with a model in the published layout: partner and judge over HTTP, no network."""

import itertools

import pytest

pytest.importorskip("sotopia", reason="the extra sotopia is not installed")
pytest.importorskip("torch")

from sotopia_stub import judges, serving, write_data
from test_pretrained_run import make_model

from stepreward.config import load_config_file
from stepreward.training.train import Runner

SMALL = {
    "model.preset": "checkpoint", "model.compute_dtype": "float32", "model.remat": "none", "rollout.groups": 1, "rollout.group_size": 4, "rollout.max_rows": 4,
    "rollout.max_steps": 2, "rollout.max_prompt_tokens": 1144, "rollout.max_answer_tokens": 8, "rollout.max_row_tokens": 1152,
    "train.env_steps": 2, "train.chunk_rows": 2, "eval.episodes": 1, "eval.every": 99, "environment.options.partner_model": "partner",
    "environment.options.judge_model": "judge",
}  # fmt: skip


def test_the_papers_experiment_runs_on_a_published_model(root, tmp_path):
    folder = make_model(tmp_path / "Qwen2.5-tiny-Instruct", positions=2048)
    goals = itertools.cycle((9, 3, 7, 2))  # both labels in a group; without a cache, equal talks are judged anew
    with serving() as stub:
        stub.judge = lambda prompt: judges((goal := next(goals), 10 - goal))
        config = load_config_file(f"{root}/configs/istar_sotopia.py:paper")
        config.update_from_flattened_dict(SMALL | {"model.path": str(folder), "environment.data": str(write_data(tmp_path / "data"))})
        config.environment.options.update({"partner_url": stub.url, "judge_url": stub.url})
        runner = Runner(config, tmp_path / "run")
        runner.run()
        assert runner.finished and stub.count("judge") and stub.count("partner")
        assert set(stub.models) == {("partner", 0.7), ("judge", 0.0)}
    (first, *_) = [r for r in runner.history() if r["stage"] == "train"]
    assert first["rollout/failed_episodes"] == 0 and first["rollout/score"] > 0
    assert first["prm/pairs"] > 0 and first["prm/grad_norm"] > 0 and first["policy/grad_norm"] > 0
