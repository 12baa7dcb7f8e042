"""The benchmarks of pools and environments run on their smallest sizes. Their figures are not checked."""

import importlib
import json

import pytest

from stepreward.errors import UserError


@pytest.fixture
def benchmark(root, monkeypatch):
    """`benchmark(name, *arguments)` runs a benchmark's main with that command line."""
    monkeypatch.syspath_prepend(str(root / "benchmarks"))

    def run(name, *arguments):
        monkeypatch.setattr("sys.argv", [name, *arguments])
        importlib.import_module(name).main()

    return run


def test_pools(benchmark, tmp_path):
    benchmark("pool", "--quick", f"--json={tmp_path / 'figures.json'}")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["gain"]["ratio"] > 0 and figures["overhead"]["near_us"] > 0
    with pytest.raises(UserError, match="--environments"):
        benchmark("pool", "--environments=0")


def test_environments(benchmark, tmp_path, capsys):
    benchmark("environments", "--name=sokoban", "--quick", "--set", "max_steps=12", f"--json={tmp_path / 'figures.json'}")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["expert"] == {"won": 3, "of": 3, "score": 1.0} and figures["random"]["of"] == 3
    assert figures["random_over"] == "4 of the expert's" and 1 <= figures["turns"] <= 12
    assert capsys.readouterr().out.splitlines()[-1].startswith("| sokoban tiny max_steps=12 | 3 | 100.0% won, score 1.000 |")


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        (("--name=soko",), ValueError, "--name='soko' is unknown .did you mean 'sokoban'.*give one of .*sokoban"),
        (("--name=sokoban", "--set", "levels"), UserError, "NAME=VALUE"),
    ],
)
def test_wrong_arguments_are_named(benchmark, arguments, error, words):
    with pytest.raises(error, match=words):
        benchmark("environments", *arguments)
