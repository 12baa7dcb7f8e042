"""iStar on Search QA: answer questions of several hops by searching documents.

    python launch/train.py --config=configs/istar_search_qa.py            # tiny: an embedded world, a small model from random weights, on a CPU
    python launch/train.py --config=configs/istar_search_qa.py:micro      # a few seconds; for tests
    python launch/train.py --config=configs/istar_search_qa.py:qwen2.5-7b      # or another published model, see docs/models.md

Needs: nothing beyond the base install. Published models play in the embedded world; `--config.environment.data=FILE` gives them the questions
of HotpotQA, 2WikiMultihopQA or MuSiQue (docs/environments/search_qa.md). Other papers' forms: `--config.environment.preset=search_r1
--config.environment.prompt=search_r1`, or igpo, or arpo, with the same number of `rollout.max_steps` as the preset.

Expected of "tiny": imitation (4 minutes on a busy machine) wins 36.7 % of 256 held-out questions (seed 0); random play wins 5.5 %.
Reinforcement learning from there, published models and "paper": not measured.

The paper (arXiv 2509.19199) does not use search. `get_config("paper")` has its settings for WebShop, with the search environment of verl-agent,
on which its code is built: 4 turns, all of which a prompt shows.
"""

from ml_collections import ConfigDict

from stepreward.configs.common import environments, paper


def get_config(preset: str = "tiny") -> ConfigDict:
    return environments.experiment("search_qa", "istar", preset, _paper)


def _paper(c: ConfigDict) -> None:
    paper.istar_text(c, "search_qa", steps=4, prompt_tokens=4096, tested=512)
    c.rollout.update({"history": 4, "invalid_penalty": 0.0})  # the environment has a penalty of its own, 0.01
