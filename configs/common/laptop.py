"""A small pretrained language model on a laptop: adapters on frozen weights, short prompts in its own chat template, small batches."""

from __future__ import annotations

from ml_collections import ConfigDict

from stepreward.models.published import SOURCES

# Tokens of an answer, of what a turn adds to the prompt, and of a row. In 100 demonstrations of each environment the longest were shorter.
_LENGTHS = {
    "sokoban": (3, 44, 47),
    "webshop": (18, 160, 178),
    "alfworld": (16, 256, 272),
    "virtualhome": (12, 96, 480),
    "sotopia": (10, 112, 256),
    "textcraft": (24, 128, 480),
    "scienceworld": (32, 320, 1024),
    "search_qa": (12, 56, 224),
}


def sokoban(c: ConfigDict, name: str) -> None:
    """Rooms that one to four moves solve."""
    c.environment.update({"preset": "istar", "prompt": "short"})
    c.environment.options = ConfigDict({"min_moves": 1, "max_moves": 4, "max_steps": 6})
    c.rollout.max_steps = 6
    speak(c, name)
    c.model.system = "Push the box X onto O."


def speak(c: ConfigDict, name: str) -> None:
    """Puts a language model in place of a tiny one.

    Args:
      c: the config to change.
      name: a key of `LAPTOP`.
    """
    c.model.update({"preset": name, "path": SOURCES[name], "pieces": 0, "system": "Be brief."})
    c.lora.update({"rank": 16, "alpha": 32.0, "targets": ("query", "key", "value", "output", "gate", "up", "down"), "sft": True})
    answer, prompt, row = _LENGTHS[c.environment.name]
    c.rollout.update({"max_answer_tokens": answer, "max_prompt_tokens": prompt, "max_row_tokens": row})
    c.rollout.update({"groups": 4, "group_size": 8, "max_rows": 32})
    c.sft.update({"episodes": 300, "updates": 60, "rows": 16, "log_every": 10, "learning_rate": 1e-3, "warmup_updates": 5})
    c.exploration.update({"tasks": 16, "part_tasks": 4})
    c.estimator.update({"learning_rate": 1e-4, "minibatch_episodes": 8, "epochs": 2, "warmup_updates": 5})
    c.preference.update({"tasks": 16, "part_tasks": 4, "minibatch_pairs": 8, "learning_rate": 1e-4, "warmup_updates": 5})
    c.prm.update({"learning_rate": 1e-4, "minibatch_groups": 2, "replay": 0})
    c.critic.update({"learning_rate": 1e-4, "minibatch_rows": 16})
    c.discriminator.update({"learning_rate": 1e-4, "minibatch_episodes": 8})
    c.policy.update({"learning_rate": 2e-4, "warmup_updates": 0, "minibatch_rows": 16})
    c.train.update({"env_steps": 4_000, "chunk_rows": 16})
    c.eval.update({"episodes": 64, "every": 5, "final_episodes": 0, "prm_as_policy_every": 0})
