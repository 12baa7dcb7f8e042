"""Makes the tables of docs/tpu.md: compiles the programs of some runs for TPU slices, without a TPU.

    python experiments/tpu_page.py --write                 # all tables, and into the page; about an hour on two cores
    python experiments/tpu_page.py --only=colab,istar_7b   # prints some of them

Each table is what `launch/compile_tpu.py` prints, with its command above it. Needs `pip install -e '.[tpu-compile]'`.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from pages import replace_parts

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "tpu.md"


class Table(NamedTuple):
    """A table: its title, the config and topology, and further arguments of the command."""

    title: str
    config: str
    topology: str
    more: str = ""


FULL = "--config.mesh.fit= --config.model.moment_dtype=bfloat16"
TABLES = {
    "colab": Table("Qwen2.5-0.5B as its preset fits it to one chip, as on a Colab TPU", "istar_sokoban.py:qwen2.5-0.5b", "v5e:1x1"),
    "istar_7b": Table("Qwen2.5-7B as its preset fits it to 16 chips", "istar_sokoban.py:qwen2.5-7b", "v5e:4x4"),
    "istar_7b_host": Table("Qwen2.5-7B on one host, whose rows do not wait for each other", "istar_sokoban.py:qwen2.5-7b", "v5e:2x4"),
    "spa_3b": Table("SPA with Llama-3.2-3B on Sokoban", "spa_sokoban.py:llama3.2-3b", "v5e:2x2"),
    "vine_05b": Table(
        "VinePPO, whose rollouts branch, with Qwen2.5-0.5B", "istar_sokoban.py:qwen2.5-0.5b", "v5e:2x2", "--config.credit.method=vineppo"
    ),
    "spa_paper": Table(
        "SPA as the paper states it, rows of 4,096 tokens, offline, with adapters",
        "spa_alfworld.py:paper", "v5e:2x2", "--config.lora.sft=True --config.train.chunk_rows=4 --programs=policy/update,critic",
    ),
    "full_05b": Table(
        "Qwen2.5-0.5B, full fine-tuning in bfloat16", "istar_sokoban.py:qwen2.5-0.5b", "v5e:1x1",
        f"{FULL} --config.model.param_dtype=bfloat16 --config.rollout.max_rows=32 --config.train.chunk_rows=2 --programs=policy/update",
    ),
    "full_15b": Table(
        "Qwen2.5-1.5B, full fine-tuning over float32 weights", "istar_sokoban.py:qwen2.5-1.5b", "v5e:2x2",
        f"{FULL} --config.rollout.max_rows=64 --config.train.chunk_rows=8 --programs=policy/update",
    ),
    "full_7b": Table(
        "Qwen2.5-7B, full fine-tuning over float32 weights", "istar_sokoban.py:qwen2.5-7b", "v5p:2x2x2",
        f"{FULL} --config.train.chunk_rows=16 --programs=policy/update",
    ),
    "visual": Table(
        "VisualSokoban as the paper states it, Qwen2.5-VL-7B with a text PRM of 7B", "istar_sokoban.py:paper", "v5p:2x2x2",
        "--config.mesh.fit= --programs=policy/update",
    ),
}  # fmt: skip


def command(table: Table) -> str:
    """The command of a table, as it stands on the page."""
    return f"python launch/compile_tpu.py --config=configs/{table.config} --topology={table.topology} {table.more}".rstrip()


def made(name: str) -> str:
    """A table with its title and command, in Markdown.

    Raises:
      SystemExit: the command failed.
    """
    table, said = TABLES[name], command(TABLES[name])
    run = [sys.executable, *shlex.split(said)[1:], "--markdown"]
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    done = subprocess.run(run, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode not in (0, 1):  # 1: it does not fit
        raise SystemExit(f"error: {said} ended with exit code {done.returncode}")
    return f"## {table.title}, {table.topology}\n\n    {said}\n\n{done.stdout.strip()}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help=f"comma-separated names of tables: {', '.join(TABLES)}")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/tpu.md")
    options = parser.parse_args()
    names = options.only.split(",") if options.only else list(TABLES)
    if unknown := [name for name in names if name not in TABLES]:
        parser.error(f"there is no table {unknown[0]!r}; the tables are {', '.join(TABLES)}")
    if options.write and options.only:
        parser.error("--write makes all tables, so that they come from one version of the code: leave --only out")
    parts = []
    for name in names:
        parts.append(made(name))
        print(parts[-1], flush=True)
    if options.write:
        replace_parts(PAGE, {"tables": "\n".join(parts)})


if __name__ == "__main__":
    main()
