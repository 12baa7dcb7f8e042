"""Lists the methods, what each needs, and whether an environment offers it.

    python launch/methods.py                                             # all methods
    python launch/methods.py --environment=webshop                       # and whether WebShop offers what they need
    python launch/methods.py --config=configs/omni_three.py --json       # and whether every environment of a config does

The last column has what the environment must offer, or with --environment or --config whether it does. A need is one of the capabilities of
`envs/protocol.py`. Some environments have a capability with an option only: "with events=True" means --config.environment.options.events=True.
"""

from __future__ import annotations

import dataclasses
import json
import sys

from stepreward.config import Option, parse_arguments, parse_command_line
from stepreward.errors import UserError, launcher

OPTIONS = (
    Option("environment", "name of a package in envs/, or the dotted name of your own module"),
    Option("preset", "preset of that environment", default="tiny"),
    Option("json", "print the table as JSON", default=False, type=bool),
)
WIDTH = 100


def main() -> int:
    arguments = sys.argv[1:]
    if any(argument.startswith("--config") for argument in arguments):
        c, options = parse_command_line(arguments, extra=OPTIONS, description=__doc__)
        if options.environment is not None:
            raise UserError("give --environment=NAME or --config=FILE, but only one of them")
    else:
        c, options = None, parse_arguments(arguments, options=OPTIONS, description=__doc__)
    from stepreward.configs.common.base import base_config
    from stepreward.training import needs

    if options.environment is not None:
        c = base_config()
        c.environment.update({"name": options.environment, "preset": options.preset})
        _prompt(c)
    offered = None if c is None else needs.offers(c)
    rows = needs.rows()
    if options.json:
        table = [dataclasses.asdict(row) | ({} if offered is None else {"offered": needs.answer(row, offered)}) for row in rows]
        print(json.dumps(table, indent=2))
    else:
        _print(rows, None if offered is None else [needs.answer(row, offered) for row in rows])
    return 0


def _prompt(c) -> None:
    """Leaves the prompt to the environment, whose prompts have other names than those of the default environment."""
    from stepreward.envs.choosing import environment_module

    module = environment_module(c.environment.name)
    try:
        module.prompts(c.environment.prompt)
    except (ValueError, AttributeError):
        c.environment.prompt = c.environment.preset


def _print(rows, answers) -> None:
    """Prints a table for each registry, whose first column is headed by the config key that names its methods."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=WIDTH, highlight=False, markup=False)
    for kind in dict.fromkeys(row.kind for row in rows):
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for head in (f"{kind}.method", "signals", "models", "strategy", "environment"):
            table.add_column(head, no_wrap=head not in ("models", "environment"))
        for index, row in enumerate(rows):
            if row.kind != kind:
                continue
            needs = ", ".join(row.needs)
            if answers is not None:
                needs = f"{answers[index]}: {needs}" if answers[index] == "yes" and needs else answers[index]
            cells = (row.name, "\n".join(row.signals), ", ".join(row.models), row.strategy, needs)
            table.add_row(*(cell or "–" for cell in cells))
        console.print(table)
        console.print()


if __name__ == "__main__":
    launcher(main)
