"""SPA-RL on WebShop: a progress estimator and a grounding signal, fed to PPO with a critic.

    python launch/train.py --config=configs/spa_webshop.py            # tiny: the whole pipeline from scratch, on a CPU
    python launch/train.py --config=configs/spa_webshop.py:micro      # seconds; for tests
    python launch/train.py --config=configs/spa_webshop.py:real --config.environment.data=FOLDER      # the benchmark's own tasks
    python launch/train.py --config=configs/spa_webshop.py:llama3.2-3b --config.environment.data=FOLDER      # with adapters; any of base_config.MODELS

`get_config("paper")` states the numbers of the paper (arXiv 2505.20732) with Llama-3.2-3B: the full catalogue, whose
folder `environment.data` names, 1,624 training goals, 200 for the evaluation.
"""

from ml_collections import ConfigDict

from stepreward import environment_config, paper_config
from stepreward.base_config import MODELS, base_config
from stepreward.config import check_preset

PRESETS = ("tiny", "micro", "real", "paper", *MODELS)


def get_config(preset: str = "tiny") -> ConfigDict:
    check_preset(preset, PRESETS)
    c = base_config()  # every key, with its meaning
    c.credit.method = "spa"  # its "auto" variant is "stable", see docs/log.md
    c.eval.final_episodes = 500
    if preset in MODELS:
        environment_config.published(c, "webshop", preset)
    elif preset == "paper":
        paper_config.spa(c, "webshop", tasks=1624, rollouts=5, steps=10, tested=200, outcome="return")
    else:
        {"tiny": environment_config.tiny, "micro": environment_config.micro, "real": environment_config.real}[preset](c, "webshop")
    return c
