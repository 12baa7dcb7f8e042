"""Turn rewards: golden values of both methods, plain loops as references, and what counts as the first result."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from references import assert_steps, counted_groups, leave_one_out_loop, literal, pack, random_episodes, returns_loop

from stepreward.credit import make

CLOSE = dict(atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def episodes():
    return random_episodes(np.random.default_rng(1), groups=(4, 3, 4, 1), failed=(5,), uniform=(2,))


def two_rollouts(**options):
    """Returns-to-go 1.2, 1, 1 and 0.7, 0.5, 0."""
    batch = literal([[1] * 3] * 2, [1, 0], turn_reward=[[0.2, 0, 0], [0.2, 0.5, 0]])
    return np.asarray(make("turn_return", **options).credit(batch).step_advantage)[:2, :3]


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, [0.5, 0.5, 1.0]),
        ({"baseline": "rtg_loo"}, [0.5, 0.5, 1.0]),
        ({"baseline": "index_mean"}, [0.25, 0.25, 0.5]),
    ],
)
def test_two_rollouts_by_turn(options, expected):
    np.testing.assert_allclose(two_rollouts(**options), [expected, np.negative(expected)], **CLOSE)


def test_two_rollouts_pooled():
    expected = [[1.0687, 0.6107, 0.6107], [-0.0763, -0.5344, -1.6794]]
    np.testing.assert_allclose(two_rollouts(baseline="pooled", scale="std"), expected, **CLOSE)


@pytest.mark.parametrize("discount, expected", [(1.0, [1.2, 1, 1]), (0.9, [1.01, 0.9, 1])])
def test_returns_of_one_rollout(discount, expected):
    """The other rollout of the group earns nothing, so that the advantages are the returns."""
    batch = literal([[1] * 3] * 2, [0, 0], turn_reward=[[0.2, 0, 1], [0, 0, 0]])
    found = make("turn_return", discount=discount).credit(batch)
    np.testing.assert_allclose(found.step_advantage[0, :3], expected, **CLOSE)
    np.testing.assert_allclose(found.step_reward[:2, :3], [[0.2, 0, 1], [0, 0, 0]], **CLOSE)


@pytest.mark.parametrize("baseline", ["index", "rtg_loo"])
def test_going_on_is_preferred_where_it_earns_more(baseline):
    """Both rollouts get 0.5; the second one goes on and gets 0.4 more. Centring before summing would prefer the first."""
    batch = literal([[1], [1, 1]], [0, 0], turn_reward=[[0.5], [0.5, 0.4]])
    found = np.asarray(make("turn_return", baseline=baseline).credit(batch).step_advantage)
    np.testing.assert_allclose(found[:2, 0], [-0.4, 0.4], **CLOSE)
    # Nobody else has a second step: the baseline is the mean return of the other, or 0 after its end.
    np.testing.assert_allclose(found[1, 1], -0.1 if baseline == "index" else 0.4, **CLOSE)


def turn_return_loop(episodes, *, discount=1.0, weight=1.0, baseline="index", scale="none"):
    """The advantage of each step by the definition, `{(episode, step): advantage}`."""
    found = {}
    for group in counted_groups(episodes).values():
        rewards = {e: [weight * step.turn_reward for step in episodes[e].steps] for e in group}
        for e in group:
            rewards[e][-1] += episodes[e].outcome
        returns = {e: returns_loop(rewards[e], discount) for e in group}
        if baseline == "rtg_loo":
            rows = leave_one_out_loop(list(returns.values()))
            found |= {(e, t): a for e, row in zip(returns, rows) for t, a in enumerate(row)}
            continue
        for e, row in returns.items():
            for t, g in enumerate(row):
                others = [o for o in group if o != e]
                if baseline == "index":
                    units = [returns[o][t] for o in others if t < len(returns[o])] or [x for o in others for x in returns[o]]
                elif baseline == "index_mean":
                    units = [returns[o][t] for o in group if t < len(returns[o])]
                else:
                    units = [x for o in group for x in returns[o]]
                deviation = g - np.mean(units) if len(units) + (baseline == "index") > 1 else 0.0
                if scale == "std":
                    deviation /= (np.std(units, ddof=1) if len(units) > 1 else 0.0) + 1e-6
                found[e, t] = deviation
    return found


@pytest.mark.parametrize("packing", ["episode", "step"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"discount": 0.9, "weight": 0.5},
        {"baseline": "rtg_loo", "discount": 0.9},
        {"baseline": "index_mean", "scale": "std"},
        {"baseline": "pooled"},
    ],
)
def test_advantages_are_those_of_the_definition(episodes, packing, options):
    found = jax.jit(make("turn_return", **options).credit)(pack(episodes, packing)).step_advantage
    assert_steps(found, turn_return_loop(episodes, **options), atol=5e-5)


def test_without_turn_rewards_it_is_the_outcome_method(episodes):
    batch = pack(episodes)
    alone = batch.with_signals(turn_reward=np.zeros(batch.step_mask.shape, np.float32))
    same_length = literal([[1, 1]] * 4, [1, 0, 0, 1])
    np.testing.assert_allclose(
        make("turn_return").credit(same_length).step_advantage, make("rloo").credit(same_length).step_advantage, atol=1e-6
    )
    np.testing.assert_array_equal(make("turn_return", weight=0.0).credit(batch).advantage, make("turn_return").credit(alone).advantage)


# --- MT-GRPO ---

EXECUTED = [[True, True], [True, True], [True, True], [False, False]]  # the last episode gets no result


def mt_grpo(executed=EXECUTED, turns=((0.7, 0), (0.2, 0), (0.2, 0), (0, 0)), outcomes=(1, 1, 0, 0), **options):
    batch = literal([[1] * len(row) for row in turns], outcomes, turn_reward=[list(row) for row in turns], executed=executed)
    return make("mt_grpo", **options).credit(batch)


def test_mt_grpo_as_released():
    found = mt_grpo()
    np.testing.assert_allclose(found.step_advantage[:4, 0], [2.2887, 0.6148, -1.1170, -0.9569], **CLOSE)
    np.testing.assert_allclose(found.step_advantage[:4, 1], [0.8659, 0.8659, -0.8659, -0.9569], **CLOSE)
    np.testing.assert_allclose(found.metrics["episodes_with_result"], 0.75)


def test_the_paper_weighs_the_outcome_before_the_first_result():
    z_outcome, z_turn = 0.8659, 1.4228
    found = mt_grpo(outcome_weight=0.5).step_advantage[0, :2]
    np.testing.assert_allclose(found, [0.5 * z_outcome + z_turn, z_outcome], **CLOSE)
    found = mt_grpo(turn_weight=0.5).step_advantage[0, :2]
    np.testing.assert_allclose(found, [z_outcome + 0.5 * z_turn, z_outcome], **CLOSE)


def test_an_episode_without_a_result_may_count_as_before_it():
    found = mt_grpo(without_result="before").step_advantage[3, :2]
    np.testing.assert_allclose(found, [-0.8659 - 0.9206] * 2, **CLOSE)


def test_the_first_result_is_that_of_the_first_executed_step_which_a_later_step_can_read():
    turns = [(0.5, 0, 0), (0, 0, 0), (0, 0), (0,)]
    executed = [[False, True, True], [True, False, True], [False, True], [True]]
    found = np.asarray(mt_grpo(executed, turns, [1, 0, 0, 1], without_result="sum").step_advantage)
    z_outcome = np.array([1, -1, -1, 1]) * 0.8659
    z_turn = np.array([0.375, -0.125, -0.125, -0.125]) / (0.25 + 1e-4)
    z_sum = np.array([0.875, -0.625, -0.625, 0.375]) / (np.std([1.5, 0, 0, 1], ddof=1) + 1e-4)
    both = z_outcome + z_turn
    np.testing.assert_allclose(found[0, :3], [both[0], both[0], z_outcome[0]], **CLOSE)
    np.testing.assert_allclose(found[1, :3], [both[1], z_outcome[1], z_outcome[1]], **CLOSE)
    np.testing.assert_allclose(found[2, :2], [z_sum[2]] * 2, **CLOSE)  # its only executed step is the last
    np.testing.assert_allclose(found[3, 0], z_sum[3], **CLOSE)


def mt_grpo_loop(episodes, *, turn_weight=1.0, outcome_weight=1.0, without_result="sum"):
    found = {}
    for group in counted_groups(episodes).values():
        turn = np.array([sum(step.turn_reward for step in episodes[e].steps) for e in group])
        outcome = np.array([episodes[e].outcome for e in group])
        z = lambda x: (x - x.mean()) / (x.std(ddof=1) + 1e-4) if len(x) > 1 and x.std() > 1e-9 else np.zeros(len(x))
        before, after = outcome_weight * z(outcome) + turn_weight * z(turn), z(outcome)
        without = z(turn + outcome) if without_result == "sum" else before
        for i, e in enumerate(group):
            steps = episodes[e].steps
            first = next((t for t, step in enumerate(steps[:-1]) if step.executed), None)
            for t in range(len(steps)):
                found[e, t] = without[i] if first is None else before[i] if t <= first else after[i]
    return found


@pytest.mark.parametrize("packing", ["episode", "step"])
@pytest.mark.parametrize("options", [{}, {"without_result": "before", "turn_weight": 0.5, "outcome_weight": 0.3}])
def test_mt_grpo_advantages_are_those_of_the_definition(episodes, packing, options):
    found = jax.jit(make("mt_grpo", **options).credit)(pack(episodes, packing)).step_advantage
    assert_steps(found, mt_grpo_loop(episodes, **options))


def test_the_host_reads_turn_rewards_of_counted_steps():
    batch = literal([[1, 1], [1], [1]], [1, 0, 0])
    batch = batch.replace(episode_mask=batch.episode_mask.at[1].set(False))
    step = lambda reward: SimpleNamespace(turn_reward=reward)
    episodes = [
        SimpleNamespace(steps=[step(0.5), step(0.25)], failure=None),
        SimpleNamespace(steps=[step(7.0)], failure=None),
        SimpleNamespace(steps=[step(9.0)], failure="it broke"),
    ]
    for name in ("turn_return", "mt_grpo"):
        method = make(name)
        found = method.host_signals(batch, episodes, np.random.default_rng(0))["turn_reward"]
        assert found.dtype == np.float32 and found.sum() == 0.75 and found[0, :2].tolist() == [0.5, 0.25]
        assert method.capabilities == {"turn_reward"} and method.needs_group
