"""Settings that depend on the environment alone, shared by the experiments of both methods: for tiny models and for published ones.

The tiny models read the environments' compact prompts through a word-piece tokenizer. Their sizes are chosen so that half an hour on two
cores is enough for about a hundred iterations.
"""

from __future__ import annotations

from collections.abc import Callable

from ml_collections import ConfigDict

from stepreward.config import check_preset
from stepreward.configs.common import laptop
from stepreward.configs.common.base import base_config, use_model
from stepreward.configs.common.paper import spa_adapters
from stepreward.models.published import LAPTOP, MODELS


def experiment(name: str, method: str, preset: str, paper: Callable[[ConfigDict], None]) -> ConfigDict:
    """Returns the config of a method on an environment.

    Args:
      name: name of the environment.
      method: `credit.method`, "istar" or "spa"; its "auto" variant is "stable", see docs/log.md.
      preset: "tiny"; "micro"; "paper"; "real" (the benchmark's own data with a tiny model; WebShop and ALFWorld only); one of LAPTOP or MODELS.
      paper: sets the values that the method's paper states.

    Raises:
      ValueError: the preset is unknown; the message lists the known ones.
    """
    forms = {"tiny": tiny, "micro": micro} | ({"real": real} if name in _REAL else {})
    check_preset(preset, (*forms, "paper", *LAPTOP, *MODELS))
    c = base_config()
    c.credit.method = method
    if method == "istar":
        c.policy.advantage_norm = "centre"
    else:
        c.eval.final_episodes = 256
    if preset == "paper":
        paper(c)
    elif preset in MODELS:
        published(c, name, preset)
    elif preset in LAPTOP:
        tiny(c, name)
        laptop.speak(c, preset)
    else:
        forms[preset](c, name)
    return c


def tiny(c: ConfigDict, name: str) -> None:
    """A small model from scratch on the environment's embedded tasks."""
    c.environment.update({"name": name, "preset": "tiny", "prompt": "compact"})
    c.model.preset = "tiny-0.1m"
    c.rollout.update({"context": "episode", "history": 0, "groups": 16, "group_size": 8, "max_rows": 128})
    c.sft.update({"episodes": 1000, "log_every": 20, "learning_rate": 3e-3, "warmup_updates": 20})
    c.train.pack_rows = True
    c.exploration.update({"tasks": 128, "part_tasks": 64})
    c.estimator.epochs = 6
    c.eval.update({"episodes": 256, "every": 10, "prm_as_policy_every": 0})
    c.policy.update({"learning_rate": 3e-4, "warmup_updates": 10, "minibatch_rows": 64})
    c.critic.update({"minibatch_rows": 512})
    c.prm.update({"minibatch_groups": 8, "replay": 0})  # training on earlier batches would take most of an iteration
    _TINY[name](c)


def _webshop(c: ConfigDict) -> None:
    """An episode shows about five pages, each in a prompt of its own. A results page is much longer than the others, so rows are packed."""
    c.model.pieces = 1000
    c.rollout.update({"context": "step", "max_steps": 8, "max_answer_tokens": 24, "max_prompt_tokens": 208, "max_row_tokens": 256})
    c.sft.update({"episodes": 1500, "updates": 220, "rows": 128})
    c.credit.update({"outcome": "return"})  # the benchmark's score of the purchase
    c.policy.update({"learning_rate": 5e-4, "minibatch_rows": 512})
    c.train.update({"env_steps": 160_000, "chunk_rows": 64})


def _alfworld(c: ConfigDict) -> None:
    """Games generated from the package's floor plans.

    Each prompt lists what all earlier turns found (about 90 tokens). A growing conversation is shorter, but in it a small model does not
    recover from its first command that did nothing.
    """
    c.model.pieces = 600
    c.rollout.update({"context": "step", "history": 20, "max_steps": 20})
    c.rollout.update({"max_answer_tokens": 20, "max_prompt_tokens": 236, "max_row_tokens": 256})
    c.sft.update({"updates": 240, "rows": 128})
    c.policy.update({"learning_rate": 5e-4, "minibatch_rows": 512})
    c.train.update({"env_steps": 60_000, "chunk_rows": 64})
    c.eval.update({"episodes": 128})


def _virtualhome(c: ConfigDict) -> None:
    """An episode is a conversation of about 80 tokens, in rare cases of 400, so rows are packed."""
    c.model.pieces = 600
    c.rollout.update({"max_steps": 12, "max_answer_tokens": 12, "max_prompt_tokens": 112, "max_row_tokens": 416})
    c.sft.update({"episodes": 500, "updates": 60, "rows": 64, "warmup_updates": 10})
    c.train.update({"env_steps": 40_000, "chunk_rows": 8})
    c.eval.update({"episodes": 128})


def _sotopia(c: ConfigDict) -> None:
    """A talk of five turns is a conversation of about 80 tokens. Its outcome is a graded score."""
    c.model.pieces = 500
    c.rollout.update({"max_steps": 6, "max_answer_tokens": 6, "max_prompt_tokens": 64, "max_row_tokens": 160})
    c.sft.update({"updates": 60, "rows": 64, "warmup_updates": 10})
    c.credit.update({"outcome": "return", "outcome_scale": 0.1})
    c.train.update({"env_steps": 60_000, "chunk_rows": 32})


def _textcraft(c: ConfigDict) -> None:
    """An episode is a conversation: the goal and up to six recipes, then what is held after each action."""
    c.model.pieces = 800
    c.rollout.update({"max_steps": 10, "max_answer_tokens": 28, "max_prompt_tokens": 192, "max_row_tokens": 512})
    c.sft.update({"episodes": 400, "updates": 120, "rows": 64, "warmup_updates": 10})
    c.train.update({"env_steps": 40_000, "chunk_rows": 16})
    c.eval.update({"episodes": 98})  # each held-out goal twice


def _scienceworld(c: ConfigDict) -> None:
    """An episode is a conversation of some hundred tokens. Each environment is a Java process, so few are played at once.

    The simulator makes each demonstration in some seconds, so there are few.
    """
    c.model.pieces = 1000
    c.rollout.update({"groups": 4, "group_size": 8, "max_rows": 32, "max_steps": 15})
    c.rollout.update({"max_answer_tokens": 32, "max_prompt_tokens": 288, "max_row_tokens": 1024})
    c.sft.update({"episodes": 100, "updates": 120, "rows": 32, "warmup_updates": 10})
    c.environment.timeout_s = 180.0  # a gold path may take half a minute
    c.credit.update({"outcome": "return"})  # the change of the benchmark's score, divided by 100
    c.exploration.update({"tasks": 64, "part_tasks": 32})
    c.train.update({"env_steps": 10_000, "chunk_rows": 8})
    c.eval.update({"episodes": 64})


def _search_qa(c: ConfigDict) -> None:
    """Questions of one or two hops in the embedded world: a conversation of about 60 tokens, with one document of 20 a search.

    From 2,000 demonstrations, a small model learns answers by heart, and wins 4 % of the held-out questions.
    """
    c.model.pieces = 1000
    c.rollout.update({"max_steps": 5, "max_answer_tokens": 8, "max_prompt_tokens": 32, "max_row_tokens": 160})
    c.sft.update({"episodes": 8000, "updates": 300, "rows": 128})
    c.credit.update({"outcome": "return"})  # the F1 of the answer
    c.train.update({"env_steps": 60_000, "chunk_rows": 32})


_TINY = {
    "search_qa": _search_qa,
    "webshop": _webshop,
    "alfworld": _alfworld,
    "virtualhome": _virtualhome,
    "sotopia": _sotopia,
    "textcraft": _textcraft,
    "scienceworld": _scienceworld,
}


def real(c: ConfigDict, name: str) -> None:
    """The preset "tiny" on the benchmark's own tasks (`environment.data`), with a larger vocabulary and longer prompts."""
    tiny(c, name)
    _REAL[name](c)


def _webshop_real(c: ConfigDict) -> None:
    c.model.pieces = 2000
    c.rollout.update({"max_answer_tokens": 40, "max_prompt_tokens": 256, "max_row_tokens": 320})
    c.sft.update({"episodes": 3000, "updates": 600})
    c.eval.update({"episodes": 500})  # goals 0 to 499


def _alfworld_real(c: ConfigDict) -> None:
    c.model.pieces = 800
    c.rollout.update({"history": 30, "max_steps": 30, "max_prompt_tokens": 480, "max_row_tokens": 512})
    c.train.update({"chunk_rows": 32})
    c.eval.update({"episodes": 140, "final_episodes": min(c.eval.final_episodes, 140)})  # valid_seen


_REAL = {"webshop": _webshop_real, "alfworld": _alfworld_real}


def micro(c: ConfigDict, name: str) -> None:
    """A run of a few seconds through every phase, for tests."""
    tiny(c, name)
    c.model.preset = "tiny-micro"
    c.rollout.update({"groups": 2, "group_size": 4, "max_rows": 8, "max_steps": min(6, c.rollout.max_steps)})
    c.sft.update({"episodes": 24, "updates": 4, "rows": 16, "log_every": 2})
    c.exploration.update({"tasks": 4, "rollouts": 4, "part_tasks": 2})
    c.estimator.update({"minibatch_episodes": 8, "epochs": 1, "warmup_updates": 0, "held_out": 0.25})
    c.preference.update({"tasks": 4, "part_tasks": 2, "epochs": 1, "minibatch_pairs": 4, "learning_rate": 1e-3, "warmup_updates": 0})
    c.prm.update({"learning_rate": 1e-3, "minibatch_groups": 2})
    c.critic.update({"minibatch_rows": 16})
    c.policy.update({"learning_rate": 1e-3, "warmup_updates": 2, "minibatch_rows": 16})
    c.train.update({"env_steps": 60, "chunk_rows": 8})
    c.eval.update({"episodes": 8, "every": 2, "record": 2, "final_episodes": min(c.eval.final_episodes, 8)})
    c.checkpoint.update({"every": 2, "keep": 2})
    if name == "scienceworld":  # four Java processes, and the task with the shortest demonstrations
        c.environment.options = ConfigDict({"tasks": ("find-non-living-thing",)})
        c.rollout.update({"group_size": 2, "max_rows": 4})
        c.sft.update({"episodes": 8})
        c.exploration.update({"rollouts": 2})
        c.train.update({"env_steps": 24})
        c.eval.update({"episodes": 4})


def published(c: ConfigDict, name: str, model: str) -> None:
    """A published model with the prompts of the paper that `credit.method` comes from."""
    use_model(c, model)
    form = "spa" if c.credit.method == "spa" else "istar"
    c.environment.update({"name": name, "preset": form, "prompt": form})
    steps, new, whole = {
        "webshop": (10, 4096, 8192),
        "alfworld": (50, 2048, 16_384),
        "virtualhome": (40, 2048, 8192),
        "sotopia": (20, 4096, 8192),
        "textcraft": (20, 4096, 8192),
        "scienceworld": (30, 6144, 16_384),
        "search_qa": (4 if form == "istar" else 10, 2048, 8192),
    }[name]
    if name == "alfworld" and form == "spa":
        steps = 40
    c.rollout.update({"max_steps": steps, "max_prompt_tokens": new, "max_row_tokens": new + 512})
    if name == "search_qa":
        c.rollout.history = 4 if form == "istar" else 0  # all turns
        c.credit.update({"outcome": "return"})
    if name == "sotopia":
        c.credit.update({"outcome": "return", "outcome_scale": 0.1})  # the goal score, 0 to 10
    if name == "scienceworld":
        c.environment.timeout_s = 180.0
        c.credit.outcome = "success" if form == "istar" else "return"
    c.train.env_steps = 200 * 16 * 8 * steps
    if form == "spa":
        c.rollout.update({"context": "episode", "history": 0, "max_answer_tokens": 128, "max_row_tokens": whole})
        spa_adapters(c)
