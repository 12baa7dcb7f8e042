"""Parses instructions from their wording alone."""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

_LIMIT = re.compile(r", and price lower than ([\d.]+) dollars$")
_OPTIONS = re.compile(r"^(.*) with ([^:]+: .*)$", re.DOTALL)
_OPENING = re.compile(r"^find me\s+", re.IGNORECASE)


class Asked(NamedTuple):
    """A parsed instruction: the product, the options as "name: value" strings, and the price limit in dollars or None."""

    what: str
    options: tuple[str, ...]
    limit: str | None


@functools.lru_cache(maxsize=4096)
def read_instruction(text: str) -> Asked:
    """Parses an instruction of the form "Find me WHAT with k: v, and k: v, and price lower than X dollars"."""
    limit = _LIMIT.search(text)
    rest = text[: limit.start()] if limit else text
    options = _OPTIONS.match(rest)
    what = options[1] if options else rest
    return Asked(
        _OPENING.sub("", what).strip(),
        tuple(options[2].split(", and ")) if options else (),
        limit[1].removesuffix(".00") if limit else None,
    )
