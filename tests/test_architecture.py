"""docs/architecture.md is true: its files exist, its arrows match the imports, and there are no circular imports."""

import graphlib
import re
import runpy

import pytest


@pytest.fixture(scope="module")
def house(root):
    return runpy.run_path(str(root / "experiments" / "house.py"))


@pytest.fixture(scope="module")
def page(root):
    return (root / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_no_module_imports_another_in_a_circle(house):
    list(graphlib.TopologicalSorter(house["imports"]()).static_order())  # raises CycleError, which names the circle
    list(graphlib.TopologicalSorter(house["parts"]()).static_order())


@pytest.mark.parametrize("lower, upper", [
    ("kernels", {"batch", "credit", "models", "rollout", "training", "serve"}), ("credit", {"models", "rollout", "training", "serve"}),
    ("arena", {"rollout", "models", "training", "serve"}),
    ("models", {"credit", "rollout", "training", "serve"}), ("rollout", {"training", "serve", "tpu"}), ("training", {"serve", "tpu", "cli"}),
])  # fmt: skip
def test_imports_point_downwards(house, lower, upper):
    assert not house["parts"]()[lower] & upper


def test_the_page_shows_the_house_as_it_is(house, page):
    assert house["BEGIN"] + house["graph"]() + house["END"] in page, "run python experiments/house.py --write"


def test_files_of_the_page_exist(root, page):
    names = set(re.findall(r"`((?:stepreward|envs|configs|launch|tests|experiments)/[^` ]*)`", page))
    assert len(names) > 25
    assert not [name for name in names if not list(root.glob(name))]
