"""Exact advantages of a language model: dynamic programming against enumeration, identities in a run, and what cannot be."""

import itertools

import jax
import numpy as np
import pytest

from stepreward.config import load_config_file
from stepreward.credit import exact_quality
from stepreward.envs.graphs import StateGraph, TooManyStates, explore
from stepreward.envs.sokoban.core import ACTIONS
from stepreward.envs.sokoban.env import SokobanEnv
from stepreward.envs.sokoban.presets import settings
from stepreward.errors import UserError
from stepreward.metrics import read_metrics
from stepreward.report.episodes import list_episodes, read_episodes
from stepreward.rollout.checked import CheckedEnvironment
from stepreward.rollout.environment_host import EnvironmentFailure
from stepreward.rollout.episode import Task
from stepreward.training.auxiliaries import exact
from stepreward.training.auxiliaries.exact import solve
from stepreward.training.train import Runner


def corridor():
    """Places 0, 1, 2; "on" leads up, and from the last one to the goal; "back" leads down."""
    follow = lambda place, action: (
        (place + 1, -0.1 + (place == 2), place == 2, place == 2) if action == "on" else (max(0, place - 1), -0.1, False, False)
    )
    states, *arrays = explore(0, ("on", "back"), follow, 10)
    return StateGraph(("on", "back"), tuple(map(str, states)), tuple({"text": str(s)} for s in states), *arrays, -0.3, 20)


def episodes(graph, policy, state, turns, reward, idle):
    """Every episode from a state, as `(its probability, its outcome)`; the last answer of a state is no action."""
    if not turns:
        return [(1.0, 0.0)]
    found = [(1 - policy[state].sum(), idle, state)]
    found += [(policy[state, a], reward[state, a], None if graph.done[state, a] else graph.next_state[state, a]) for a in range(2)]
    rest = lambda after: [(1.0, 0.0)] if after is None else episodes(graph, policy, after, turns - 1, reward, idle)
    return [(p * q, now + later) for p, now, after in found for q, later in rest(after)]


@pytest.mark.parametrize("outcome", ["success", "return"])
def test_the_values_are_those_of_all_sequences(outcome):
    graph, rng = corridor(), np.random.default_rng(0)
    policy = rng.dirichlet(np.ones(3), size=3)[:, :2]
    q, value = solve(graph, policy, 5, outcome, invalid_penalty=0.2)
    rewards = (graph.won.astype(float), 0.0) if outcome == "success" else (graph.reward.astype(float), -0.3 - 0.2)
    for state, left in itertools.product(range(3), range(1, 6)):
        found = episodes(graph, policy, state, left, *rewards)
        assert sum(p for p, _ in found) == pytest.approx(1.0)
        assert value[5 - left, state] == pytest.approx(sum(p * outcome for p, outcome in found), abs=1e-6)
    full = np.column_stack([policy, 1 - policy.sum(axis=1)])
    np.testing.assert_allclose((full * q).sum(axis=2), value, atol=1e-12)
    np.testing.assert_allclose(q[:, 2, 0], 1.0 if outcome == "success" else 0.9)  # the step to the goal


def test_one_step_before_the_limit_only_the_last_step_counts():
    q, value = solve(corridor(), np.full((3, 2), 0.5), 2, "success")
    assert value[1].tolist() == [0.0, 0.0, 0.5] and value[0].tolist() == [0.0, 0.25, 0.5] and q[1, 1].tolist() == [0.0, 0.0, 0.0]


def test_sokoban_lists_what_its_steps_do():
    environment = SokobanEnv(settings("istar"))
    observation, _ = environment.reset(seed=3)
    environment.step("up")
    graph = environment.transitions()
    assert graph.max_steps == environment.settings.max_steps - 1
    rng = np.random.default_rng(1)
    for _ in range(40):
        environment.reset(seed=3)
        environment.step("up")
        state = 0
        for _ in range(10):
            action = rng.integers(5)
            said = "jump" if action == 4 else ACTIONS[action]
            _, reward, over, stopped, info = environment.step(said)
            if action == 4:
                assert reward == graph.idle_reward
            else:
                assert reward == pytest.approx(graph.reward[state, action])
                assert over == graph.done[state, action] and info["won"] == graph.won[state, action]
                state = state if over else graph.next_state[state, action]
            if over or stopped:
                break
            assert info["state_key"] == graph.keys[state]


def test_a_graph_that_is_too_large_or_wrong_is_refused():
    with pytest.raises(TooManyStates, match="more than 5 states"):
        explore(0, ("on",), lambda state, action: (state + 1, 0.0, False, False), 5)
    one = dict(actions=("a",), keys=("k",), views=({"text": ""},), done=np.zeros((1, 1), bool), won=np.zeros((1, 1), bool))
    with pytest.raises(ValueError, match="reward has shape"):
        StateGraph(**one, next_state=np.zeros((1, 1), int), reward=np.zeros(1), idle_reward=0.0, max_steps=1)
    with pytest.raises(ValueError, match="next_state must hold numbers of the 1 states"):
        StateGraph(**one, next_state=np.ones((1, 1), int), reward=np.zeros((1, 1)), idle_reward=0.0, max_steps=1)
    environment = CheckedEnvironment(lambda: SokobanEnv(settings("istar")))
    environment._environment.transitions = dict
    with pytest.raises(EnvironmentFailure, match="not a state graph"):
        environment.transitions()


def test_the_measures_by_hand():
    class Given:
        step_reward = np.array([[1.0, 2.0, 3.0], [1.0, 0.0, 0.0]])
        step_advantage = np.array([[-1.0, -2.0, -3.0], [0.0, 1.0, 0.0]])
        step_mask = np.array([[True] * 3, [True, True, False]])
        episode_mask = np.array([True, True])
        signals = {"exact_advantage": np.array([[0.1, 0.2, 0.3], [0.5, np.nan, np.nan]])}

    found = exact_quality(Given, Given)
    assert found["exact_sign_reward"] == 1.0 and found["exact_sign_advantage"] == 0.125 and found["exact_top_reward"] == 1.0
    assert found["exact_top_advantage"] == 0.0  # the only episode whose exact advantages differ
    assert found["exact_pearson_reward"] == pytest.approx(np.corrcoef([1, 2, 3, 1], [0.1, 0.2, 0.3, 0.5])[0, 1])
    Given.signals = {"exact_advantage": np.full((2, 3), np.nan)}
    assert all(np.isnan(value) for value in exact_quality(Given, Given).values())


@pytest.fixture(scope="module")
def oracle(micro_config, tmp_path_factory):
    """A run on exact advantages whose batches and credits were noted."""
    runner = Runner(micro_config({"credit.method": "oracle", "train.env_steps": 300}), tmp_path_factory.mktemp("oracle") / "run")
    credit, seen = runner.learner.credit, []

    def noted(batch, *more):
        found = credit(batch, *more)
        seen.append((jax.device_get(batch), found))
        return found

    runner.learner.credit = noted
    runner.run()
    return runner, seen


def test_advantages_of_an_episode_add_up_to_its_outcome(oracle):
    """Transitions are deterministic, so Σ_t A(s_t, a_t) = R − V(s_0), and the episodes of a group share V(s_0)."""
    _, seen = oracle
    for batch, credit in seen:
        assert np.isfinite(batch.signals["exact_advantage"][batch.step_mask]).all()
        begun = batch.outcome - np.where(batch.step_mask, credit.step_advantage, 0.0).sum(axis=1)
        for group in np.unique(batch.group_id[batch.episode_mask]):
            mine = begun[(batch.group_id == group) & batch.episode_mask]
            np.testing.assert_allclose(mine, mine[0], atol=1e-4)
            assert -1e-4 <= mine[0] <= 1 + 1e-4


def test_the_value_of_the_start_is_the_success_of_many_episodes(oracle):
    runner, seen = oracle
    auxiliary = runner.learner.auxiliaries["exact"]
    place, graph = next(iter(auxiliary._graphs.items()))
    (policy,) = auxiliary.policies(runner.learner.policy.params, [graph])
    assert policy.shape == (len(graph.keys), 4) and (policy.sum(axis=1) <= 1 + 1e-5).all()
    _, value = solve(graph, policy, runner.c.rollout.max_steps, "success")
    played = runner.parts.collector.collect(runner.learner.actor, [Task(place[0], place[1], 0)] * 400, jax.random.key(5))
    won = np.mean([episode.success for episode in played])
    assert won == pytest.approx(value[0, 0], abs=4 * np.sqrt(max(value[0, 0] * (1 - value[0, 0]), 0.01) / 400))


def test_a_run_reports_how_its_credit_compares(oracle, micro_config, tmp_path):
    runner, _ = oracle
    records = [record for record in runner.history() if "credit/exact_std" in record]
    assert records and all(record["credit/exact_pearson_advantage"] == pytest.approx(1.0, abs=1e-4) for record in records)
    assert all(record["exact/states"] > 0 and record["exact/failed_tasks"] == 0 for record in records)
    other = Runner(micro_config({"credit.method": "rloo", "credit.exact": True, "train.env_steps": 300}), tmp_path / "run")
    other.run()
    plain = Runner(micro_config({"credit.method": "rloo", "train.env_steps": 300}), tmp_path / "plain")
    plain.run()
    found, same = ([r for r in read_metrics(x.workdir / "metrics.jsonl") if r["stage"] == "train"] for x in (other, plain))
    assert any(-1 <= record.get("credit/exact_pearson_advantage", 9) < 1 for record in found)
    assert [r["policy/loss"] for r in found] == [r["policy/loss"] for r in same]  # comparing changes nothing
    recorded, without = (
        [s for p in list_episodes(x.workdir) for e in read_episodes(p)["episodes"] for s in e["steps"]] for x in (other, plain)
    )
    assert all(step["exact_advantage"] is not None for step in recorded) and not any("exact_advantage" in step for step in without)


def test_a_task_whose_environment_fails_here_is_masked(micro_config, tmp_path, monkeypatch):
    ask = exact.Exact.states
    monkeypatch.setattr(exact.Exact, "states", lambda self, tasks: [None, *ask(self, tasks)[1:]])
    runner = Runner(micro_config({"credit.method": "oracle", "train.env_steps": 100}), tmp_path / "run")
    runner.run()
    records = [record for record in runner.history() if "exact/failed_tasks" in record]
    assert records and all(record["exact/failed_tasks"] == 1 for record in records)


@pytest.mark.parametrize("changes, words", [
    ({"rollout.history": 2}, "rollout.history=0"), ({"rollout.context": "episode"}, "rollout.context=step"),
    ({"rollout.top_k": 3}, "rollout.top_k=0"), ({"train.mode": "offline"}, "train.mode=online"),
])  # fmt: skip
def test_what_has_no_exact_advantages_is_one_line(micro_config, tmp_path, changes, words):
    with pytest.raises((UserError, ValueError), match=words):
        Runner(micro_config({"credit.method": "oracle"} | changes), tmp_path / "run")


def test_an_environment_that_does_not_know_its_transitions_is_refused(tmp_path):
    config = load_config_file("configs/istar_webshop.py:micro")
    config.credit.exact = True
    with pytest.raises((UserError, ValueError), match="needs? 'transitions', which the environment WebShopEnv does not offer"):
        Runner(config, tmp_path / "run")
