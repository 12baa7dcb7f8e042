"""SPA-RL on Sokoban: the contributions of a progress estimator and a grounding signal are the rewards of PPO with a critic.

    python launch/train.py --config=configs/spa_sokoban.py            # tiny: all stages, a small model from random weights, on a CPU
    python launch/train.py --config=configs/spa_sokoban.py:micro      # a few seconds; for tests
    python launch/train.py --config=configs/spa_sokoban.py:llama3.2-3b      # a published model with adapters, see docs/models.md
    python launch/train.py --config=configs/spa_sokoban.py --stage=sft      # one stage alone; then explore, estimator, train, evaluate

Needs: nothing beyond the base install; a published model needs its weights in the hub's cache, or `model.path`.

Expected of "tiny" (docs/log.md): 12 minutes on two CPU cores without an accelerator for all stages (seed 0), with 700,000 environment
steps of PPO. Success on 2,048 held-out rooms rises from 26.2 to 44.6 %, from 32.5 to 48.2 % and from 17.7 to 45.6 % (seeds 0, 1, 2).
These runs are older than the support for published models and were not repeated. Published models: not measured.

The paper (arXiv 2505.20732) uses ALFWorld, WebShop and VirtualHome; its settings are the presets "paper" of `spa_alfworld.py`,
`spa_webshop.py` and `spa_virtualhome.py`. Published models have the paper's adapters and shared critic here too.
"""

from ml_collections import ConfigDict

from stepreward.configs.common import laptop, paper
from stepreward.configs.common.base import base_config, use_model
from stepreward.models.published import LAPTOP, MODELS

PRESETS = ("tiny", "micro", *LAPTOP, *MODELS)


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
    elif preset in LAPTOP:
        laptop.sokoban(c, preset)
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
