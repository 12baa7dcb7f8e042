"""Translated games kept on disk, so that a game of the benchmark is translated once a machine, not once a process and run.

Translating a game's PDDL to the planner's form (SAS) is most of what loading it costs, and its result is a text that
compresses to some 35 kB: 130 MB for the benchmark's 3,694 games. They lie in `$ALFWORLD_DATA/translations`, which the alfworld
package makes (`~/.cache/alfworld` by default), under names that are digests of what was translated and of the translator.
A file that is damaged or cannot be written is no error: the game is translated again.
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
    """The SAS text of a problem, or None where none is kept."""
    with contextlib.suppress(OSError, zlib.error, UnicodeDecodeError):
        return zlib.decompress(_file(domain, problem).read_bytes()).decode("utf-8")
    return None


def write(domain: str, problem: str, sas: str) -> None:
    """Keeps the SAS text of a problem; readers see all of it or nothing."""
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
    """The problem as the translator reads it, which is all but the SAS text of what it returns. Overwrites `sys.argv`, as it does."""
    sys.argv = ["translate", "domain", "problem"]  # its modules read it when they are first imported
    from fast_downward.translate import normalize
    from fast_downward.translate.pddl_parser import lisp_parser, parsing_functions

    with contextlib.redirect_stdout(None):  # it warns of facts that are told twice
        task = parsing_functions.parse_task(*(lisp_parser.parse_nested_list(text.split("\n")) for text in (domain, problem)))
        normalize.normalize(task)
    return task


def _file(domain: str, problem: str) -> Path:
    from alfworld.info import ALFWORLD_DATA

    digest = hashlib.blake2b(digest_size=16)
    for part in (importlib.metadata.version(_TRANSLATOR), domain, problem):
        digest.update(part.encode("utf-8") + b"\0")
    return Path(ALFWORLD_DATA) / "translations" / f"{digest.hexdigest()}.sas.z"
