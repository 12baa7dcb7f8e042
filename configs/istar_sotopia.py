"""iStar on SOTOPIA: talks with a private goal, whose outcome is a judge's graded score.

    python launch/train.py --config=configs/istar_sotopia.py            # tiny: an embedded world of short talks, on a CPU, no server
    python launch/train.py --config=configs/istar_sotopia.py:micro      # seconds; for tests
    python launch/train.py --config=configs/istar_sotopia.py:qwen2.5-7b      # a published model in that world: any in docs/models.md
    python launch/train.py --config=configs/istar_sotopia.py:paper --config.environment.data=FOLDER \\
        --config.environment.options.partner_url=URL --config.environment.options.judge_url=URL      # the benchmark; pip install -e '.[sotopia]'

`get_config("paper")` states the numbers of the paper (arXiv 2509.19199) for SOTOPIA: GRPO's episode advantages, temperature 0.7,
success where the goal score is above 6. Partner and judge are OpenAI-compatible endpoints (docs/environments/sotopia.md). 10 turns of the
policy are the benchmark's 20 of both. The paper trains on SOTOPIA-π, whose scenarios are not public in full: the benchmark's
own, less those held out, stand for them.
"""

from ml_collections import ConfigDict

from stepreward.configs.common import environments, paper


def get_config(preset: str = "tiny") -> ConfigDict:
    return environments.experiment("sotopia", "istar", preset, _paper)


def _paper(c: ConfigDict) -> None:
    paper.istar(c)
    c.environment.update({"name": "sotopia", "preset": "sotopia", "prompt": "istar"})
    endpoints = {"partner_url": "", "partner_model": "gpt-4o", "judge_url": "", "judge_model": "gpt-4o", "key_variable": "OPENAI_API_KEY"}
    c.environment.options = ConfigDict(endpoints | {"partner_prompt": "", "subset": "all", "cache": "", "timeout_s": 60.0})
    c.credit.options.episode_advantage = "grpo"
    c.rollout.update({"groups": 16, "max_steps": 10, "max_rows": 128, "history": 0, "temperature": 0.7})
    c.rollout.update({"max_prompt_tokens": 6144, "max_answer_tokens": 2048, "max_row_tokens": 6144 + 2048})
    c.train.update({"env_steps": 800 * 16 * 8 * 10, "chunk_rows": 8})  # 800 iterations of full-length talks
    c.eval.update({"episodes": 90})
