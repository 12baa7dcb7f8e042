"""Settings and runs that would learn nothing are refused or reported."""

import logging

import pytest
from ml_collections import ConfigDict

from stepreward import credit
from stepreward.configs.common.base import base_config
from stepreward.training import setup
from stepreward.training.idle import PATIENCE, Stillness, idle_settings, warn_of_idle_settings


def config(**changes) -> ConfigDict:
    c = base_config()
    for key, value in changes.items():
        group, name = key.split("__")
        c[group][name] = value
    return c


def options(c, **values):
    c.credit.options.update(values)
    return c


@pytest.mark.parametrize("method", ["grpo", "dr_grpo", "rloo", "reinforce_plus_plus_baseline", "istar", "prime"])
def test_groups_of_one_are_refused_where_groups_are_compared(method):
    with pytest.raises(ValueError, match=f"rollout.group_size=1: credit.method='{method}'.*at least 2.*ppo"):
        setup.check(config(credit__method=method, rollout__group_size=1))


@pytest.mark.parametrize("method", ["reinforce_plus_plus", "ppo", "step_ppo", "spa"])
def test_methods_without_groups_take_groups_of_one(method):
    setup.check(config(credit__method=method, rollout__group_size=1))


def test_options_decide_whether_a_group_is_needed():
    setup.check(options(config(credit__method="rloo", rollout__group_size=1), singleton="raw"))
    for more in ({"baseline": "group"}, {"step_reward": "leave_one_out"}):
        with pytest.raises(ValueError, match="rollout.group_size=1"):
            setup.check(options(config(credit__method="spa", rollout__group_size=1), **more))
    assert credit.make("istar", episode_advantage="reinforce_plus_plus").needs_group  # its pairs are of one group
    assert not credit.make("prime", singleton="raw").needs_group


def test_the_error_names_methods_that_do_train():
    with pytest.raises(ValueError) as raised:
        setup.check(config(credit__method="rloo", rollout__group_size=1))
    offered = str(raised.value).rsplit("(", 1)[1].rstrip(").").split(", ")
    for method in offered:
        setup.check(config(credit__method=method, rollout__group_size=1))
    assert {"ppo", "reinforce_plus_plus"} <= set(offered)


def said(c):
    return list(idle_settings(c, setup.make_method(c)))


def test_the_experiments_settings_are_not_idle():
    assert said(config()) == [] and said(config(credit__method="istar")) == [] and said(config(credit__method="spa")) == []


@pytest.mark.parametrize(
    "method, key",
    [("rloo", "policy__learning_rate"), ("rloo", "sft__learning_rate"), ("istar", "prm__learning_rate"), ("ppo", "critic__learning_rate"),
     ("spa", "estimator__learning_rate"), ("rloo", "policy__max_grad_norm"), ("rloo", "credit__outcome_scale"),
     ("rloo", "rollout__temperature")],
)  # fmt: skip
def test_a_setting_of_zero_that_stops_learning_is_named(method, key):
    (sentence,) = said(config(credit__method=method, **{key: 0}))
    assert sentence.startswith(f"{key.replace('__', '.')}=0")


def test_what_is_not_trained_is_not_warned_of():
    assert said(config(credit__method="rloo", prm__learning_rate=0, critic__learning_rate=0, estimator__learning_rate=0)) == []
    assert said(config(sft__learning_rate=0, sft__updates=0, model__path="folder")) == []
    assert said(config(credit__method="ppo", rollout__temperature=0)) == []  # no group whose episodes would be equal


def test_other_settings_that_stop_learning():
    assert "clip" in said(config(policy__clip_low=0.0, policy__clip_high=0.0))[0]
    assert said(config(policy__clip_low=0.0)) == []
    assert "lora.alpha=0" in said(config(lora__rank=4, lora__alpha=0.0))[0]
    assert "random weights" in said(config(sft__updates=0))[0]
    assert "rollout.top_k=1" in said(config(rollout__top_k=1))[0]


def test_a_frozen_prm_is_said_unless_it_was_asked_for():
    c = config(credit__method="istar", credit__variant="released")
    assert "prm_frozen" in said(c)[0] and len(said(c)) == 1
    assert said(options(c, prm_frozen=True)) == []


def test_settings_are_said_in_the_log(caplog):
    c = config(policy__learning_rate=0.0)
    with caplog.at_level(logging.WARNING):
        warn_of_idle_settings(c, setup.make_method(c))
    assert [r.getMessage() for r in caplog.records] == said(c)


# --- While it runs ---


def watch(method, iterations, caplog):
    still = Stillness(credit.make(method))
    with caplog.at_level(logging.WARNING):
        for metrics in iterations:
            still.see(metrics)
    return [record.getMessage() for record in caplog.records]


FLAT = {"credit/flat_groups": 1.0, "credit/advantage_max": 0.0, "rollout/success": 0.0, "prm/pairs": 0.0}
GOOD = {"credit/flat_groups": 0.5, "credit/advantage_max": 1.0, "rollout/success": 0.5, "prm/pairs": 3.0}


def test_groups_that_never_differ_are_said_once(caplog):
    (sentence,) = watch("rloo", [FLAT] * 3 * PATIENCE + [GOOD] + [FLAT] * 2 * PATIENCE, caplog)
    assert "had the same outcome (success 0.0 %)" in sentence and "rollout.group_size" in sentence


def test_groups_that_differ_now_and_then_are_not_said(caplog):
    assert watch("rloo", ([FLAT] * (PATIENCE - 1) + [GOOD]) * 5, caplog) == []


def test_advantages_of_zero_are_said_for_any_method(caplog):
    (sentence,) = watch("ppo", [GOOD | {"credit/advantage_max": 0.0}] * PATIENCE, caplog)
    assert "every advantage was 0" in sentence
    caplog.clear()
    assert watch("ppo", [FLAT | {"credit/advantage_max": 1.0}] * 9, caplog) == []  # a critic learns from equal outcomes too


def test_a_prm_without_pairs_is_said(caplog):
    (sentence,) = watch("istar", [GOOD | {"prm/pairs": 0.0}] * PATIENCE, caplog)
    assert "process reward model" in sentence
