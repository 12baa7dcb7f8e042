"""iStar on WebShop.

    python launch/train.py --config=configs/istar_webshop.py            # tiny: an embedded catalogue, a small model from scratch, on a CPU
    python launch/train.py --config=configs/istar_webshop.py:micro      # seconds; for tests
    python launch/train.py --config=configs/istar_webshop.py:real --config.environment.data=FOLDER      # the benchmark's 1,000 products
    python launch/train.py --config=configs/istar_webshop.py:qwen2.5-1.5b      # a published model: any of base_config.MODELS

`get_config("paper")` states the numbers of the paper (arXiv 2509.19199): Qwen2.5-7B-Instruct, 1,000 products, 15 groups of 8... 
"""

from ml_collections import ConfigDict

from stepreward.base_config import MODELS, base_config, use_model

PRESETS = ("tiny", "micro", "real", "paper", *MODELS)


def get_config(preset: str = "tiny") -> ConfigDict:
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; there are: {', '.join(PRESETS)}")
    c = base_config()  # every key, with its meaning
    c.credit.method = "istar"
    c.policy.advantage_norm = "centre"
    c.environment.update({"name": "webshop", "preset": "tiny", "prompt": "compact"})
    tiny(c)
    return c


def tiny(c: ConfigDict) -> None:
    """A model of half a million parameters, 800 pieces of words, pages in a few lines."""
    c.model.update({"preset": "tiny-0.5m", "pieces": 800})
    c.rollout.update({"context": "step", "history": 0, "groups": 16, "group_size": 8, "max_steps": 8, "max_rows": 128})
    c.rollout.update({"max_answer_tokens": 16, "max_prompt_tokens": 192, "max_row_tokens": 256})
    c.sft.update({"episodes": 1500, "updates": 200, "rows": 128, "learning_rate": 2e-3, "warmup_updates": 20})
    c.prm.update({"minibatch_groups": 8, "replay": 2})
    c.policy.update({"learning_rate": 3e-4, "warmup_updates": 10, "minibatch_rows": 256})
    c.train.update({"env_steps": 60_000, "chunk_rows": 64, "pack_rows": True})
    c.eval.update({"episodes": 256, "every": 10, "prm_as_policy_every": 0})
