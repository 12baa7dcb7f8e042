"""A run whose method asks for branching rollouts: its signals reach the method, and every branch counts."""

import dataclasses
from typing import ClassVar

import numpy as np
import pytest

from stepreward import credit
from stepreward.credit import base as credit_base
from stepreward.credit.outcome import OutcomeMethod
from stepreward.envs.protocol import REPLAY, SNAPSHOT
from stepreward.envs.sokoban.env import SokobanEnv
from stepreward.training.train import Runner

QUICK = {"sft.updates": 20, "sft.log_every": 20, "eval.episodes": 4, "rollout.groups": 2, "rollout.group_size": 2,
         "rollout.max_rows": 16, "train.env_steps": 1, "credit.method": "branched"}  # fmt: skip


@pytest.fixture
def branched(monkeypatch):
    """A method that reads Monte Carlo values of two episodes from each state, registered as "branched"."""
    monkeypatch.setattr(credit_base, "_METHODS", dict(credit_base._METHODS))

    @credit.register("branched")
    @dataclasses.dataclass(frozen=True)
    class Branched(OutcomeMethod):
        name: ClassVar[str] = "branched"
        strategy: ClassVar[str] = "restore"
        requires: ClassVar[frozenset[str]] = frozenset({"mc_value"})
        strategy_options: ClassVar[dict] = {"k": 2, "outcome": "success"}

        def _episode_advantage(self, batch):
            return batch.outcome

        def assign(self, batch):
            found = super().assign(batch)
            return found.replace(metrics={**found.metrics, "mc_value_max": batch.signals["mc_value"].max()})


def test_a_run_plays_through_the_strategy_of_its_method(branched, micro_config, tmp_path):
    runner = Runner(micro_config(QUICK), tmp_path / "run")
    played = []
    play = runner.play
    runner.play = lambda *arguments: played.append(play(*arguments)) or played[-1]
    runner.run()
    (last,) = [record for record in runner.history() if record["stage"] == "train"]
    rollout, _ = played[0]
    steps = sum(len(episode.steps) for episode in rollout.episodes)
    assert len(rollout.episodes) == 4 and len(rollout.signals["mc_value"]) == 4
    assert last["credit/mc_value_max"] == max(float(values.max()) for values in rollout.signals["mc_value"])
    assert last["rollout/branch_steps"] == rollout.cost.env_steps - steps >= 2 * len(rollout.episodes)
    assert last["env_steps"] == rollout.cost.env_steps and last["rollout/replayed_steps"] == 0
    assert all(0 <= value <= 1 for values in rollout.signals["mc_value"] for value in np.asarray(values))


def test_an_environment_that_cannot_restart_is_refused_before_anything_is_trained(branched, micro_config, tmp_path, monkeypatch):
    make = SokobanEnv.__init__

    def without_restarts(self, *arguments, **settings):
        make(self, *arguments, **settings)
        self.capabilities = self.capabilities - {SNAPSHOT, REPLAY}

    monkeypatch.setattr(SokobanEnv, "__init__", without_restarts)
    with pytest.raises(ValueError, match="'snapshot' nor 'replay'"):
        Runner(micro_config(QUICK), tmp_path / "run")


def test_a_signal_of_another_strategy_is_missing(branched, micro_config, tmp_path, monkeypatch):
    monkeypatch.setattr(credit.make("branched").__class__, "strategy", "chain")
    monkeypatch.setattr(credit.make("branched").__class__, "strategy_options", {})
    with pytest.raises(ValueError, match="needs mc_value, which a run does not compute"):
        Runner(micro_config(QUICK), tmp_path / "run")
