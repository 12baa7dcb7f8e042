"""iStar on WebShop: search, read results, choose options, buy.

    python launch/train.py --config=configs/istar_webshop.py            # tiny: an embedded shop, a small model from scratch, on a CPU
    python launch/train.py --config=configs/istar_webshop.py:micro      # seconds; for tests
    python launch/train.py --config=configs/istar_webshop.py:real --config.environment.data=FOLDER      # the benchmark's 1,000 products
    python launch/train.py --config=configs/istar_webshop.py:qwen2.5-7b --config.environment.data=FOLDER      # any in docs/models.md

`get_config("paper")` states the numbers of the paper (arXiv 2509.19199): Qwen2.5-7B-Instruct as policy and PRM, 16 groups of 8, the
benchmark's 1,000 products, whose folder `environment.data` names (docs/environments/webshop.md).
"""

from ml_collections import ConfigDict

from stepreward.configs.common import environments, paper


def get_config(preset: str = "tiny") -> ConfigDict:
    return environments.experiment("webshop", "istar", preset, _paper)


def _paper(c: ConfigDict) -> None:
    paper.istar_text(c, "webshop", steps=10, prompt_tokens=4096, tested=128)
