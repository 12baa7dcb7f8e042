"""The order of the operations in an iteration, what is kept from it, and what is measured before any update."""

from types import MethodType, SimpleNamespace

import numpy as np
import pytest
from references import literal

from stepreward.credit import make
from stepreward.credit.schedules import PairAccuracy, Standing
from stepreward.rollout.episode import Cost
from stepreward.rollout.strategies import Rollout
from stepreward.training.auxiliaries import Estimator, ProcessRewardModel
from stepreward.training.filtering import Selection
from stepreward.training.learner import Learner
from stepreward.training.stages.reinforce import Reinforce


def iteration(reward_from, resync):
    """Runs one iteration on stand-ins; returns its calls in order, `(name, number of scorings so far)`."""
    calls, scored = [], []
    batch = SimpleNamespace(step_mask=np.ones((2, 3), bool), episode_mask=np.ones(2, bool))

    def note(name):
        return lambda *arguments, **_: calls.append((name, len(scored)))

    def score(batch, metrics):
        scored.append(batch)
        calls.append(("score", len(scored)))
        return SimpleNamespace(step_mask=batch.step_mask, number=len(scored), signals={})

    def credit(batch, episodes, signals, metrics, seed):
        calls.append(("credit", batch.number))
        return "credited"

    prm = SimpleNamespace(
        c=SimpleNamespace(prm=SimpleNamespace(resync=resync)), method=SimpleNamespace(prm_frozen=False, reward_from=reward_from)
    )
    when = {"prm": ProcessRewardModel.when.fget(prm), "estimator": Estimator.when}
    learns = lambda name: lambda lesson: note(name)() or {}
    learner = SimpleNamespace(
        auxiliaries={name: SimpleNamespace(when=time, learn=learns(name)) for name, time in when.items()},
        policy=SimpleNamespace(params={}),
        score=score,
        look=lambda batch, metrics, iteration: calls.append(("measure", batch.number)) or ({}, {}),
        prepare=lambda batch, episodes: {},
        unscored=lambda batch: np.zeros(2, bool),
        note_success=lambda success: None,
        credit=credit,
        update_policy=note("policy"),
    )
    learner.learn = MethodType(Learner.learn, learner)
    runner = SimpleNamespace(
        c=SimpleNamespace(
            seed=0, rollout=SimpleNamespace(ahead=0), train=SimpleNamespace(env_steps=100, mode="online"), eval=SimpleNamespace(every=9)
        ),
        counters=SimpleNamespace(iteration=0, env_steps=0),
        learner=learner,
        ahead=SimpleNamespace(begun=False),
        count_failed=lambda metrics: metrics,
        watch=lambda metrics: None,
        pack=lambda rollout: batch,
        spend=lambda cost: setattr(runner.counters, "env_steps", cost.env_steps) or {},
    )
    stage = Reinforce(runner)
    stage.experience = lambda: Selection(Rollout([], {}, Cost(env_steps=6)), np.zeros(2, bool), {"rollout/success": 0.5})
    stage.tick()
    assert runner.counters.iteration == 1 and runner.counters.env_steps == 6
    return calls


@pytest.mark.parametrize(
    "reward_from, resync, expected",
    [
        ("pre", False, ["score 1", "measure 1", "credit 1", "prm 1", "policy 1", "estimator 1"]),
        ("post", False, ["score 1", "measure 1", "prm 1", "score 2", "credit 2", "policy 2", "estimator 2"]),
        ("pre", True, ["score 1", "measure 1", "credit 1", "policy 1", "prm 1", "estimator 1"]),
    ],
)
def test_step_rewards_come_from_the_prm_before_or_after_its_update(reward_from, resync, expected):
    assert [f"{name} {number}" for name, number in iteration(reward_from, resync)] == expected


@pytest.fixture
def prm(micro_config):
    layout = SimpleNamespace(row_capacity=lambda episodes: episodes)
    parts = SimpleNamespace(method=make("istar", beta=1.0))
    return ProcessRewardModel(micro_config({"prm.resync": False, "prm.replay": 2}), parts, layout)


def scored_batch(scores, success):
    """Episodes of one token each, whose log-ratios are `scores`."""
    return literal([[1]] * len(scores), success, log_prob_prm=[[s] for s in scores])


@pytest.mark.parametrize(
    "scores, success, accuracy, scale",
    [
        ([1.0, 1.0, 1.0, 1.0], [1, 1, 0, 0], 0.5, 0.0),
        ([3.0, 1.0, 2.0, 0.0], [1, 1, 0, 0], 0.75, 0.5),
        ([3.0, 2.0, 1.0, 0.0], [1, 1, 0, 0], 1.0, 1.0),
        ([0.0, 1.0, 2.0, 0.5], [1, 1, 0, 0], 0.25, 0.0),
        ([3.0, 2.0, 1.0, 0.0], [1, 1, 1, 1], 0.5, 0.0),
    ],
    ids=["chance", "three of four", "all", "worse than chance", "no pairs"],
)
def test_alpha_counts_as_far_as_the_prm_beats_chance(prm, scores, success, accuracy, scale):
    found, metrics = prm.look(scored_batch(scores, success))
    assert found["pair_accuracy"] == metrics["prm/pair_accuracy"] == accuracy
    assert PairAccuracy(0.0, 1.0)(Standing(pair_accuracy=accuracy)) == np.float32(scale)
    assert metrics["prm/pairs"] == (4 if 0 in success else 0)


@pytest.mark.parametrize("method, kept", [("istar", set()), ("prime", {"log_prob_initial"})])
def test_the_latest_batch_is_the_first_of_the_replayed_ones(prm, method, kept):
    """It keeps the signals that the loss reads, and no others."""
    prm.method = make(method)
    for number in range(4):
        batch = scored_batch([1.0, 2.0], [1, 1])
        batch = batch.replace(episode_mask=np.zeros_like(batch.episode_mask))  # nothing trains
        prm.update(batch.replace(outcome=batch.outcome + number).with_signals(log_prob_initial=batch.log_prob_old), [0], None)
        assert float(prm.replay[0].outcome[0]) == 1 + number
    assert [float(b.outcome[0]) for b in prm.replay] == [4, 3]
    assert set(prm.replay[0].signals) == kept


def test_the_replayed_batches_train_too(prm, monkeypatch):
    """Each with its own log-probabilities, as often as there are epochs."""
    trained = []
    prm.model = SimpleNamespace(reads=lambda part: part)
    prm.layout.place_for_training = lambda part: part
    monkeypatch.setattr(ProcessRewardModel, "_update", lambda self, seed, update: {})
    monkeypatch.setattr(
        "stepreward.training.auxiliaries.prm.auxiliary_step",
        lambda state, part: trained.append(part) or (state, {"grad_norm": 1.0, "loss": 2.0}),
    )
    for number in range(3):
        batch = scored_batch([1.0, 2.0], [1, 0])
        metrics = prm.update(batch.replace(outcome=batch.outcome + number), [number], None)
    assert sorted(float(part.outcome[part.episode_mask].max()) for part in trained[-3:]) == [1, 2, 3]
    assert metrics["prm/grad_norm"] == 1 and metrics["prm/train_loss"] == 2
