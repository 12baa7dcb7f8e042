"""Checks an environment against the protocol, and names every breach.

    python launch/env.py check sokoban                              # a built-in environment
    python launch/env.py check my_package.my_module:make --seeds=10 # a function or class of yours that makes an environment
    python launch/env.py check sokoban --preset=istar --options="{'max_steps': 9}"

An environment of your own is checked as it is: it needs no config. Actions come from `info["admissible"]`; --actions=up,down names them for an
environment without. The exit code is 0 if no breach was found, and 1 otherwise. docs/environments.md describes the protocol.
"""

from __future__ import annotations

import ast
import functools
import pkgutil
import sys

from stepreward.config import Option, parse_arguments
from stepreward.errors import UserError, launcher

WORD = Option("word", "check, and the environment")
OPTIONS = (
    Option("preset", "preset of a built-in environment", default="tiny"),
    Option("options", "its settings, or the arguments of your factory, as a Python dictionary", default="{}"),
    Option("seeds", "number of tasks to play in each split", default=3, type=int),
    Option("steps", "longest episode to play", default=30, type=int),
    Option("actions", "actions to try, separated by commas, for an environment that lists none", default=""),
)
USAGE = "give 'check' and an environment: a built-in one, or package.module:factory"


def main() -> int:
    options = parse_arguments(sys.argv[1:], options=OPTIONS, description=__doc__, positional=WORD, several=True)
    words = options.word or []
    if len(words) != 2 or words[0] != "check":
        raise UserError(f"{' '.join(words) or 'nothing'!r} was given; {USAGE}.")
    for name in ("seeds", "steps"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name}={getattr(options, name)} must be at least 1.")
    from stepreward.rollout.checking import breaches

    make = factory(words[1], options.preset, options.options)
    actions = tuple(filter(None, options.actions.split(",")))
    found = breaches(make, seeds=range(options.seeds), steps=options.steps, actions=actions)
    for sentence in found:
        print(f"- {sentence}")
    if found:
        print(f"{words[1]}: {len(found)} breach{'es' * (len(found) > 1)} of the protocol")
        return 1
    print(f"{words[1]}: no breach in {2 * options.seeds} tasks of at most {options.steps} steps")
    return 0


def factory(name: str, preset: str, options: str):
    """The function that makes the environment of this name.

    Raises:
      UserError: there is none, or the options are no dictionary.
    """
    try:
        settings = ast.literal_eval(options)
    except (ValueError, SyntaxError):
        settings = None
    if not isinstance(settings, dict):
        raise UserError(f"--options={options} is no Python dictionary, such as {{'max_steps': 9}}.")
    if ":" not in name:
        from stepreward.envs.choosing import environment_module

        try:
            return environment_module(name, "environment").make(preset, **settings)
        except ValueError as error:
            raise UserError(str(error)) from error
    module = name.partition(":")[0]
    sys.path.insert(0, "")  # a module in the current folder
    try:
        found = pkgutil.resolve_name(name)
    except ModuleNotFoundError as error:
        if error.name and module.startswith(error.name):
            raise UserError(f"there is no module {module!r}; {USAGE}.") from error
        raise
    except (AttributeError, ValueError) as error:
        raise UserError(f"{name!r}: {error}; {USAGE}.") from error
    return functools.partial(found, **settings) if settings else found


if __name__ == "__main__":
    launcher(main)
