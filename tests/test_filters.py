"""Filters of groups: the catalogue's numbers, masked batches, further rounds, and runs."""

import dataclasses
import logging
import math

import numpy as np
import pytest

from stepreward.credit import make
from stepreward.credit.filters import Filter, GroupOutcomes
from stepreward.metrics import read_metrics
from stepreward.rollout.episode import Cost, Episode, Step, Task
from stepreward.rollout.packing import pack
from stepreward.rollout.strategies import Rollout
from stepreward.training import setup
from stepreward.training.auxiliaries.estimator import Estimator
from stepreward.training.filtering import health, make_filter, outcomes, select, without_episodes
from stepreward.training.minibatches import group_minibatches
from stepreward.training.train import Runner

GROUPS = ([1, 1, 1, 1], [1, 0, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0])


def groups(*of_outcomes):
    return [GroupOutcomes(np.array(found, float), np.array(found) > 0.5) for found in of_outcomes]


def kept(*of_outcomes, **options):
    return Filter(**options).kept(groups(*(of_outcomes or GROUPS)))


def test_the_catalogue_s_groups():
    np.testing.assert_allclose([group.std for group in groups(*GROUPS)], [0, 0.5774, 0, 0.5], atol=1e-4)
    assert kept(kind="top_share") == [1] and kept(kind="variance") == [1, 3] and kept() == [0, 1, 2, 3]


@pytest.mark.parametrize("share, expected", [(0.1, [1]), (0.5, [1, 3]), (0.75, [0, 1, 3]), (1.0, [0, 1, 2, 3])])
def test_a_share_of_the_groups_is_kept(share, expected):
    assert kept(kind="top_share", share=share) == expected  # of equal groups, the earlier one


@pytest.mark.parametrize(
    "weights, share, expected",
    # linear weights .536, .464, 0, 0; softmax weights .319, .295, .193, .193
    [("linear", 0.5, [1]), ("linear", 0.6, [1, 3]), ("linear", 1.0, [1, 3]), ("softmax", 0.3, [1]), ("softmax", 0.6, [1, 3]),
     ("softmax", 0.7, [0, 1, 3]), ("softmax", 1.0, [0, 1, 2, 3])],
)  # fmt: skip
def test_the_fewest_groups_whose_weights_reach_the_share(weights, share, expected):
    assert kept(kind="top_p", weights=weights, share=share) == expected


def test_equal_outcomes_have_exactly_no_deviation():
    assert kept([0.1] * 3, [10.3] * 7, kind="variance") == [] and kept([0.1] * 3, kind="top_p") == []
    assert kept([1.0], [0.0, 1.0], kind="variance") == [1]


def test_a_band_of_success():
    assert kept(kind="accuracy") == [1, 3] and kept(kind="accuracy", low=0.3, high=1.0) == [0, 1]


def test_a_group_of_failed_episodes_is_never_kept():
    for kind in ("none", "accuracy", "top_share", "variance", "top_p"):
        assert kept([], [1, 0], kind=kind) == [1]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"kind": "best"}, "filter.kind='best' is not one of none, variance"),
        ({"weights": "square"}, "filter.weights='square' is not one of linear, softmax"),
        ({"share": 0.0}, "filter.share=0.0"),
        ({"low": 0.9}, "filter.low=0.9 and filter.high=0.8"),
        ({"rounds": 0}, "filter.rounds=0 must be at least 1"),
        ({"kind": "top_share", "rounds": 2}, "filter.kind='top_share' does not need: set filter.rounds=1"),
    ],
)
def test_bad_values_are_one_clear_error(options, message):
    with pytest.raises(ValueError, match=message):
        Filter(**options)


# --- Batches ---


def episodes(*of_outcomes, first=0):
    """Groups of episodes of one or two steps."""
    token, zero = np.ones(1, np.int32), np.zeros(1, np.float32)
    step = Step(token, token, zero, zero, "", "a", "a", 1.0, True, "")
    return [
        Episode(Task(0, "train", first + g), [dataclasses.replace(step) for _ in range(1 + place % 2)], bool(won), cost=Cost(1 + place % 2))
        for g, group in enumerate(of_outcomes)
        for place, won in enumerate(group)
    ]


def rollout(*of_outcomes, first=0):
    found = episodes(*of_outcomes, first=first)
    signals = {"mc_value": [np.full(len(e.steps), i + 100 * first, np.float32) for i, e in enumerate(found)]}
    return Rollout(found, signals, Cost(sum(len(e.steps) for e in found)))


def packed(found):
    options = dict(context="step", max_steps=3, row_length=2, row_multiple=32, pad_id=0, outcome="success")
    return pack(found, **options)


def test_dropped_episodes_are_as_failed_ones():
    found = episodes(*GROUPS)
    dropped = np.repeat([True, False, True, False], 4)
    left = without_episodes(packed(found), dropped)
    for index in np.flatnonzero(dropped):
        found[index].failure = "dropped"
    expected = packed(found)
    for name in ("tokens", "segment_ids", "action_mask", "step_id", "log_prob_old", "step_mask", "env_reward", "executed", "episode_mask",
                 "outcome", "success", "truncated", "group_id"):  # fmt: skip
        np.testing.assert_array_equal(getattr(left, name), getattr(expected, name), err_msg=name)


@pytest.mark.parametrize("name", ["grpo", "rloo", "gigpo", "reinforce_plus_plus"])
def test_the_credit_of_kept_groups_is_that_of_a_batch_of_them(name):
    found = episodes(*GROUPS)
    left = without_episodes(packed(found), np.repeat([True, False, True, False], 4))
    method = make(name)
    rng = np.random.default_rng(0)
    credit = lambda batch, of: method.credit(batch.with_signals(**method.host_signals(batch, of, rng)))
    alone = found[4:8] + found[12:]
    expected = credit(packed(alone), alone).step_advantage
    masked = credit(left, found).step_advantage
    np.testing.assert_allclose(np.concatenate([masked[4:8], masked[12:]]), expected, atol=1e-6)
    assert not np.asarray(masked[:4]).any()


def test_minibatches_of_groups_have_no_dropped_group():
    left = without_episodes(packed(episodes(*GROUPS)), np.repeat([True, False, True, False], 4))
    parts = list(group_minibatches(left, 1, 16, np.random.default_rng(0)))
    assert len(parts) == 2 and all(part.episode_mask.sum() == 4 for part in parts)


def chosen(rule, first, *more):
    rounds = [rollout(*found, first=len(first) * (i + 1)) for i, found in enumerate(more)]
    return select(rule, rollout(*first), lambda number: rounds[number - 1], outcome="success")


def test_one_round_masks_in_place():
    found = chosen(Filter("variance"), GROUPS)
    assert found.dropped.tolist() == np.repeat([True, False, True, False], 4).tolist()
    assert found.metrics == {"filter/kept_groups": 2, "filter/kept_share": 0.5, "filter/played_groups": 4, "filter/rounds": 1}
    assert [e.task.group for e in found.rollout.episodes] == np.repeat(range(4), 4).tolist()


def test_further_rounds_fill_the_batch():
    mixed, flat = [1, 0, 0, 1], [0, 0, 0, 0]
    found = chosen(Filter("variance", rounds=3), GROUPS, (flat, mixed, mixed, mixed))
    assert not found.dropped.any() and [e.task.group for e in found.rollout.episodes[::4]] == [1, 3, 5, 6]
    assert found.metrics == {"filter/kept_groups": 4, "filter/kept_share": 5 / 8, "filter/played_groups": 8, "filter/rounds": 2}
    assert found.rollout.cost.env_steps == 48  # of all that was played
    for episode, values in zip(found.rollout.episodes, found.rollout.signals["mc_value"]):
        assert len(values) == len(episode.steps) and (values[0] >= 400) == (episode.task.group >= 4)


def test_dropped_groups_fill_the_batch_after_the_last_round():
    flat = [0, 0, 0, 0]
    found = chosen(Filter("variance", rounds=2), GROUPS, (flat, flat, flat, flat))
    assert [e.task.group for e in found.rollout.episodes[::4]] == [0, 1, 2, 3]
    assert found.dropped.reshape(4, 4).all(axis=1).tolist() == [True, False, True, False]


def test_failed_episodes_do_not_count_in_a_group():
    group = episodes([1, 0, 0, 0])
    group[0].failure = "gone"
    assert outcomes(group, "success").outcome.tolist() == [0, 0, 0] and outcomes(group, "return", 2.0).outcome.tolist() == [4, 2, 4]


def test_health_is_of_returns_by_hand():
    """Returns are 1, 2, 1, 2 in each group of four, and 1, 1 in a group whose other episodes failed."""
    found = episodes(*GROUPS[:2])
    for index in (5, 7):
        found[index].failure = "gone"
    assert health(found) == pytest.approx({"health/reward_std": 0.57735 / 2, "health/flat_groups": 0.5}, abs=1e-5)
    assert health(found[:1]) == {}


# --- Configs and runs ---


def test_a_method_names_its_filter(micro_config):
    made = lambda name, **changes: make_filter(micro_config({"credit.method": name, **changes}), make(name)).kind
    assert [made(name) for name in ("rloo", "starpo_s", "dapo")] == ["none", "top_share", "variance"]
    assert made("starpo_s", **{"filter.kind": "none"}) == "none" and make("dapo") == make("dapo")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"filter.kind": "varied"}, "filter.kind='varied'"),
        ({"filter.kind": "variance", "filter.rounds": 2, "train.mode": "offline", "rollout.group_size": 8}, "offline plays none"),
        ({"credit.method": "starpo_s", "rollout.group_size": 1}, "compares the episodes of a group"),
    ],
)
def test_a_run_refuses_a_filter_that_does_not_fit(micro_config, changes, message):
    with pytest.raises(ValueError, match=message):
        setup.check(micro_config({"credit.method": "reinforce_plus_plus", **changes}))


def trained(runner):
    drop = lambda name: name == "wall_s" or name.startswith("time/") or name == "rollout/tokens_per_s"
    records = [r for r in read_metrics(runner.workdir) if r["stage"] == "train"]
    return [{k: v for k, v in r.items() if not drop(k)} for r in records]


QUICK = {"train.env_steps": 300, "eval.every": 99, "checkpoint.every": 1, "eval.prm_as_policy_every": 0}


def test_a_run_plays_on_until_enough_groups_differ_and_resumes_exactly(micro_config, tmp_path):
    config = {**QUICK, "filter.kind": "variance", "filter.rounds": 3, "prm.replay": 1}
    whole = Runner(micro_config(config), tmp_path / "whole")
    whole.run()
    records, steps = trained(whole), 0
    assert max(r["filter/rounds"] for r in records) > 1
    for r in records:
        groups = r["filter/played_groups"]
        assert groups == 4 * r["filter/rounds"] and r["filter/kept_groups"] == min(4, round(groups * r["filter/kept_share"]))
        assert r["credit/flat_groups"] == 0 and all(math.isfinite(v) for v in r.values() if not isinstance(v, str))
        assert r["env_steps"] - steps >= 4 * groups  # each of the four episodes of a group has a step
        steps = r["env_steps"]
    cut = Runner(micro_config(config), tmp_path / "cut")
    while cut.counters.iteration < 1:
        cut.tick()
    cut.close()
    Runner(micro_config(config), tmp_path / "cut").run()
    assert trained(cut) == records


def test_an_iteration_without_a_kept_group_updates_nothing(micro_config, tmp_path, caplog):
    """No success rate is exactly 0.9 in groups of four."""
    config = {**QUICK, "credit.method": "grpo", "filter.kind": "accuracy", "filter.low": 0.9, "filter.high": 0.9, "train.env_steps": 800}
    runner = Runner(micro_config(config), tmp_path / "run")
    with caplog.at_level(logging.WARNING):
        runner.run()
    records = trained(runner)
    assert runner.finished and len(records) >= 5 and int(runner.learner.policy.updates) == 0
    assert all(r["filter/kept_groups"] == 0 and "policy/loss" not in r and "health/reward_std" in r for r in records)
    assert "the filter kept no group" in caplog.text


@pytest.mark.parametrize("method", ["starpo_s", "dapo", "prime"])
def test_methods_run_with_their_filters(micro_config, tmp_path, method):
    config = {**QUICK, "credit.method": method, "train.env_steps": 100}
    config |= {"filter.kind": "accuracy"} if method == "prime" else {}
    runner = Runner(micro_config(config), tmp_path / "run")
    runner.run()
    for r in trained(runner):
        assert r["filter/kept_groups"] <= 4 and (method != "starpo_s" or r["filter/kept_groups"] == 1)
        assert all(math.isfinite(v) for v in r.values() if not isinstance(v, str))


def test_an_estimator_that_has_nothing_to_learn_from_stays():
    estimator = Estimator.__new__(Estimator)
    estimator.replay, estimator.state = [], type("State", (), {"params": {"x": np.ones(1)}})
    metrics = estimator.refresh([0])
    assert set(metrics) == {"time/estimator_s"}
