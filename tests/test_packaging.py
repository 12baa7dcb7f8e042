"""The contents of an install, and the modules that an import loads."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "tensorflow", "jax", "transformers", "tensorflow_datasets", "matplotlib")


def modules_loaded_by(*names):
    """The heavy packages that a fresh process has loaded after importing the modules."""
    script = f"import sys\nfor name in {names!r}: __import__(name)\nprint(*[n for n in {HEAVY!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def modules():
    """Every module of the two packages, by dotted name."""
    files = [file for package in ("stepreward", "envs") for file in (ROOT / package).rglob("*.py")]
    names = sorted(".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in files)
    return [name if name.startswith("stepreward") else f"stepreward.{name}" for name in names]


@pytest.mark.parametrize(
    "name",
    [
        "stepreward",
        "stepreward.errors",
        "stepreward.config",
        "stepreward.data.demonstrations",
        "stepreward.models.tokenizer",
        "stepreward.envs.protocol",
    ],
)
def test_light_modules_import_nothing_heavy(name):
    assert modules_loaded_by(name) == set()


def test_no_module_imports_torch_or_tensorflow():
    names = [name for name in modules() if not needs_optional(name)]
    assert "stepreward.batch" in names
    assert not modules_loaded_by(*names) & {"torch", "tensorflow"}


def needs_optional(name):
    """True for a module that wraps an optional package, told by an import of it at the left margin."""
    path = ROOT.joinpath(*name.replace("stepreward.envs", "envs").split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return re.search(r"^(import|from) (jumanji|torch)\b", path.read_text(encoding="utf-8"), re.MULTILINE) is not None


def test_envs_know_nothing_of_the_library():
    for file in (ROOT / "envs").rglob("*.py"):
        assert not re.search(r"^\s*(import|from) stepreward\b(?!\.envs| import envs)", file.read_text(encoding="utf-8"), re.MULTILINE), file


def test_the_library_imports_no_experiment():
    for file in (ROOT / "stepreward").rglob("*.py"):
        assert not re.search(r"^\s*(import|from) (stepreward\.)?configs\b", file.read_text(encoding="utf-8"), re.MULTILINE), file


def test_every_folder_of_modules_is_a_package():
    for package in ("stepreward", "envs", "configs"):
        for file in (ROOT / package).rglob("*.py"):
            assert (file.parent / "__init__.py").is_file(), f"{file.parent} has no __init__.py: an install leaves it out"


def test_requirements_are_bounded_and_hold_no_heavy_framework():
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and line[0] != "#"]
    names = {re.match(r"[A-Za-z0-9_-]+", line).group().lower() for line in lines}
    assert all(">=" in line for line in lines)
    assert {"jax", "flax", "tokenizers"} <= names and not names & {"torch", "tensorflow", "jumanji", "pytest"}


def test_setup_reads_version_and_requirements():
    import stepreward

    pytest.importorskip("setuptools")
    done = subprocess.run([sys.executable, "setup.py", "-q", "--version"], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split()[-1:] == [stepreward.__version__], done.stderr


def test_the_package_runs_as_the_command():
    import stepreward

    done = subprocess.run([sys.executable, "-m", "stepreward", "--version"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"stepreward {stepreward.__version__}\n"), done.stderr
