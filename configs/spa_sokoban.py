"""SPA-RL on Sokoban: a progress estimator's contributions and a grounding signal, fed to PPO with a critic.

    python launch/train.py --config=configs/spa_sokoban.py            # tiny: the whole pipeline from scratch, on a CPU
    python launch/train.py --config=configs/spa_sokoban.py:micro      # seconds; for tests
    python launch/train.py --config=configs/spa_sokoban.py --stage=explore      # one stage alone: sft, explore, estimator, train, evaluate
"""

from ml_collections import ConfigDict

from stepreward.base_config import base_config

PRESETS = ("tiny", "micro")


def get_config(preset: str = "tiny") -> ConfigDict:
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; there are: {', '.join(PRESETS)}")
    c = base_config()  # every key, with its meaning
    c.credit.method = "spa"  # its "auto" variant is "stable", see docs/log.md
    c.estimator.decay_updates = 4000
    c.critic.update({"backbone": "separate", "epochs": 2})
    c.eval.final_episodes = 2048
    {"tiny": lambda c: None, "micro": _micro}[preset](c)
    return c


def _micro(c: ConfigDict) -> None:
    """A run of a few seconds through every stage; the rooms are easy, so that there are successes and failures."""
    c.environment.preset = "istar"
    c.model.preset = "tiny-micro"
    c.rollout.update({"groups": 4, "group_size": 4, "max_steps": 8, "max_rows": 16})
    c.sft.update({"episodes": 60, "updates": 100, "rows": 64, "log_every": 50, "learning_rate": 1e-2, "warmup_updates": 10})
    c.exploration.update({"tasks": 8, "rollouts": 4, "part_tasks": 3})
    c.estimator.update({"minibatch_episodes": 8, "epochs": 2, "warmup_updates": 0, "held_out": 0.25})
    c.prm.update({"learning_rate": 1e-3, "minibatch_groups": 2, "resync": False, "replay": 0})
    c.critic.update({"minibatch_rows": 64})
    c.policy.update({"learning_rate": 1e-3, "warmup_updates": 2, "minibatch_rows": 64})
    c.train.update({"env_steps": 300, "chunk_rows": 16})
    c.eval.update({"episodes": 16, "every": 2, "prm_as_policy_every": 2, "record": 3, "final_episodes": 32})
    c.checkpoint.update({"every": 2, "keep": 2})
