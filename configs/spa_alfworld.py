"""SPA-RL on ALFWorld: a progress estimator and a grounding signal, fed to PPO with a critic.

    pip install -e '.[alfworld]'
    python launch/train.py --config=configs/spa_alfworld.py            # tiny: the whole pipeline from scratch, on a CPU
    python launch/train.py --config=configs/spa_alfworld.py:micro      # seconds; for tests
    python launch/train.py --config=configs/spa_alfworld.py:real --config.environment.data=FOLDER      # the benchmark's own tasks
    python launch/train.py --config=configs/spa_alfworld.py:llama3.2-3b --config.environment.data=FOLDER      # with adapters; any in docs/models.md

`get_config("paper")` states the numbers of the paper (arXiv 2505.20732) with Llama-3.2-3B: 3,119 training games, the 134 of
valid_unseen for the evaluation (`environment.data` names the benchmark's folder).
"""

from ml_collections import ConfigDict

from stepreward.configs.common import environments, paper


def get_config(preset: str = "tiny") -> ConfigDict:
    return environments.experiment("alfworld", "spa", preset, _paper)


def _paper(c: ConfigDict) -> None:
    paper.spa(c, "alfworld", tasks=3119, rollouts=10, steps=40, tested=134, outcome="success")
    c.environment.options = ConfigDict({"held_out": "valid_unseen"})
