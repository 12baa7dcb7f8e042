"""SPA-RL on Sokoban: a progress estimator's contributions and a grounding signal, fed to PPO with a critic.

    python launch/train.py --config=configs/spa_sokoban.py            # tiny: the whole pipeline from scratch, on a CPU
    python launch/train.py --config=configs/spa_sokoban.py:micro      # seconds; for tests
    python launch/train.py --config=configs/spa_sokoban.py:llama3.2-3b      # a published model, with adapters
    python launch/train.py --config=configs/spa_sokoban.py --stage=sft      # one stage alone; then explore, estimator, train, evaluate

The paper (arXiv 2505.20732) plays ALFWorld, WebShop and VirtualHome: its numbers are the presets "paper" of `spa_alfworld.py`,
`spa_webshop.py` and `spa_virtualhome.py`. A published model (any in docs/models.md) takes the paper's adapters and shared critic
here too.
"""

from ml_collections import ConfigDict

from stepreward.configs.common import paper
from stepreward.configs.common.base import base_config, use_model
from stepreward.models.published import MODELS

PRESETS = ("tiny", "micro", *MODELS)


def get_config(preset: str = "tiny") -> ConfigDict:
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; there are: {', '.join(PRESETS)}")
    c = base_config()  # every key, with its meaning
    c.credit.method = "spa"  # its "auto" variant is "stable", see docs/log.md
    c.estimator.decay_updates = 4000
    c.eval.final_episodes = 2048
    if preset == "micro":
        _micro(c)
    elif preset in MODELS:
        _published(c, preset)
    return c


def _published(c: ConfigDict, name: str) -> None:
    """A published model: growing conversations, the paper's adapters, a value head on the policy's own backbone."""
    use_model(c, name)
    if not name.startswith("qwen2.5-vl"):
        c.rollout.update({"context": "episode", "history": 0, "max_answer_tokens": 128, "max_row_tokens": 4096})
    paper.spa_adapters(c)


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
