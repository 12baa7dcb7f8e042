"""SPA-RL on WebShop: the contributions of a progress estimator and a grounding signal are the rewards of PPO with a critic.

    python launch/train.py --config=configs/spa_search_qa.py            # tiny: all stages, a small model from random weights, on a CPU
    python launch/train.py --config=configs/spa_search_qa.py:micro      # a few seconds; for tests
    python launch/train.py --config=configs/spa_search_qa.py:real --config.environment.data=FOLDER      # the benchmark's own tasks
    python launch/train.py --config=configs/spa_search_qa.py:llama3.2-3b --config.environment.data=FOLDER      # with adapters, see docs/models.md

Needs: nothing beyond the base install for "tiny" and "micro". The other presets need the benchmark's data (docs/environments/search_qa.md).

Expected (docs/log.md), each run on one CPU core:
* "tiny" with `train.env_steps=40000`, `exploration.tasks=256` and a finished warm start: 13 to 15 minutes. Success on 256 held-out goals
  rises from 40.6 to 46.1 % and from 31.6 to 41.3 % (seeds 0, 1; at the end: mean of the last three evaluations).
* "real" with `train.env_steps=25600`: 25 minutes with exploration and estimator, after 8 minutes of warm start. The score on the 500 test
  goals rises from 0.423 to 0.525 and from 0.340 to 0.468 (seeds 0, 1); success shows no clear change (9.2 to 9.4 %, 6.0 to 7.8 %).
* Published models and "paper": not measured.

`get_config("paper")` has the paper's settings (arXiv 2505.20732) with Llama-3.2-3B: the full catalogue, 1,624 training goals, and 200 goals
for the evaluation.
"""

from ml_collections import ConfigDict

from stepreward.configs.common import environments, paper


def get_config(preset: str = "tiny") -> ConfigDict:
    return environments.experiment("search_qa", "spa", preset, _paper)


def _paper(c: ConfigDict) -> None:
    paper.spa(c, "search_qa", tasks=1624, rollouts=5, steps=10, tested=200, outcome="return")
