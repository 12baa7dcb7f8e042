"""Step-level credit for language-model agents, in JAX."""

from pathlib import Path as _Path

__version__ = "0.1.0"

# A wheel holds the folders envs, configs and launch inside this package. In a checkout they stand beside it, and these lines make
# them subpackages there too: `stepreward.envs` is the folder envs/ of the same checkout, installed or not.
_HERE = _Path(__file__).resolve().parent
if not (_HERE / "envs").is_dir() and (_HERE.parent / "envs" / "protocol.py").is_file():
    __path__.append(str(_HERE.parent))
