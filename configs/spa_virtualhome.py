"""SPA-RL on VirtualHome: a progress estimator and a grounding signal, fed to PPO with a critic.

    pip install --no-deps 'virtualhome-eval>=0.1.1,<0.2'
    python launch/train.py --config=configs/spa_virtualhome.py            # tiny: the whole pipeline from scratch, on a CPU
    python launch/train.py --config=configs/spa_virtualhome.py:micro      # seconds; for tests
    python launch/train.py --config=configs/spa_virtualhome.py:llama3.2-3b      # with adapters; any of base_config.MODELS

`get_config("paper")` states the numbers of the paper (arXiv 2505.20732) with Llama-3.2-3B. How many tasks it trains on
is not public: 1,000 stands for it.
"""

from ml_collections import ConfigDict

from stepreward import environment_config, paper_config
from stepreward.base_config import MODELS, base_config
from stepreward.config import check_preset

PRESETS = ("tiny", "micro", "paper", *MODELS)


def get_config(preset: str = "tiny") -> ConfigDict:
    check_preset(preset, PRESETS)
    c = base_config()  # every key, with its meaning
    c.credit.method = "spa"  # its "auto" variant is "stable", see docs/log.md
    c.eval.final_episodes = 256
    if preset in MODELS:
        environment_config.published(c, "virtualhome", preset)
    elif preset == "paper":
        paper_config.spa(c, "virtualhome", tasks=1000, rollouts=10, steps=40, tested=247, outcome="success")
    else:
        {"tiny": environment_config.tiny, "micro": environment_config.micro}[preset](c, "virtualhome")
    return c
