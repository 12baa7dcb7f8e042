"""Adaptive Reward Design: the golden values, plain loops as references, adaptation by hand, and runs that resume."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from references import AUTOMATON_DISTANCE, assert_steps, literal, pack, random_episodes
from resuming import assert_same_after_a_kill, stop_after

from stepreward import kernels
from stepreward.config import override
from stepreward.credit import make
from stepreward.credit.adaptation import Adaptation, best_rank, by_rank, by_visits, ranks_of
from stepreward.envs.automata import automaton, countdown
from stepreward.metrics import read_metrics
from stepreward.training.train import Runner

D0 = np.array([3.0, 2.0, 1.0, 0.0])
# A trap (4) and two ways: 0 → 1 → 3, 0 → 2 → 3.
BRANCHED = automaton(
    {
        "states": ["start", "left", "right", "done", "lost"],
        "start": "start",
        "accepting": ["done"],
        "edges": [{"from": a, "to": b, "when": {"at": b}} for a, b in
                  (("start", "left"), ("start", "right"), ("left", "done"), ("right", "done"), ("left", "lost"))],
    }
)  # fmt: skip


@pytest.mark.parametrize(
    "states, progress, hybrid", [((0, 1), 1, 0.9), ((1, 1), 0, -0.2), ((0, 3), 3, 2.7), ((2, 1), 0, 0), ((3, 3), 0, 0)]
)
def test_golden_values(states, progress, hybrid):
    before, after = (np.array([[q]]) for q in states)
    arrays = (before, after, np.ones((1, 1), bool), D0, D0)
    np.testing.assert_allclose(kernels.progress_reward(*arrays), [[progress]], atol=1e-6)
    np.testing.assert_allclose(kernels.hybrid_reward(*arrays, eta=0.1), [[hybrid]], atol=1e-6)


def test_the_method_adds_the_outcome_at_the_last_step():
    """With γ = λ = 1, V = 0 and no whitening, the advantage is the return-to-go."""
    signals = {"automaton_state": [[0, 1, 1], [0, 0, 0]], "automaton_next": [[1, 1, 3], [0, 0, 2]]}
    batch = literal([[1, 2, 1]] * 2, [1, 0], **signals).with_signals(automaton_distance=np.array([D0, D0], np.float32))
    found = make("ard", whiten=False).credit(batch)
    np.testing.assert_allclose(found.step_reward[:2, :3], [[1, 0, 3], [0, 0, 2]], atol=1e-6)
    np.testing.assert_allclose(found.step_advantage[:2, :3], [[4, 3, 3], [2, 2, 2]], atol=1e-6)
    found = make("ard", whiten=False, shaping="hybrid", weight=0.5, baseline="group").credit(batch)
    rewards = np.array([[0.45, -0.1, 1.9], [-0.15, -0.15, 0.9]])
    np.testing.assert_allclose(found.step_reward[:2, :3], rewards, atol=1e-6)
    returns = rewards[:, ::-1].cumsum(1)[:, ::-1]
    np.testing.assert_allclose(found.step_advantage[:2, :3], returns - returns[::-1], atol=1e-6)
    assert found.metrics["subgoal_steps"] == pytest.approx(3 / 6) and found.metrics["steps_without_automaton"] == 0


def reward_loop(q, after, shaping, rules, eta=0.1):
    d0, dk = AUTOMATON_DISTANCE
    if q < 0 or after < 0:
        return 0.0
    progress = max(0.0, dk[q] - dk[after], d0[q] - d0[after])
    if shaping == "progress":
        return progress
    far = max(dk[q], d0[q]) if rules == "released" else dk[q]
    return (1 - eta) * progress if q != after else -eta * far


@pytest.mark.parametrize("packing", ["episode", "step"])
@pytest.mark.parametrize("shaping", ["progress", "hybrid"])
@pytest.mark.parametrize("rules", ["paper", "released"])
def test_rewards_are_those_of_the_definition(packing, shaping, rules):
    episodes = random_episodes(np.random.default_rng(2), groups=(4, 3, 4, 1), failed=(5,))
    found = jax.jit(make("ard", shaping=shaping, rules=rules, weight=0.5).credit)(pack(episodes, packing))
    expected = {}
    for e, episode in enumerate(episodes):
        for t, step in enumerate(episode.steps):
            if episode.counted:
                last = episode.outcome * (t + 1 == len(episode.steps))
                expected[e, t] = 0.5 * reward_loop(step.automaton_state, step.automaton_next, shaping, rules) + last
    assert_steps(found.step_reward, expected)


def test_without_progress_it_is_the_outcome_method():
    batch = pack(random_episodes(np.random.default_rng(3)))
    still = batch.with_signals(automaton_next=batch.signals["automaton_state"])
    np.testing.assert_array_equal(make("ard").credit(still).advantage, make("step_ppo").credit(still).advantage)
    np.testing.assert_array_equal(
        make("ard", weight=0.0, shaping="hybrid").credit(batch).advantage, make("step_ppo").credit(batch).advantage
    )


def test_the_host_gives_the_states_before_and_after_each_step():
    states = ([2, 1, 1, 0], [2, 2], [0, 1, 0])
    episodes = [SimpleNamespace(automaton_states=row, failure=None) for row in states]
    episodes[1].failure = "broken"
    batch = literal([[1] * 3, [1], [1, 1]], [1, 0, 0])
    found = make("ard").host_signals(batch, episodes, np.random.default_rng(0))
    assert found["automaton_state"].dtype == found["automaton_next"].dtype == np.int32
    assert [row[:3].tolist() for row in found["automaton_state"][:3]] == [[2, 1, 1], [-1, -1, -1], [0, 1, -1]]
    assert [row[:3].tolist() for row in found["automaton_next"][:3]] == [[1, 1, 0], [-1, -1, -1], [1, 0, -1]]


# --- Adaptation ---


def test_adaptation_by_visits_by_hand():
    """d = [2, 1, 1, 0, 3], visits 6, 3, 0, 0, 1 of 10: 0.5·2 + 6·0.6 = 4.6; 0.5 + 1.8 = 2.3; 0.5; the trap gets 1.5 + 6."""
    assert BRANCHED.distances() == (2, 1, 1, 0, 3) and BRANCHED.traps() == (4,)
    found = by_visits((2, 1, 1, 0, 3), (6, 3, 0, 0, 1), 0.5, 6.0, (3,), (4,))
    np.testing.assert_allclose(found, [4.6, 2.3, 0.5, 0, 7.5])
    np.testing.assert_allclose(by_visits((2, 1), (0, 0), 0.5, 6.0, (), ()), [1, 0.5])


def test_adaptation_by_rank_by_hand():
    assert ranks_of((2, 1, 1, 0, 3)) == [2, 1, 1, 0, 3]
    assert best_rank((2, 1, 1, 0, 3), (6, 3, 0, 0, 1), (3, 4)) == 1 and best_rank((2, 1, 1, 0, 3), (6, 0, 0, 2, 1), (3, 4)) == 2
    assert best_rank((2, 1, 1, 0, 3), (0, 0, 0, 2, 1), (3, 4)) is None
    assert by_rank((2, 1, 1, 0, 3), (2, 1, 1, 0, 3), 2, 7.0) == (9, 1, 1, 0, 10)
    assert by_rank((9, 1, 1, 0, 10), (2, 1, 1, 0, 3), 1, 7.0) == (16, 8, 8, 0, 17)


def after(rules, *episodes):
    state = rules.begin()
    for reached, success in episodes:
        state = rules.after(state, reached, success)
    return state


def test_distances_adapt_after_episodes_in_a_row_without_a_success():
    rules = make("ard", every=3, eta=0.4, theta=4.0).adaptation(countdown(3))
    failed, won = ([0, 1], False), ([1, 3], True)
    assert after(rules, failed, failed).distance == (3, 2, 1, 0)
    assert after(rules, failed, failed, won, failed, failed) == Adaptation((3, 2, 1, 0), 0.4, 2, (2, 2, 0, 0))
    adapted = after(rules, failed, failed, won, failed, failed, failed)
    assert adapted == Adaptation((7, 6, 1, 0), 0.1, 0, (0, 0, 0, 0), updates=1, best=2)
    # The next three episodes come one subgoal farther.
    assert rules.after(adapted, [0, 1], False) == adapted._replace(episodes=1, visits=(1, 1, 0, 0))
    again = adapted
    for _ in range(3):
        again = rules.after(again, [1, 2], False)
    assert again.distance == (11, 10, 5, 0) and again.eta == 0.1 / 4 and again.updates == 2
    assert after(make("ard", every=1, adapt="none").adaptation(countdown(3)), failed, failed).distance == (3, 2, 1, 0)


def test_distances_adapt_by_visits_and_theta_is_the_sum_of_distances_by_default():
    rules = make("ard", every=2, adapt="visits", eta=0.6, mu=0.5).adaptation(countdown(3))
    assert rules.theta == 6
    found = after(rules, ([0, 1], False), ([0, 0], False))
    np.testing.assert_allclose(found.distance, [0.5 * 3 + 6 * 3 / 4, 0.5 * 2 + 6 / 4, 0.5, 0])
    assert found.eta == 0.6 / 6 and found.visits == (0, 0, 0, 0)


def test_the_released_rules():
    """Every second episode; the rank must change; at most three times; not after enough successes."""
    rules = make("ard", variant="released", every=2, eta=0.4, theta=2.0).adaptation(countdown(3))
    low, high, won = ([0, 0], False), ([0, 1], False), ([1, 3], True)
    first = after(rules, low, low)
    assert (first.distance, first.eta, first.best) == ((5, 2, 1, 0), 0.2, 3)
    same = after(rules, low, low, low, low)
    assert (same.distance, same.eta, same.updates, same.visits) == ((5, 2, 1, 0), 0.2, 2, (8, 0, 0, 0))
    assert after(rules, low, low, low, high).distance == (7, 4, 1, 0)
    assert after(rules, *[low] * 6, low, high).distance == (5, 2, 1, 0)  # it was due three times before
    assert after(rules, low, won, low, low).distance == (3, 2, 1, 0)  # 1 of 4 episodes succeeded
    assert after(rules, won, *[low] * 9).updates == 0 and after(rules, won, *[low] * 11).updates == 1


def test_the_state_survives_json():
    state = Adaptation((0.1 + 0.2, 1 / 3), 0.1 / 7, 3, (2, 1), 4, 1, (True, False))
    assert Adaptation.from_json(json.loads(json.dumps(state.to_json()))) == state


@pytest.mark.parametrize(
    "options, words",
    [
        ({"shaping": "distance"}, "shaping of 'ard' must be one of 'progress', 'hybrid'"),
        ({"adapt": "v0"}, "adapt of 'ard'"),
        ({"rules": "mine"}, "rules of 'ard'"),
        ({"every": 0}, "every of 'ard' must be at least 1"),
        ({"theta": 0.5}, "theta of 'ard' must be at least 1"),
        ({"theta": float("inf")}, "theta of 'ard' must be finite"),
        ({"mu": 1.5}, "mu of 'ard' must lie in"),
        ({"eta": -0.1}, "eta of 'ard' must lie in"),
        ({"weight": -1.0}, "weight of 'ard' must be at least 0"),
    ],
)
def test_values_out_of_range_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        make("ard", **options)


# --- Runs ---

CONFIG = {
    "credit.method": "ard", "sft.updates": 2, "sft.log_every": 2, "eval.episodes": 4, "eval.every": 99, "train.env_steps": 600,
    "checkpoint.every": 1,
}  # fmt: skip
OPTIONS = (
    "environment.options.automaton=True", "environment.options.boxes=2", "credit.options.every=8", "credit.options.shaping=hybrid",
    "credit.options.adapt=visits",
)  # fmt: skip


@pytest.fixture
def config(micro_config):
    """Makes the config of a run, with a function for its options."""

    def made(options=OPTIONS):
        found = micro_config(CONFIG)
        for option in options:
            override(found, *option.split("=", 1))
        return found

    return made


def test_a_run_adapts_the_distances_and_resumes_exactly_after_a_kill(config, root, tmp_path):
    whole = assert_same_after_a_kill(config(), tmp_path, root)
    records = [record for record in read_metrics(whole) if record["stage"] == "train"]
    assert len(records) >= 3 and records[0]["subgoals/adaptations"] == 0 == records[0]["subgoals/distance_change"]
    assert records[-1]["subgoals/adaptations"] >= 1 and records[-1]["subgoals/distance_change"] > 0
    assert records[-1]["subgoals/eta"] < records[0]["subgoals/eta"] and records[0]["subgoals/reached_rank_2"] == 1
    assert all(record["credit/steps_without_automaton"] == 0 for record in records)


def test_the_adapted_state_is_restored(config, tmp_path):
    cut = Runner(config(), tmp_path / "cut")
    stop_after(cut, 2)
    state = cut.learner.auxiliaries["subgoals"].state
    assert Runner(config(), tmp_path / "cut").learner.auxiliaries["subgoals"].state == state


def test_an_environment_without_an_automaton_is_refused(config, tmp_path):
    with pytest.raises(ValueError, match="needs 'automaton'.*environment.options.automaton=True"):
        Runner(config(()), tmp_path / "run")
