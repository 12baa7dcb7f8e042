"""The study's plan and report, on synthetic runs."""

import importlib
import json

import numpy as np
import pytest

from stepreward import credit
from stepreward.config import load_config_file
from stepreward.training import setup


@pytest.fixture
def study(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "experiments"))
    return importlib.import_module("study")


def recorded(folder, final, budget=1000, points=5, per_step=3.0):
    folder.mkdir(parents=True)
    steps = np.linspace(0, budget, points)
    lines = [
        {"iteration": i, "env_steps": int(x), "wall_s": 9.0, "eval/success": 0.2 + (final - 0.2) * x / budget}
        | ({"rollout/sampled_tokens": per_step * x} if i else {})
        for i, x in enumerate(steps)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_height_of_a_curve(study, tmp_path):
    recorded(tmp_path / "run", 0.6)
    assert study.heights(tmp_path / "run", 1000) == pytest.approx(0.4)
    assert study.heights(tmp_path / "run", 500) == pytest.approx(0.3)  # what lies behind the budget is cut off
    assert study.heights(tmp_path / "run", 2000) == pytest.approx((0.4 + 0.6) / 2)  # the last value holds on
    assert study.heights(tmp_path / "run", 3000, "rollout/sampled_tokens") == pytest.approx(0.4) and study.tokens(tmp_path / "run") == 3000


def test_every_arm_is_tuned_equally_and_its_settings_exist(study, root):
    for arm, found in study.ARMS.items():
        mine = study.configurations(arm)
        assert len(mine) == len({json.dumps(c) for c in mine}) == study.CONFIGURATIONS and mine == study.configurations(arm)
        assert found.fixed["credit.method"] in credit.names()
    assert not set(study.TUNING_SEEDS) & set(range(10))
    for task in study.TASKS.values():
        for arm, found in study.ARMS.items():
            if arm == "oracle" and not task.exact:
                continue
            for chosen in study.configurations(arm):
                config = load_config_file(f"{root}/{task.config}")
                with config.unlocked():
                    for key, value in {**task.settings, **found.fixed, **chosen}.items():
                        *groups, last = key.split(".")
                        group = config
                        for name in groups:
                            group = group[name]
                        group[last] = (
                            value
                            if isinstance(group.get(last), str)
                            else json.loads(value.lower())
                            if value[0] not in "abcdefghijklmnopqrstuvwxyz"
                            else value
                        )
                setup.make_method(config)


def test_the_best_configuration_is_chosen(study, tmp_path):
    for run in study.tuning_runs("rooms", "rloo"):
        number = int(run.name.rsplit("_", 1)[1])
        recorded(run.folder(tmp_path), 0.9 if number == 5 else 0.3 + 0.01 * number, budget=run.budget)
    assert study.choose(tmp_path, "rooms", "rloo") == study.configurations("rloo")[5]
    assert len(json.loads((tmp_path / "rooms" / "chosen_rloo.json").read_text())["tuning"]) == study.CONFIGURATIONS


def test_the_report_pairs_seeds_and_corrects_for_many_arms(study, tmp_path, capsys):
    pytest.importorskip("rliable")
    pytest.importorskip("statsmodels")
    budget, rng = study.TASKS["rooms"].budget, np.random.default_rng(0)
    for seed in range(8):
        level = 0.4 + 0.2 * rng.random()
        for arm, more in (("rloo", 0.0), ("gigpo", 0.1 + 0.01 * rng.random()), ("istar", 0.02 * rng.normal())):
            recorded(tmp_path / "rooms" / f"{arm}_{seed}", level + more, budget=budget)
    rows = {row["arm"]: row for row in study.report(tmp_path, ["rooms", "shop"], ["rloo", "gigpo", "istar", "spa"], list(range(8)))}
    assert set(rows) == {"rloo", "gigpo", "istar"} and rows["rloo"]["difference"] == 0  # an arm without its runs is left out
    assert rows["gigpo"]["difference"] == pytest.approx(0.0525, abs=0.003) and rows["gigpo"]["half"] < 0.005
    assert rows["gigpo"]["p_holm"] == pytest.approx(2 * rows["gigpo"]["p"]) and rows["gigpo"]["p_holm"] < 0.05 < rows["istar"]["p_holm"]
    assert rows["rloo"]["low"] < rows["rloo"]["iqm"] < rows["rloo"]["high"]
    printed = capsys.readouterr().out
    assert "| gigpo |" in printed and "shop" not in printed
    assert (tmp_path / "study.csv").read_text().count("\n") == 4 and (tmp_path / "study.png").stat().st_size > 1000
