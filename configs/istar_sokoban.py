"""iStar on Sokoban: step rewards from an implicit process reward model.

    python launch/train.py --config=configs/istar_sokoban.py            # tiny: a small model from random weights, on a CPU
    python launch/train.py --config=configs/istar_sokoban.py:micro      # a few seconds; for tests
    python launch/train.py --config=configs/istar_sokoban.py:qwen2.5-1.5b      # or another published model, see docs/models.md

Needs: nothing beyond the base install; a published model needs its weights in the hub's cache, or `model.path`.

Expected of "tiny" (docs/log.md): 12 minutes on two CPU cores without an accelerator for 350,000 environment steps. Success on 512
held-out rooms rises from 33.4 to 57.0 %, from 33.2 to 51.0 % and from 18.9 to 42.2 % (seeds 0, 1, 2). Published models and "paper": not
measured.

`get_config("paper")` has the paper's settings for VisualSokoban (arXiv 2509.19199). The policy is Qwen2.5-VL-7B-Instruct; the PRM is the
text-only Qwen2.5-7B-Instruct, which reads the same tokens but sees no pictures. `configs/istar_visual_sokoban.py` trains a tiny model on
pictures.
"""

from ml_collections import ConfigDict

from stepreward.configs.common import laptop, paper
from stepreward.configs.common.base import base_config, use_model
from stepreward.models.published import LAPTOP, MODELS

PRESETS = ("tiny", "micro", "paper", *LAPTOP, *MODELS)


def get_config(preset: str = "tiny") -> ConfigDict:
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; there are: {', '.join(PRESETS)}")
    c = base_config()  # every key, with its meaning
    c.credit.method = "istar"  # its "auto" variant is "stable", see docs/log.md
    c.policy.advantage_norm = "centre"  # "none" is the paper's
    if preset in MODELS:
        use_model(c, preset)
    elif preset in LAPTOP:
        laptop.sokoban(c, preset)
    else:
        {"tiny": _tiny, "micro": micro, "paper": _paper}[preset](c)
    return c


def _tiny(c: ConfigDict) -> None:
    """Settings with which better credit learns more (docs/log.md): more updates on each batch, held by a KL term to the warm start."""
    c.policy.update({"advantage_norm": "whiten", "epochs": 4, "kl_coef": 0.05})
    c.prm.replay = 1
    c.train.env_steps = 350_000


def micro(c: ConfigDict) -> None:
    """A run of a few seconds through every stage; the rooms are easy, so that groups hold successes and failures."""
    c.environment.preset = "istar"
    c.environment.prompt = "compact"
    c.model.preset = "tiny-micro"
    c.rollout.update({"context": "step", "history": 0, "groups": 4, "group_size": 4, "max_steps": 8, "max_rows": 16})
    c.rollout.update({"max_answer_tokens": 2, "max_prompt_tokens": 18, "max_row_tokens": 20})
    c.sft.update({"episodes": 60, "updates": 100, "rows": 64, "log_every": 50, "learning_rate": 1e-2, "warmup_updates": 10})
    c.exploration.update({"tasks": 8, "rollouts": 4, "part_tasks": 4})
    c.estimator.update({"warmup_updates": 0, "minibatch_episodes": 8, "epochs": 2, "held_out": 0.25})
    c.preference.update({"tasks": 8, "part_tasks": 4, "epochs": 2, "minibatch_pairs": 8, "learning_rate": 1e-3, "warmup_updates": 0})
    c.prm.update({"learning_rate": 1e-3, "warmup_updates": 0, "minibatch_groups": 2, "resync": False, "replay": 0})
    c.policy.update({"learning_rate": 1e-3, "warmup_updates": 2, "minibatch_rows": 64})
    c.train.update({"env_steps": 300, "chunk_rows": 16})
    c.eval.update({"episodes": 16, "every": 2, "prm_as_policy_every": 2, "record": 3})
    c.checkpoint.update({"every": 2, "keep": 2})


def _paper(c: ConfigDict) -> None:
    """VisualSokoban as the paper and its release state it."""
    paper.istar(c, "qwen2.5-vl-7b")
    c.environment.preset = "istar_image"  # 6 × 6 cells, one box; -0.1 for an answer without an action
    c.environment.prompt = "istar_image"
    c.prm.update({"preset": "qwen2.5-7b", "path": MODELS["qwen2.5-7b"]})
    c.rollout.update({"history": 0, "groups": 32, "max_steps": 15, "max_rows": 256})
    c.rollout.update({"max_prompt_tokens": 1024, "max_answer_tokens": 512, "max_row_tokens": 1024 + 512})
    c.train.update({"env_steps": 200 * 32 * 8 * 15, "chunk_rows": 8})  # 200 iterations of full-length episodes
