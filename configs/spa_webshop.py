"""SPA-RL on WebShop: a progress estimator and a grounding signal, fed to PPO with a critic.

    python launch/train.py --config=configs/spa_webshop.py            # tiny: the whole pipeline from scratch, on a CPU
    python launch/train.py --config=configs/spa_webshop.py:micro      # seconds; for tests
    python launch/train.py --config=configs/spa_webshop.py:real --config.environment.data=FOLDER      # the benchmark's own tasks
    python launch/train.py --config=configs/spa_webshop.py:llama3.2-3b --config.environment.data=FOLDER      # with adapters; any in docs/models.md

`get_config("paper")` states the numbers of the paper (arXiv 2505.20732) with Llama-3.2-3B: the full catalogue, whose
folder `environment.data` names, 1,624 training goals, 200 for the evaluation.
"""

from ml_collections import ConfigDict

from stepreward.configs.common import environments, paper


def get_config(preset: str = "tiny") -> ConfigDict:
    return environments.experiment("webshop", "spa", preset, _paper)


def _paper(c: ConfigDict) -> None:
    paper.spa(c, "webshop", tasks=1624, rollouts=5, steps=10, tested=200, outcome="return")
