"""iStar on VirtualHome: household tasks in a simulated apartment, with actions in words.

    pip install --no-deps 'virtualhome-eval>=0.1.1,<0.2'
    python launch/train.py --config=configs/istar_virtualhome.py            # tiny: short programs, a small model from random weights, on a CPU
    python launch/train.py --config=configs/istar_virtualhome.py:micro      # a few seconds; for tests
    python launch/train.py --config=configs/istar_virtualhome.py:qwen2.5-7b      # or another published model, see docs/models.md

Needs: the package `virtualhome-eval`, which contains the tasks.

Expected of "tiny" (docs/log.md): 4 minutes on one CPU core for 40,000 environment steps, demonstrations and warm start not counted.
Success on 32 held-out tasks (128 episodes) does not improve: 31.2 to 32.3 % and 25.8 to 27.9 % (seeds 0, 1; at the end: mean of three
evaluations). Published models and "paper": not measured.

The paper (arXiv 2509.19199) does not use VirtualHome. `get_config("paper")` has its settings for WebShop, with SPA-RL's number of steps.
"""

from ml_collections import ConfigDict

from stepreward.configs.common import environments, paper


def get_config(preset: str = "tiny") -> ConfigDict:
    return environments.experiment("virtualhome", "istar", preset, _paper)


def _paper(c: ConfigDict) -> None:
    paper.istar_text(c, "virtualhome", steps=40, prompt_tokens=2048, tested=100)
