"""Parts of pages in docs/ that a command writes, each between two marks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from stepreward.metrics import write_atomically


def replace_parts(page: Path, parts: Mapping[str, str]) -> None:
    """Replaces what stands between `<!-- NAME -->` and `<!-- end of NAME -->` on a page, for each name.

    Raises:
      ValueError: the page lacks one of the marks; it stays as it is.
    """
    text = page.read_text(encoding="utf-8")
    for name, part in parts.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, found, rest = text.partition(begin)
        if not found or end not in rest:
            raise ValueError(f"{page} lacks the line {begin.strip()!r} or {end!r} after it")
        text = f"{before}{begin}\n{part}\n{rest[rest.index(end) :]}"
    write_atomically(page, text)
