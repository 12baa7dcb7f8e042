"""Step-level credit for language-model agents, in JAX.

import stepreward

run = stepreward.train("istar_sokoban", env_steps=20_000, workdir="runs/first")
print(run.success)
agent = stepreward.load("runs/first")
print(agent.play(seed=7))
"""

from pathlib import Path as _Path

__version__ = "0.2.0"
__all__ = ["Agent", "Run", "UserError", "load", "train"]

# A wheel holds the folders envs, configs and launch inside this package. In a checkout they stand beside it, and these lines make
# them subpackages there too: `stepreward.envs` is the folder envs/ of the same checkout, installed or not.
_HERE = _Path(__file__).resolve().parent
if not (_HERE / "envs").is_dir() and (_HERE.parent / "envs" / "protocol.py").is_file():
    __path__.append(str(_HERE.parent))

# jax takes seconds to import, so that nothing is imported before it is used.
_PUBLIC = {"train": "api", "load": "api", "Run": "api", "Agent": "agents.agent", "UserError": "errors"}


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__():
    return sorted([*globals(), *_PUBLIC])
