"""Mutation testing: which code is changed, which is not, and which tests are chosen."""

import importlib
import subprocess
import sys

import pytest


@pytest.fixture(scope="module")
def trial(root):
    sys.path.insert(0, str(root / "experiments"))
    try:
        yield importlib.import_module("mutate"), importlib.import_module("mutations").mutations
    finally:
        sys.path.remove(str(root / "experiments"))


@pytest.mark.parametrize(
    ("source", "changed"),
    [
        ("x = a < b", {"x = (a <= b)"}),
        ("x = a is not b", {"x = (a is b)"}),
        ("x = a and b", {"x = (a or b)"}),
        ("x = a + b * c", {"x = (a - b * c)", "x = a + (b / c)"}),
        ("x = -y", {"x = (y)"}),
        ("x = 3", {"x = (4)", "x = (2)"}),
        ("x = 0.5, True", {"x = (1.0), True", "x = 0.5, (False)"}),
        ("x = f(a, b)", {"x = (f(b, a))"}),
        ("x = max(a, b)", {"x = (min(a, b))"}),
        ("x = f(a, key=b)", {"x = (f(a))"}),
        ("f(a)\nx += y", {"pass\nx += y", "f(a)\npass"}),
        ("if a:\n    b.c = d", {"if (not (a)):\n    b.c = d", "if a:\n    pass"}),
        ("def f():\n    return a", {"def f():\n    return None"}),
        ("é = [a, 1]  # é", {"é = [a, (2)]  # é", "é = [a, (0)]  # é"}),
    ],
)
def test_each_operator(trial, source, changed):
    assert {mutation.apply(source) for mutation in trial[1](source)} == changed


@pytest.mark.parametrize(
    "source",
    [
        '"""A docstring of 3."""',
        "def f(a: Literal[1]) -> Literal[2]:\n    ...",
        "assert a < b",
        'raise ValueError(f"{a + 1}")',
        "_log.warning(a + 1)",
        'print(a, end="")',
        "@cache(maxsize=3)\ndef f():\n    ...",
        "class A:\n    def __repr__(self):\n        return a",
        'if __name__ == "__main__":\n    main()',
        "x = open(file, encoding=a)",
        'x = "a" + b',
    ],
)
def test_unchanged_code(trial, source):
    assert trial[1](source) == []


def test_a_longer_draw_continues_a_shorter_one(trial):
    mutate, _ = trial
    assert mutate.draw(3, 12, ["kernels", "credit"])[:5] == mutate.draw(3, 5, ["credit", "kernels"])
    assert mutate.draw(3, 5, ["kernels"]) != mutate.draw(4, 5, ["kernels"])
    assert len({(file, mutation.line) for file, mutation in mutate.draw(3, 12, ["kernels"])}) == 12


def test_the_tests_that_import_a_module_most_closely_are_chosen(trial):
    mutate, _ = trial
    assert mutate.relevant("stepreward/kernels/redistribution.py")[0] == "test_kernels_redistribution.py"
    assert mutate.relevant("envs/sokoban/solve.py")[0] == "test_sokoban_solve.py"
    assert mutate.relevant("stepreward/training/policy.py")[0] == "test_policy_step.py"
    for area in ("credit", "serve"):
        assert all(1 <= len(mutate.relevant(file)) <= mutate.MOST_TESTS for file in mutate._files(mutate.AREAS[area]) if mutate._of(file))
    assert "test_environment_presets.py" in mutate.relevant("envs/webshop/presets.py")


@pytest.fixture
def small_tree(trial, tmp_path, monkeypatch):
    """A repository of one module, whose tests do not check the boundary at 3."""
    mutate, _ = trial
    for name, text in {
        "envs/game.py": "def far(x):\n    return x < 3\n",
        "tests/test_game.py": "from envs.game import far\n\n\ndef test_far():\n    assert far(1) and not far(5)\n",
        "pytest.ini": "[pytest]\npythonpath = .\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    monkeypatch.setattr(mutate, "ROOT", tmp_path)
    for kept in (mutate._files, mutate._modules, mutate._imported, mutate._distances, mutate._defined, mutate._of):
        kept.cache_clear()
    yield tmp_path
    for kept in (mutate._files, mutate._modules, mutate._imported, mutate._distances, mutate._defined, mutate._of):
        kept.cache_clear()


def test_survivors_are_found_and_nothing_is_run_twice(trial, small_tree, tmp_path_factory, monkeypatch, capsys):
    mutate, _ = trial
    out = tmp_path_factory.mktemp("out") / "results.jsonl"
    monkeypatch.setattr(sys, "argv", ["mutate", f"--out={out}", "--place=envs/game.py:2"])
    monkeypatch.setattr(mutate, "relevant", lambda file: ["test_game.py"])
    mutate.main()
    lines = {line["change"]: line["outcome"] for line in mutate._read(out)}
    assert lines == {"x < 3 → (x <= 3)": "survived", "3 → (4)": "survived", "3 → (2)": "survived"}
    mutate.main()
    assert len(mutate._read(out)) == 3
    assert (small_tree / "envs/game.py").read_text().endswith("x < 3\n")
    reasons = {"envs/game.py:2: 3 → (4)": "for the example's sake"}
    table = mutate.table(mutate._read(out), 0, reasons)
    assert "| envs | 0 | 2 | 1 | 0 | 0 of 2, 0 % |" in table and "for the example's sake" in table
