"""Keeps translated games on disk, so that each machine translates a game of the benchmark once, not once per process and run.

Translating a game's PDDL to the planner's format (SAS) takes most of its loading time. The result is a text that
compresses to about 35 kB: 130 MB for the benchmark's 3,694 games. The files are in `$ALFWORLD_DATA/translations` (the alfworld
package creates that folder, by default `~/.cache/alfworld`); their names are digests of the game and of the translator's version.
A damaged or unwritable file is not an error: the game is translated again.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import sys
import tempfile
import zlib
from pathlib import Path

_TRANSLATOR = "fast-downward-textworld"


def read(domain: str, problem: str) -> str | None:
    """Returns the stored SAS text of a problem, or None."""
    with contextlib.suppress(OSError, zlib.error, UnicodeDecodeError):
        return zlib.decompress(_file(domain, problem).read_bytes()).decode("utf-8")
    return None


def write(domain: str, problem: str, sas: str) -> None:
    """Stores the SAS text of a problem atomically."""
    file = _file(domain, problem)
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=".")
        try:
            with os.fdopen(descriptor, "wb") as opened:
                opened.write(zlib.compress(sas.encode("utf-8"), 6))
            os.replace(name, file)
        except OSError:  # a full disk
            os.unlink(name)


def parsed(domain: str, problem: str):
    """Parses the problem as the translator does, which yields its result except for the SAS text. Overwrites `sys.argv`, too."""
    sys.argv = ["translate", "domain", "problem"]  # its modules read sys.argv on first import
    from fast_downward.translate import normalize
    from fast_downward.translate.pddl_parser import lisp_parser, parsing_functions

    with contextlib.redirect_stdout(None):  # it prints warnings about duplicate facts
        task = parsing_functions.parse_task(*(lisp_parser.parse_nested_list(text.split("\n")) for text in (domain, problem)))
        normalize.normalize(task)
    return task


def _file(domain: str, problem: str) -> Path:
    from alfworld.info import ALFWORLD_DATA

    digest = hashlib.blake2b(digest_size=16)
    for part in (importlib.metadata.version(_TRANSLATOR), domain, problem):
        digest.update(part.encode("utf-8") + b"\0")
    return Path(ALFWORLD_DATA) / "translations" / f"{digest.hexdigest()}.sas.z"
