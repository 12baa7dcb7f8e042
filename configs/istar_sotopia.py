"""iStar on SOTOPIA: conversations with a private goal, whose outcome is a judge's graded score.

    python launch/train.py --config=configs/istar_sotopia.py            # tiny: an embedded world of short talks, on a CPU, no server
    python launch/train.py --config=configs/istar_sotopia.py:micro      # a few seconds; for tests
    python launch/train.py --config=configs/istar_sotopia.py:qwen2.5-7b      # a published model in that world, see docs/models.md
    python launch/train.py --config=configs/istar_sotopia.py:paper --config.environment.data=FOLDER \\
        --config.environment.options.partner_url=URL --config.environment.options.judge_url=URL      # the benchmark; pip install -e '.[sotopia]'

Needs: nothing beyond the base install for the embedded world. "paper" needs the extra `sotopia`, the benchmark's data, and
OpenAI-compatible endpoints for partner and judge (docs/environments/sotopia.md).

Expected of "tiny" (docs/log.md): about 3 minutes on one CPU core for 60,000 environment steps, demonstrations not counted. Success on 256
held-out talks rises from 56.6 to 78.9 % and from 63.7 to 79.8 % (seeds 0, 1; at the end: mean of the last three evaluations). Published
models and "paper": not measured.

`get_config("paper")` has the paper's settings for SOTOPIA (arXiv 2509.19199): GRPO's episode advantages, temperature 0.7, success if the
goal score is above 6. The policy has 10 turns, since the benchmark's 20 turns count both speakers. The paper trains on SOTOPIA-π, whose
scenarios are not all public; this preset trains on the benchmark's own scenarios, without the held-out ones.
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
