"""XLA flags that speed up compilation in tests, limited to those that the installed XLA knows: an unknown one aborts the process."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

FLAGS = (
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
)


def known_flags(folder: Path, flags: tuple[str, ...] = FLAGS) -> str:
    """The flags that this machine's XLA takes, as a value of XLA_FLAGS. What it takes is kept in `folder` for each version."""
    kept = folder / f"xla_flags_{importlib.metadata.version('jaxlib')}.txt"
    if kept.is_file() and flags == FLAGS:
        return kept.read_text(encoding="utf-8")
    known = " ".join(flags) if _starts(flags) else " ".join(flag for flag in flags if _starts((flag,)))
    if flags == FLAGS:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = kept.with_name(f"{kept.name}.{os.getpid()}")
        temporary.write_text(known, encoding="utf-8")
        temporary.replace(kept)
    return known


def _starts(flags: tuple[str, ...]) -> bool:
    """Whether a process that has these flags reaches a device."""
    environment = os.environ | {"XLA_FLAGS": " ".join(flags), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", "import jax; jax.devices()"], env=environment, capture_output=True)
    return done.returncode == 0
