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


def recorded(study, final, budget=1000, points=5, per_step=3.0):
    """The curve of a run whose success rises evenly from 0.2."""
    steps = np.linspace(0, budget, points)
    return study.Curve(steps, per_step * steps, 0.1 * steps, 0.2 + (final - 0.2) * steps / budget)


def test_the_height_of_a_curve(study):
    curve = recorded(study, 0.6)
    assert study.heights(curve, 1000) == pytest.approx(0.4)
    assert study.heights(curve, 500) == pytest.approx(0.3)  # what lies behind the budget is cut off
    assert study.heights(curve, 2000) == pytest.approx((0.4 + 0.6) / 2)  # the last value holds on
    assert study.heights(curve, 3000, "sampled_tokens") == pytest.approx(0.4)


def test_the_curve_of_a_run_is_its_evaluations(study, tmp_path):
    lines = [
        {"iteration": 0, "env_steps": 0, "wall_s": 1.0, "eval/success": 0.2},
        {"iteration": 1, "env_steps": 50, "wall_s": 2.0, "rollout/sampled_tokens": 140.0},
        {"iteration": 2, "env_steps": 100, "wall_s": 3.0, "rollout/sampled_tokens": 290.0},
        {"iteration": 2, "env_steps": 100, "wall_s": 4.0, "eval/success": 0.3},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = study.curve_of(tmp_path)
    assert [list(axis) for axis in found] == [[0, 100], [0, 290], [1, 4], [0.2, 0.3]]
    (tmp_path / "metrics.jsonl").write_text(json.dumps(lines[1]) + "\n")
    with pytest.raises(ValueError, match="has no evaluation"):
        study.curve_of(tmp_path)


def test_results_are_kept_and_not_made_again(study, tmp_path, monkeypatch):
    made = []

    def launch(folder, config, overrides, seed, stage=None):
        made.append((folder.name, stage))
        if stage is None:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "metrics.jsonl").write_text(json.dumps({"env_steps": 0, "wall_s": 1.0, "eval/success": 0.25}) + "\n")
        return int(folder.name == "gigpo_1")

    monkeypatch.setattr(study, "launch", launch)
    runs = [run for arm in ("rloo", "gigpo") for run in study.final_runs("rooms", arm, {}, [0, 1])]
    study.play(tmp_path, study.Results(tmp_path / "runs.csv"), runs[:1], 1)
    assert made == [("start_0", "sft"), ("rloo_0", None)] and not (tmp_path / "rooms" / "rloo_0").exists()
    results = study.Results(tmp_path / "runs.csv")
    assert runs[0] in results and results.curves["rooms", "rloo", 0].success == [0.25]
    made.clear()
    study.play(tmp_path, results, runs, 1)
    assert ("rloo_0", None) not in made and made.count(("gigpo_1", None)) == 2  # a run that fails is made once more
    assert [run in study.Results(tmp_path / "runs.csv") for run in runs] == [True, True, True, False]


def test_every_arm_is_tuned_and_its_settings_exist(study, root):
    for arm, found in study.ARMS.items():
        mine = study.configurations(arm)
        assert 1 <= len(mine) == len({json.dumps(c) for c in mine}) <= study.CONFIGURATIONS and mine == study.configurations(arm)
        assert found.fixed["credit.method"] in credit.names()
        assert arm == study.BASELINE or not set(found.ranges) & set(study.POLICY)  # the policy's settings are the baseline's
    assert len(study.configurations(study.BASELINE)) == study.CONFIGURATIONS
    assert not set(study.TUNING_SEEDS) & set(range(10))
    policy = study.configurations(study.BASELINE)[0]
    for task in study.TASKS.values():
        for arm, found in study.ARMS.items():
            if arm == "oracle" and not task.exact:
                continue
            for chosen in study.configurations(arm):
                config = load_config_file(f"{root}/{task.config}")
                with config.unlocked():
                    for key, value in {**task.settings, **policy, **found.fixed, **chosen}.items():
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


def test_the_best_configuration_is_chosen_and_the_baseline_sets_the_policy(study, tmp_path):
    results = study.Results(tmp_path / "runs.csv")
    for run in study.tuning_runs("rooms", "rloo"):
        number = int(run.name.rsplit("_", 1)[1])
        results.add(run, recorded(study, 0.9 if number == 2 else 0.3 + 0.01 * number, budget=run.budget))
    policy = study.choose(results, "rooms", "rloo")
    assert policy == study.configurations("rloo")[2] and set(policy) == set(study.POLICY)
    assert len(study.tuned(results, "rooms", "rloo")) == study.CONFIGURATIONS
    with pytest.raises(SystemExit, match="tune_gigpo_0 of rooms with seed 100 is missing"):
        study.choose(results, "rooms", "gigpo")
    for number, run in enumerate(study.tuning_runs("rooms", "gigpo", policy)):
        assert policy.items() <= run.overrides.items()
        results.add(run, recorded(study, 0.5 - 0.1 * abs(number - 1), budget=run.budget))
    assert study.choose(results, "rooms", "gigpo") == policy | study.configurations("gigpo")[1]
    assert study.tuning_runs("rooms", "oracle") == [] and study.choose(results, "rooms", "oracle") == policy  # it has nothing to choose


def test_the_report_pairs_seeds_and_corrects_for_many_arms(study, tmp_path, capsys, monkeypatch):
    pytest.importorskip("rliable")
    pytest.importorskip("statsmodels")
    budget, rng, results = study.TASKS["rooms"].budget, np.random.default_rng(0), study.Results(tmp_path / "runs.csv")
    for seed in range(8):
        level = 0.4 + 0.2 * rng.random()
        for arm, more in (("rloo", 0.0), ("gigpo", 0.1 + 0.01 * rng.random()), ("istar", 0.02 * rng.normal())):
            if arm != "istar" or seed < 6:
                results.add(study.Run("rooms", arm, seed, {}, budget), recorded(study, level + more, budget=budget))
    for arm in ("rloo", "gigpo", "istar"):
        for run in study.tuning_runs("rooms", arm):
            results.add(run, recorded(study, 0.5, budget=run.budget))
    monkeypatch.setattr(study, "PAGE", tmp_path / "study.md")
    monkeypatch.setattr(study, "DATA", tmp_path / "data.csv")
    monkeypatch.setattr(study, "PICTURE", tmp_path / "picture.png")
    study.PAGE.write_text("# Plan\n<!-- results -->\nold\n<!-- end of results -->\nThe end\n")
    found = study.report(tmp_path, results, ["rooms", "shop"], ["rloo", "gigpo", "istar", "spa"], writes=True)
    rows = {row["arm"]: row for row in found}
    assert set(rows) == {"rloo", "gigpo", "istar"} and rows["rloo"]["difference"] == 0  # an arm without runs is left out
    assert [rows[arm]["seeds"] for arm in ("rloo", "istar")] == [8, 6]
    assert rows["gigpo"]["difference"] == pytest.approx(0.0525, abs=0.003) and rows["gigpo"]["half"] < 0.005
    assert rows["gigpo"]["p_holm"] == pytest.approx(2 * rows["gigpo"]["p"]) and rows["gigpo"]["p_holm"] < 0.05 < rows["istar"]["p_holm"]
    assert rows["rloo"]["low"] < rows["rloo"]["iqm"] < rows["rloo"]["high"]
    printed, page = capsys.readouterr().out, study.PAGE.read_text()
    assert "| gigpo | 8 |" in printed and "shop" not in printed
    assert page.startswith("# Plan") and page.endswith("The end\n") and "old" not in page and "`policy.epochs=" in page
    assert study.DATA.read_text() == (tmp_path / "runs.csv").read_text() and study.PICTURE.stat().st_size > 1000
    assert (tmp_path / "study.csv").read_text().count("\n") == 4 and (tmp_path / "study.png").stat().st_size > 1000
    again = study.report(tmp_path, study.Results(study.DATA), ["rooms"], ["rloo", "gigpo", "istar"])
    assert [row["difference"] for row in again] == pytest.approx([row["difference"] for row in found], abs=1e-6)


def test_a_page_without_its_marks_stays_as_it_is(study, tmp_path):
    page = tmp_path / "page.md"
    for text in ("# Plan\n", "<!-- results -->\nold\n", "<!-- end of results -->\n<!-- results -->\n"):
        page.write_text(text)
        with pytest.raises(ValueError, match="lacks the line '<!-- results -->'"):
            study.replace_parts(page, {"results": "new"})
        assert page.read_text() == text
