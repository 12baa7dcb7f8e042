"""iStar on ScienceWorld: experiments of elementary school in a simulated house, in text.

    apt-get install -y default-jre-headless && pip install -e '.[scienceworld]'
    python launch/train.py --config=configs/istar_scienceworld.py            # tiny: four tasks, a small model from random weights, on a CPU
    python launch/train.py --config=configs/istar_scienceworld.py:micro      # about a minute; for tests
    python launch/train.py --config=configs/istar_scienceworld.py:qwen2.5-7b      # or another published model, see docs/models.md

Needs: the extra `scienceworld`, and Java. Each of the `rollout.max_rows` environments is a Java process of some 300 MB.

Expected: "micro" ran in 1 to 2 minutes beside other work. "tiny", published models and "paper": not measured.

The paper (arXiv 2509.19199) does not use ScienceWorld. `get_config("paper")` has its settings for WebShop, with the turns, lengths and
group sizes of RLVMR's release for ScienceWorld (arXiv 2507.22844). `environment.data` takes that release's lists of tasks.
"""

from ml_collections import ConfigDict

from stepreward.configs.common import environments, paper


def get_config(preset: str = "tiny") -> ConfigDict:
    return environments.experiment("scienceworld", "istar", preset, _paper)


def _paper(c: ConfigDict) -> None:
    paper.istar_text(c, "scienceworld", steps=30, prompt_tokens=6144, tested=128)
    c.rollout.update({"max_answer_tokens": 1024, "max_row_tokens": 6144 + 1024})
