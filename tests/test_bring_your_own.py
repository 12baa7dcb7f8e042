"""The worked example of docs/environments.md, run as a reader would run it."""

import functools
import json
import os
import pickle
import re
import shlex
import subprocess
import sys

import pytest

from stepreward.config import load_config
from stepreward.envs.protocol import Environment
from stepreward.metrics import read_metrics


@pytest.fixture(scope="module")
def page(root):
    return (root / "docs" / "environments.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def blocks(page):
    return re.findall(r"```(\w+)\n(.*?)```", page, re.DOTALL)


def trained(command, more, root, tmp_path):
    """Runs a command of the page in a folder of its own; returns what it said on stderr."""
    words = [word for word in shlex.split(command.replace("\\\n", " ")) if word not in ("PYTHONPATH=.", "python")]
    words = [f"--workdir={tmp_path / 'run'}" if word.startswith("--workdir") else word for word in words]
    paths = os.pathsep.join([str(tmp_path), str(root), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *words, *more], cwd=root, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run" / "report.html").is_file()
    return done.stderr


def test_the_example_trains(blocks, root, tmp_path):
    example, command = blocks[0][1], blocks[1][1]
    assert blocks[0][0] == "python" and len([line for line in example.splitlines() if line.strip()]) <= 30
    (tmp_path / "lights.py").write_text(example, encoding="utf-8")
    assert shlex.split(command)[:2] == ["PYTHONPATH=.", "python"]
    few = ["--config.train.env_steps=60", "--config.sft.updates=20", "--config.eval.episodes=4", "--quiet"]
    trained(command, few, root, tmp_path)


def test_the_example_without_code_trains_without_an_expert(blocks, root, tmp_path):
    pytest.importorskip("gymnasium")
    (command,) = [code for kind, code in blocks if kind == "sh" and "FrozenLake-v1" in code]
    said = trained(command, ["--config.train.env_steps=30", "--config.eval.episodes=4", "--quiet"], root, tmp_path)
    assert "1 different held-out tasks" in said  # the lake is always the same
    config = load_config(tmp_path / "run" / "config.json")
    assert config.environment.options.actions.to_dict() == {"left": 0, "down": 1, "right": 2, "up": 3}
    vocabulary = json.loads((tmp_path / "run" / "tokenizer" / "tokenizer.json").read_text())["model"]["vocab"]
    assert {"left", "down", "right", "up", "F", "~"} <= set(vocabulary)
    assert len(read_metrics(tmp_path / "run")) >= 2


def test_the_example_with_exact_advantages_compares_its_credit_with_them(blocks, root, tmp_path):
    pytest.importorskip("gymnasium")
    (command,) = [code for kind, code in blocks if kind == "sh" and "FrozenLakes" in code]
    few = ["--config.train.env_steps=30", "--config.sft.updates=20", "--config.eval.episodes=4", "--quiet"]
    trained(command, few, root, tmp_path)
    assert any("credit/exact_pearson_advantage" in record for record in read_metrics(tmp_path / "run"))


def test_the_example_keeps_the_protocol(blocks):
    module: dict = {}
    exec(compile(blocks[0][1], "lights.py", "exec"), module)
    environment = module["make"]("tiny", max_steps=3)()
    assert isinstance(environment, Environment)
    for seed, split in ((0, "train"), (0, "held_out"), (5, "train")):
        _, info = environment.reset(seed=seed, options={"split": split})
        assert not info["won"] and info["executed"]
        for action in environment.expert():
            *_, terminated, _, info = environment.step(action)
        assert terminated and info["won"] and info["score"] == 1.0
    environment.reset(seed=0)
    assert not environment.step("four")[4]["executed"] and not environment.step(None)[4]["executed"]
    assert isinstance(module["make"]("tiny"), functools.partial) and module["prompts"]("compact").parse("one") == "one"


def test_the_adapters_example_is_made(blocks):
    (code,) = [code for kind, code in blocks[1:] if kind == "python" and "factory" in code]
    module: dict = {}
    exec(code, module)
    assert pickle.loads(pickle.dumps(module["factory"])).keywords == {}


def test_links_lead_to_pages_of_environments(page):
    assert set(re.findall(r"\(environments/(\w+)\.md\)", page)) == {
        "webshop",
        "alfworld",
        "virtualhome",
        "sotopia",
        "search_qa",
        "textcraft",
        "scienceworld",
        "adapters",
        "pools",
    }
