"""User mistakes with stages, recordings and outcomes: one clear error each, and no finished work is lost."""

import json
import shutil

import pytest

from stepreward.errors import UserError
from stepreward.training.exploration import Exploration, tokenizer_fingerprint
from stepreward.training.outputs import StageOutput
from stepreward.training.train import Runner

SHORT = {"train.env_steps": 1, "eval.final_episodes": 0, "eval.episodes": 4}


@pytest.fixture
def config(spa_base, spa_config):
    """`config(changes, "sft", …)`: a short run that takes the named stages of the shared one."""

    def make(changes, *stages):
        return spa_config(SHORT | {f"stages.{name}": str(spa_base.workdir) for name in stages} | changes)

    return make


def copy_of(spa_base, tmp_path, *names):
    """Another workdir with parts of the shared run's, to be damaged."""
    for name in ("tokenizer", "demonstrations", *names):
        shutil.copytree(spa_base.workdir / name, tmp_path / "other" / name)
    return tmp_path / "other"


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def error(make):
    """The message of the one error that `make` ends with."""
    with pytest.raises((UserError, ValueError)) as caught:
        make()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit_metadata(other, **changes):
    path = other / "exploration" / "metadata.json"
    header = json.loads(path.read_text())
    header["metadata"] |= changes
    path.write_text(json.dumps(header))


def test_explored_episodes_of_another_tokenizer_or_config_are_refused(spa_base, config, tmp_path):
    other = copy_of(spa_base, tmp_path, "exploration")
    found = spa_base.exploration.metadata
    for number, (changes, words) in enumerate(
        (
            ({"tokenizer": "0123456789abcdef"}, f"tokenizer = '0123456789abcdef', but this run has '{found['tokenizer']}'"),
            ({"tokenizer": found["tokenizer"], "rollout.temperature": 0.5}, "rollout.temperature = 0.5, but this run has 1.0"),
        )
    ):
        edit_metadata(other, **changes)
        before = contents(other)
        runner = Runner(config({"stages.exploration": str(other)}, "sft"), tmp_path / str(number))
        message = error(runner.run)
        assert "the exploration in" in message and str(other) in message and "was made with " + words in message
        assert contents(other) == before
        again = Runner(config({"stages.exploration": str(spa_base.workdir)}, "sft"), tmp_path / str(number))
        again.run()  # with the right ones the same workdir goes on
        assert again.finished


def test_an_exploration_begun_with_another_config_is_not_gone_on_with(spa_base, config, tmp_path):
    runner = Runner(config({}, "sft"), tmp_path / "run")
    runner.run("sft")
    runner = Runner(config({}, "sft"), tmp_path / "run")
    runner.exploration.finished_parts()
    path = tmp_path / "run" / "exploration" / "metadata.json"
    header = json.loads(path.read_text())
    header["metadata"]["rollout.top_k"] = 5
    path.write_text(json.dumps(header))
    message = error(runner.run)
    assert "recorded episodes were made with rollout.top_k = 5, but this run has rollout.top_k = 0" in message


def test_an_unfinished_exploration_is_not_taken(spa_base, config, tmp_path):
    other = copy_of(spa_base, tmp_path, "exploration")
    shutil.rmtree(other / "exploration" / "part-00002")
    before = contents(other)
    message = error(Runner(config({"stages.exploration": str(other)}, "sft"), tmp_path / "run").run)
    assert f"{str(other / 'exploration')!r} is unfinished: it holds 2 of 3 parts; finish it with --stage=explore" in message
    assert contents(other) == before
    shutil.rmtree(other / "exploration")
    message = error(Runner(config({"stages.exploration": str(other)}, "sft"), tmp_path / "none").run)
    assert "no recordings folder" in message


def test_a_supervised_policy_that_is_not_there_is_named(spa_base, config, tmp_path):
    message = error(lambda: Runner(config({"stages.sft": str(tmp_path / "nowhere")}), tmp_path / "run"))
    assert "nowhere' has no folder tokenizer: set it to the workdir of a run whose stage sft is finished" in message
    other = copy_of(spa_base, tmp_path)
    message = error(lambda: Runner(config({"stages.sft": str(other)}), tmp_path / "second"))
    assert f"the sft stage in {str(other)!r} is not finished: first run it there with --stage=sft." in message
    message = error(lambda: Runner(config({"sft.updates": 7}, "sft"), tmp_path / "third"))
    assert "was made with sft.updates = 100, but this run has 7" in message


def test_an_estimator_of_another_config_or_size_is_refused(spa_base, config, tmp_path):
    message = error(lambda: Runner(config({"estimator.learning_rate": 1.0}, "sft", "estimator"), tmp_path / "first"))
    assert "the estimator stage in" in message and "was made with estimator.learning_rate = 0.0003, but this run has 1.0" in message
    # Facts that agree by hand, so that the shapes are what differs.
    other = copy_of(spa_base, tmp_path, "stages")
    path = StageOutput(other, "estimator").folder / "facts.json"
    saved = json.loads(path.read_text())
    saved["facts"]["model.preset"] = "tiny-0.1m"
    path.write_text(json.dumps(saved))
    sft = StageOutput(spa_base.workdir, "sft")
    params, _ = sft.read(spa_base.learner.actor, spa_base.fingerprint("sft"))
    runner = Runner(config({"model.preset": "tiny-0.1m"}), tmp_path / "larger")
    StageOutput(tmp_path / "larger", "sft").save(runner.learner.policy.params, runner.fingerprint("sft"), {})
    runner.close()
    large = config({"model.preset": "tiny-0.1m", "stages.sft": str(tmp_path / "larger"), "stages.estimator": str(other)})
    before = contents(other)
    message = error(lambda: Runner(large, tmp_path / "run"))
    assert f"the estimator stage in {str(other)!r}" in message and "has shape (" in message and "but the config needs (" in message
    assert contents(other) == before


def test_outcomes_beyond_one_are_named_before_the_estimator_trains(spa_base, config, tmp_path):
    runner = Runner(config({"credit.outcome": "return"}, "sft", "exploration"), tmp_path / "run")
    message = error(runner.run)
    assert "outcomes range from -" in message and "set credit.outcome=success, or choose credit.outcome_scale" in message
    again = Runner(config({}, "sft", "exploration"), tmp_path / "run")  # it may still be put right: the stage has not begun
    again.run()
    assert again.finished


@pytest.mark.parametrize(
    "changes, words",
    [
        (
            {"train.mode": "offline", "rollout.group_size": 2},
            "rollout.group_size=2 differs from exploration.rollouts=4, but train.mode=offline trains on the explored groups: set rollout.group_size=4",
        ),
        ({"train.mode": "offline", "rollout.groups": 9}, "rollout.groups=9 tasks per iteration, but exploration.tasks=8: lower"),
        (
            {"train.mode": "offline", "credit.method": "istar"},
            "plays no new episodes, but the PRM of credit.method='istar' needs them: set train.mode=online",
        ),
        ({"train.mode": "replayed"}, "train.mode='replayed' is not one of online, offline"),
        ({"estimator.head": "conv"}, "estimator.head='conv' is not one of linear, mlp"),
        ({"estimator.attention": "both"}, "estimator.attention='both' is not one of causal, bidirectional"),
        ({"estimator.attention": "bidirectional"}, "rollout.context='step' makes a row of each step: set rollout.context=episode"),
        ({"estimator.attention": "bidirectional", "credit.method": "rudder"}, "'rudder' predicts from earlier steps alone"),
        ({"critic.head": "conv"}, "critic.head='conv' is not one of linear, mlp"),
        ({"critic.backbone": "own"}, "critic.backbone='own' is not one of separate, shared"),
        ({"policy.old_log_prob": "new"}, "policy.old_log_prob='new' is not one of auto, behaviour, current"),
        ({"estimator.held_out": 1.0}, "estimator.held_out=1.0 is a share of the tasks"),
        ({"estimator.patience": -1}, "estimator.patience=-1 must be at least 0"),
        ({"exploration.part_tasks": 0}, "exploration.part_tasks=0 must be at least 1"),
        ({"credit.options.step_reward": "terminal", "credit.options.bag_size": 2}, "bag_size"),
    ],
    ids=lambda x: next(iter(x.values())) if isinstance(x, dict) else "",
)
def test_a_config_that_contradicts_itself_is_named_before_anything_is_written(spa_config, tmp_path, changes, words):
    assert words in error(lambda: Runner(spa_config(changes), tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_s_fingerprint_tells_its_files_apart(spa_base, spa_config, tmp_path):
    other = copy_of(spa_base, tmp_path)
    assert tokenizer_fingerprint(other / "tokenizer") == tokenizer_fingerprint(spa_base.workdir / "tokenizer")
    path = sorted(p for p in (other / "tokenizer").rglob("*") if p.is_file())[0]
    path.write_bytes(path.read_bytes() + b" ")
    assert tokenizer_fingerprint(other / "tokenizer") != spa_base.exploration.metadata["tokenizer"]
    assert Exploration(spa_config(), other, spa_base.fingerprint("explore")).metadata != spa_base.exploration.metadata
