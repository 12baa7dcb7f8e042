"""Several environments in one run: their shares and order, what an iteration plays, judged outcomes, resume, and errors."""

import json
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from resuming import measured

from stepreward.config import TrackedConfig, load_config, override, save_config, unread_keys
from stepreward.errors import UserError
from stepreward.metrics import read_metrics
from stepreward.report import write_report
from stepreward.rollout.environments import EnvironmentFailure
from stepreward.rollout.episode import Episode, Start, Step, Task
from stepreward.rollout.mixed import UNJUDGED, judge_outcomes
from stepreward.rollout.packing import pack
from stepreward.rollout.strategies.base import outcome_of
from stepreward.training import judges, setup
from stepreward.training.evaluate import evaluate_workdir
from stepreward.training.mixture import Mixture, active, apportion, assignment
from stepreward.training.train import Runner

QUICK = {"sft.episodes": 40, "sft.updates": 20, "sft.log_every": 20, "eval.episodes": 4, "train.env_steps": 150, "rollout.invalid_penalty": 0.1,
         "credit.method": "grpo", "credit.outcome": "return"}  # fmt: skip
TWO = {"mixture.environments.easy.preset": "istar", "mixture.environments.hard.preset": "tiny", "mixture.environments.hard.max_steps": 5}


@pytest.fixture(scope="module")
def two(micro_config):
    """`two({key: value})`: a run of two presets of Sokoban, with some keys changed."""

    def make(changes=None):
        config = micro_config(QUICK)
        for key, value in (TWO | (changes or {})).items():
            override(config, key, value if isinstance(value, str) else str(value))
        return config

    return make


# --- Shares ---


def test_a_number_is_divided_by_shares():
    assert apportion(10, [1, 1, 2]) == [3, 2, 5]  # 2.5, 2.5 and 5: the first of equal remainders gets one more
    assert apportion(7, [0.5, 0.25, 0.25]) == [3, 2, 2]  # 3.5, 1.75 and 1.75
    assert apportion(2, [98, 1, 1]) == [2, 1, 1]  # each gets at least 1


def test_groups_go_where_most_are_missing():
    assert assignment(0, 8, [1, 1, 2]) == [2, 0, 1, 2, 2, 0, 1, 2]
    assert assignment(0, 5, [1, 1]) == [0, 1, 0, 1, 0]


@pytest.mark.parametrize("shares", [[1, 1, 1], [1, 2, 4], [0.1, 0.7, 0.2], [5]])
def test_the_groups_of_a_run_follow_the_shares_whatever_an_iteration_has(shares):
    whole, p = assignment(0, 60, shares), np.array(shares) / sum(shares)
    assert [x for first in range(0, 60, 7) for x in assignment(first, min(7, 60 - first), shares)] == whole
    for k in range(1, 61):
        assert np.all(np.abs(np.bincount(whole[:k], minlength=len(shares)) - p * k) <= 1 + 1e-9)


def test_the_active_environment_takes_its_share_of_the_budget():
    assert [active(x, [1, 3]) for x in (0.0, 0.24, 0.25, 0.9, 1.0, 1.4)] == [0, 0, 1, 1, 1, 1]


# --- The config ---


def test_a_view_is_the_config_of_one_environment(two):
    mixture = Mixture.of(two({"mixture.environments.easy.share": 3, "environment.timeout_s": 7}))
    easy, hard = mixture.entries
    assert (easy.name, easy.view.environment.preset, easy.view.environment.name, easy.view.rollout.max_steps) == (
        "easy",
        "istar",
        "sokoban",
        8,
    )
    assert (hard.name, hard.view.environment.preset, hard.view.rollout.max_steps, hard.view.environment.timeout_s) == (
        "hard",
        "tiny",
        5,
        7.0,
    )
    assert (easy.view.sft.episodes, hard.view.sft.episodes) == (30, 10)


def test_a_run_without_entries_has_no_mixture(micro_config):
    assert Mixture.of(micro_config()) is None


def test_a_config_of_an_earlier_version_has_no_mixture(micro_config):
    config = micro_config().copy_and_resolve_references()
    with config.unlocked():
        del config.mixture
    assert Mixture.of(config) is None


ERRORS = [
    ({"mixture.environments.easy.share": 0}, "mixture.environments.easy.share=0 must be a finite number above 0"),
    ({"mixture.environments.easy.share": -1}, "mixture.environments.easy.share=-1 must be a finite number above 0"),
    ({"mixture.environments.easy.share": "much"}, "share='much' must be a finite number above 0"),
    ({"mixture.environments.easy.promt": "x"}, r"mixture.environments.easy has no key 'promt' \(did you mean 'prompt'\?\)"),
    ({"mixture.environments.easy.preset": 3}, "mixture.environments.easy.preset=3 must be of type str"),
    ({"mixture.environments.easy.name": "sokobn"}, r"mixture.environments.easy: .*'sokobn'.*sokoban"),
    ({"mixture.environments.easy.preset": "huge"}, "mixture.environments.easy: .*huge"),
    ({"mixture.environments.easy.options.colour": 1}, "mixture.environments.easy: .*colour"),
    ({"mixture.environments.easy.pool": "cloud"}, "mixture.environments.easy: environment.pool='cloud'"),
    ({"mixture.environments.easy.max_steps": 9}, "mixture.environments.easy.max_steps=9 must be from 1 to rollout.max_steps=8"),
    ({"mixture.environments.easy.outcome": "luck"}, "outcome='luck' is not one of environment, judge"),
    ({"mixture.environments.easy-one.share": 1}, "has the name 'easy-one'"),
    ({"mixture.environments.easy": 3}, "mixture.environments.easy=3 must be a group"),
    ({"mixture.order": "random"}, "mixture.order='random' is not one of joint, sequential, transfer"),
    ({"mixture.order": "sequential"}, "mixture.order='sequential' needs mixture.sequence"),
    ({"mixture.sequence": "easy"}, "mixture.order='joint' does not read mixture.sequence"),
    ({"mixture.order": "sequential", "mixture.sequence": "easy,hrd"}, r"mixture.sequence names 'hrd' \(did you mean 'hard'\?\)"),
    ({"mixture.order": "sequential", "mixture.sequence": "easy,easy"}, "names an environment twice"),
    ({"mixture.order": "transfer"}, "mixture.order='transfer' needs mixture.transfer"),
    ({"mixture.order": "transfer", "mixture.transfer": "/nowhere.json"}, "mixture.transfer='/nowhere.json' cannot be read"),
    ({"credit.method": "treerpo", "rollout.max_steps": 8, "mixture.environments.hard.max_steps": 2}, "mixture.environments.hard: a tree"),
    ({"mixture.environments.easy.outcome": "judge", "judge.kind": "oracle"}, "judge.kind='oracle'"),
]


@pytest.mark.parametrize("changes, words", ERRORS)
def test_a_wrong_mixture_is_one_error(two, changes, words):
    with pytest.raises(ValueError, match=words) as caught:
        setup.check(two(changes))
    assert "\n" not in str(caught.value)


def test_an_order_without_environments_is_an_error(micro_config):
    with pytest.raises(ValueError, match="mixture.order='sequential' orders several environments"):
        setup.check(micro_config({"mixture.order": "sequential", "mixture.sequence": ("easy",)}))


def test_an_ordered_mixture_plays_its_episodes(two):
    with pytest.raises(ValueError, match="set train.mode=online"):
        setup.check(two({"mixture.order": "sequential", "mixture.sequence": "easy", "train.mode": "offline"}))


def test_what_a_method_needs_must_hold_in_every_environment(two, tmp_path):
    with pytest.raises(ValueError, match="mixture.environments.easy: credit.method='turn_return' needs 'turn_reward'"):
        setup.build(two({"credit.method": "turn_return", "mixture.environments.hard.options.turn_reward": True}), tmp_path)


def test_demonstrations_that_do_not_fit_are_an_error_that_names_the_environment(two, tmp_path):
    changes = {"mixture.environments.easy.prompt": "ragen", "rollout.max_prompt_tokens": 18}
    runner = Runner(two(changes), tmp_path / "run")
    with pytest.raises(ValueError, match="mixture.environments.easy: 20 of 20 demonstrations cannot be used: .*rollout.max_prompt_tokens"):
        runner.run()


# --- Runs ---


@pytest.fixture(scope="module")
def whole(two, tmp_path_factory):
    """The workdir of a finished run of two environments."""
    workdir = tmp_path_factory.mktemp("mixture") / "run"
    config = TrackedConfig(two({"eval.final_episodes": 4}))
    Runner(config, workdir).run()
    assert not [key for key in unread_keys(config) if key.startswith(("mixture", "environment", "sft", "rollout"))]
    return workdir


def test_an_iteration_plays_whole_groups_of_every_environment(whole):
    records = [record for record in read_metrics(whole) if record["stage"] == "train"]
    assert len(records) > 1
    for record in records:
        assert record["rollout/easy/episodes"] == record["rollout/hard/episodes"] == 8  # of 4 groups of 4
        assert record["rollout/hard/steps_per_episode"] <= 5 and record["rollout/easy/steps_per_episode"] <= 8
        assert record["rollout/easy/failed"] == record["rollout/hard/failed"] == 0
    assert any(record["policy/grad_norm"] > 0 for record in records)


def test_an_evaluation_counts_every_environment_alike(whole):
    for record in read_metrics(whole):
        if "eval/success" in record:
            for name in ("success", "score", "return", "executed"):
                assert record[f"eval/{name}"] == np.mean([record[f"eval/easy/{name}"], record[f"eval/hard/{name}"]])
            assert record["eval/easy/episodes"] == record["eval/hard/episodes"] == 2 and record["eval/episodes"] == 4


def test_the_final_evaluation_and_the_report_show_every_environment(whole):
    table, last = json.loads((whole / "evaluation.json").read_text()), read_metrics(whole)[-1]
    for name in ("start", "end"):
        parts = table[name]["environments"]
        assert set(parts) == {"easy", "hard"}
        assert table[name]["success"] == np.mean([parts["easy"]["success"], parts["hard"]["success"]]) == last[f"final/{name}_success"]
        assert last[f"final/hard/{name}_success"] == parts["hard"]["success"]
    page = write_report(whole).read_text()
    assert "Success on the held-out tasks of each environment" in page and "trained policy (end), hard" in page


def test_a_checkpoint_is_evaluated_on_every_environment(whole, capsys):
    assert evaluate_workdir(whole, 4, None, "policy", 0) == 0
    said = capsys.readouterr().out
    assert "of 4)" in said and "  easy " in said and "  hard " in said


KILLER = """
import os, signal, sys
from stepreward.config import load_config
from stepreward.training.train import Runner

runner = Runner(load_config(sys.argv[2]), sys.argv[1])
def kill(runner, metrics):
    if runner.counters.iteration == 1:
        os.kill(os.getpid(), signal.SIGKILL)
runner.on_tick = kill
runner.run()
"""


@pytest.mark.parametrize("order", ["joint", "sequential"])
def test_a_killed_run_ends_as_an_undisturbed_one(order, whole, two, root, tmp_path):
    changes = {"eval.final_episodes": 4} | ({"mixture.order": order, "mixture.sequence": "hard,easy"} if order == "sequential" else {})
    if order == "sequential":
        whole = tmp_path / "whole"
        Runner(two(changes), whole).run()
        played = [next(n for n in ("easy", "hard") if f"rollout/{n}/episodes" in r) for r in read_metrics(whole) if r["stage"] == "train"]
        assert played == sorted(played, reverse=True) and set(played) == {"easy", "hard"}
    save_config(two(changes), tmp_path / "config.json")
    command = [sys.executable, "-c", KILLER, str(tmp_path / "run"), str(tmp_path / "config.json")]
    done = subprocess.run(command, cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    Runner(load_config(tmp_path / "config.json"), tmp_path / "run").run()
    assert measured(tmp_path / "run") == measured(whole)


def test_a_mixed_list_of_tasks_plays_as_each_environment_alone(two, tmp_path):
    runner = Runner(two(), tmp_path / "run")
    mixed, key = runner.parts.collector, jax.random.key(5)
    tasks = [Task(seed, "train", seed, name) for seed, name in ((3, "hard"), (4, "easy"), (5, "hard"))]
    played = mixed.collect(runner.learner.actor, tasks, key)
    assert [episode.task for episode in played] == tasks
    alone = mixed.collectors["hard"].player(runner.learner.actor)([Start(tasks[0]), Start(tasks[2])], key, indices=[0, 2])
    for one, other in zip(alone, (played[0], played[2]), strict=True):
        assert [step.output for step in one.steps] == [step.output for step in other.steps]
        np.testing.assert_array_equal(*(np.concatenate([step.log_prob for step in e.steps]) for e in (one, other)))
    with pytest.raises(ValueError, match="a task is of the environment 'other'; the environments are easy, hard"):
        mixed.collect(runner.learner.actor, [Task(0, "train", 0, "other")], key)
    runner.close()


@pytest.mark.parametrize("method", ["treerpo", "vineppo", "arpo", "progrm", "istar"])
def test_strategies_and_auxiliaries_work_on_mixed_tasks(two, tmp_path, method):
    changes = {
        "credit.method": method,
        "credit.outcome": "success",
        "train.env_steps": 1,
        "estimator.held_out": 0.5,
        "exploration.tasks": 4,
        "exploration.part_tasks": 3,
    }
    runner = Runner(two(changes), tmp_path / "run")
    runner.run()
    (last,) = [record for record in runner.history() if record["stage"] == "train"]
    assert last["rollout/easy/episodes"] == last["rollout/hard/episodes"] == 8 and np.isfinite(last["policy/loss"])
    if method == "progrm":
        episodes = runner.exploration.read()
        assert [episodes[4 * group].task.environment for group in range(4)] == ["easy", "hard", "easy", "hard"]


def test_the_expert_plays_and_advises_in_every_environment(two, tmp_path):
    runner = Runner(two(), tmp_path / "run")
    try:
        tasks = [Task(seed, "train", seed, name) for seed in (1, 2) for name in ("hard", "easy")]
        player = runner.parts.collector.player(runner.learner.actor)
        played = player.expert(tasks, keep=True)
        assert [episode.task for episode in played] == tasks and all(len(episode.steps) > 1 for episode in played)
        advised = player.advise([Start.before(episode, 1) for episode in played], draws=[0, 1, 2, 3])
        assert [len(episode.steps) for episode in advised] == [2] * 4 and [episode.task for episode in advised] == tasks
    finally:
        runner.close()


@pytest.mark.parametrize("changes, words", [
    ({"preference.method": "eto"}, "preference.method='eto' compares with the expert of one environment"),
    ({"credit.method": "stepagent"}, "credit.method='stepagent' compares with the expert of one environment"),
])  # fmt: skip
def test_what_is_built_for_one_environment_is_refused(two, tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        Runner(two(changes), tmp_path / "run")


def test_a_failing_environment_costs_its_own_episodes_only(two, tmp_path, monkeypatch):
    runner = Runner(two({"sft.updates": 0}), tmp_path / "run")
    pool = runner.parts.collector.collectors["hard"].pool
    send = pool._send
    fallen = EnvironmentFailure("RuntimeError: the shelf fell down")

    def broken(slot, todo):
        send(slot, todo)
        if any(method == "step" for method, *_ in todo):
            pool._found[slot] = fallen

    runner.evaluate = dict
    monkeypatch.setattr(pool, "_send", broken)
    runner.run()
    for record in [record for record in runner.history() if record["stage"] == "train"]:
        assert record["rollout/hard/failed"] == 8 and record["rollout/easy/failed"] == 0
        assert record["rollout/success"] == record["rollout/easy/success"] and "rollout/hard/success" not in record


# --- Judged outcomes ---


def step(output="said", **changes):
    ids, zeros = np.arange(2, dtype=np.int32), np.zeros(2, np.float32)
    return Step(ids, ids, zeros, zeros, "before", output, "up", **({"reward": 5.0, "executed": True, "state_key": "s"} | changes))


def test_a_score_replaces_rewards_and_success():
    episode = Episode(Task(0, "train", 0), [step(), step(state_key="t")], success=False)
    episode.judge(0.75)
    assert [s.reward for s in episode.steps] == [0.0, 0.75] and episode.success and episode.score == 0.75
    for outcome in ("return", "success"):
        assert outcome_of(episode, outcome) == 0.75
        batch = pack([episode], context="step", max_steps=3, row_length=4, row_multiple=1, pad_id=0, outcome=outcome, outcome_scale=2.0)
        assert batch.outcome.tolist() == [1.5] and batch.env_reward.tolist() == [[0.0, 0.75, 0.0]]


def test_an_episode_without_a_score_fails_alone():
    episodes = [Episode(Task(0, "train", 0), [step()], end="terminated") for _ in range(2)]
    judge_outcomes(episodes, lambda those: [0.25, float("nan")][: len(those)])
    assert episodes[0].judged == 0.25 and not episodes[0].success and episodes[0].failure is None
    assert episodes[1].failure == UNJUDGED and not episodes[1].counts


def test_a_paused_or_failed_episode_is_not_judged():
    episodes = [Episode(Task(0, "train", 0), [step()], end="paused"), Episode(Task(0, "train", 0), failure="gone")]
    judge_outcomes(episodes, lambda those: pytest.fail("it was asked"))
    assert [episode.judged for episode in episodes] == [None, None]


def test_rules_score_an_episode_by_the_mean_of_its_steps():
    episode = Episode(Task(0, "train", 0), [step(), step(state_key="t", executed=False)])
    steps, whole = (getattr(judges.RuleJudge(), name)([episode]).scores[0] for name in ("judge", "outcomes"))
    assert steps.tolist() == [0.5, 0.0] and whole.tolist() == [0.25]
    assert judges.RuleJudge().outcomes([Episode(Task(0, "train", 0))]).scores[0].tolist() == [0.0]


class Model:
    """An endpoint that answers in turn."""

    model, temperature = "model", 0.0

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    def complete(self, messages, _):
        self.asked.append(messages[0]["content"])
        return self.answers.pop(0)


def test_a_model_compares_the_answer_with_the_reference():
    model = Model("<final_score>0.5,1</final_score>", "no idea", "none either")
    judge = judges.EndpointJudge(model, None, parallel=1)
    compared = Episode(Task(0, "train", 0), [step(output="Paris")], reference="Lyon", final_observation="the end")
    found = judge.outcomes([compared])
    assert found.scores[0].tolist() == [0.5] and (found.calls, found.failures) == (1, 0)
    assert model.asked[0].startswith(judges.REQUEST_WIN) and "The reference answer: Lyon" in model.asked[0] and "Paris" in model.asked[0]
    alone = judge.outcomes([Episode(Task(0, "train", 0), [step(output="Rome")])])
    assert np.isnan(alone.scores[0]).all() and (alone.calls, alone.failures) == (2, 1)
    assert model.asked[1].startswith(judges.REQUEST_OUTCOME) and "reference answer" not in model.asked[1]
    assert judge.outcomes([compared]).calls == 0  # the score is kept


def test_an_environment_of_a_run_is_judged(two, tmp_path):
    runner = Runner(two({"mixture.environments.hard.outcome": "judge", "train.env_steps": 1}), tmp_path / "run")
    plays = runner.play
    played = []
    runner.play = lambda *arguments: played.append(plays(*arguments)) or played[-1]
    runner.run()
    (rollout, metrics), *_ = played
    for episode in rollout.episodes:
        assert (episode.judged is None) == (episode.task.environment == "easy")
        assert episode.judged is None or 0 <= episode.judged == episode.episode_return <= 1
    assert metrics["rollout/hard/unjudged"] == 0 and "rollout/easy/unjudged" not in metrics


# --- The experiment ---


def test_three_environments_of_the_base_install(micro, tmp_path):
    runner = Runner(micro("omni_three", {"train.env_steps": 1, "sft.updates": 4, "sft.log_every": 4}), tmp_path / "run")
    assert [entry.view.environment.name for entry in runner.parts.mixture.entries] == ["search_qa", "sokoban", "webshop"]
    runner.run()
    (last,) = [record for record in runner.history() if record["stage"] == "train"]
    for name in ("questions", "rooms", "shop"):
        assert last[f"rollout/{name}/episodes"] == 8 and f"eval/{name}/success" in last
    assert sorted(path.name for path in (tmp_path / "run" / "demonstrations").iterdir()) == ["questions", "rooms", "shop"]


def test_the_presets_of_the_experiment_contradict_nothing(root):
    from stepreward.config import load_config_file

    for preset in ("tiny", "micro"):
        setup.check(load_config_file(f"{root}/configs/omni_three.py:{preset}"))
    with pytest.raises(UserError, match="unknown preset"):
        load_config_file(f"{root}/configs/omni_three.py:huge")
