"""SPA-RL on VirtualHome: a progress estimator and a grounding signal, fed to PPO with a critic.

    pip install --no-deps 'virtualhome-eval>=0.1.1,<0.2'
    python launch/train.py --config=configs/spa_virtualhome.py            # tiny: the whole pipeline from scratch, on a CPU
    python launch/train.py --config=configs/spa_virtualhome.py:micro      # seconds; for tests
    python launch/train.py --config=configs/spa_virtualhome.py:llama3.2-3b      # with adapters; any in docs/models.md

`get_config("paper")` states the numbers of the paper (arXiv 2505.20732) with Llama-3.2-3B. How many tasks it trains on
is not public: 1,000 stands for it.
"""

from ml_collections import ConfigDict

from stepreward.configs.common import environments, paper


def get_config(preset: str = "tiny") -> ConfigDict:
    return environments.experiment("virtualhome", "spa", preset, _paper)


def _paper(c: ConfigDict) -> None:
    paper.spa(c, "virtualhome", tasks=1000, rollouts=10, steps=40, tested=247, outcome="success")
