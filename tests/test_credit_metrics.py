"""The metrics of credit methods, on numbers that can be computed by hand."""

import numpy as np
import pytest
from references import literal

from stepreward.credit import make

CLOSE = dict(rtol=1e-5, atol=1e-6)
# Two groups: outcomes 1, 0 and 1, 1. Log-ratios of the tokens, summed over steps: 0.5, 0.5; −0.5 | 0.25; 0.25, −0.25.
TOKENS = [[1, 2], [1], [2], [1, 1]]
LOG_RATIO = [[0.5, 0.25, 0.25], [-0.5], [0.125, 0.125], [0.25, -0.25]]
STEP_REWARD = np.array([0.5, 0.5, -0.5, 0.25, 0.25, -0.25])


@pytest.fixture(scope="module")
def batch():
    return literal(
        TOKENS,
        [1, 0, 1, 1],
        groups=[0, 0, 1, 1],
        log_prob_prm=[[x - 1 for x in row] for row in LOG_RATIO],
        log_prob_old=[[-1.0] * len(row) for row in LOG_RATIO],
    )


def assert_metrics(credit, expected):
    for name, value in expected.items():
        np.testing.assert_allclose(credit.metrics[name], value, **CLOSE, err_msg=name)


def test_what_outcomes_say(batch):
    expected = dict(outcome_mean=0.75, outcome_group_std=np.sqrt(0.5) / 2, mixed_groups=0.5, flat_groups=0.5)
    assert_metrics(make("rloo").credit(batch), expected)


def test_how_large_advantages_are_over_tokens(batch):
    """rloo gives 1 to the three tokens of the first episode, −1 to the one of the second and 0 to the other four."""
    of_tokens = np.array([1, 1, 1, -1, 0, 0, 0, 0])
    expected = dict(advantage_mean=of_tokens.mean(), advantage_std=of_tokens.std(), advantage_max=1.0)
    assert_metrics(make("rloo").credit(batch), expected)


def test_what_step_rewards_say(batch):
    credit = make("istar", beta=1.0, step_advantage="centre").credit(batch)
    log_ratio = np.concatenate(LOG_RATIO)
    within = [STEP_REWARD[:3].std(ddof=1), STEP_REWARD[3:].std(ddof=1)]
    # Counted by token: A^E is 1, 1, 1, −1, 0 …; A^S is the deviation of the step's reward from its group's mean.
    deviation = np.r_[STEP_REWARD[:3] - STEP_REWARD[:3].mean(), STEP_REWARD[3:] - STEP_REWARD[3:].mean()]
    process = np.abs(deviation[[0, 1, 1, 2, 3, 3, 4, 5]]).sum()
    expected = dict(
        step_reward_mean=STEP_REWARD.mean(),
        step_reward_std=STEP_REWARD.std(ddof=1),
        step_reward_group_std=np.mean(within),
        step_reward_max=0.5,
        shaped_to_outcome=np.abs(STEP_REWARD).sum() / 3,
        process_share=process / (process + 4),
        prm_kl_k1=-log_ratio.mean(),
        prm_kl_k3=(np.exp(log_ratio) - log_ratio - 1).mean(),
        alpha=1.0,
    )
    assert_metrics(credit, expected)


def test_what_a_method_with_a_critic_says():
    """Outcomes 1 and 0 with V = 0.5: returns are 1, 1, 0 and errors 0.5, 0.5, −0.5."""
    batch = literal([[1, 1], [1]], [1, 0], value=[[0.5, 0.5], [0.5]], log_prob_old=[[-1.0, -2.0], [-1.5]])
    credit = make("step_ppo", kl_in_reward=True).credit(batch.with_signals(kl_coef=np.float32(0.0)))
    error, returns = np.array([0.5, 0.5, -0.5]), np.array([1.0, 1.0, 0.0])
    expected = dict(
        step_reward_mean=1 / 3,
        step_reward_std=np.std([0, 1, 0], ddof=1),
        shaped_to_outcome=1.0,
        explained_variance=1 - error.var() / returns.var(),
        kl_initial=(-3.0 - 1.5) / 2,
        kl_coef=0.0,
    )
    assert_metrics(credit, expected)
