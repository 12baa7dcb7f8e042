"""Credit methods on small arrays, compared with hand-computed values or with output of a method's public release."""

import numpy as np
import pytest
from references import by_step, literal

from stepreward.credit import IStar, make

CLOSE = dict(atol=1e-4, rtol=0)

ISTAR_REWARD = [[0.4, 0.2], [-0.1, 0.1], [0.0, -0.2], [0.3, 0.1]]
OUTCOMES = [1, 0, 0, 1]


def episode_values(name, outcomes, tokens, **options):
    batch = literal([[n] for n in tokens], outcomes)
    return np.asarray(make(name, **options).credit(batch).step_advantage)[: len(outcomes), 0]


@pytest.mark.parametrize(
    "name, outcomes, expected",
    [
        ("grpo", [1, 0, 0, 1], [0.8660, -0.8660, -0.8660, 0.8660]),
        ("dr_grpo", [1, 0, 0, 1], [0.5, -0.5, -0.5, 0.5]),
        ("rloo", [1, 0, 0, 1], [0.6667, -0.6667, -0.6667, 0.6667]),
        ("grpo", [1, 0, 0, 0], [1.5, -0.5, -0.5, -0.5]),
        ("dr_grpo", [1, 0, 0, 0], [0.75, -0.25, -0.25, -0.25]),
        ("rloo", [1, 0, 0, 0], [1.0, -1 / 3, -1 / 3, -1 / 3]),
        ("reinforce_plus_plus", [1, 0, 0, 0], [1.6202, -0.5401, -0.5401, -0.5401]),
        ("reinforce_plus_plus_baseline", [1, 0, 0, 0], [1.6202, -0.5401, -0.5401, -0.5401]),
    ],
)
def test_outcome_methods(name, outcomes, expected):
    np.testing.assert_allclose(episode_values(name, outcomes, [2, 2, 2, 2]), expected, **CLOSE)


def test_reinforce_plus_plus_baseline_whitens_over_tokens():
    values = episode_values("reinforce_plus_plus_baseline", [1, 0, 0, 1], [2, 4, 4, 2])
    np.testing.assert_allclose(values, [1.3540, -0.6770, -0.6770, 1.3540], **CLOSE)


@pytest.mark.parametrize("discount, trace, expected", [(1.0, 1.0, [0.5, 0.4, 0.2]), (0.9, 0.5, [0.1345, 0.21, 0.2])])
def test_step_ppo(discount, trace, expected):
    # V of a step is that before its first token; later values must not be read.
    batch = literal([[2, 1, 2]], [1], value=[[0.5, 9.0, 0.6, 0.8, 9.0]])
    credit = make("step_ppo", discount=discount, trace=trace, whiten=False).credit(batch)
    np.testing.assert_allclose(credit.step_advantage[0, :3], expected, **CLOSE)


@pytest.mark.parametrize("packing", ["episode", "step"])
@pytest.mark.parametrize("discount, trace, expected", [(1, 1, [0.5, 0.4, 0.3, 0.2]), (0.9, 0.5, [0.0758, 0.0795, 0.11, 0.2])])
def test_ppo(packing, discount, trace, expected):
    batch = literal([[2, 2]], [1], packing=packing, value=[[0.5, 0.6, 0.7, 0.8]])
    credit = make("ppo", discount=discount, trace=trace, whiten=False).credit(batch)
    np.testing.assert_allclose(np.concatenate(list(by_step(credit.advantage, batch).values())), expected, **CLOSE)


def istar_batch(packing="episode"):
    """Two tokens a step whose log-ratios add up to the step rewards of the golden example at β = 0.05."""
    log_ratio = np.repeat(np.array(ISTAR_REWARD) / 0.05 / 2, 2, axis=1)
    return literal([[2, 2]] * 4, OUTCOMES, packing=packing, log_prob_prm=log_ratio - 1.0, log_prob_old=np.full((4, 4), -1.0))


@pytest.mark.parametrize("packing", ["episode", "step"])
def test_istar_as_in_the_paper(packing):
    credit = make("istar", episode_advantage="grpo").credit(istar_batch(packing))
    np.testing.assert_allclose(credit.step_reward[:4, :2], ISTAR_REWARD, **CLOSE)
    expected = [[2.366, 1.366], [-1.866, -0.866], [-1.366, -2.366], [1.866, 0.866]]
    np.testing.assert_allclose(credit.step_advantage[:4, :2], expected, **CLOSE)
    only_steps = np.asarray(make("istar", episode_advantage="grpo").credit(istar_batch(packing)).step_advantage)
    only_steps = only_steps - np.asarray(make("grpo").credit(istar_batch(packing)).step_advantage)
    np.testing.assert_allclose(only_steps[:4, :2], [[1.5, 0.5], [-1, 0], [-0.5, -1.5], [1, 0]], **CLOSE)


@pytest.mark.parametrize("packing", ["episode", "step"])
def test_istar_as_released(packing):
    batch = istar_batch(packing)
    outcome_advantage = np.asarray(make("rloo").credit(batch).step_advantage)
    method = make("istar", variant="released", step_norm="none")
    step_advantage = np.asarray(method.credit(batch).step_advantage) - outcome_advantage
    released = np.array([[0.3333, 0.0667], [-0.3333, -0.0667], [-0.2, -0.4667], [0.2, -0.0667]])
    np.testing.assert_allclose(step_advantage[:4, :2], released, **CLOSE)
    # With the release's division by the largest reward of the batch, 0.4.
    step_advantage = np.asarray(make("istar", variant="released").credit(batch).step_advantage) - outcome_advantage
    np.testing.assert_allclose(step_advantage[:4, :2], released / 0.4, atol=3e-4)


def test_the_only_episode_of_a_group_keeps_its_own_rewards_as_released():
    """Step rewards 0.4, 0.2 over max|r| = 0.4 (plus 10⁻⁶), and the outcome 0.5; the paper's form has nothing to compare with."""
    log_ratio = np.repeat(np.array([[0.4, 0.2], [0.1, -0.3], [0.3, 0.1]]) / 0.05 / 2, 2, axis=1)
    batch = literal([[2, 2]] * 3, [0.5, 1, 0], groups=[0, 1, 1], log_prob_prm=log_ratio)
    released = make("istar", variant="released").credit(batch).step_advantage
    np.testing.assert_allclose(released[0, :2], [0.5 + 1.0, 0.5 + 0.5], **CLOSE)
    zero = make("istar", variant="released", singleton="zero").credit(batch).step_advantage
    np.testing.assert_allclose(zero[0, :2], [0, 0], **CLOSE)
    np.testing.assert_allclose(zero[1:3], released[1:3], **CLOSE)


@pytest.mark.parametrize(
    "norm, size", [("maxabs", 0.4), ("std", np.std([0.4, 0.2, -0.1, 0.1, 0, -0.2, 0.3, 0.1], ddof=1)), ("max_return", 0.6)]
)
def test_the_divisor_of_process_rewards_is_their_size_plus_the_floor(norm, size):
    # The returns-to-go are 0.6, 0.2; 0, 0.1; −0.2, −0.2; 0.4, 0.1.
    options = dict(alpha=1.0, step_advantage="centre", step_norm=norm, step_norm_floor=0.5)
    outcome = np.asarray(make("rloo").credit(istar_batch()).step_advantage)
    found = np.asarray(make("istar", **options).credit(istar_batch()).step_advantage) - outcome
    reward = np.array(ISTAR_REWARD)
    np.testing.assert_allclose(found[:4, :2], (reward - reward.mean()) / (size + 0.5), **CLOSE)


@pytest.mark.parametrize("packing, step_tokens", [("episode", [2]), ("step", [1, 1])])
def test_prime_as_released_divides_by_the_largest_return(packing, step_tokens):
    """Returns-to-go of the tokens are 0.4, 0.3; −0.2, −0.2; 0.4, 0.2; −0.2, −0.1: token rewards are divided by 0.4."""
    batch = literal([step_tokens] * 4, OUTCOMES, packing=packing, log_prob_prm=PRIME_TOKENS / 0.05)
    scaled = literal([step_tokens] * 4, OUTCOMES, packing=packing, log_prob_prm=PRIME_TOKENS / 0.05 / 0.4)
    released = make("prime", variant="released").credit(batch)
    np.testing.assert_allclose(released.returns, make("prime").credit(scaled).returns, **CLOSE)
    assert make("prime", variant="paper") == make("prime")


def test_istar_step_reward():
    batch = literal([[2], [1]], [1, 0], log_prob_prm=[[-1.2, -2.0], [-7.0]], log_prob_old=[[-1.5, -2.5], [-6.5]])
    np.testing.assert_allclose(make("istar").credit(batch).step_reward[:2, 0], [0.04, -0.025], **CLOSE)


def test_istar_prm_loss_over_all_pairs():
    # Log-ratio sums 1.0 and 0.2 of the winners, -0.4 of the loser.
    batch = literal([[1, 1], [2], [1]], [1, 1, 0])
    log_prob = literal([[1, 1], [2], [1]], [1, 1, 0], log_prob_prm=[[0.7, 0.3], [0.1, 0.1], [-0.4]]).signals["log_prob_prm"]
    loss, metrics = IStar().prm_loss(log_prob, batch)
    np.testing.assert_allclose(loss, 0.6685, **CLOSE)
    assert metrics["pairs"] == 2 and metrics["pair_accuracy"] == 1
    np.testing.assert_allclose(metrics["pair_margin"], 0.05 * (1.4 + 0.6) / 2, **CLOSE)


PRIME_TOKENS = np.array([[0.1, 0.3], [0.0, -0.2], [0.2, 0.2], [-0.1, -0.1]])
PRIME_RETURNS = np.array([[1.0667, 1], [-1.0667, -1], [-0.2667, -0.4667], [0.2667, 0.4667]])


@pytest.mark.parametrize("packing, step_tokens", [("episode", [2]), ("episode", [1, 1]), ("step", [1, 1])])
def test_prime(packing, step_tokens):
    # In the release's example, rewards [i] and outcomes are those of four episodes: success, failure, failure, success.
    batch = literal([step_tokens] * 4, OUTCOMES, packing=packing, log_prob_prm=PRIME_TOKENS / 0.05)
    credit = make("prime").credit(batch)
    returns = np.array([np.concatenate([v for k, v in sorted(by_step(credit.returns, batch).items()) if k[0] == e]) for e in range(4)])
    np.testing.assert_allclose(returns, PRIME_RETURNS, **CLOSE)
    advantage = np.asarray(credit.advantage)[np.asarray(batch.action_mask)]
    whitened = (PRIME_RETURNS - PRIME_RETURNS.mean()) / PRIME_RETURNS.std(ddof=1)
    np.testing.assert_allclose(np.sort(advantage), np.sort(whitened.ravel()), atol=3e-4)


def test_prime_loss():
    batch = literal([[2], [1]], [1, 0])
    log_prob = literal([[2], [1]], [1, 0], log_prob_prm=[[3.0, 1.0], [-2.0]]).signals["log_prob_prm"]
    loss, metrics = make("prime").prm_loss(log_prob, batch)
    np.testing.assert_allclose(loss, 0.6213, **CLOSE)
    assert metrics["label_accuracy"] == 1


# The first and the last episode succeed. All four start in s0; episodes 0, 2 and 3 meet in sA, episodes 1 and 3 in sB.
GIGPO_STATES = [["s0", "sA"], ["s0", "sB"], ["s0", "sA"], ["s0", "sB", "sA"]]
GIGPO_PAPER = [[0.9869, 0.8333], [-0.9631, -0.975], [-0.9631, -1.1667], [0.9394, 0.975, 0.8333]]
GIGPO_RELEASED = [[0.9313, 0.7778], [-1.0187, -1.0306], [-1.0187, -1.2222], [0.8838, 0.9194, 0.7778]]
GIGPO_STD = [[0.9098, 0.5773], [-0.8655, -0.7071], [-0.8655, -1.1547], [0.8211, 0.7071, 0.5773]]


def gigpo_advantages(packing, **options):
    """The advantages of the steps, and of the episodes alone; the outcome is the environment's reward for the last step too."""
    batch = literal([[2] * len(states) for states in GIGPO_STATES], OUTCOMES, packing=packing, state=GIGPO_STATES)
    env_reward = np.zeros(batch.step_mask.shape, np.float32)
    env_reward[0, 1] = env_reward[3, 2] = 1.0
    batch = batch.replace(env_reward=env_reward)
    steps = [np.asarray(make("gigpo", **options, **more).credit(batch).step_advantage) for more in ({}, {"weight": 0.0})]
    return [[row[: len(states)] for row, states in zip(array, GIGPO_STATES)] for array in steps]


@pytest.mark.parametrize("packing", ["episode", "step"])
@pytest.mark.parametrize("reward", ["outcome", "env"])
def test_gigpo_as_in_the_paper(packing, reward):
    advantages, of_episode = gigpo_advantages(packing, reward=reward)
    for found, alone, expected, outcome in zip(advantages, of_episode, GIGPO_PAPER, OUTCOMES):
        np.testing.assert_allclose(found, expected, **CLOSE)
        np.testing.assert_allclose(alone, 0.5 if outcome else -0.5, **CLOSE)


@pytest.mark.parametrize("packing", ["episode", "step"])
def test_gigpo_as_released(packing):
    advantages, of_episode = gigpo_advantages(packing, variant="released")
    for found, alone, expected, outcome in zip(advantages, of_episode, GIGPO_RELEASED, OUTCOMES):
        np.testing.assert_allclose(found, expected, **CLOSE)
        np.testing.assert_allclose(alone, 0.4444 if outcome else -0.5556, **CLOSE)


@pytest.mark.parametrize("packing", ["episode", "step"])
def test_gigpo_divided_by_the_standard_deviation(packing):
    advantages, of_episode = gigpo_advantages(packing, scale="std")
    for found, alone, expected, outcome in zip(advantages, of_episode, GIGPO_STD, OUTCOMES):
        np.testing.assert_allclose(found - alone, expected, **CLOSE)
        np.testing.assert_allclose(alone, 0.8660 if outcome else -0.8660, **CLOSE)
