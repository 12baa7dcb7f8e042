"""SPA-RL on ScienceWorld: the contributions of a progress estimator and a grounding signal are the rewards of PPO with a critic.

    apt-get install -y default-jre-headless && pip install -e '.[scienceworld]'
    python launch/train.py --config=configs/spa_scienceworld.py            # tiny: all stages, a small model from random weights, on a CPU
    python launch/train.py --config=configs/spa_scienceworld.py:micro      # about a minute; for tests
    python launch/train.py --config=configs/spa_scienceworld.py:llama3.2-3b      # with adapters, see docs/models.md

Needs: the extra `scienceworld`, and Java. Each of the `rollout.max_rows` environments is a Java process of some 300 MB.

Expected: not measured.

The paper (arXiv 2505.20732) does not use ScienceWorld. `get_config("paper")` has its settings for WebShop, with all 3,592 training
variations, 30 turns, and 128 variations for the evaluation.
"""

from ml_collections import ConfigDict

from stepreward.configs.common import environments, paper


def get_config(preset: str = "tiny") -> ConfigDict:
    return environments.experiment("scienceworld", "spa", preset, _paper)


def _paper(c: ConfigDict) -> None:
    paper.spa(c, "scienceworld", tasks=3592, rollouts=5, steps=30, tested=128, outcome="return")
