"""Compiles every jitted step of a run for a TPU slice, on a machine without a TPU, and prints the memory and time that each step needs.

    python launch/compile_tpu.py --config=configs/istar_sokoban.py:qwen2.5-7b --topology=v5e:4x4 [--config.KEY=VALUE …]

Needs XLA's TPU compiler: pip install -e '.[tpu-compile]'. The model is not allocated, and neither weights nor tokenizer are needed.
With the preset of a published model, some settings are chosen for the slice, as in a run; the line "fitted to" shows them
(--config.mesh.fit= switches this off). Other configs are compiled as they are; if they set no mesh, parameters and rows are split over all
chips (mesh.fsdp). The exit code is 0 if every program fits the chips' memory, 1 if one does not, and 2 if no choice of settings would fit.
--programs selects programs by the beginning of their names; docs/tpu.md explains the columns.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

from stepreward.config import Option, parse_command_line
from stepreward.errors import UserError, launcher
from stepreward.tpu import slices

OPTIONS = (
    Option("topology", f"the slice: {slices.EXAMPLES}, …"),
    Option(
        "programs", "compile only programs whose names begin with one of these, such as rollout,policy/update (default: all)", default=""
    ),
    Option("detail", "also compile parts of programs separately: the prefill and one decoding step of a turn", default=False, type=bool),
    Option("list", "only list the programs", default=False, type=bool),
    Option("markdown", "print a Markdown table", default=False, type=bool),
    Option("hlo", "folder for the text of the compiled programs"),
)


def main() -> int:
    c, options = parse_command_line(sys.argv[1:], extra=OPTIONS, description=__doc__)
    if options.topology is None:
        raise UserError(f"--topology is missing: give a slice, such as {slices.EXAMPLES}.")
    devices = slices.devices(options.topology)
    chip, shape = slices.parse(options.topology)[1:]
    from stepreward.tpu import plan, table
    from stepreward.training import fitting

    if c.mesh.fit:
        c, said = fitting.fit(c, fitting.Devices(len(devices), chip.hbm, options.topology))
        print(said)
    mesh, wanted = plan.make_mesh(c, devices), tuple(options.programs.split(","))
    axes = " × ".join(f"{name} {size}" for name, size in mesh.shape.items())
    print(f"{options.topology}: {len(devices)} devices on {math.prod(shape)} chips, {axes}; {chip.hbm / slices.GIB:.2f} GiB of memory each")
    found = []
    for stage, program, held in plan.programs(c, mesh):
        if not program.name.startswith(wanted) or program.detail > options.detail:
            continue
        if options.list:
            print(f"{stage:10} {program.name}")
            continue
        print(f"compiling {program.name} ({stage})", file=sys.stderr, flush=True)
        found.append((stage, plan.estimate(program, held, keep=_writer(options.hlo))))
    if options.list:
        return 0
    if not found:
        raise UserError(f"--programs={options.programs!r} matches no program of this run: --list shows their names.")
    rows = [table.row(e, chip, len(devices)) for _, e in found]
    print(table.text(rows, options.markdown), table.summary(found, chip, len(devices)), sep="\n\n")
    return 0 if all(e.fits(chip) for _, e in found) else 1


def _writer(folder: str | None):
    if folder is None:
        return None
    Path(folder).mkdir(parents=True, exist_ok=True)
    return lambda name, text: Path(folder, name.replace("/", "_").replace(" ", "") + ".txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    launcher(main)
