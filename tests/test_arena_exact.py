"""Exact values against the enumeration of all action sequences, and exact gradients against automatic differentiation."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stepreward.arena import exact, tasks
from stepreward.arena.task import ACTIONS, OUTCOMES, Result, Task, explore

STEPS, STATES = 4, 5


def random_task(seed: int, horizon: int = 3) -> Task:
    """Random transitions with two results each, random rewards, and some ends."""
    rng = np.random.default_rng(seed)
    shape = (STATES, ACTIONS, OUTCOMES)
    probability = rng.random(shape)
    return Task(
        start=rng.dirichlet(np.ones(STATES)).astype(np.float32),
        next_state=rng.integers(0, STATES, shape).astype(np.int32),
        probability=(probability / probability.sum(axis=2, keepdims=True)).astype(np.float32),
        reward=rng.normal(size=shape).astype(np.float32),
        terminal=rng.random(shape) < 0.3,
        success=rng.random(shape) < 0.3,
        subgoal=np.zeros(STATES, np.int32),
        subgoals=np.int32(1),
        distance=np.zeros(STATES, np.float32),
        horizon=np.int32(horizon),
        max_steps=STEPS,
    )


def by_enumeration(task: Task, policy: np.ndarray, state: int, step: int) -> float:
    """The expected reward from a state on: the sum over all sequences of actions and results of their probability times their reward."""
    total = 0.0
    left = int(task.horizon) - step
    for choices in itertools.product(itertools.product(range(ACTIONS), range(OUTCOMES)), repeat=left):
        at, chance, reward, over = state, 1.0, 0.0, False
        for t, (a, k) in enumerate(choices, step):
            if over:  # of the sequences that differ after the end only, count the first one
                chance *= a == 0 and k == 0
                continue
            chance *= policy[t, at, a] * task.probability[at, a, k]
            reward += task.reward[at, a, k]
            over, at = task.terminal[at, a, k], task.next_state[at, a, k]
        total += chance * reward
    return total


@pytest.fixture(params=[0, 1])
def task(request):
    return random_task(request.param)


@pytest.fixture
def log_policy():
    return jax.nn.log_softmax(jnp.asarray(np.random.default_rng(7).normal(size=(STEPS, STATES, ACTIONS)), jnp.float32))


def test_values_are_those_of_all_action_sequences(task, log_policy):
    found, policy = exact.values(task, log_policy), np.exp(np.asarray(log_policy))
    for state in range(STATES):
        for step in (0, 1, 2):
            assert float(found.value[step, state]) == pytest.approx(by_enumeration(task, policy, state, step), abs=1e-5)
    assert not np.asarray(found.value)[3:].any() and not np.asarray(found.q)[3:].any()
    np.testing.assert_allclose((policy * found.advantage).sum(axis=2)[:3], 0, atol=1e-6)


def test_the_best_policy_is_the_best_of_all_deterministic_ones():
    task = random_task(3, horizon=2)
    best = np.asarray(exact.optimal(task).value[0])
    for state in range(2):
        # The choice of the last step depends on the state there: the best one is the maximum over its actions.
        last = (task.probability * task.reward).sum(axis=2).max(axis=1)
        first = (task.probability * (task.reward + ~task.terminal * last[task.next_state])).sum(axis=2)
        assert best[state] == pytest.approx(first[state].max(), abs=1e-5)
    np.testing.assert_allclose(exact.values(task, exact.expert(task)).value[0], best, atol=3e-3)


def test_occupancy_and_length_count_the_steps(task, log_policy):
    occupied = np.asarray(exact.occupancy(task, log_policy))
    assert occupied[0].sum() == pytest.approx(1, abs=1e-5) and not occupied[3:].any()
    assert (np.diff(occupied.sum(axis=1)) <= 1e-6).all()
    expected = (task.start * exact.steps_to_come(task, log_policy)[0]).sum()
    assert occupied.sum() == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("shape", [(STATES, ACTIONS), (STEPS, STATES, ACTIONS)])
def test_the_policy_gradient_is_the_derivative_of_the_expected_outcome(task, shape):
    logits = jnp.asarray(np.random.default_rng(5).normal(size=shape), jnp.float32)
    truth = jax.grad(lambda x: exact.expected_outcome(task, jax.nn.log_softmax(x)))(logits)
    assert np.abs(truth).max() > 0.01
    np.testing.assert_allclose(jax.jit(exact.policy_gradient)(task, logits), truth, atol=1e-5)


@pytest.mark.parametrize("name", tasks.names())
def test_a_registered_task_is_sound(name):
    task = tasks.make(name)
    np.testing.assert_allclose(task.probability.sum(axis=2), 1, atol=1e-6)
    assert task.start.sum() == pytest.approx(1) and task.next_state.max() < task.num_states and 1 <= task.horizon <= task.max_steps
    assert (task.reward == task.success).all() and not (task.success & ~task.terminal).any()  # so an outcome is 0 or 1
    assert task.subgoal.max() == task.subgoals or name in ("corridor", "sokoban", "ice", "journey")
    start = float(exact.success(task, jnp.full((task.num_states, ACTIONS), -np.log(ACTIONS))))
    best = float((task.start * exact.optimal(task).value[0]).sum())
    assert 0.005 < start < 0.65 and best > start + 0.2 and best > 0.89
    assert (task.distance[task.start > 0] <= task.horizon).all()


def test_what_does_not_fit_is_refused():
    stay = lambda state, action: [Result(state)]
    with pytest.raises(ValueError, match="sum to 1"):
        explore([0], lambda s, a: [Result(s, 0.4)], lambda s: 0, subgoals=1, horizon=2, states=4, max_steps=2)
    with pytest.raises(ValueError, match="does not fit"):
        explore(range(5), stay, lambda s: 0, subgoals=1, horizon=2, states=4, max_steps=2)
    with pytest.raises(ValueError, match="there are: bandit"):
        tasks.make("nothing")
