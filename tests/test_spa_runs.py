"""A run of SPA from the supervised start to the evaluation: the output of each phase, run separately or together."""

import json

import jax
import numpy as np
import pytest
from resuming import measured

from stepreward.errors import UserError
from stepreward.report.episodes import list_episodes, read_episodes
from stepreward.rollout.episode import summary
from stepreward.training import main_job, setup
from stepreward.training.auxiliaries.estimator import held_out_groups
from stepreward.training.outputs import StageOutput
from stepreward.training.tasks import held_out_tasks
from stepreward.training.train import Runner

EVERY_TICK = {"tick", "iteration", "stage", "env_steps", "wall_s"}
SUMMARY = {"success", "score", "return", "steps_per_episode", "executed", "invalid", "entropy", "answer_tokens"}
CUTS = {"step_limit", "environment_limit", "too_long", "row_full", "observations_cut", "answers_cut", "longest_prompt"}
ROLLOUT = {f"rollout/{k}" for k in SUMMARY | CUTS} | {
    "rollout/failed_episodes",
    "rollout/tokens_per_s",
    "time/rollout_s",
}
TOKENS = {"rollout/sampled_tokens", "rollout/prompt_tokens"}
EVAL = {"eval/success", "eval/score", "eval/return", "eval/steps_per_episode", "eval/executed", "eval/episodes", "time/eval_s"}
EPOCH = {"estimator/loss", "estimator/grad_norm", "estimator/held_out_loss", "estimator/steps_per_s", "time/estimator_s"}
QUALITY = {"rank_correlation", "rank_correlation_within", "sign_accuracy", "steps"}
FIT = {"mse", "mae", "within_0.1", "mse_of_mean", "explained", "calibration_error"}
CREDIT = {f"credit/{k}" for k in QUALITY | {"step_reward_std", "explained_variance", "advantage_rank_correlation"}}
CREDIT |= {
    f"credit/{k}" for k in ("flat_groups", "mixed_groups", "outcome_mean", "outcome_group_std", "step_reward_mean", "shaped_to_outcome")
}
CREDIT |= {"credit/advantage_mean", "credit/advantage_std", "credit/advantage_max"}
CRITIC = {"critic/loss", "critic/grad_norm", "critic/value_error", "critic/value_clip_fraction", "time/critic_s"}
POLICY = {"policy/loss", "policy/grad_norm", "policy/clip_fraction", "policy/approx_kl", "policy/ratio_mean", "policy/entropy",
          "policy/clip_fraction_low", "policy/clip_fraction_high", "policy/dual_clip_fraction", "policy/ratio_max", "policy/ratio_min",
          "policy/sampler_gap", "policy/sampler_gap_nats", "time/policy_s", "time/scoring_s"}  # fmt: skip
HEALTH = {"health/reward_std", "health/flat_groups"}
FINAL = {f"final/{end}_{k}" for end in ("start", "end") for k in SUMMARY | {"success_low", "success_high", "episodes", "failed_episodes"}}
STAGES = ("sft", "explore", "estimator", "train", "evaluate")


def borrow(runner, *names):
    """Changes of a config that take another run's stages."""
    return {f"stages.{name}": str(runner.workdir) for name in names or ("sft", "exploration", "estimator")}


def test_a_run_passes_through_its_phases(spa_base):
    records = spa_base.history()
    phases = ["sft"] * 2 + ["explore"] * 3 + ["estimator"] * 2 + ["train"] * 3 + ["evaluate"]
    assert spa_base.finished and [r["stage"] for r in records] == phases
    assert [r["tick"] for r in records] == list(range(1, 12))
    sft, explore, estimator, rl = records[:2], records[2:5], records[5:7], records[7:10]
    assert set(sft[1]) == EVERY_TICK | EVAL | {"sft/loss", "sft/entropy", "sft/grad_norm", "sft/demonstrations_left_out", "time/sft_s"}
    assert sft[1]["sft/loss"] < sft[0]["sft/loss"]
    assert all(set(r) == EVERY_TICK | ROLLOUT | {"explore/env_steps"} for r in explore)
    assert set(estimator[0]) == EVERY_TICK | EPOCH
    assert set(estimator[1]) == EVERY_TICK | EPOCH | {f"estimator/{k}" for k in QUALITY | FIT}
    for r, looked in zip(rl, (set(), EVAL, EVAL)):
        assert set(r) == EVERY_TICK | ROLLOUT | TOKENS | HEALTH | CREDIT | CRITIC | POLICY | looked
        assert r["policy/sampler_gap"] < 1e-4
    assert set(records[10]) == EVERY_TICK | FINAL | {"time/eval_s"}
    # Exploration is counted apart from the steps that the policy is trained on.
    steps = [round(r["rollout/steps_per_episode"] * n) for r, n in zip(explore, (12, 12, 8))]
    assert [r["explore/env_steps"] for r in explore] == np.cumsum(steps).tolist()
    assert [r["env_steps"] for r in records[:8]] == [0] * 7 + [round(16 * rl[0]["rollout/steps_per_episode"])]
    assert rl[2]["env_steps"] >= 300 > rl[1]["env_steps"]


def test_packed_rows_train_estimator_critic_and_policy_the_same(spa_base, spa_config, tmp_path):
    runner = Runner(spa_config({"train.pack_rows": True, "train.env_steps": 100}), tmp_path / "run")
    runner.run()
    expected, found = measured(spa_base.workdir)[:8], measured(runner.workdir)[:8]
    assert found[-1]["stage"] == "train"
    for before, after in zip(expected, found):
        assert before.pop("stage") == after.pop("stage") and set(before) - {"eval/success"} <= set(after)
        for name in set(before) & set(after) - {"credit/advantage_rank_correlation"}:  # which ranks what is all but equal
            np.testing.assert_allclose(after[name], before[name], rtol=1e-3, atol=1e-4, err_msg=name)


def test_every_explored_episode_is_recorded_and_only_some_tasks_train(spa_base):
    episodes = spa_base.exploration.read()
    assert [e.task.group for e in episodes] == np.repeat(np.arange(8), 4).tolist()
    assert len({e.task.seed for e in episodes}) == 8 and {e.task.split for e in episodes} == {"train"}
    steps = [sum(len(e.steps) for e in episodes if e.task.group in part) for part in ((0, 1, 2), (3, 4, 5), (6, 7))]
    explored = [r["explore/env_steps"] for r in spa_base.history() if r["stage"] == "explore"]
    assert explored == np.cumsum(steps).tolist()
    # The estimator is measured on the two tasks that are held out, of eight.
    (last,) = [r for r in spa_base.history() if "estimator/steps" in r]
    batch = spa_base.learner.layout.pack(episodes, row_multiple=1)
    held_out = held_out_groups(batch.group_id, 0.25, 0)
    assert len(held_out) == 2 and last["estimator/steps"] == batch.step_mask[np.isin(batch.group_id, held_out)].sum()
    mine = batch.outcome[~np.isin(batch.group_id, held_out)]
    theirs = batch.outcome[np.isin(batch.group_id, held_out)]
    assert last["estimator/mse_of_mean"] == pytest.approx(((theirs - mine.mean()) ** 2).mean(), rel=1e-5)


def test_nothing_compiles_after_the_first_iterations(spa_base):
    """Of `auxiliary_step`, `estimate`, `critic_step`, `values` and `policy_step`; batches differ in their numbers of rows."""
    phases = [r["stage"] for r in spa_base.history()]
    first = {phase: spa_base.programs[phases.index(phase)] for phase in phases}
    assert spa_base.programs[6] == first["estimator"]
    assert spa_base.programs[-1] == first["train"]
    grown = np.array(first["train"]) - np.array(first["estimator"])
    assert (grown <= [0, 1, 1, 1, 1]).all()  # the estimator's passes over parts and over whole batches are two


def test_the_evaluation_compares_the_supervised_policy_with_the_trained_one(spa_base, spa_config):
    table = json.loads((spa_base.workdir / "evaluation.json").read_text())
    record = spa_base.history()[-1]
    assert set(table) == {"start", "end"}
    for end in table:
        assert {f"final/{end}_{k}": v for k, v in table[end].items()}.items() <= record.items()
        assert table[end]["success_low"] <= table[end]["success"] <= table[end]["success_high"] and table[end]["episodes"] == 32
    config = spa_config()
    parts = setup.build(config, spa_base.workdir)
    tasks = held_out_tasks(config, parts.collector.pool, 32)
    supervised, _ = StageOutput(spa_base.workdir, "sft").read(spa_base.learner.actor, spa_base.fingerprint("sft"))
    for end, params in (("start", supervised), ("end", spa_base.learner.actor)):
        found = summary(parts.collector.collect(params, tasks, jax.random.fold_in(jax.random.key(0), 3)))
        assert found.items() <= table[end].items()
    parts.collector.pool.close()
    assert any(table["start"][k] != table["end"][k] for k in table["start"])


def test_recorded_episodes_show_the_credit_of_each_step(spa_base):
    folders = list_episodes(spa_base.workdir)
    assert len(folders) == 2  # of the iterations that were evaluated
    steps = [[(s["step_reward"], s["step_advantage"]) for s in e["steps"]] for e in read_episodes(folders[-1])["episodes"]]
    long = [np.array(s, float) for s in steps if len(s) > 1]
    assert long and all(np.isfinite(s).all() for s in long)
    assert all(np.ptp(s, axis=0).min() > 1e-6 for s in long)


@pytest.fixture(scope="module")
def piecewise(spa_base, spa_config, tmp_path_factory):
    """The workdir of the same run, made one stage at a time by a runner each, and what `stage` refused on the way."""
    workdir, refused = tmp_path_factory.mktemp("piecewise") / "run", {}

    def refuse(stage):
        runner = Runner(spa_config(), workdir)
        with pytest.raises(UserError) as caught:
            runner.run(stage)
        return str(caught.value)

    refused["too early"] = refuse("train")
    for stage in STAGES:
        Runner(spa_config(), workdir).run(stage)
        refused[stage] = refuse(stage)
    return workdir, refused


def test_stages_one_at_a_time_give_the_metrics_of_one_go(piecewise, spa_base):
    workdir, _ = piecewise
    assert measured(workdir) == measured(spa_base.workdir)
    assert (workdir / "evaluation.json").read_bytes() == (spa_base.workdir / "evaluation.json").read_bytes()


def test_a_stage_out_of_turn_is_one_error(piecewise):
    _, refused = piecewise
    assert refused["too early"] == "stage train comes after sft, which is not finished here: run --stage=sft first."
    for stage, following in zip(STAGES, [*STAGES[1:], "none: the run is finished"]):
        assert refused[stage] == f"stage {stage} is finished in this workdir; the next one is {following}."


def test_a_stage_that_the_method_lacks_is_one_error(spa_base, spa_config, tmp_path):
    lacking = {
        "explore": ({"credit.method": "ppo"}, "credit.method=ppo does not need it"),
        "evaluate": ({"eval.final_episodes": 0}, "eval.final_episodes=0"),
    }
    for stage, (changes, words) in lacking.items():
        for taken in ({}, borrow(spa_base, "sft")):
            runner = Runner(spa_config(changes | taken), tmp_path / f"{stage} {len(taken)}")
            with pytest.raises(UserError, match=f"this run has no stage {stage}: {words}"):
                runner.run(stage)


def test_the_job_says_which_stage_is_next(spa_base, spa_config, tmp_path, capsys):
    config = spa_config(borrow(spa_base, "sft", "exploration"))
    assert main_job.train(config, tmp_path / "run", stage="sft") == 0
    assert "next: --stage=estimator" in capsys.readouterr().out  # another run has explored
    assert main_job.train(config, tmp_path / "run", stage="estimator") == 0
    assert "next: --stage=train" in capsys.readouterr().out


def test_a_run_with_another_s_stages_begins_where_it_ended(spa_base, spa_config, tmp_path):
    for number, names in enumerate((("sft", "estimator"), ("sft", "exploration", "estimator"), ("sft", "exploration"), ("sft",))):
        config = spa_config(borrow(spa_base, *names))
        Runner(config, tmp_path / str(number)).run()
        theirs, mine = measured(spa_base.workdir), measured(tmp_path / str(number))
        made = [] if "estimator" in names else ["estimator"] * 2
        made = (["explore"] * 3 + made) if names == ("sft",) else made
        assert [r["stage"] for r in mine] == ["start", *made, *["train"] * 3, "evaluate"]
        looked = {k: v for k, v in theirs[1].items() if k.startswith("eval/")}
        assert mine[0] == {"tick": 1, "iteration": 0, "stage": "start", "env_steps": 0} | looked
        without = lambda r: {k: v for k, v in r.items() if k != "tick"}
        same = theirs[-len(mine) + 1 :]
        assert [r["stage"] for r in same] == [r["stage"] for r in mine[1:]]
        assert [without(r) for r in mine[1:]] == [without(r) for r in same]


def test_what_trains_may_change_until_it_has_begun_and_what_is_made_may_not(spa_base, spa_config, tmp_path):
    shared = borrow(spa_base, "sft", "exploration")
    Runner(spa_config(shared), tmp_path / "run").run("sft")
    Runner(spa_config(shared), tmp_path / "run").run("estimator")
    held = (tmp_path / "run" / "config.json").read_bytes()
    for changes, words in (
        ({"sft.updates": 50}, "sft.updates: 100 -> 50"),
        ({"estimator.epochs": 3}, "estimator.epochs: 2 -> 3"),
        ({"rollout.temperature": 0.5}, "rollout.temperature: 1.0 -> 0.5"),
    ):
        with pytest.raises(UserError, match="contains a run with another config") as caught:
            Runner(spa_config(shared | changes | {"policy.learning_rate": 2e-3}), tmp_path / "run")
        assert words in str(caught.value) and "policy.learning_rate" not in str(caught.value)
        assert (tmp_path / "run" / "config.json").read_bytes() == held
    with pytest.raises(UserError, match="made with progress_options = .*'sum of the episode'.*, but this run has .*'return of each"):
        Runner(spa_config(shared | {"credit.method": "rudder"}), tmp_path / "run")
    changed = shared | {"policy.learning_rate": 2e-3, "credit.options.beta": 0.1, "train.env_steps": 100}
    Runner(spa_config(changed), tmp_path / "run").run()
    theirs = [r for r in measured(spa_base.workdir) if r["stage"] == "train"]
    mine = [r for r in measured(tmp_path / "run") if r["stage"] == "train"]
    assert len(mine) == 1 and mine[0]["rollout/return"] == theirs[0]["rollout/return"]
    assert mine[0]["credit/step_reward_std"] != theirs[0]["credit/step_reward_std"]
    late = {"policy.learning_rate": (3e-3, "policy.learning_rate: 0.002 -> 0.003"), "sft.log_every": (7, "sft.log_every: 50 -> 7")}
    for key, (value, words) in late.items():
        with pytest.raises(UserError) as caught:
            Runner(spa_config(changed | {key: value}), tmp_path / "run")
        assert words in str(caught.value)


def test_everything_that_an_auxiliary_saves_comes_back(spa_base):
    """The trees of a finished run, in the structure that a fresh one expects."""
    learnt = spa_base.learner
    facts = learnt.facts()
    assert set(facts["auxiliaries"]) == {"critic", "estimator"}
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert shapes(learnt.template(facts)) == shapes(learnt.tree())
