"""SPA-RL on Search QA: the contributions of a progress estimator and a grounding signal are the rewards of PPO with a critic.

    python launch/train.py --config=configs/spa_search_qa.py            # tiny: all stages, a small model from random weights, on a CPU
    python launch/train.py --config=configs/spa_search_qa.py:micro      # a few seconds; for tests
    python launch/train.py --config=configs/spa_search_qa.py:llama3.2-3b      # with adapters, see docs/models.md

Needs: nothing beyond the base install. Published models play in the embedded world; `--config.environment.data=FILE` gives them the questions
of HotpotQA, 2WikiMultihopQA or MuSiQue (docs/environments/search_qa.md).

Expected: not measured in full.

The paper (arXiv 2505.20732) does not use search. `get_config("paper")` has its settings for WebShop, with 1,000 questions.
"""

from ml_collections import ConfigDict

from stepreward.configs.common import environments, paper


def get_config(preset: str = "tiny") -> ConfigDict:
    return environments.experiment("search_qa", "spa", preset, _paper)


def _paper(c: ConfigDict) -> None:
    paper.spa(c, "search_qa", tasks=1000, rollouts=5, steps=10, tested=500, outcome="return")
