"""iStar on VirtualHome: household tasks in a simulated apartment, by actions in words.

    pip install --no-deps 'virtualhome-eval>=0.1.1,<0.2'
    python launch/train.py --config=configs/istar_virtualhome.py            # tiny: short programs, a small model from scratch, on a CPU
    python launch/train.py --config=configs/istar_virtualhome.py:micro      # seconds; for tests
    python launch/train.py --config=configs/istar_virtualhome.py:qwen2.5-7b      # a published model: any in docs/models.md

iStar's paper (arXiv 2509.19199) has no VirtualHome: `get_config("paper")` states its numbers for WebShop with SPA-RL's steps.
"""

from ml_collections import ConfigDict

from stepreward.configs.common import environments, paper


def get_config(preset: str = "tiny") -> ConfigDict:
    return environments.experiment("virtualhome", "istar", preset, _paper)


def _paper(c: ConfigDict) -> None:
    paper.istar_text(c, "virtualhome", steps=40, prompt_tokens=2048, tested=100)
