"""`import envs.X` in a checkout gives the module `stepreward.envs.X`, so that no module exists twice under two names."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec

_NAME = "envs"


class _Alias(MetaPathFinder, Loader):
    def find_spec(self, fullname, path=None, target=None):
        if not fullname.startswith(f"{_NAME}."):
            return None
        found = importlib.util.find_spec(f"stepreward.{fullname}")
        return found and ModuleSpec(fullname, self, is_package=found.submodule_search_locations is not None)

    def create_module(self, spec):
        module = importlib.import_module(f"stepreward.{spec.name}")
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module):
        # The import system has just replaced the module's spec by the alias's. Restore its own, which names its file.
        module.__spec__ = module.__spec__.loader_state


def register() -> None:
    """Makes `envs` and its submodules aliases of `stepreward.envs`."""
    if not any(isinstance(finder, _Alias) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Alias())
    sys.modules[_NAME] = importlib.import_module(f"stepreward.{_NAME}")
