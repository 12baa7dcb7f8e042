"""Answers of models on disk: JSON entries that are stored by the content that they depend on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any


def key_of(*content: Any) -> str:
    """Returns the key of an entry: the SHA-256 of everything that it depends on, given as plain JSON values."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def read(path: Path) -> Any:
    """Returns the content of an entry; None if there is none, or its file is damaged."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def write(path: Path, entry: Any) -> None:
    """Writes an entry completely or not at all; creates the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.stem[:8]}-", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(entry, file, ensure_ascii=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
