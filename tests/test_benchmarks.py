"""The benchmarks run on their smallest shapes. Their figures are not checked."""

import importlib
import json

import pytest

from stepreward.errors import UserError

QUICK = {
    "rollout": ("--prompt=3", "--model=llama-micro", "--bandwidth=10"),
    "branching": ("--model=llama-micro",),
    "schedule": ("--model=llama-micro",),
    "ahead": (),
    "train_step": ("--peak=1",),
    "serve": ("--prompt=9", "--model=llama-micro"),
}


@pytest.fixture
def benchmark(root, monkeypatch):
    """`benchmark(name, *arguments)`: a benchmark's module, with that command line."""
    monkeypatch.syspath_prepend(str(root / "benchmarks"))

    def load(name, *arguments):
        monkeypatch.setattr("sys.argv", [name, *arguments])
        return importlib.import_module(name)

    return load


@pytest.mark.parametrize("name", QUICK)
def test_a_quick_run_writes_its_figures(benchmark, tmp_path, name):
    if name == "serve":
        pytest.importorskip("starlette")
    benchmark(name, "--quick", *QUICK[name], f"--json={tmp_path / 'figures.json'}").main()
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["results"] and all(r["median"] > 0 for r in figures["ratios"].values())
    assert all(figures[key] for key in ("backend", "device", "jax", "cores"))


def test_a_pretrained_model_beside_transformers(benchmark, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from test_pretrained_run import make_model

    folder = make_model(tmp_path / "model")
    benchmark("pretrained", "--quick", f"--model={folder}", f"--json={tmp_path / 'figures.json'}").main()
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert {(r["turns"], r["arm"]) for r in figures["results"]} >= {(2, "free"), (2, "transformers kept")}
    assert all(r["same"] == 1 for r in figures["results"])


@pytest.mark.parametrize(
    "name, arguments, words",
    [
        ("rollout", ("--model=lama", "--prompt=3"), ("--model=lama is unknown", "llama-tiny")),
        ("rollout", ("--tunix-python=python",), ("needs --prompt",)),
        ("rollout", ("--turns=2,x",), ("--turns=2,x",)),
        ("rollout", ("--batch=0",), ("--batch=0",)),
        ("branching", ("--turns=4",), ("--turns=4", "at least 5")),
        ("branching", ("--groups=0",), ("--groups=0",)),
        ("schedule", ("--rows=0",), ("--rows=0",)),
        ("schedule", ("--delay=-1",), ("--delay=-1",)),
        ("ahead", ("--repeats=0",), ("--repeats=0",)),
        ("train_step", ("--length=10",), ("--length=10", "--steps=4")),
        ("train_step", ("--rows=12",), ("--rows=12", "--group=8")),
        ("train_step", ("--tunix-python=python",), ("needs --steps=1",)),
    ],
)
def test_a_wrong_command_line_is_one_error(benchmark, name, arguments, words):
    with pytest.raises(UserError) as caught:
        benchmark(name, *arguments).main()
    assert all(word in str(caught.value) for word in words)
