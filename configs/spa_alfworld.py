"""SPA-RL on ALFWorld: the contributions of a progress estimator and a grounding signal are the rewards of PPO with a critic.

    pip install -e '.[alfworld]'
    python launch/train.py --config=configs/spa_alfworld.py            # tiny: all stages, a small model from random weights, on a CPU
    python launch/train.py --config=configs/spa_alfworld.py:micro      # a few seconds; for tests
    python launch/train.py --config=configs/spa_alfworld.py:real --config.environment.data=FOLDER      # the benchmark's own tasks
    python launch/train.py --config=configs/spa_alfworld.py:llama3.2-3b --config.environment.data=FOLDER      # with adapters, see docs/models.md

Needs: the extra `alfworld`, which compiles for some minutes. "real" and "paper" need the benchmark's games (docs/environments/alfworld.md).

Expected (docs/log.md), each run on one CPU core:
* "tiny" with `train.env_steps=20000` and `estimator.epochs=4`: 11 minutes (seed 0). Success on 128 held-out games rises from 53.9 to
  58.1 % and from 39.1 to 46.5 % (seeds 0, 1; at the end: mean of two evaluations).
  Seed 1 took 27 minutes with demonstrations, beside tests.
* "real" with the settings in docs/log.md: 26 minutes with exploration and estimator for 18,000 to 19,000 steps, after 8 minutes of warm
  start. Success on the 140 games of valid_seen is 60.0 % before and 57.1 % after (seed 0).
* Published models and "paper": not measured.

`get_config("paper")` has the paper's settings (arXiv 2505.20732) with Llama-3.2-3B: 3,119 training games, and the 134 games of valid_unseen
for the evaluation.
"""

from ml_collections import ConfigDict

from stepreward.configs.common import environments, paper


def get_config(preset: str = "tiny") -> ConfigDict:
    return environments.experiment("alfworld", "spa", preset, _paper)


def _paper(c: ConfigDict) -> None:
    paper.spa(c, "alfworld", tasks=3119, rollouts=10, steps=40, tested=134, outcome="success")
    c.environment.options = ConfigDict({"held_out": "valid_unseen"})
