"""GRPO on three environments in one run: Sokoban, WebShop's embedded shop and Search QA's embedded world (after Omni-Thinker).

    python launch/train.py --config=configs/omni_three.py            # tiny: a small model from random weights, on a CPU
    python launch/train.py --config=configs/omni_three.py:micro      # some seconds; for tests
    python launch/train.py --config=configs/omni_three.py --config.mixture.environments.shop.share=2
    python launch/train.py --config=configs/omni_three.py --config.mixture.order=sequential --config.mixture.sequence=rooms,shop,questions
    python launch/train.py --config=configs/omni_three.py --config.mixture.environments.questions.outcome=judge      # judge.* chooses the judge

Needs: nothing beyond the base install.

Expected: "micro" takes some seconds. "tiny" (docs/log.md): 22 minutes for 160,000 environment steps beside other jobs; of 128 held-out tasks each, rooms go from
45 to between 49 and 61 %, the shop from 34 to between 32 and 44 %, and the questions from 0 to 1.6 %.

Omni-Thinker (arXiv 2507.14783) trains with GRPO on rule rewards and on a judge's, and orders its tasks by backward transfer.
`experiments/transfer.py` measures the transfer between these environments. docs/runs.md describes the group `mixture`.
"""

from ml_collections import ConfigDict

from stepreward.config import check_preset
from stepreward.configs.common.base import base_config

PRESETS = ("tiny", "micro")


def get_config(preset: str = "tiny") -> ConfigDict:
    check_preset(preset, PRESETS)
    c = base_config()
    c.credit.update({"method": "grpo", "outcome": "return"})
    tiny(c)
    if preset == "micro":
        micro(c)
    return c


def tiny(c: ConfigDict) -> None:
    """One word-piece tokenizer reads all three; each prompt is one step with a window of history."""
    c.mixture.environments = ConfigDict(
        {
            "rooms": {"name": "sokoban", "preset": "istar", "history": 0, "max_steps": 8, "share": 1.0},
            "shop": {"name": "webshop", "history": 0, "max_steps": 8, "share": 1.0},
            "questions": {"name": "search_qa", "history": 4, "max_steps": 5, "share": 1.0},
        }
    )
    c.model.update({"preset": "tiny-0.1m", "pieces": 1500})
    c.rollout.update({"context": "step", "groups": 18, "group_size": 8, "max_steps": 8, "max_rows": 64})
    c.rollout.update({"max_answer_tokens": 24, "max_prompt_tokens": 232, "max_row_tokens": 256})
    c.sft.update({"episodes": 6000, "updates": 400, "rows": 128, "learning_rate": 3e-3})
    c.policy.update({"learning_rate": 5e-4, "warmup_updates": 10, "minibatch_rows": 512})
    c.train.update({"env_steps": 160_000, "chunk_rows": 64, "pack_rows": True})
    c.eval.update({"episodes": 384, "every": 10, "prm_as_policy_every": 0})


def micro(c: ConfigDict) -> None:
    """A run of some seconds through every stage, for tests."""
    c.model.update({"preset": "tiny-micro", "pieces": 600})
    c.rollout.update({"groups": 6, "group_size": 4, "max_rows": 8, "invalid_penalty": 0.1})  # most answers hold no action
    c.sft.update({"episodes": 120, "updates": 80, "rows": 32, "log_every": 40, "learning_rate": 1e-2, "warmup_updates": 10})
    c.exploration.update({"tasks": 6, "rollouts": 4, "part_tasks": 3})
    c.estimator.update({"minibatch_episodes": 8, "epochs": 1, "warmup_updates": 0, "held_out": 0.34})
    c.prm.update({"learning_rate": 1e-3, "minibatch_groups": 2})
    c.critic.update({"minibatch_rows": 16})
    c.policy.update({"learning_rate": 1e-3, "warmup_updates": 2, "minibatch_rows": 16})
    c.train.update({"env_steps": 200, "chunk_rows": 8})
    c.eval.update({"episodes": 6, "every": 2, "record": 2, "final_episodes": 6})
    c.checkpoint.update({"every": 2, "keep": 2})
