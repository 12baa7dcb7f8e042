"""Every control, ablation and related method of the SPA pipeline, and the offline mode, as runs of two iterations."""

import jax
import numpy as np
import pytest

from stepreward.metrics import read_metrics
from stepreward.report.episodes import list_episodes, read_episodes
from stepreward.training.outputs import StageOutput
from stepreward.training.train import Runner

SHORT = {"train.env_steps": 200, "eval.final_episodes": 0, "eval.episodes": 4}
OWN_ESTIMATOR = {"stages.estimator": ""}
REWARD = "credit.options.step_reward"
ARMS = {
    "terminal": {REWARD: "terminal"},
    "uniform": {REWARD: "uniform"},
    "shuffled": {REWARD: "shuffled"},
    "leave-one-out": {REWARD: "leave_one_out"},
    "grounding only": {"credit.options.alpha": 0.0},
    "progress only": {"credit.options.beta": 0.0},
    "sums enforced": {"credit.options.enforce_sum": True, "credit.options.clamp": True, "credit.options.beta": 0.0},
    "released, offline": {"credit.variant": "released", "train.mode": "offline"},
    "by tokens": {"credit.options.level": "token", "credit.options.observation": "decay"},
    "shared backbone": {"critic.backbone": "shared"},
    "linear heads": {"critic.head": "linear", "estimator.head": "linear"} | OWN_ESTIMATOR,
    "no critic": {"credit.options.baseline": "group"},
    "KL in the reward": {"policy.kl_reward_coef": 0.1, "policy.kl_reward_target": 0.05, "policy.kl_reward_horizon": 100.0},
    "KL as a loss": {"policy.kl_coef": 0.1, "policy.stop_kl": 0.01, "policy.epochs": 2},
    "offline": {"train.mode": "offline"},
    "rbt": {"credit.method": "rbt", "credit.options.bag_size": 3} | OWN_ESTIMATOR,
    "rudder": {"credit.method": "rudder"} | OWN_ESTIMATOR,
    "progrm": {"credit.method": "progrm"} | OWN_ESTIMATOR,
    "agentprm": {"credit.method": "agentprm", "estimator.refresh_every": 1} | OWN_ESTIMATOR,
    "agentprm_mc": {"credit.method": "agentprm_mc", "credit.variant": "released"} | OWN_ESTIMATOR,
    "ppo": {"credit.method": "ppo"},
    "step_ppo": {"credit.method": "step_ppo"},
    "rloo": {"credit.method": "rloo"},
    "istar": {"credit.method": "istar"},
}
UNESTIMATED = ("terminal", "uniform", "leave-one-out", "grounding only", "released, offline", "ppo", "step_ppo", "rloo", "istar")


def flat_params(params):
    return np.concatenate([np.asarray(x).ravel() for x in jax.tree.leaves(params)])


@pytest.fixture(scope="module")
def run(spa_base, spa_config, tmp_path_factory):
    """`run(changes)`: a finished run that takes the stages of the shared one, and its records; made once."""
    base, made = tmp_path_factory.mktemp("arms"), {}
    stages = {f"stages.{name}": str(spa_base.workdir) for name in ("sft", "exploration", "estimator")}

    def finish(changes):
        key = tuple(sorted(changes.items()))
        if key not in made:
            made[key] = Runner(spa_config(stages | SHORT | changes), base / str(len(made)))
            made[key].run()
        return made[key], read_metrics(made[key].workdir)

    return finish


def rl(records):
    return [r for r in records if r["stage"] == "train"]


def rewards(runner):
    """The step rewards of the recorded episodes, and what each step's environment said: `(rewards, executed, success)`."""
    episodes = read_episodes(list_episodes(runner.workdir)[-1])["episodes"]
    of = lambda e, name: np.array([s[name] for s in e["steps"]])
    return [(of(e, "step_reward"), of(e, "executed"), e["success"]) for e in episodes]


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_ends_with_finite_metrics(run, name):
    changes = ARMS[name]
    runner, records = run(changes)
    learner, phases = runner.learner, [r["stage"] for r in records]
    assert runner.finished and all(v is not None for r in records for v in r.values())
    assert phases == ["start"] + ["estimator"] * (2 if "stages.estimator" in changes else 0) + ["train"] * 2
    has_critic = name not in ("no critic", "rudder", "progrm", "agentprm", "agentprm_mc", "rloo", "istar")
    separate = has_critic and name != "shared backbone"
    estimates = name not in UNESTIMATED
    assert ("critic" in learner.auxiliaries, "estimator" in learner.auxiliaries) == (has_critic, estimates)
    for r in rl(records):
        assert ("credit/explained_variance" in r) == has_critic and ("critic/value_error" in r) == separate
        assert ("policy/value_error" in r) == (has_critic and not separate)
        assert ("policy/sampler_gap" in r) == ("offline" not in name) and r.get("policy/sampler_gap", 0) < 1e-4
        assert ("prm/pairs" in r) == (name == "istar")
        assert any(k.startswith("estimator/") for k in r) == ("estimator.refresh_every" in changes)
    assert any(r["policy/grad_norm"] > 0 for r in rl(records)) and rl(records)[-1]["eval/episodes"] == 4
    begun = StageOutput(runner.c.stages.sft, "sft").read(learner.actor, runner.fingerprint("sft"))[0]
    assert np.abs(flat_params(learner.actor) - flat_params(begun)).max() > 1e-5


def test_the_controls_put_in_place_of_progress_what_they_name(run):
    for name in ("terminal", "uniform", "grounding only", "progress only", "sums enforced"):
        runner, _ = run(ARMS[name])
        beta = runner.method.beta
        assert beta == (0.0 if name in ("progress only", "sums enforced") else 0.01)
        for reward, executed, success in rewards(runner):
            rest, outcome = reward - beta * executed, float(success)
            if name == "terminal":
                expected = np.eye(len(rest))[-1] * outcome
            elif name == "uniform":
                expected = np.full(len(rest), outcome / len(rest))
            else:
                expected = rest * 0
            if name == "sums enforced":
                np.testing.assert_allclose(rest.sum(), outcome, atol=1e-5)
            elif name == "progress only":
                assert len(rest) == 1 or np.ptp(rest) > 1e-6
            else:
                np.testing.assert_allclose(rest, expected, atol=1e-6)


def test_shuffled_progress_is_the_progress_in_another_order(run):
    (mine, _), (theirs, _) = run(ARMS["shuffled"] | {"train.env_steps": 1}), run({"train.env_steps": 1})
    pairs = [(a, b) for (a, _, _), (b, _, _) in zip(_without_grounding(mine), _without_grounding(theirs), strict=True)]
    for shuffled, progress in pairs:
        np.testing.assert_allclose(np.sort(shuffled), np.sort(progress), atol=1e-6)
    assert any(np.abs(shuffled - progress).max() > 1e-6 for shuffled, progress in pairs)


def _without_grounding(runner):
    return [(reward - runner.method.beta * executed, executed, success) for reward, executed, success in rewards(runner)]


def test_the_coefficient_of_the_kl_penalty_follows_the_kl(run):
    """At first policy and initial policy are one, and the KL of 0 lowers the coefficient by a fifth times 16 episodes / 100."""
    runner, records = run(ARMS["KL in the reward"])
    coefficients = [r["credit/kl_coef"] for r in rl(records)]
    assert rl(records)[0]["credit/kl_initial"] == pytest.approx(0, abs=1e-4)
    assert coefficients == pytest.approx([0.1, 0.1 * (1 - 0.2 * 16 / 100)], rel=1e-5)
    second = float(np.clip(rl(records)[1]["credit/kl_initial"] / 0.05 - 1, -0.2, 0.2))
    assert runner.learner.kl_coef == pytest.approx(coefficients[1] * (1 + second * 16 / 100), rel=1e-5)
    fixed, records = run({"policy.kl_reward_coef": 0.1})
    assert [r["credit/kl_coef"] for r in rl(records)] == pytest.approx([0.1, 0.1]) and fixed.learner.kl_coef == 0.1


def test_updates_end_early_where_the_policy_went_too_far(run):
    _, records = run(ARMS["KL as a loss"] | {"policy.learning_rate": 3e-2, "policy.warmup_updates": 0, "policy.stop_kl": 1e-3})
    counts = [r["policy/updates"] for r in rl(records)]
    _, free = run(ARMS["KL as a loss"] | {"policy.stop_kl": 1e9})
    assert all(r["policy/updates"] >= 4 for r in rl(free))
    assert all(a < r["policy/updates"] for a, r in zip(counts, rl(free)))
    assert all("policy/kl_reference" in r for r in records if r["stage"] == "train")


def test_a_refreshed_estimator_goes_on_learning(spa_base, run):
    steady, _ = run({})
    refreshed, records = run({"estimator.refresh_every": 2, "train.env_steps": 300})
    assert ["estimator/loss" in r for r in rl(records)] == [False, True, False]
    trained = StageOutput(spa_base.workdir, "estimator").read(
        steady.learner.auxiliaries["estimator"].best, spa_base.fingerprint("estimator")
    )[0]
    np.testing.assert_array_equal(flat_params(steady.learner.auxiliaries["estimator"].params), flat_params(trained))
    estimator = refreshed.learner.auxiliaries["estimator"]
    assert np.abs(flat_params(estimator.params) - flat_params(trained)).max() > 1e-4
    # Two batches of 16 episodes, in parts of 8.
    assert int(estimator.state.updates) == 2 * 2 and len(estimator.replay) == 2


# --- Offline ---


def test_an_offline_run_is_one_pass_over_the_explored_episodes(spa_base, run):
    runner, records = run(ARMS["offline"] | {"rollout.groups": 3, "train.env_steps": 999})  # 8 tasks: 3, 3 and 2
    episodes = spa_base.exploration.read()
    steps = sum(len(e.steps) for e in episodes)
    assert len(rl(records)) == 3 and records[-1]["env_steps"] == steps and runner.finished
    won = sum(r["rollout/success"] * n for r, n in zip(rl(records), (12, 12, 8)))
    assert won == pytest.approx(sum(e.success for e in episodes))
    assert not any("time/rollout_s" in r or "rollout/tokens_per_s" in r for r in records)


def test_offline_ratios_are_to_the_policy_that_played_unless_recomputed(run):
    """One update an iteration: the second meets a policy that has moved away from the one that explored."""
    whole = {"policy.minibatch_rows": 128, "policy.learning_rate": 1e-2, "policy.warmup_updates": 0}
    ratios = {}
    for kind in ("auto", "behaviour", "current"):
        _, records = run(ARMS["offline"] | whole | {"policy.old_log_prob": kind})
        ratios[kind] = [r["policy/ratio_mean"] for r in rl(records)]
    assert ratios["current"] == pytest.approx([1, 1], abs=1e-6)
    assert ratios["auto"] == ratios["behaviour"]
    assert ratios["behaviour"][0] == pytest.approx(1, abs=1e-4) and abs(ratios["behaviour"][1] - 1) > 1e-3
