"""SPA-RL on VirtualHome: the contributions of a progress estimator and a grounding signal are the rewards of PPO with a critic.

    pip install --no-deps 'virtualhome-eval>=0.1.1,<0.2'
    python launch/train.py --config=configs/spa_virtualhome.py            # tiny: all stages, a small model from random weights, on a CPU
    python launch/train.py --config=configs/spa_virtualhome.py:micro      # a few seconds; for tests
    python launch/train.py --config=configs/spa_virtualhome.py:llama3.2-3b      # with adapters, see docs/models.md

Needs: the package `virtualhome-eval`, which contains the tasks.

Expected of "tiny" with `train.env_steps=30000` (docs/log.md): about 5 minutes on one CPU core. Success on 32 held-out tasks (128
episodes) rises from 31.2 to 40.6 % and from 25.8 to 28.6 % (seeds 0, 1; at the end: mean of three evaluations). Published models and
"paper": not measured.

`get_config("paper")` has the paper's settings (arXiv 2505.20732) with Llama-3.2-3B. The paper's number of training tasks is not public; the
preset assumes 1,000.
"""

from ml_collections import ConfigDict

from stepreward.configs.common import environments, paper


def get_config(preset: str = "tiny") -> ConfigDict:
    return environments.experiment("virtualhome", "spa", preset, _paper)


def _paper(c: ConfigDict) -> None:
    paper.spa(c, "virtualhome", tasks=1000, rollouts=10, steps=40, tested=247, outcome="success")
