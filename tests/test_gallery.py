"""The method gallery and the paper index: every registered method is there, with what it needs, a picture and a command; the guide's method runs."""

import os
import re
import runpy
import subprocess
import sys

import numpy as np
import pytest

from stepreward import credit, preference
from stepreward.metrics import read_metrics

NAMES = [*credit.names(), *(f"preference {name}" for name in preference.names())]


@pytest.fixture(scope="module")
def gallery(root):
    path = str(root / "experiments")
    sys.path.insert(0, path)
    try:
        return runpy.run_path(str(root / "experiments" / "gallery.py"))
    finally:
        sys.path.remove(path)


@pytest.fixture(scope="module")
def page(root):
    return (root / "docs" / "gallery.md").read_text(encoding="utf-8")


def test_the_page_has_every_method_as_the_registries_describe_it(gallery, page):
    found = gallery["parts"]()
    assert set(NAMES) <= set(found)
    assert gallery["missing"](found, page) == [], "run python experiments/gallery.py --write"


@pytest.mark.parametrize("name", NAMES)
def test_a_method_has_a_heading_a_text_and_a_picture(page, root, name):
    title = f"### Preference: `{name.split()[1]}`" if name.startswith("preference ") else f"### `{name}`"
    text = page.partition(f"{title}\n")[2].partition(f"<!-- {name} -->")[0].strip()
    assert len(text) > 60 and "#" not in re.sub(r"\(.*?\)", "", text), "say in a few sentences when to use it"
    picture = (root / "docs" / "images" / "gallery" / f"{name.replace(' ', '_')}.svg").read_text(encoding="utf-8")
    assert picture.startswith("<svg") and "prefers-color-scheme:dark" in picture and len(picture) < 40_000


def test_a_new_method_is_missed(gallery, page):
    assert gallery["missing"]({"brand_new": "text"}, page) == ["brand_new"]


def test_the_paper_index_has_every_paper_and_method(root):
    read = lambda name: (root / "docs" / name).read_text(encoding="utf-8")
    papers = read("papers.md")
    for page in ("methods.md", "preference.md", "releases.md"):
        assert set(re.findall(r"\b\d{4}\.\d{5}\b", read(page))) <= set(re.findall(r"\b\d{4}\.\d{5}\b", papers)), page
    anchors = {f"gallery.md#{name.replace(' ', '-')}" for name in NAMES}
    assert {anchor for anchor in anchors if f"({anchor})" not in papers} == set()


def test_every_metric_of_the_debugging_guide_is_in_the_code(root):
    text = (root / "docs" / "guides" / "debugging.md").read_text(encoding="utf-8")
    code = "\n".join(path.read_text(encoding="utf-8") for path in (root / "stepreward").rglob("*.py"))
    groups = "rollout|credit|policy|prm|health|filter|eval|estimator|discriminator|judge"
    named = set(re.findall(rf"`(?:{groups})/([a-z_]+)`", text))
    known = lambda name: re.search(rf"\b{name}\b", code) or re.search(r"exact_(?:\w+)_(?:reward|advantage)", name)
    assert len(named) > 35 and [name for name in sorted(named) if not known(name)] == []


# --- The example of docs/guides/method.md ---


@pytest.fixture(scope="module")
def example(root, tmp_path_factory):
    """A folder with the files of the guide, and its blocks of Python."""
    folder = tmp_path_factory.mktemp("fading")
    text = (root / "docs" / "guides" / "method.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for name, block in zip(("fading", "fading_sokoban", "look"), blocks, strict=True):
        (folder / f"{name}.py").write_text(block, encoding="utf-8")
    return folder


def run(root, folder, *words):
    paths = os.pathsep.join([str(folder), str(root), os.environ.get("PYTHONPATH", "")])
    return subprocess.run([sys.executable, *words], cwd=folder, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True)


def test_the_guide_s_method_trains(root, example):
    done = run(
        root, example, "-m", "stepreward.cli", "train", "--config=fading_sokoban.py:micro", "--workdir=run", "--quiet",
        "--config.credit.options.discount=0.8", "--config.train.env_steps=60", "--config.sft.updates=20", "--config.eval.episodes=4",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert any("credit/advantage_max" in record for record in read_metrics(example / "run"))


def test_the_guide_s_method_learns_in_the_arena(root, example):
    done = run(root, example, "look.py")
    assert done.returncode == 0, done.stderr[-3000:]
    end = np.array([float(value) for value in re.findall(r"\d\.\d+", done.stdout)])
    assert end.shape == (4,) and end.max() > 0.2  # the uniform policy has 0.025
