"""Writes a run's model as a Hugging Face folder, which transformers and serving engines load.

    python launch/export.py --workdir=runs/a --out=models/a [--which=prm] [--adapters] [--dtype=bfloat16] [--push=OWNER/NAME]

docs/models.md describes the folder. Nothing is uploaded without --push.
"""

from __future__ import annotations

import sys

from stepreward.config import Option, parse_arguments
from stepreward.errors import launcher

OPTIONS = (
    Option("workdir", "folder of the run"),
    Option("out", "folder to write; it must not exist"),
    Option("step", "checkpoint to export (default: the latest)", type=int),
    Option(
        "which",
        "model to export: the policy, the PRM or the initial policy",
        default="policy",
        choices=("policy", "prm", "initial"),
    ),
    Option("adapters", "write only the adapters, in PEFT's format", default=False, type=bool),
    Option("dtype", "dtype of the written tensors (default: that of the parameters)", default="", choices=("", "float32", "bfloat16")),
    Option("push", "repository of the Hugging Face hub to upload the folder to, as OWNER/NAME (default: upload nothing)", default=""),
    Option("private", "make that repository private, if it is new", default=False, type=bool),
)


def main() -> int | None:
    options = parse_arguments(
        sys.argv[1:],
        description=__doc__,
        required=("workdir", "out"),
        options=OPTIONS,
    )
    from stepreward.training.export import export_workdir

    o = options
    return export_workdir(o.workdir, o.out, o.step, o.which, o.adapters, o.dtype, o.push, o.private)


if __name__ == "__main__":
    launcher(main)
