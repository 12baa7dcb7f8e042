"""The wheel and the sdist: one top-level package, which runs its own main job from any folder."""

import email
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytest.importorskip("build", reason="building a wheel needs the extra 'test'")


def run(*command, cwd, **variables):
    """Runs a command with nothing of the checkout on its path."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=kept | variables, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """`(wheel, sdist)`: the sdist is made from a copy of the checkout, the wheel from the sdist alone."""
    folder = tmp_path_factory.mktemp("build")
    left_out = shutil.ignore_patterns(".git", "runs", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", "venv", ".venv")
    shutil.copytree(ROOT, folder / "checkout", ignore=left_out)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", cwd=folder / "checkout")
    (wheel,), (sdist,) = (folder / "dist").glob("*.whl"), (folder / "dist").glob("*.tar.gz")
    return wheel, sdist


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """The `bin` folder of a new environment that holds the wheel and nothing else; it borrows the packages that the wheel requires."""
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    python = folder / "venv" / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", built[0], cwd=folder)
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    # A path in a .pth file makes the packages there importable, but not what .pth files there add: no editable install.
    borrowed = {str(Path(p)) for p in sys.path if Path(p).name in ("site-packages", "dist-packages")}
    (site / "borrowed.pth").write_text("\n".join(sorted(borrowed)) + "\n", encoding="utf-8")
    return python.parent


def test_the_wheel_holds_one_top_level_package(built):
    names = zipfile.ZipFile(built[0]).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"stepreward"}
    assert {"stepreward/view/static/app.js", "stepreward/view/static/uPlot.LICENSE"} <= set(names)
    shipped = {path.relative_to(ROOT).as_posix() for path in (ROOT / "stepreward" / "agents" / "shipped").rglob("*") if path.is_file()}
    assert "stepreward/agents/shipped/sokoban/prm/model.safetensors" in shipped <= set(names)
    assert "stepreward/py.typed" in names and "stepreward/envs/sokoban/env.py" in names and "stepreward/launch/train.py" in names
    experiments = {name.removeprefix("stepreward/") for name in names if name.startswith("stepreward/configs/")}
    assert experiments == {path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.py")}


def test_the_wheel_says_what_it_is(built):
    archive = zipfile.ZipFile(built[0])
    (path,) = [name for name in archive.namelist() if name.endswith("/METADATA")]
    metadata = email.message_from_string(archive.read(path).decode())
    assert metadata["Requires-Python"] == ">=3.11" and metadata["License"] or metadata["License-Expression"]
    assert {f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)} <= set(metadata.get_all("Classifier"))
    assert {url.split(",")[0] for url in metadata.get_all("Project-URL")} >= {"Homepage", "Documentation", "Source", "Issues"}
    assert metadata["Keywords"] and {"test", "serve", "tpu", "cuda", "alfworld"} <= set(metadata.get_all("Provides-Extra"))
    assert "](docs/" not in metadata.get_payload()  # a package index has no such files


def test_the_sdist_holds_the_tests(built):
    names = {name.partition("/")[2] for name in tarfile.open(built[1]).getnames()}
    assert {"setup.py", "requirements.txt", "README.md", "LICENSE", "tests/conftest.py", "envs/protocol.py"} <= names


def test_nothing_is_taken_from_the_checkout(installed, tmp_path):
    code = "import stepreward.envs.sokoban, stepreward.launch, stepreward.configs as c; print(stepreward.__file__, *c.__path__)"
    shown = run(installed / "python", "-c", code, cwd=tmp_path)
    assert all(path.startswith(str(installed.parent)) for path in shown.split())
    run(installed / "python", "-c", "import importlib.util as u; assert u.find_spec('envs') is None", cwd=tmp_path)


def test_the_main_job_runs_from_any_folder(installed, tmp_path):
    flags = ("--config.train.env_steps=100", "--config.eval.episodes=8")
    shown = run(installed / "stepreward", "train", "--config=istar_sokoban:micro", *flags, cwd=tmp_path)
    assert "Run finished" in shown and (tmp_path / "runs" / "istar_sokoban_micro" / "report.html").is_file()
    shown = run(installed / "stepreward", "evaluate", "--workdir=runs/istar_sokoban_micro", "--episodes=8", cwd=tmp_path)
    assert "success" in shown


@pytest.mark.parametrize("job", ["train", "play", "evaluate", "serve", "export", "compile-tpu", "env", "doctor"])
def test_every_job_has_its_flags(installed, tmp_path, job):
    assert f"stepreward {job}" in run(installed / "stepreward", job, "--help", cwd=tmp_path)


def test_an_unknown_experiment_names_the_nearest(installed, tmp_path):
    done = subprocess.run([installed / "stepreward", "train", "--config=istar_sokobn"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == "error: no config file 'istar_sokobn'; did you mean 'istar_sokoban'?\n"
