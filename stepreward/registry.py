"""Tables of classes by name: credit methods, rollout strategies and preference methods are each made from one.

Each function takes the table, a dict, and the kind of its classes for messages, such as "credit method".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from stepreward.errors import did_you_mean

T = TypeVar("T")


def adding(table: dict[str, type[T]], kind: str, name: str) -> Callable[[type[T]], type[T]]:
    """Returns a class decorator that adds a class under `name`, which becomes its attribute `name`.

    Raises:
      ValueError: when a class is decorated, if the name is taken.
    """

    def add(found: type[T]) -> type[T]:
        if name in table:
            raise ValueError(f"a {kind} named '{name}' is registered already")
        found.name = name
        table[name] = found
        return found

    return add


def find(table: Mapping[str, type[T]], kind: str, name: str) -> type[T]:
    """Returns a class by name. Raises ValueError that lists the names if there is none."""
    if name not in table:
        raise ValueError(f"unknown {kind} '{name}'; there are: {', '.join(sorted(table))}")
    return table[name]


def check_options(kind: str, name: str, options: Iterable[str], known: Sequence[str]) -> None:
    """Raises ValueError that lists the options of a class if one of `options` is not `known`."""
    for option in options:
        if option not in known:
            listed = ", ".join(known) or "none"
            raise ValueError(f"{kind} '{name}' has no option '{option}'{did_you_mean(option, known)}; its options are: {listed}")
