"""Whole runs of the micro preset: every phase and method, and every option that changes the order of the steps."""

import logging

import chex
import jax
import numpy as np
import pytest

from stepreward import signals
from stepreward.config import TrackedConfig, leaves, unread_keys
from stepreward.errors import UserError
from stepreward.metrics import read_metrics
from stepreward.report.page import summarize
from stepreward.report.tables import failed_episodes
from stepreward.training import main_job, setup, words
from stepreward.training.auxiliaries.prm import score
from stepreward.training.auxiliaries.update import auxiliary_step
from stepreward.training.evaluate import evaluate_workdir, load_checkpoint
from stepreward.training.policy import policy_step, sft_step
from stepreward.training.run import TrainingDiverged
from stepreward.training.train import Runner

EVERY_TICK = {"tick", "iteration", "stage", "env_steps", "wall_s"}
SFT = {"sft/loss", "sft/entropy", "sft/grad_norm", "sft/demonstrations_left_out", "time/sft_s"}
ROLLOUT = {
    "rollout/success",
    "rollout/score",
    "rollout/return",
    "rollout/steps_per_episode",
    "rollout/executed",
    "rollout/invalid",
    "rollout/entropy",
    "rollout/failed_episodes",
    "rollout/sampled_tokens",
    "rollout/prompt_tokens",
    "rollout/tokens_per_s",
    "time/rollout_s",
    "time/scoring_s",
    "rollout/step_limit",
    "rollout/environment_limit",
    "rollout/too_long",
    "rollout/row_full",
    "rollout/observations_cut",
    "rollout/answers_cut",
    "rollout/longest_prompt",
    "rollout/answer_tokens",
}
HEALTH = {"health/reward_std", "health/flat_groups"}  # fmt: skip
LOSS = ("loss", "objective", "nll", "pairs", "pair_accuracy", "pair_margin")  # what iStar's loss says
PRM = {f"prm/{name}" for name in LOSS}
PRM_UPDATE = {"prm/grad_norm", "prm/train_loss", "time/prm_s"}
LEARNT = {"prm/grad_norm", *(f"prm/train_{name}" for name in LOSS)}  # where a group has a pair
POLICY = {"policy/loss", "policy/grad_norm", "policy/clip_fraction", "policy/approx_kl", "policy/ratio_mean", "policy/entropy",
          "policy/clip_fraction_low", "policy/clip_fraction_high", "policy/dual_clip_fraction", "policy/ratio_max", "policy/ratio_min",
          "policy/sampler_gap", "policy/sampler_gap_nats", "time/policy_s"}  # fmt: skip
CREDIT = {"credit/step_reward_std", "credit/step_reward_group_std", "credit/process_share", "credit/alpha", "credit/coefficient_alpha", "prm/kl_policy",
          "credit/flat_groups", "credit/mixed_groups", "credit/outcome_mean", "credit/outcome_group_std", "credit/advantage_mean",
          "credit/advantage_std", "credit/advantage_max", "credit/step_reward_mean", "credit/step_reward_max", "credit/prm_kl_k1",
          "credit/prm_kl_k3", "credit/shaped_to_outcome"}  # fmt: skip
ADVANTAGE_QUALITY = "credit/advantage_rank_correlation"  # defined where advantages differ
REPLAY = {"prm.replay": 1, "prm.warmup_batches": 2, "prm.epochs": 2, "prm.minibatch_groups": 0}
EVAL = {"eval/success", "eval/score", "eval/return", "eval/steps_per_episode", "eval/executed", "eval/episodes", "time/eval_s"}


def flat_params(model):
    return np.concatenate([np.asarray(x).ravel() for x in jax.tree.leaves(model.params)])


@pytest.fixture(scope="module")
def run(micro_config, tmp_path_factory):
    """`run(changes)`: a finished micro run with some config keys changed; the shared demonstrations are made once."""
    base = tmp_path_factory.mktemp("runs")
    made = {}

    def finish(changes):
        key = tuple(sorted(changes.items()))
        if key not in made:
            runner = Runner(micro_config({"train.env_steps": 200, **changes}), base / str(len(made)))
            made[key] = runner
            learner = runner.learner
            begin = learner.begin_rl

            def begin_rl():
                begin()
                runner.start = None if "prm" not in learner.auxiliaries else flat_params(learner.auxiliaries["prm"])

            learner.begin_rl = begin_rl
            runner.programs = []
            runner.on_tick = lambda r, _: r.programs.append([f._cache_size() for f in (sft_step, policy_step, auxiliary_step, score)])
            runner.run()
        return made[key], made[key].history()

    return finish


def test_the_default_run_passes_through_its_phases(run):
    runner, records = run({"train.env_steps": 300})
    assert runner.finished and [r["stage"] for r in records] == ["sft", "sft", "train", "train", "train"]
    assert [r["tick"] for r in records] == [1, 2, 3, 4, 5]
    assert set(records[0]) == EVERY_TICK | SFT
    assert set(records[1]) == EVERY_TICK | SFT | EVAL | {"prm/policy_success"}
    quality = {k for k in records[2] if k.startswith("credit/")} - CREDIT - {ADVANTAGE_QUALITY}
    assert any("correlation" in k for k in quality)
    rl = EVERY_TICK | ROLLOUT | HEALTH | PRM | LEARNT | {"time/prm_s"} | POLICY | CREDIT | quality
    rl = [rl if r["prm/pairs"] else rl - LEARNT for r in records[2:]]
    rl = [keys | ({ADVANTAGE_QUALITY} if r["policy/grad_norm"] > 0 else set()) for keys, r in zip(rl, records[2:])]
    assert any(ADVANTAGE_QUALITY in keys for keys in rl)
    assert set(records[2]) == rl[0] and set(records[3]) == rl[1] | EVAL | {"prm/policy_success"}
    assert set(records[4]) == rl[2] | EVAL
    assert records[1]["sft/loss"] < records[0]["sft/loss"]
    assert records[4]["env_steps"] >= 300 > records[3]["env_steps"]
    assert sum(r["prm/pairs"] for r in records[2:]) > 0 and max(r.get("prm/grad_norm", 0) for r in records[2:]) > 0
    assert all(r["policy/sampler_gap"] < 1e-4 for r in records[2:])  # the sampler's and the trainer's log-probabilities agree
    assert np.abs(flat_params(runner.learner.auxiliaries["prm"]) - runner.start).max() > 1e-4
    assert len(list((runner.workdir / "episodes").iterdir())) == 2


def test_the_times_of_a_tick_are_parts_of_the_run_s_time(run):
    _, records = run({"train.env_steps": 300})
    before = 0.0
    for record in records:
        parts = [value for name, value in record.items() if name.startswith("time/")]
        assert parts and all(value >= 0 for value in parts)
        assert sum(parts) <= record["wall_s"] - before
        before = record["wall_s"]


def test_sampler_and_trainer_agree_at_a_temperature_other_than_one(run):
    """The first ratios of each iteration are 1: both divide logits by the same temperature."""
    _, records = run({"credit.method": "rloo", "rollout.temperature": 0.7, "train.env_steps": 60})
    gaps = [r["policy/sampler_gap"] for r in records if r["stage"] == "train"]
    assert gaps and max(gaps) < 1e-4


def test_alpha_follows_the_pair_accuracy_of_each_batch(run):
    _, records = run({"train.env_steps": 300})
    for r in (r for r in records if r["stage"] == "train"):
        np.testing.assert_allclose(r["credit/alpha"], 0.3 * max(0.0, 2 * r["prm/pair_accuracy"] - 1), atol=1e-6)


def test_nothing_compiles_after_the_first_iterations(run):
    """Iterations differ in their numbers of rows, steps and pairs, never in shapes."""
    runner, records = run({"train.env_steps": 300})
    assert len({r["env_steps"] for r in records[2:]}) == 3
    assert runner.programs[0] == [runner.programs[-1][0], *runner.programs[0][1:]]  # one sft_step
    before, first, last = runner.programs[1], runner.programs[2], runner.programs[-1]
    assert [first[i] == last[i] for i in (1, 3)] == [True, True]
    assert sum(r["prm/pairs"] > 0 for r in records[2:]) > 1 and last[2] - before[2] <= 1  # compiled by the first batch with a pair


@pytest.mark.parametrize(
    "changes",
    [
        {"credit.options.step_reward": "shuffled", "credit.options.reward_from": "post"},
        {"credit.options.step_reward": "uniform"},
        {"credit.method": "prime"},
        REPLAY,
        {"rollout.context": "episode", "rollout.max_row_tokens": 168, "sft.rows": 16},
        {"policy.kl_coef": 0.1, "policy.entropy_coef": 0.01, "policy.advantage_norm": "whiten", "policy.epochs": 2,
         "credit.options.alpha_scaled": False, "credit.outcome": "return", "rollout.history": 1,
         "rollout.max_prompt_tokens": 64, "rollout.max_row_tokens": 66},
        {"credit.variant": "released"},
        {"credit.method": "rloo"},
    ],
    ids=lambda changes: " ".join(f"{k.split('.')[-1]}={v}" for k, v in changes.items())[:60],
)  # fmt: skip
def test_a_run_ends_with_finite_metrics(run, changes):
    runner, records = run(changes)
    phases = ["sft", "sft"] + ["prm_warmup"] * changes.get("prm.warmup_batches", 0) + ["train"]
    assert runner.finished and [r["stage"] for r in records][: len(phases)] == phases
    assert all(v is not None for r in records for v in r.values())
    last = records[-1]
    prm = runner.learner.auxiliaries.get("prm")
    trains_prm = prm is not None and not runner.method.prm_frozen
    assert set(last) >= EVERY_TICK | ROLLOUT | POLICY | EVAL
    updates = [set(r) & PRM_UPDATE for r in records]
    assert PRM_UPDATE in updates if trains_prm else not any(updates)
    if prm is None:
        assert not [k for k in last if k.startswith("prm/")]
    else:
        assert np.array_equal(flat_params(prm), runner.start) != trains_prm


def test_imitation_ends_when_its_loss_is_low_enough(run):
    whole = [r["sft/loss"] for r in run({"train.env_steps": 300})[1] if r["stage"] == "sft"]
    runner, records = run({"sft.stop_loss": whole[0] + 0.01})
    assert [r["stage"] for r in records][:2] == ["sft", "train"] and records[0]["sft/loss"] == whole[0]
    assert "eval/success" in records[0] and runner.counters.of("sft_updates") == runner.c.sft.log_every < runner.c.sft.updates


def test_the_prm_is_replayed_and_warmed_up_as_asked(run):
    runner, records = run(REPLAY)
    warm = [r for r in records if r["stage"] == "prm_warmup"]
    assert all(PRM | ROLLOUT <= set(r) and not POLICY & set(r) for r in warm)
    assert warm[1]["env_steps"] > warm[0]["env_steps"] > 0
    # Two epochs over the new batch and, from the second on, the one before it; a batch without a pair makes no update.
    pairs = [r["prm/pairs"] > 0 for r in records if "prm/pairs" in r]
    assert (
        int(runner.learner.auxiliaries["prm"].state.updates) == 2 * sum(pairs) + 2 * sum(pairs[:-1])
        and len(runner.learner.auxiliaries["prm"].replay) == 1
    )


def test_a_resynchronised_prm_starts_each_training_from_the_policy(run):
    still = {"prm.learning_rate": 1e-12, "prm.replay": 1, "credit.options.alpha_scaled": False}
    runner, records = run(still | {"prm.resync": True})
    prm, policy = runner.learner.auxiliaries["prm"], runner.learner.policy
    assert int(prm.state.updates) > 0 and np.abs(flat_params(policy) - runner.start).max() > 1e-4
    np.testing.assert_allclose(flat_params(prm), flat_params(policy), atol=1e-9)
    # The first step rewards are exactly 0, and all later ones too, since this PRM does not learn.
    assert all(r["credit/step_reward_std"] < 1e-4 for r in records if r["stage"] == "train")
    runner, _ = run(still)
    np.testing.assert_allclose(flat_params(runner.learner.auxiliaries["prm"]), runner.start, atol=1e-9)


def test_uniform_step_rewards_are_equal_within_an_episode(run):
    runner, _ = run({"credit.options.step_reward": "uniform"})
    steps = _recorded_rewards(runner)
    assert steps and all(np.ptp(rewards) < 1e-6 for rewards in steps)
    paper, _ = run({"train.env_steps": 300})
    assert any(np.ptp(rewards) > 1e-6 for rewards in _recorded_rewards(paper))


def _recorded_rewards(runner):
    from stepreward.report.episodes import list_episodes, read_episodes

    last = read_episodes(list_episodes(runner.workdir)[-1])
    return [[s["step_reward"] for s in e["steps"]] for e in last["episodes"] if len(e["steps"]) > 1]


# First steps are short; without a PRM, which at first says nothing but rounding errors.
PADDED = {"rollout.history": 1, "rollout.max_prompt_tokens": 64, "rollout.max_row_tokens": 66, "credit.method": "rloo",
          "policy.kl_coef": 0.1}  # fmt: skip


def test_packed_rows_train_the_same(run):
    (plain, expected), (packed, found) = run(PADDED), run({**PADDED, "train.pack_rows": True})
    assert packed.learner.layout.pack_rows and not plain.learner.layout.pack_rows
    assert packed.programs[2] == packed.programs[-1]  # shapes stay from the first iteration on
    assert len(expected) == len(found) and expected[-1]["policy/grad_norm"] > 0
    for before, after in zip(expected, found):
        assert set(before) == set(after)
        for name in set(before) - {"stage", "wall_s"}:
            if not name.startswith("time/") and "per_s" not in name:
                np.testing.assert_allclose(after[name], before[name], rtol=1e-3, atol=1e-4, err_msg=name)


def test_without_a_warm_start(micro_config, tmp_path):
    runner = Runner(micro_config({"sft.updates": 0, "sft.episodes": 1, "train.env_steps": 100}), tmp_path / "run")
    runner.run()
    assert runner.finished and "sft/loss" not in runner.history()[0] and "eval/success" in runner.history()[0]


def test_every_config_key_is_read(micro_config, spa_config, tmp_path):
    """By the main job with iStar or SPA; what is read on one branch only is on that branch in one of the runs."""
    borrowed = {f"stages.{name}": str(tmp_path / "spa") for name in ("sft", "exploration", "estimator")}
    branches = borrowed | {"train.mode": "offline", "policy.kl_reward_coef": 0.1, "policy.kl_reward_target": 0.1}
    runs = {
        "istar": micro_config({"train.env_steps": 300, "prm.warmup_batches": 1, "prm.replay": 1}),
        "spa": spa_config({"train.env_steps": 100}),
        "branches": spa_config(branches),
        "adapters": micro_config({"train.env_steps": 100, "lora.rank": 2, "rollout.ahead": 1}),
    }
    keys, unread = set(leaves(runs["istar"])), []
    for name, config in runs.items():
        assert set(leaves(config)) == keys
        config = TrackedConfig(config)
        assert main_job.train(config, tmp_path / name, quiet=True) == 0
        unread.append(set(unread_keys(config)))
    # Groups of auxiliaries that neither method has; their own tests set every key.
    others = {key for key in keys if key.startswith(("judge.", "hindsight.", "frozen_pair.", "discriminator.", "preference.", "expert."))}
    assert set.intersection(*unread) == others - {"preference.method"} | {"stages.preference"} and len(keys) > 100
    assert "critic.learning_rate" in unread[0] - unread[1] and "prm.learning_rate" in unread[1] - unread[0]


def test_a_failing_environment_is_masked_counted_and_survived(micro_config, tmp_path, caplog, monkeypatch):
    from stepreward.envs.sokoban.env import SokobanEnv

    runner = Runner(micro_config({"train.env_steps": 400}), tmp_path / "run")
    play, calls = SokobanEnv.step, []

    def broken(self, action):
        if runner.counters.stage == "train" and runner.counters.iteration == 1:
            calls.append(action)
            if len(calls) == 20:
                raise RuntimeError("the game server went away")
        return play(self, action)

    monkeypatch.setattr(SokobanEnv, "step", broken)
    masks, pack = [], runner.pack
    runner.pack = lambda *a, **k: masks.append(pack(*a, **k)) or masks[-1]
    with caplog.at_level(logging.WARNING):
        runner.run()
    failed = [m for m in masks if not m.episode_mask.all()]
    assert len(failed) == 1 and (~failed[0].episode_mask).sum() == 1
    lost = int(np.flatnonzero(~failed[0].episode_mask)[0])
    assert not failed[0].step_mask[lost].any() and lost not in failed[0].step_id[failed[0].action_mask] // 8
    counted = [r["rollout/failed_episodes"] for r in runner.history() if "rollout/failed_episodes" in r]
    assert counted[0] == 0 and counted[-1] == 1 and runner.finished
    assert "the game server went away" in caplog.text
    assert all(v is not None for r in runner.history() for v in r.values())


def test_rewards_that_are_no_numbers_cost_their_episodes_alone(micro_config, tmp_path, monkeypatch):
    """In demonstrations, rollouts and evaluations: nothing learns from them, and no learning rate is blamed."""
    from stepreward.envs.sokoban.env import SokobanEnv

    play, calls = SokobanEnv.step, []

    def sometimes(self, action):
        calls.append(action)
        observation, reward, *rest = play(self, action)
        return observation, (float("nan"), None, float("inf"))[len(calls) % 3] if len(calls) % 17 == 0 else reward, *rest

    monkeypatch.setattr(SokobanEnv, "step", sometimes)
    changes = {"credit.method": "rloo", "credit.outcome": "return", "train.env_steps": 200, "eval.episodes": 16}
    runner = Runner(micro_config(changes), tmp_path / "run")
    runner.run()
    records = runner.history()
    assert runner.finished and records[-1]["rollout/failed_episodes"] > 0
    assert sum(r.get("eval/failed_episodes", 0) for r in records) > 0
    assert all(r["eval/episodes"] + r.get("eval/failed_episodes", 0) == 16 for r in records if "eval/episodes" in r)
    assert all(v is not None for r in records for v in r.values())
    assert len(runner.parts.demonstrations) < runner.c.sft.episodes
    assert failed_episodes(records) == main_job.table_facts(records)["failed"] > 0
    assert f"{failed_episodes(records)} episodes</b> were left out" in summarize(records)[0]


def test_an_evaluation_without_any_environment_ends_the_run(micro_config, tmp_path, monkeypatch):
    from stepreward.envs.sokoban.env import SokobanEnv

    runner = Runner(micro_config(), tmp_path / "run")
    monkeypatch.setattr(SokobanEnv, "step", lambda self, action: None)
    with pytest.raises(UserError, match="every environment of the evaluation failed, the first one with: step returned None"):
        runner.run()


def test_a_batch_without_any_environment_ends_the_run(micro_config, tmp_path, monkeypatch):
    from stepreward.envs.sokoban.env import SokobanEnv

    runner = Runner(micro_config(), tmp_path / "run")
    runner.counters.stage = "train"

    def broken(self, action):
        raise RuntimeError("no licence")

    monkeypatch.setattr(SokobanEnv, "step", broken)
    with pytest.raises(UserError, match="every environment of the batch failed, the first one with: RuntimeError: no licence"):
        runner.run()


def test_a_loss_that_is_not_finite_stops_the_run(micro_config, tmp_path):
    changes = {"policy.learning_rate": 1e30, "policy.warmup_updates": 0, "policy.max_grad_norm": 1e9}
    runner = Runner(micro_config(changes), tmp_path / "run")
    with pytest.raises(TrainingDiverged, match=r"not finite at tick \d \(stage train, iteration \d\).*last good checkpoint is tick \d"):
        runner.run()
    records = read_metrics(tmp_path / "run")
    assert records and all(v is not None for r in records for v in r.values())  # what diverged was neither written nor saved
    kept = Runner(micro_config(changes), tmp_path / "run")
    assert 2 <= kept.counters.tick <= records[-1]["tick"] and np.isfinite(flat_params(kept.learner.policy)).all()
    kept.close()


def test_the_supervised_phase_notices_too(micro_config, tmp_path):
    runner = Runner(micro_config({"sft.learning_rate": 1e30, "sft.warmup_updates": 0}), tmp_path / "run")
    with pytest.raises(TrainingDiverged, match="sft/grad_norm.* not finite at tick 1 .stage sft.*No checkpoint had been written"):
        runner.run()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"model.preset": "tiny-micra"}, "model.preset='tiny-micra' is unknown .did you mean 'tiny-micro'"),
        ({"environment.name": "sokobann"}, "environment.name='sokobann' is unknown .did you mean 'sokoban'"),
        ({"environment.preset": "huge"}, "unknown Sokoban preset 'huge'"),
        ({"credit.options.alph": 2.0}, "credit method 'istar' has no option 'alph' .did you mean 'alpha'"),
        ({"credit.options.alpha": "much"}, "alpha of 'istar' must be of type float, not 'much'"),
        ({"environment.options": {"heigth": 7}}, "unknown Sokoban setting heigth; the settings are .*; did you mean 'height'"),
        ({"environment.options": {"invalid_reward": "low"}}, "Sokoban setting invalid_reward='low': give a value of type float"),
        ({"seed": -1}, "seed=-1 must be a whole number from 0 to 4294967295"),
        ({"seed": 2**32}, "seed=4294967296 must be a whole number from 0"),
        ({"rollout.max_image_tokens": -1}, "rollout.max_image_tokens=-1 must be at least 0"),
        ({"credit.variant": "papre"}, "unknown variant 'papre'"),
        ({"credit.outcome": "reward"}, "credit.outcome='reward' is not one of success, return"),
        ({"rollout.context": "turn"}, "rollout.context='turn' is not one of step, episode"),
        ({"policy.advantage_norm": "center"}, "policy.advantage_norm='center' is not one of"),
        ({"policy.kl_coef": -0.1}, "policy.kl_coef=-0.1 must be at least 0"),
        ({"prm.minibatch_groups": -1}, "prm.minibatch_groups=-1 must be at least 0"),
        ({"prm.resync": True, "credit.options.reward_from": "post"}, "step rewards cannot come from the updated PRM"),
        ({"rollout.max_prompt_tokens": 99}, "rollout.max_prompt_tokens=99 exceeds rollout.max_row_tokens=20"),
        ({"eval.every": 0}, "eval.every=0 must be at least 1"),
        ({"train.pack_rows": True, "policy.aggregation": "constant"}, "policy.aggregation='constant' depends on the number of rows"),
        ({"sft.log_every": 0}, "sft.log_every=0 must be at least 1"),
        ({"mesh.data": 64}, "needs 64 devices"),
        ({"stages.estimator": "runs/other"}, "stages.estimator='runs/other' was made with .* set stages.sft to that run's workdir"),
        ({"stages.exploration": "runs/other"}, "stages.exploration='runs/other' was made with .* set stages.sft to that run's workdir"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_a_wrong_config_is_named_before_anything_is_written(micro_config, tmp_path, changes, words):
    with pytest.raises((ValueError, UserError), match=words):
        Runner(micro_config(changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_method_that_needs_what_no_run_computes_is_named(micro_config, tmp_path, monkeypatch):
    monkeypatch.setattr(setup, "computed", lambda: signals.computed() - {"value"})
    with pytest.raises(ValueError, match="credit.method='ppo' needs value, .* methods that a run supports: .*istar"):
        Runner(micro_config({"credit.method": "ppo"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_is_there_whole_or_not_at_all(micro_config, tmp_path, monkeypatch):
    make = words.train_symbol_tokenizer

    def killed(texts, vocabulary, path, **more):
        make(texts, vocabulary, path, **more)
        (path / "tokenizer.json").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(words, "train_symbol_tokenizer", killed)
    with pytest.raises(KeyboardInterrupt):
        Runner(micro_config(), tmp_path / "run")
    monkeypatch.setattr(words, "train_symbol_tokenizer", make)
    Runner(micro_config(), tmp_path / "run").close()


def test_the_paper_preset_states_the_paper_s_numbers(root):
    from stepreward.config import load_config_file
    from stepreward.credit import IStar
    from stepreward.envs.sokoban import settings

    config = load_config_file(f"{root}/configs/istar_sokoban.py:paper")
    c = leaves(config)
    expected = {
        "model.preset": "qwen2.5-vl-7b", "rollout.groups": 32, "rollout.group_size": 8, "rollout.max_steps": 15,
        "rollout.max_rows": 256, "rollout.history": 0, "rollout.context": "step", "rollout.temperature": 1.0,
        "rollout.max_prompt_tokens": 1024, "rollout.max_answer_tokens": 512, "rollout.max_row_tokens": 1536,
        "sft.updates": 0, "policy.learning_rate": 5e-7, "prm.learning_rate": 1e-6, "policy.warmup_updates": 0,
        "prm.warmup_updates": 0, "policy.minibatch_rows": 64, "train.chunk_rows": 8, "policy.clip_low": 0.2,
        "policy.clip_high": 0.2, "policy.ratio": "step", "policy.aggregation": "step-mean", "policy.kl_coef": 0.0,
        "policy.entropy_coef": 0.0, "policy.epochs": 1, "policy.advantage_norm": "none", "prm.max_grad_norm": 10.0,
        "prm.weight_decay": 0.0, "prm.epochs": 1, "prm.minibatch_groups": 0, "prm.replay": 0, "prm.warmup_batches": 0,
        "eval.episodes": 128, "eval.every": 5, "train.env_steps": 200 * 256 * 15, "checkpoint.every": 50, "seed": 0,
        "environment.preset": "istar_image", "environment.prompt": "istar_image", "credit.outcome": "return",
        "prm.preset": "qwen2.5-7b",
    }  # fmt: skip
    assert {k: c[k] for k in expected} == expected
    method = setup.make_method(config)
    assert method == IStar(beta=0.05, alpha=1.0, episode_advantage="rloo", reward_from="pre", trajectory_reduce="sum")
    room = settings(c["environment.preset"])
    assert (room.height, room.width, room.boxes, room.invalid_reward) == (6, 6, 1, -0.1)
    config.model.path = config.prm.path = ""  # what is left to check without the models' folders
    config.prm.preset = ""
    setup.check(config)


def test_evaluation_needs_a_checkpoint_of_the_asked_kind(run, capsys):
    runner, _ = run({"credit.method": "rloo"})
    with pytest.raises(ValueError, match="has no array 'prm/state/params/"):
        evaluate_workdir(runner.workdir, 4, None, "prm", 0)


def test_the_policy_that_a_run_began_with_is_there_whether_or_not_its_checkpoints_hold_it(run):
    initial = [load_checkpoint(run(c)[0].workdir, None, "initial") for c in ({"credit.method": "rloo"}, {"policy.kl_coef": 0.01})]
    latest = load_checkpoint(run({"credit.method": "rloo"})[0].workdir, None, "policy")
    assert [run(c)[0].learner.initial is None for c in ({"credit.method": "rloo"}, {"policy.kl_coef": 0.01})] == [True, False]
    chex.assert_trees_all_equal(initial[0].params, initial[1].params)
    assert initial[0].step == latest.step and initial[0].counters == latest.counters
    with pytest.raises(AssertionError):
        chex.assert_trees_all_equal(initial[0].params, latest.params)
