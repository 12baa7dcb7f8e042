"""Imports optional packages. A missing one raises an error of one clear line."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType


def install_command(extra: str) -> str:
    """Returns the command that installs an optional extra of this project, for a checkout or for an installed package."""
    checkout = Path(__file__).resolve().parent.parent / "setup.py"
    return f"pip install -e '.[{extra}]'" if checkout.is_file() else f"pip install 'stepreward[{extra}]'"


def require(extra: str, *modules: str) -> ModuleType:
    """Imports the modules of an optional extra and returns the first.

    Raises:
      ValueError: a package is not installed; the message gives the command that installs the extra.
    """
    found = []
    for name in modules:
        try:
            found.append(importlib.import_module(name))
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] != name.partition(".")[0]:
                raise  # the package is installed, but one that it imports is not
            raise ValueError(f"this needs the package {error.name!r}, which is not installed; run {install_command(extra)}") from None
    return found[0]
