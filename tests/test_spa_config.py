"""The numbers in the presets of SPA-RL's experiments."""

import pytest

from stepreward.config import load_config_file
from stepreward.training import setup

# Training tasks, rollouts of each, steps of an episode, tasks of the evaluation.
PAPER = {
    "alfworld": (3119, 10, 40, 134),
    "webshop": (1624, 5, 10, 200),
    "virtualhome": (1000, 10, 40, 247),
    "textcraft": (336, 10, 20, 83),
    "scienceworld": (3592, 5, 30, 128),
}


@pytest.mark.parametrize("environment", PAPER)
def test_the_paper_presets_state_its_numbers(root, environment):
    c = load_config_file(f"{root}/configs/spa_{environment}.py:paper")
    assert (c.exploration.tasks, c.exploration.rollouts, c.rollout.max_steps, c.eval.final_episodes) == PAPER[environment]
    assert c.exploration.rollouts == c.rollout.group_size and c.train.mode == "offline" and c.eval.final_temperature == 0.0
    method = setup.make_method(c)
    assert (method.alpha, method.beta, method.discount, method.trace, method.step_reward) == (1.0, 0.5, 0.99, 0.95, "progress")
    assert method.kl_in_reward and not method.enforce_sum and not setup.recomputes_old_log_prob(c)
    assert (c.environment.name, c.environment.preset, c.environment.prompt) == (environment, "spa", "spa")


def test_the_recommended_variant_sums_to_the_outcome(root):
    method = setup.make_method(load_config_file(f"{root}/configs/spa_sokoban.py"))
    assert method.enforce_sum and method.discount == 1.0 and 0 < method.beta < 0.05
