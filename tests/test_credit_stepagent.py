"""StepAgent and reward phasing: golden values, plain loops as references, and what the reward leaves out."""

import jax
import numpy as np
import pytest
from references import (
    advantages_loop,
    assert_steps,
    counted_groups,
    literal,
    pack,
    random_episodes,
)

from stepreward.credit import make

CLOSE = dict(atol=1e-5, rtol=0)
FORMS = {
    "gail": lambda f: -np.log(1 - 1 / (1 + np.exp(-f))),
    "airl": lambda f: f,
    "log": lambda f: np.log(1 / (1 + np.exp(-f))),
}


def credit(name, logits, outcomes, **options):
    batch = literal([[1] * len(row) for row in logits], outcomes, discriminator_logit=logits, value=[[0.0] * len(row) for row in logits])
    return make(name, **{"whiten": False, **options}).credit(batch)


@pytest.mark.parametrize("form, expected", [("gail", [0.6931, 1.3863]), ("airl", [0.0, 1.0986]), ("log", [-0.6931, -0.2877])])
def test_the_reward_of_one_half_and_three_quarters(form, expected):
    """D = 1/2 and 3/4: −log(1 − D) = log 2 and log 4, log D − log(1 − D) = 0 and log 3, log D = −log 2 and log 3/4."""
    found = credit("stepagent", [[0.0, np.log(3.0)]], [1], form=form)
    np.testing.assert_allclose(found.step_reward[0, :2], expected, atol=1e-4)
    np.testing.assert_allclose(found.step_advantage[0, :2], [sum(expected), expected[1]], atol=1e-4)


def test_the_outcome_is_left_out_unless_it_has_a_weight():
    found = credit("stepagent", [[0.5, -1.0], [0.5]], [1, 0], form="airl", weight=2.0)
    np.testing.assert_allclose(found.step_reward[:2, :2], [[1.0, -2.0], [1.0, 0.0]], **CLOSE)
    found = credit("stepagent", [[0.5, -1.0], [0.5]], [1, 0], form="airl", outcome_weight=0.5)
    np.testing.assert_allclose(found.step_reward[:2, :2], [[0.5, -0.5], [0.5, 0.0]], **CLOSE)


@pytest.mark.parametrize("phase, expected", [(1.0, 0.3), (0.5, 0.15), (0.0, 0.0)])
def test_the_discriminator_s_reward_fades(phase, expected):
    """T-29: r_env = 0 and r_IRL = 0.3."""
    found = credit("reward_phasing", [[0.3, 0.3]], [0], form="airl", phase=phase)
    np.testing.assert_allclose(found.step_reward[0, :2], expected, **CLOSE)


def test_the_environment_s_reward_remains():
    found = credit("reward_phasing", [[0.3, 0.3]], [1], form="airl", phase=0.5)
    np.testing.assert_allclose(found.step_reward[0, :2], [0.15, 1.15], **CLOSE)


def rewards_loop(episode, name, form, weight, reward):
    found = [weight * FORMS[form](step.discriminator_logit) for step in episode.steps]
    if name == "reward_phasing" and reward == "env":
        return [r + step.env_reward for r, step in zip(found, episode.steps)]
    return found if name == "stepagent" else [*found[:-1], found[-1] + episode.outcome]


@pytest.mark.parametrize("packing", ["episode", "step"])
@pytest.mark.parametrize("name, options", [
    ("stepagent", {}), ("stepagent", {"form": "airl", "weight": 0.5, "discount": 0.9, "trace": 0.7}),
    ("stepagent", {"form": "log", "baseline": "group", "discount": 0.9}), ("reward_phasing", {"phase": 0.3}),
    ("reward_phasing", {"form": "airl", "reward": "env", "trace": 0.7}),
])  # fmt: skip
def test_advantages_are_those_of_the_definition(packing, name, options):
    episodes = random_episodes(np.random.default_rng(1), groups=(4, 3, 4, 1), failed=(5,), uniform=(2,))
    found = jax.jit(make(name, whiten=False, **options).credit)(pack(episodes, packing)).step_advantage
    weight = options.get("weight", options.get("phase", 1.0))
    given = (name, options.get("form", "gail"), weight, options.get("reward", "outcome"))
    rewards = {e: rewards_loop(episodes[e], *given) for group in counted_groups(episodes).values() for e in group}
    assert_steps(found, advantages_loop(episodes, rewards, **{k: v for k, v in options.items() if k in ("baseline", "discount", "trace")}))


def test_without_the_discriminator_s_reward_it_is_step_ppo():
    batch = pack(random_episodes(np.random.default_rng(3)))
    expected = make("step_ppo").credit(batch).advantage
    np.testing.assert_allclose(make("reward_phasing", phase=0.0).credit(batch).advantage, expected, **CLOSE)
    np.testing.assert_allclose(make("stepagent", weight=0.0, outcome_weight=1.0).credit(batch).advantage, expected, **CLOSE)


def test_the_loss_counts_the_steps_with_action_tokens_alone():
    """A step that the policy did not sample has no action token."""
    batch = literal([[2, 1], [1]], [1, 0])
    unsampled = batch.step_id == 1  # step 1 of episode 0
    batch = batch.replace(action_mask=batch.action_mask & ~unsampled, step_id=np.where(unsampled, -1, batch.step_id))
    batch = batch.with_signals(from_expert=np.arange(batch.num_episodes) == 0)
    logits = np.zeros(batch.step_mask.shape, np.float32)
    logits[0, :2], logits[1, 0] = [1.0, 5.0], -2.0
    loss, metrics = make("stepagent").losses["discriminator"](logits, batch)
    np.testing.assert_allclose(loss, (np.log1p(np.exp(-1.0)) + np.log1p(np.exp(-2.0))) / 2, rtol=1e-6)
    assert metrics["steps_expert"] == metrics["steps_agent"] == 1
