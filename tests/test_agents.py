"""Agents: the Python interface, loading from runs and folders, play with credit, and the agents that come with the package."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

import stepreward
from stepreward.agents import catalogue
from stepreward.agents.episode import CreditedEpisode
from stepreward.config import EXPORTED, shareable
from stepreward.errors import UserError
from stepreward.metrics import wilson_interval
from stepreward.training.export import export_workdir

SHIPPED = sorted(catalogue.shipped())
TINY = {"eval.episodes": 8, "sft.updates": 60}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return stepreward.train(
        "istar_sokoban:micro",
        workdir=tmp_path_factory.mktemp("runs") / "first",
        env_steps=100,
        rollout={"groups": 3},
        options=TINY,
        quiet=True,
    )


@pytest.fixture(scope="module")
def agent(run):
    with run.agent() as agent:
        yield agent


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    """The run, exported with its PRM."""
    out = tmp_path_factory.mktemp("out") / "exported"
    export_workdir(run.workdir, out, None, "policy", False, "")
    export_workdir(run.workdir, out / "prm", None, "prm", False, "")
    return out


def test_the_package_imports_nothing_heavy(root):
    code = "import sys, stepreward; print(*{'jax', 'numpy', 'ml_collections', 'rich'} & set(sys.modules)); print(sorted(dir(stepreward)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    loaded, names = done.stdout.splitlines()
    assert loaded == "" and "'train'" in names and "'load'" in names


def test_a_run_says_what_came_of_it(run):
    assert run.success.episodes == 8 and 0 <= run.success.low <= run.success.rate <= run.success.high <= 1
    assert run.report.is_file() and run.metrics[-1]["env_steps"] >= 100
    assert json.loads((run.workdir / "config.json").read_text())["rollout"]["groups"] == 3


@pytest.mark.parametrize("arguments, message", [
    ({"env_step": 1}, "no key 'env_step' (did you mean 'env_steps'?)"),
    ({"learning_rate": 1.0}, "'learning_rate' is the name of several keys"),
    ({"policy": 3}, "give a dict"),
    ({"env_steps": "many"}, "is of type int; got 'many'"),
    ({"options": {"policy.rate": 1.0}}, "no key 'policy.rate'"),
])  # fmt: skip
def test_a_wrong_key_is_one_clear_error(arguments, message, tmp_path):
    with pytest.raises(UserError) as error:
        stepreward.train("istar_sokoban:micro", workdir=tmp_path / "run", **arguments)
    assert message in str(error.value) and not (tmp_path / "run").exists()


def test_a_wrong_name_names_the_nearest(tmp_path):
    with pytest.raises(UserError, match="did you mean 'istar_sokoban'"):
        stepreward.train("istar_sokobn", workdir=tmp_path / "run")
    with pytest.raises(UserError, match="that comes with the package"):
        stepreward.load("nobody")
    with pytest.raises(UserError, match="holds no agent"):
        stepreward.load(tmp_path)


def test_an_agent_plays_with_the_credit_of_its_method_and_the_exact_one(agent):
    episode = agent.play(seed=7)
    assert episode.attempts == 4 and 0 <= episode.solved <= 4
    assert len(episode.steps) == len(episode.actions) > 0 and episode.uncredited == ""
    for name in ("step_reward", "step_advantage", "exact_advantage"):
        assert all(np.isfinite(step[name]) for step in episode.steps), name
    assert any(step["step_reward"] for step in episode.steps)
    assert agent.play(seed=7) == episode and agent.play(seed=8).record["task"] == "held-out seed 8"


def test_an_exact_advantage_is_a_change_of_the_chance_to_win(agent):
    """In the last step of an episode that is won, Q is 1, and the advantage is 1 − V; after a loss no step has gained for certain."""
    for seed in range(30):
        episode = agent.play(seed=seed, split="train")
        exact = np.array([step["exact_advantage"] for step in episode.steps])
        assert (np.abs(exact) <= 1).all()
        if episode.success:
            break
    assert episode.success and 0 <= exact[-1] < 1


@pytest.mark.parametrize("arguments, message", [
    ({"seed": -1}, "seed=-1"), ({"seed": 0.5}, "seed=0.5"), ({"split": "test"}, "split='test'"), ({"environment": "a"}, "one environment only"),
])  # fmt: skip
def test_a_wrong_argument_of_play_is_named(agent, arguments, message):
    with pytest.raises(UserError, match=message):
        agent.play(**arguments)


def test_an_exported_folder_plays_as_the_run_does(agent, folder):
    with stepreward.load(folder) as exported:
        ours, theirs = exported.play(seed=7), agent.play(seed=7)
    assert ours.actions == theirs.actions and ours.uncredited == ""
    for name in ("step_reward", "exact_advantage"):
        np.testing.assert_allclose([s[name] for s in ours.steps], [s[name] for s in theirs.steps], rtol=1e-4, atol=1e-5)


def test_a_folder_without_the_prm_says_so_and_shows_the_exact_credit(folder, tmp_path):
    alone = tmp_path / "alone"
    shutil.copytree(folder, alone, ignore=shutil.ignore_patterns("prm"))
    with stepreward.load(alone) as agent:
        episode = agent.play(seed=7)
    assert "does not hold the PRM" in episode.uncredited and "does not hold the PRM" in str(episode)
    assert all(step["step_reward"] is None and np.isfinite(step["exact_advantage"]) for step in episode.steps)


def test_an_exported_folder_tells_no_path_of_this_machine(folder, run):
    assert str(run.workdir.parent) not in (folder / EXPORTED).read_text()


def test_a_model_folder_without_the_config_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "bare", ignore=shutil.ignore_patterns(EXPORTED))
    with pytest.raises(UserError, match="without stepreward.json"):
        stepreward.load(tmp_path / "bare")


def test_an_agent_is_evaluated_as_its_run_is(agent, folder, run):
    found = agent.evaluate(8)
    assert found == run.success
    with stepreward.load(folder) as exported:
        assert exported.evaluate(8) == found


def test_a_run_without_reinforcement_learning_plays_with_exact_credit(tmp_path):
    run = stepreward.train("istar_sokoban:micro", workdir=tmp_path / "run", stage="sft", options=TINY, quiet=True)
    assert run.success is None or run.success.episodes == 8
    with run.agent() as agent:
        episode = agent.play(seed=7)
    assert "has not begun" in episode.uncredited and all(np.isfinite(step["exact_advantage"]) for step in episode.steps)


def test_the_text_shows_each_step_and_no_control_characters(agent):
    episode = agent.play(seed=7)
    text = str(episode)
    assert text.count("step reward") == len(episode.steps) and "held-out seed 7" in text and episode.outcome in text
    hostile = "\x1b[31mred\x07 [bold]x[/bold]\u202e" + "word " * 10
    steps = [{**episode.steps[0], "observation": hostile, "action": None, "output": hostile}]
    shown = str(dataclasses.replace(episode, record={**episode.record, "steps": steps, "final_observation": hostile}))
    assert "[bold]x[/bold]" in shown and not {"\x1b", "\x07", "\u202e"} & set(shown)
    assert "<script>" not in dataclasses.replace(episode, record={**episode.record, "task": "<script>"})._repr_html_()


def command(root, *arguments, **variables):
    environment = {**os.environ, "PYTHONPATH": str(root), **variables}
    return subprocess.run([sys.executable, *arguments], cwd=root, env=environment, capture_output=True, text=True)


def test_the_command_shows_a_run_without_control_codes(root, run):
    done = command(root, "launch/play.py", str(run.workdir), "--task-seed=7", "--episodes=2", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout and "held-out seed 7" in done.stdout and "held-out seed 8" in done.stdout
    assert "of 2 tasks solved" in done.stdout and "of 8 attempts" in done.stdout


def test_the_command_lists_the_agents_and_names_what_is_wrong(root, tmp_path):
    listed = command(root, "launch/play.py")
    assert listed.returncode == 0 and all(name in listed.stdout for name in SHIPPED)
    for arguments, message in (
        (["nobody"], "no agent 'nobody'"),
        (["sokoban", "--speed=0"], "--speed=0"),
        (["sokoban", "--episodes=0"], "--episodes=0"),
        ([str(tmp_path)], "holds no agent"),
    ):
        done = command(root, "launch/play.py", *arguments)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr


# --- The agents that come with the package ---


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_agent_is_small_and_has_a_card(name):
    path = catalogue.shipped()[name]
    files = [file for file in path.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 1_000_000
    stated, card = catalogue.read_facts(path)["stated"], (path / "README.md").read_text(encoding="utf-8")
    assert catalogue.stated_words(stated) in card and "**Limits.**" in card and "**Data.**" in card


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_agent_is_as_good_as_it_says(name):
    with stepreward.load(name) as agent:
        found, episode = agent.evaluate(64), agent.play(seed=7)
    low, high = wilson_interval(found.won, found.episodes, confidence=0.999)
    assert low <= agent.stated["won"] / agent.stated["episodes"] <= high
    assert episode.uncredited == "" and isinstance(episode, CreditedEpisode)
    assert any(step["step_reward"] for step in episode.steps)


def test_sokoban_comes_with_the_package():
    assert "sokoban" in SHIPPED


def test_an_exported_config_tells_no_secret(micro_config):
    """A key that is named like one is hidden, and so is the password in an address; the name of a state is none."""
    c = micro_config()
    with c.unlocked():
        c.environment.options.update(api_key="sk-secret", state_key="history", partner_url="http://me:sk-secret@host:1/v1")
    found = shareable(c)
    assert "sk-secret" not in str(found)
    assert (
        found["environment"]["options"]["state_key"] == "history" and found["environment"]["options"]["partner_url"] == "http://host:1/v1"
    )
