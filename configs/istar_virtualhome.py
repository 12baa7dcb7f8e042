"""iStar on VirtualHome: household tasks in a simulated apartment, by actions in words.

    pip install --no-deps 'virtualhome-eval>=0.1.1,<0.2'
    python launch/train.py --config=configs/istar_virtualhome.py            # tiny: short programs, a small model from scratch, on a CPU
    python launch/train.py --config=configs/istar_virtualhome.py:micro      # seconds; for tests
    python launch/train.py --config=configs/istar_virtualhome.py:qwen2.5-7b      # a published model: any of base_config.MODELS

iStar's paper (arXiv 2509.19199) has no VirtualHome: `get_config("paper")` states its numbers for WebShop with SPA-RL's steps.
"""

from ml_collections import ConfigDict

from stepreward import environment_config, paper_config


def get_config(preset: str = "tiny") -> ConfigDict:
    return environment_config.experiment("virtualhome", "istar", preset, _paper)


def _paper(c: ConfigDict) -> None:
    paper_config.istar_text(c, "virtualhome", steps=40, prompt_tokens=2048, tested=100)
