"""The pieces that methods are composed of, and what takes their place in ablations, on numbers that can be computed by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
from references import by_step, literal

from stepreward.credit import ablations, pieces
from stepreward.credit.units import UNITS, StepUnits, TokenUnits

CLOSE = dict(atol=1e-6, rtol=0)
TOKENS = [[2, 1], [1]]  # two steps of two tokens and one, and one step of one token
LOG_RATIO = [[0.1, 0.3, 0.2], [-0.6]]
OUTCOMES = [1, 0]


@pytest.fixture(scope="module", params=["episode", "step"])
def batch(request):
    return literal(TOKENS, OUTCOMES, packing=request.param, log_prob_prm=LOG_RATIO)


@pytest.fixture(scope="module")
def log_ratio(batch):
    return pieces.log_ratio(batch.signals["log_prob_prm"], batch.log_prob_old, batch)


def of_tokens(x_RxL, batch):
    """The values of the tokens of each episode, in order of time."""
    found = sorted(by_step(x_RxL, batch).items())
    return [sum((values for (episode, _), values in found if episode == e), []) for e in range(2)]


def of_steps(x_ExS):
    return [np.asarray(x_ExS)[0, :2].tolist(), np.asarray(x_ExS)[1, :1].tolist()]


def assert_ragged(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, **CLOSE)


def test_log_ratios_are_zero_off_the_action_tokens(batch, log_ratio):
    assert_ragged(of_tokens(log_ratio, batch), LOG_RATIO)
    assert not np.asarray(log_ratio)[~np.asarray(batch.action_mask)].any()


def test_implicit_rewards_of_steps_and_of_tokens(batch, log_ratio):
    steps, tokens = (pieces.implicit_rewards(log_ratio, 0.5, units(batch)) for units in UNITS.values())
    assert_ragged(of_steps(steps), [[0.2, 0.1], [-0.3]])
    assert_ragged(of_tokens(tokens, batch), [[0.05, 0.15, 0.1], [-0.3]])
    assert_ragged(of_steps(TokenUnits(batch).to_steps(tokens)), [[0.2, 0.1], [-0.3]])
    assert_ragged(of_tokens(StepUnits(batch).to_tokens(steps), batch), [[0.2, 0.2, 0.1], [-0.3]])


def test_returns_to_go_of_steps_and_of_tokens(batch, log_ratio):
    steps = StepUnits(batch)
    assert_ragged(of_steps(steps.return_to_go(steps.from_tokens(log_ratio))), [[0.6, 0.2], [-0.6]])
    assert_ragged(of_tokens(TokenUnits(batch).return_to_go(log_ratio), batch), [[0.6, 0.5, 0.2], [-0.6]])


@pytest.mark.parametrize(
    "name, of_step, of_token",
    [("first_seen", [[1, 0], [1]], [[1, 0, 0], [1]]), ("episode_mean", [[1 / 2, 1 / 2], [1]], [[1 / 3] * 3, [1]])],
)
def test_weights_of_the_units_of_a_baseline(batch, name, of_step, of_token):
    assert_ragged(of_steps(ablations.BASELINE[name](StepUnits(batch))), of_step)
    assert_ragged(of_tokens(ablations.BASELINE[name](TokenUnits(batch)), batch), of_token)
    assert ablations.BASELINE["all_steps"](StepUnits(batch)) is None


@pytest.mark.parametrize("name, score", [("sum", [0.3, -0.3]), ("mean", [0.15, -0.3]), ("token_mean", [0.1, -0.3])])
def test_scores_of_trajectories(batch, log_ratio, name, score):
    found = ablations.TRAJECTORY_REDUCE[name](pieces.trajectory_scores(log_ratio, 0.5, batch), batch)
    np.testing.assert_allclose(found[:2], score, **CLOSE)


def test_merged_as_advantages_and_as_rewards(batch):
    """A^E is 1 and −1. Process rewards 2, 4 and −3 have the returns-to-go 6, 4 and −3; of four tokens two belong to the first step."""
    units = StepUnits(batch)
    process = jnp.zeros(batch.step_mask.shape).at[0, :2].set(jnp.array([2.0, 4.0])).at[1, 0].set(-3.0)
    episode = units.to_tokens(jnp.zeros(batch.step_mask.shape).at[0].set(1.0).at[1].set(-1.0))
    merged = pieces.merge_advantages(episode, process, 0.5, units)
    assert_ragged(of_tokens(merged.advantage, batch), [[2, 2, 3], [-2.5]])
    assert_ragged(of_tokens(merged.process, batch), [[1, 1, 2], [-1.5]])
    assert merged.returns is None
    merged = pieces.merge_rewards(episode, process, 0.5, units)
    returns = np.array([4, 4, 3, -2.5])
    assert_ragged(of_tokens(merged.returns, batch), [returns[:3], returns[3:]])
    whitened = (returns - returns.mean()) / returns.std(ddof=1)
    assert_ragged(of_tokens(merged.advantage, batch), [whitened[:3], whitened[3:]])


@pytest.mark.parametrize("how, expected", [("prm", [[3, 1], [5]]), ("shuffled", [[1, 3], [5]]), ("uniform", [[2, 2], [5]])])
def test_controls_of_step_rewards(batch, how, expected):
    reward = jnp.full(batch.step_mask.shape, 7.0).at[0, :2].set(jnp.array([3.0, 1.0])).at[1, 0].set(5.0)
    order = batch.signals["step_permutation"].at[0, :2].set(jnp.array([1, 0])).at[1, 0].set(0)
    found = ablations.controlled(reward, how, batch.with_signals(step_permutation=order))
    assert_ragged(of_steps(found), expected)
    assert not np.asarray(found)[~np.asarray(batch.step_mask)].any()


@pytest.mark.parametrize("name, expected", [("uniform", [[0.5, 0.5], [0]]), ("terminal", [[0, 1], [0]]), ("leave_one_out", [[1, 1], [-1]])])
def test_rewards_of_spa_that_need_no_estimator(batch, name, expected):
    assert_ragged(of_steps(ablations.OUTCOME_REWARD[name](batch, "zero")), expected)


def test_grounding_and_step_weights_as_released(batch):
    executed, mask = jnp.zeros(batch.step_mask.shape, bool).at[0, 0].set(True), batch.step_mask
    assert_ragged(of_steps(pieces.grounding(executed, mask)), [[1, 0], [0]])
    assert_ragged(of_steps(pieces.grounding(ablations.with_last_step(executed, mask), mask)), [[1, 1], [1]])
    ones = jnp.ones(batch.step_mask.shape)
    assert_ragged(of_steps(ablations.STEP_WEIGHT["released"](ones, batch)), [[1, 0], [0]])
    assert_ragged(of_steps(ablations.STEP_WEIGHT["none"](ones, batch)), [[1, 1], [1]])
