"""Models that learn beside the policy: their contract, and a custom one that needs nothing but its class."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
import pytest

from stepreward import credit, signals
from stepreward.credit import base as credit_base
from stepreward.credit.outcome import OutcomeMethod
from stepreward.errors import UserError
from stepreward.metrics import read_metrics
from stepreward.training import auxiliaries, learner
from stepreward.training.auxiliaries import AFTER_CREDIT, AFTER_POLICY, AUXILIARIES, BEFORE_CREDIT, Auxiliary
from stepreward.training.counters import Counters
from stepreward.training.decisions import STAGES
from stepreward.training.train import Runner

ON_THE_WAY = {"train.env_steps": 200, "checkpoint.every": 1, "eval.every": 99, "eval.prm_as_policy_every": 0}


@pytest.mark.parametrize("kind", AUXILIARIES)
def test_what_an_auxiliary_promises(kind, micro_config):
    assert (kind.name in micro_config()) == kind.configured and kind.stage in STAGES
    assert kind.provides and kind.provides <= signals.computed()
    methods = [credit.make(name) for name in credit.names()]
    for method in methods:
        assert kind.wanted(method) or not kind.provides & method.requires
    assert any(kind.wanted(method) for method in methods) and not kind.wanted(credit.make("grpo"))


class Tally(Auxiliary):
    """Counts the steps that it has learnt from; its signal is that count at every step."""

    name = "tally"
    provides = frozenset({"seen"})
    when = BEFORE_CREDIT

    def __init__(self, c, parts, layout, key):
        self.seen, self.calls = None, []

    @property
    def begun(self):
        return self.seen is not None

    def begin(self, model, params):
        self.seen = jnp.zeros((), jnp.float32)

    def scores(self, placed, to_rows, policy_params):
        self.calls.append("scores")
        return {"seen": np.full(placed.step_mask.shape, self.seen, np.float32)}

    def learn(self, lesson):
        self.calls.append("learn")
        assert (lesson.credit is None) == (self.when == BEFORE_CREDIT) and len(lesson.episodes) == lesson.batch.num_episodes
        self.seen += lesson.batch.step_mask.sum()
        return {"tally/seen": float(self.seen), "tally/iteration": float(lesson.iteration)}

    def saved(self):
        return {"seen": self.seen}, {}

    def load(self, saved, facts):
        self.seen = saved["seen"]

    def programs(self, stage):
        return iter(())


@pytest.fixture
def own(monkeypatch):
    """A method and an auxiliary of one's own: three entries in three tables."""
    monkeypatch.setattr(signals, "SIGNALS", dict(signals.SIGNALS))
    monkeypatch.setattr(credit_base, "_METHODS", dict(credit_base._METHODS))
    monkeypatch.setattr(learner, "AUXILIARIES", (*auxiliaries.AUXILIARIES, Tally))
    signals.add("seen", signals.STEP, np.float32, "How many steps the tally has learnt from.", computed=True)

    @credit.register("tallied")
    @dataclasses.dataclass(frozen=True)
    class Tallied(OutcomeMethod):
        name: ClassVar[str] = "tallied"
        requires = frozenset({"seen"})

        def _episode_advantage(self, batch):
            return batch.outcome

        def assign(self, batch):
            found = super().assign(batch)
            return found.replace(metrics={**found.metrics, "tallied": batch.signals["seen"].max()})


@pytest.mark.parametrize("when, calls, late", [
    (BEFORE_CREDIT, ["scores", "learn", "scores"], 0), (AFTER_CREDIT, ["scores", "learn"], 1), (AFTER_POLICY, ["scores", "learn"], 1),
])  # fmt: skip
def test_one_of_one_s_own_learns_when_it_says(own, micro_config, tmp_path, monkeypatch, when, calls, late):
    monkeypatch.setattr(Tally, "when", when)
    runner = Runner(micro_config({**ON_THE_WAY, "credit.method": "tallied"}), tmp_path / "run")
    runner.run()
    records = [r for r in read_metrics(runner.workdir) if r["stage"] == "train"]
    assert len(records) > 1 and [r["tally/iteration"] for r in records] == list(range(len(records)))
    seen = [r["env_steps"] for r in records]
    assert [r["tally/seen"] for r in records] == seen  # what it returns is logged
    assert [r["credit/tallied"] for r in records] == (seen if not late else [0, *seen[:-1]])  # its signal of before, or after, it learnt
    assert runner.learner.auxiliaries["tally"].calls == calls * len(records)


def test_one_of_one_s_own_is_saved_and_goes_on(own, micro_config, tmp_path):
    config = {**ON_THE_WAY, "credit.method": "tallied"}
    whole = Runner(micro_config(config), tmp_path / "whole")
    whole.run()
    cut = Runner(micro_config(config), tmp_path / "cut")
    while cut.counters.stage != "train" or not cut.counters.iteration:
        cut.tick()
    cut.save(wait=True)
    cut.close()
    again = Runner(micro_config(config), tmp_path / "cut")
    assert float(again.learner.auxiliaries["tally"].seen) == again.counters.env_steps > 0
    again.run()
    tallies = [[r.get("tally/seen") for r in read_metrics(runner.workdir)] for runner in (whole, again)]
    assert tallies[0] == tallies[1]


def test_a_checkpoint_of_an_earlier_version_is_named():
    with pytest.raises(UserError, match="an earlier version wrote the checkpoint.*start in a new workdir"):
        Counters.read({"counters": {"phase": "rl", "tick": 3}})
