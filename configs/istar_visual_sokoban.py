"""iStar on VisualSokoban: policy and process reward model see the board only as a picture.

    python launch/train.py --config=configs/istar_visual_sokoban.py            # tiny: a vision model from random weights, on a CPU
    python launch/train.py --config=configs/istar_visual_sokoban.py:micro      # a few seconds; for tests
    python launch/train.py --config=configs/istar_visual_sokoban.py:qwen2.5-vl-7b      # the published vision model

Needs: nothing beyond the base install; the published model needs its weights in the hub's cache, or `model.path`.

Expected of "tiny" (docs/log.md): 26 to 31 minutes on one CPU core for about 200,000 environment steps, demonstrations not counted.
Success on 1,024 held-out rooms rises from 38.4 to 57.5 % and from 28.1 to 46.9 % (seeds 0, 1; seed 0 was stopped by hand at 199,000
steps). The published model and "paper": not measured.

The tiny model is Qwen2.5-VL at toy size and runs the same code: image processor, vision tower, placeholder tokens, M-RoPE. It reads the
16-pixel tiles unscaled, one embedding a tile (36 a board); the published model's processor enlarges the picture.

`get_config("paper")` is the preset "paper" of `configs/istar_sokoban.py`: the paper's settings for this environment (arXiv 2509.19199).
"""

from pathlib import Path

from ml_collections import ConfigDict

from stepreward.config import load_config_file
from stepreward.configs.common.base import base_config, use_model
from stepreward.models.published import MODELS

SEEING = tuple(name for name in MODELS if "-vl-" in name)
PRESETS = ("tiny", "micro", "paper", *SEEING)


def get_config(preset: str = "tiny") -> ConfigDict:
    if preset in MODELS and preset not in SEEING:
        others = f"give one of {', '.join(SEEING)}, or play text with configs/istar_sokoban.py"
        raise ValueError(f"{preset} sees no pictures: {others}")
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; there are: {', '.join(PRESETS)}")
    if preset == "paper":
        return load_config_file(f"{Path(__file__).with_name('istar_sokoban.py')}:paper")
    c = base_config()  # every key, with its meaning
    c.credit.method = "istar"  # its "auto" variant is "stable"
    c.policy.advantage_norm = "centre"
    if preset in SEEING:
        use_model(c, preset)
        return c
    _tiny(c)
    if preset == "micro":
        _micro(c)
    return c


def _tiny(c: ConfigDict) -> None:
    """The text preset's batch at a lower rate, which pictures need, and a short replay: in memory a step is a picture of 110 kB."""
    c.environment.update({"preset": "tiny_image", "prompt": "compact_image"})
    c.model.preset = "tiny-vision"
    c.rollout.update({"max_prompt_tokens": 40, "max_answer_tokens": 2, "max_row_tokens": 42})  # 36 + 4: user, image, assistant
    # Seeds differ in how many updates pass before the picture is understood, so the loss says when the imitation is good enough.
    c.sft.update({"episodes": 1000, "updates": 800, "stop_loss": 0.4, "log_every": 40})
    c.prm.update({"replay": 2, "learning_rate": 3e-4})
    c.policy.update({"learning_rate": 3e-4, "warmup_updates": 20})
    c.train.update({"env_steps": 200_000})
    c.eval.update({"episodes": 256, "every": 10, "prm_as_policy_every": 0})


def _micro(c: ConfigDict) -> None:
    """A run of a few seconds through every stage; the rooms are easy, so that groups hold successes and failures."""
    c.environment.preset = "istar_image"
    c.model.preset = "tiny-vision-micro"
    c.rollout.update({"groups": 4, "group_size": 4, "max_steps": 8, "max_rows": 16})
    c.sft.update({"episodes": 40, "updates": 20, "stop_loss": 0.0, "rows": 32, "log_every": 10, "learning_rate": 1e-2, "warmup_updates": 5})
    c.prm.update({"learning_rate": 1e-3, "minibatch_groups": 2, "resync": False})
    c.policy.update({"learning_rate": 1e-3, "warmup_updates": 2, "minibatch_rows": 64})
    c.train.update({"env_steps": 200, "chunk_rows": 16})
    c.eval.update({"episodes": 8, "every": 2, "record": 3})
    c.checkpoint.update({"every": 2, "keep": 2})
