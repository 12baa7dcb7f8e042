"""QVal's protocol: its golden values, what is left out and counted, and the Q of shortest solutions."""

import importlib

import numpy as np
import pytest

from stepreward.arena import qval
from stepreward.envs.sokoban.env import SokobanEnv
from stepreward.envs.sokoban.presets import settings
from stepreward.training.train import Runner

NAN = float("nan")


def test_the_golden_values():
    """T-40 of the catalogue."""
    found = qval.agreement([[1, 0.5, 0], [0.9, 0.9, 0.1]], [[0.9, 0.8, 0.1], [0.2, 0.3, 0.4]], fewest=2)
    assert found["spearman"] == pytest.approx(0.5218, abs=1e-4) and found["kendall"] == pytest.approx(0.4140, abs=1e-4)
    assert found["state_spearman"] == pytest.approx(0.0670, abs=1e-4) and found["state_std"] == pytest.approx(1.3195, abs=1e-4)


def test_what_is_left_out_is_counted():
    q = [[1, 0, 0.5], [1, 1, 1], [0, 1, 0.5], [1, 0, NAN], [1, NAN, NAN], [1, 0.2, 0.1]]
    score = [[1, 0, 0.5], [1, 2, 3], [2, 2, 2], [1, 0, NAN], [1, NAN, NAN], [NAN, 1, 2]]
    found = qval.agreement(q, score, fewest=2)
    assert (found["points"], found["equal_q"], found["equal_scores"], found["missing"]) == (2, 1, 1, 1)
    assert found["state_spearman"] == pytest.approx(1.0) and found["candidates"] == 14
    few = qval.agreement(q, score)
    assert np.isnan(few["spearman"]) and few["state_spearman"] == pytest.approx(1.0)  # fewer than 50 candidates
    with pytest.raises(ValueError, match="must share one shape"):
        qval.agreement([[1.0]], [[1.0, 2.0]])


def test_the_interval_resamples_trajectories():
    values, owner = np.repeat([0.0, 1.0, 2.0], 4), np.repeat([5, 6, 7], 4)
    low, high = qval.bootstrap(lambda index: values[index].mean(), owner, reps=400)
    assert 0 <= low < 1 < high <= 2 and (low, high) == qval.bootstrap(lambda index: values[index].mean(), owner, reps=400)


def test_the_best_q_is_the_discount_to_the_number_of_moves():
    environment = SokobanEnv(settings("istar"))
    for seed in range(5):
        environment.reset(seed=seed)
        distance, graph = environment.distance(), environment.transitions()
        q = qval.best_q(graph, 0.9)
        assert q[0].max() == pytest.approx(0.9 ** (distance - 1))
        at_once = graph.won.any(axis=1)
        assert (q[at_once].max(axis=1) == 1).all() and (q >= 0).all()


def test_points_lie_in_the_middle():
    rng = np.random.default_rng(0)
    assert qval.middle(3, rng).tolist() == [] and qval.middle(4, rng).tolist() == [1]
    assert qval.middle(6, rng).tolist() == [1, 2, 3]
    many = qval.middle(40, rng)
    assert len(many) == 5 and many.min() >= 1 and many.max() <= 37 and (np.diff(many) > 0).all()


def test_a_run_is_measured(micro_config, root, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(root / "experiments"))
    experiment = importlib.import_module("qval")
    Runner(micro_config({"train.env_steps": 200}), tmp_path / "run").run()
    scores, q, owner = experiment.measure(tmp_path / "run", 30, 40, 0.95, 0)
    assert set(scores) == {"policy", "prm", "exact", "random"} and all(score.shape == q.shape for score in scores.values())
    assert 10 < len(q) <= 40 and q.shape[1] == 4 and (np.diff(owner) >= 0).all()
    found = {name: qval.agreement(q, score)["state_spearman"] for name, score in scores.items()}
    assert found["exact"] > 0.3 > abs(found["random"])  # the advantages of the policy agree with those of the best one
