"""An iteration that is played while the last one is learnt from: by the older policy, with importance weights, and resumed exactly."""

import math
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from resuming import measured

from stepreward.errors import UserError
from stepreward.metrics import read_metrics
from stepreward.training.ahead import Ahead, check_mesh, importance
from stepreward.training.train import Runner

CHANGES = {
    "train.env_steps": 400, "eval.every": 2, "eval.prm_as_policy_every": 0, "prm.resync": True, "policy.learning_rate": 3e-3,
    "policy.warmup_updates": 0, "policy.entropy_coef": 0.05,
}  # fmt: skip
AHEAD = CHANGES | {"rollout.ahead": 1}


def run(config, workdir):
    Runner(config, workdir).run()
    return [r for r in read_metrics(workdir) if r["stage"] == "train"]


@pytest.fixture(scope="module")
def whole(micro_config, tmp_path_factory):
    """The workdir of a run that plays ahead and that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("ahead") / "run"
    run(micro_config(AHEAD), workdir)
    return workdir


def played(record):
    timed = ("tokens_per_s", "staleness")
    return {k: v for k, v in record.items() if k.startswith("rollout/") and not k.endswith(timed)}


def test_every_iteration_but_the_first_is_played_by_an_older_policy(whole, micro_config, tmp_path):
    records = [r for r in read_metrics(whole) if r["stage"] == "train"]
    assert len(records) >= 3 and [r["rollout/staleness"] for r in records] == [0.0] + [1.0] * (len(records) - 1)
    # A policy that does not learn plays what the second iteration plays ahead. One that learns first plays something else.
    still = run(micro_config(CHANGES | {"policy.learning_rate": 0.0}), tmp_path / "still")
    first = run(micro_config(CHANGES), tmp_path / "first")
    assert played(records[1]) == played(still[1]) and played(records[1]) != played(first[1])
    assert played(records[0]) == played(first[0]) and not any("staleness" in name or "importance" in name for name in first[0])
    assert records[0]["policy/importance_mean"] == pytest.approx(1, abs=1e-4) and abs(records[0]["policy/stale_kl"]) < 1e-4
    assert all(abs(r["policy/importance_mean"] - 1) > 1e-4 for r in records[1:])
    assert max(r["policy/sampler_gap"] for r in records) < 1e-4  # the trainer is compared with the policy as it is now


@pytest.mark.parametrize("tick", [3, 4])
def test_a_run_that_is_interrupted_goes_on_to_the_same_metrics(whole, micro_config, tmp_path, tick):
    before = set(threading.enumerate())

    def interrupt(runner, _):
        if runner.counters.tick == tick:
            runner._stop = 2

    with pytest.raises(KeyboardInterrupt):
        Runner(micro_config(AHEAD), tmp_path / "run", on_tick=interrupt).run()
    assert not {thread for thread in set(threading.enumerate()) - before if thread.name.startswith("rollout")}
    again = Runner(micro_config(AHEAD), tmp_path / "run")
    assert again.learner.behind is not None and again.learner.behind.staleness == 1
    again.run()
    assert measured(tmp_path / "run") == measured(whole)


def test_importance_weights_by_hand():
    now, then = np.log([[0.5, 0.2, 0.9, 1.0]]), np.log([[0.25, 0.4, 0.3, 1.0]])
    mask = np.array([[True, True, True, False]])
    weight, metrics = importance(now, then, mask, 2.5)
    np.testing.assert_allclose(weight, [[2.0, 0.5, 2.5, 0.0]], rtol=1e-6)
    assert metrics["policy/importance_mean"] == pytest.approx(5 / 3) and metrics["policy/importance_cut"] == pytest.approx(1 / 3)
    assert metrics["policy/stale_kl"] == pytest.approx(-(math.log(2) + math.log(0.5) + math.log(3)) / 3)
    weight, metrics = importance(now, now, mask, 1.0)
    np.testing.assert_allclose(weight, mask.astype(float))
    assert metrics == {"policy/importance_mean": 1.0, "policy/importance_cut": 0.0, "policy/stale_kl": 0.0}
    assert importance(now, then, mask & False, 2.0)[1]["policy/importance_mean"] == 0.0


def test_what_a_rollout_raises_is_raised_where_it_is_taken():
    halted = threading.Event()
    ahead = Ahead(halted)
    ahead.begin(lambda: 1 / 0)
    ahead.settle()
    assert ahead.begun
    with pytest.raises(ZeroDivisionError):
        ahead.take()
    assert not ahead.begun
    ahead.begin(lambda: halted.wait(60))
    ahead.close()  # ends it
    assert halted.is_set()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"rollout.ahead": 2}, "rollout.ahead=2 must be 0 or 1"),
        ({"rollout.ahead": 1, "policy.importance_cap": 0.0}, "policy.importance_cap=0.0 must be positive"),
    ],
)
def test_what_cannot_be_is_told(micro_config, tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        Runner(micro_config(changes), tmp_path / "run")


def test_several_devices_are_refused():
    """Programs of two threads could reach them in different orders."""
    c = SimpleNamespace(rollout=SimpleNamespace(ahead=1))
    check_mesh(c, SimpleNamespace(size=1))
    with pytest.raises(UserError, match="the mesh of this run has 8"):
        check_mesh(c, SimpleNamespace(size=8))


def test_an_offline_run_plays_nothing_ahead(spa_config, tmp_path):
    with pytest.raises(ValueError, match="train.mode=offline plays nothing"):
        Runner(spa_config({"train.mode": "offline", "rollout.ahead": 1}), tmp_path / "run")
