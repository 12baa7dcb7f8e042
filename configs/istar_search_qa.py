"""iStar on WebShop: search, read results, choose options, buy.

    python launch/train.py --config=configs/istar_search_qa.py            # tiny: an embedded shop, a small model from random weights, on a CPU
    python launch/train.py --config=configs/istar_search_qa.py:micro      # a few seconds; for tests
    python launch/train.py --config=configs/istar_search_qa.py:real --config.environment.data=FOLDER      # the benchmark's 1,000 products
    python launch/train.py --config=configs/istar_search_qa.py:qwen2.5-7b --config.environment.data=FOLDER      # or another, see docs/models.md

Needs: nothing beyond the base install for "tiny" and "micro". The other presets need the benchmark's data (docs/environments/search_qa.md).

Expected (docs/log.md), each run on one CPU core, demonstrations not counted:
* "tiny": 28 minutes for 160,000 environment steps. Success on all 500 held-out goals rises from 41.0 to 59.8 % and from 30.4 to 53.2 %
  (seeds 0, 1; seed 0 was stopped by hand at 169,000 steps).
* "real", measured as `configs/spa_search_qa.py:real` with `credit.method=istar`: 9 to 11 minutes for 25,800 steps, after 8 minutes of warm
  start. The score on the 500 test goals rises from 0.423 to 0.495 and from 0.340 to 0.455 (seeds 0, 1); success shows no clear change
  (9.2 to 7.2 %, 6.0 to 8.2 %).
* Published models and "paper": not measured.

`get_config("paper")` has the paper's settings (arXiv 2509.19199): Qwen2.5-7B-Instruct as policy and PRM, 16 groups of 8 episodes, the
benchmark's 1,000 products.
"""

from ml_collections import ConfigDict

from stepreward.configs.common import environments, paper


def get_config(preset: str = "tiny") -> ConfigDict:
    return environments.experiment("search_qa", "istar", preset, _paper)


def _paper(c: ConfigDict) -> None:
    paper.istar_text(c, "search_qa", steps=10, prompt_tokens=4096, tested=128)
