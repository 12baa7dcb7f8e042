"""iStar on ALFWorld: find, heat, cool, clean and put things in a house of text.

    pip install -e '.[alfworld]'
    python launch/train.py --config=configs/istar_alfworld.py            # tiny: generated games, a small model from scratch, on a CPU
    python launch/train.py --config=configs/istar_alfworld.py:micro      # seconds; for tests
    python launch/train.py --config=configs/istar_alfworld.py:real --config.environment.data=FOLDER      # the benchmark's games
    python launch/train.py --config=configs/istar_alfworld.py:qwen2.5-7b --config.environment.data=FOLDER      # any in docs/models.md

iStar's paper (arXiv 2509.19199) has no ALFWorld: `get_config("paper")` states its numbers for WebShop with verl-agent's steps,
observations and reward for ALFWorld.
"""

from ml_collections import ConfigDict

from stepreward.configs.common import environments, paper


def get_config(preset: str = "tiny") -> ConfigDict:
    return environments.experiment("alfworld", "istar", preset, _paper)


def _paper(c: ConfigDict) -> None:
    paper.istar_text(c, "alfworld", steps=50, prompt_tokens=2048, tested=140)
