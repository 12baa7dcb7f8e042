"""iStar on ALFWorld: find, heat, cool, clean and put things in a house described in text.

    pip install -e '.[alfworld]'
    python launch/train.py --config=configs/istar_alfworld.py            # tiny: generated games, a small model from random weights, on a CPU
    python launch/train.py --config=configs/istar_alfworld.py:micro      # a few seconds; for tests
    python launch/train.py --config=configs/istar_alfworld.py:real --config.environment.data=FOLDER      # the benchmark's games
    python launch/train.py --config=configs/istar_alfworld.py:qwen2.5-7b --config.environment.data=FOLDER      # or another, see docs/models.md

Needs: the extra `alfworld`, which compiles for some minutes. "real" needs the benchmark's games (docs/environments/alfworld.md).

Expected (docs/log.md), each run on one CPU core, demonstrations not counted:
* "tiny": 20 minutes for 61,400 environment steps. Success on 128 held-out games rises from 53.9 to 61.5 % (seed 0), and from 39.8 to
  54.4 % in 40,100 steps and 12 minutes (seed 1). The final figures are means of the last three evaluations.
* "real", measured as `configs/spa_alfworld.py:real` with `credit.method=istar`: 20 minutes for 18,000 to 19,000 steps, after 8 minutes of
  warm start. Success on the 140 games of valid_seen falls from 60.0 to 45.0 % (seed 0).
* Published models and "paper": not measured.

The paper (arXiv 2509.19199) does not use ALFWorld. `get_config("paper")` has its settings for WebShop, with verl-agent's number of steps,
observations and reward for ALFWorld.
"""

from ml_collections import ConfigDict

from stepreward.configs.common import environments, paper


def get_config(preset: str = "tiny") -> ConfigDict:
    return environments.experiment("alfworld", "istar", preset, _paper)


def _paper(c: ConfigDict) -> None:
    paper.istar_text(c, "alfworld", steps=50, prompt_tokens=2048, tested=140)
