"""Inputs from outside the config are identified by their content, not by their path or time."""

import json
import os
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

from stepreward.errors import UserError
from stepreward.training import decisions, identity, outputs


@pytest.fixture
def folder(tmp_path):
    """A model folder in the published layout, as far as digests read it."""
    path = tmp_path / "model"
    path.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        (path / name).write_text(json.dumps({"name": name, "name_or_path": "/home/a", "chat_template": "{{ x }}"}))
    rng = np.random.default_rng(0)
    save_file({name: rng.normal(size=(64, 64)).astype(np.float32) for name in ("a", "b")}, path / "model.safetensors")
    return path


def digests(path):
    return identity.tokenizer(path), identity.weights(path)


def test_a_moved_and_touched_folder_is_the_same(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "b")
    os.utime(tmp_path / "b" / "model.safetensors", (1, 1))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (tmp_path / "b" / "tokenizer_config.json").write_text(json.dumps(config | {"name_or_path": "/home/b"}, indent=4))
    assert digests(folder) == digests(tmp_path / "b")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "additional_chat_templates/tool.jinja"])
def test_another_tokenizer_or_chat_template_is_noticed(folder, name):
    before = digests(folder)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text('{"other": 1}')
    assert identity.tokenizer(folder) != before[0] and identity.weights(folder) == before[1]


@pytest.mark.parametrize("scale", [2.0, -1.0])
def test_other_weights_of_the_same_shapes_are_noticed(folder, scale):
    before = digests(folder)
    rng = np.random.default_rng(0)
    made = {name: rng.normal(size=(64, 64)).astype(np.float32) for name in ("a", "b")}
    save_file(made | {"b": scale * made["b"]}, folder / "model.safetensors")
    assert identity.tokenizer(folder) == before[0] and identity.weights(folder) != before[1]


def test_a_damaged_file_has_a_digest_too(folder):
    (folder / "model.safetensors").write_bytes(b"\xff" * 100)
    assert len(identity.weights(folder)) == 16


def test_data_is_told_by_names_sizes_and_content(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rooms.txt").write_text("#")
        (tmp_path / name / "large").write_bytes(bytes(1 << 17))
    assert identity.data(tmp_path / "a") == identity.data(tmp_path / "b")
    found = {identity.data(tmp_path / "a"), identity.data(tmp_path / "none")}
    for change in (lambda p: (p / "rooms.txt").write_text("@"), lambda p: (p / "large").write_bytes(b"\1" * (1 << 17)),
                   lambda p: (p / "more").write_text(""), lambda p: (p / "more").rename(p / "others")):  # fmt: skip
        change(tmp_path / "a")
        found.add(identity.data(tmp_path / "a"))
    assert len(found) == 6


def test_a_config_s_paths_are_replaced_by_what_they_hold(micro_config, folder, tmp_path):
    (tmp_path / "rooms.txt").write_text("#")
    options = {"rooms": str(tmp_path / "rooms.txt"), "split": "train"}
    config = micro_config({"model.path": str(folder), "prm.path": str(folder), "environment.data": str(tmp_path / "rooms.txt")})
    with config.unlocked():
        config.environment.options.update(options)
    found = identity.of(config)
    assert set(found) - set(identity.DECIDED_FROM) == {"model.path", "prm.path", "environment.data"}
    assert found["environment.options content"] == {"rooms": found["environment.data content"]}
    assert str(tmp_path) not in json.dumps(found)
    assert "prm.path weights" not in decisions.deciding(found, "estimator") and "prm.path weights" in decisions.deciding(found, "train")
    assert identity.of(micro_config()) == {}


def test_a_change_of_what_a_begun_stage_read_is_named():
    old, new = {"model.path tokenizer": "12ab", "prm.path weights": "1"}, {"model.path tokenizer": "34cd", "prm.path weights": "2"}
    decisions.check_inputs(old, new, [], "it")
    with pytest.raises(
        UserError, match="model.path tokenizer: it was made with 12ab, but this run has 34cd: the content has changed since"
    ):
        decisions.check_inputs(old, new, ["sft"], "it")
    decisions.check_inputs(old, old | {"prm.path weights": "2"}, ["sft", "estimator"], "it")
    with pytest.raises(UserError, match="prm.path weights"):
        decisions.check_inputs(old, old | {"prm.path weights": "2"}, ["train"], "it")
    with pytest.raises(UserError, match=r"environment.data content: it was made with \(none\), but this run has 5"):
        decisions.check_inputs(old, old | {"environment.data content": "5"}, ["sft"], "it")


# --- In runs ---

SHORT = {"sft.episodes": 20, "sft.updates": 10, "sft.log_every": 5, "eval.episodes": 4, "eval.final_episodes": 0, "train.env_steps": 1}


def test_a_changed_prompt_of_one_name_is_refused_on_resuming_and_on_borrowing(spa_config, tmp_path, monkeypatch):
    from stepreward.training import setup
    from stepreward.training.train import Runner

    class Other:
        def __init__(self, prompt):
            self.prompt = prompt

        def __getattr__(self, name):
            return getattr(self.prompt, name)

        def window(self, view, history):
            return "#" + self.prompt.window(view, history)

    Runner(spa_config(SHORT), tmp_path / "a").run("sft")
    build = setup.environment_factory

    def other(c):
        factory, prompt = build(c)
        return factory, Other(prompt)

    monkeypatch.setattr(setup, "environment_factory", other)
    with pytest.raises(UserError, match="prompt words: the run in .* was made with .*: the content has changed since"):
        Runner(spa_config(SHORT), tmp_path / "a")
    with pytest.raises(UserError, match="the sft stage in .* was made with prompt words = "):
        Runner(spa_config(SHORT | {"stages.sft": str(tmp_path / "a")}), tmp_path / "b")


def test_a_published_model_s_folder_may_move_but_not_change(spa_config, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from test_pretrained_run import CHANGES, make_model

    from stepreward.training.train import Runner

    model = make_model(tmp_path / "Qwen2.5-tiny-Instruct")
    changes = CHANGES | SHORT | {"exploration.tasks": 4, "exploration.part_tasks": 4}
    config = lambda path=model, **more: spa_config(changes | {"model.path": str(path)} | more)
    Runner(config(), tmp_path / "run").run("sft")
    facts = json.loads((tmp_path / "run" / "stages" / "sft" / "facts.json").read_text())["facts"]
    assert {"model.system", "model.thinking", "model.path tokenizer", "model.path weights", "prompt words", outputs.FIT} <= set(facts)

    moved = shutil.move(model, tmp_path / "moved")
    Runner(config(moved), tmp_path / "run").run("explore")
    Runner(config(moved, **{"stages.sft": str(tmp_path / "run")}), tmp_path / "borrower").close()
    with pytest.raises(UserError, match="contains a run with another config .model.system: '' -> 'Du bist ein Pirat.'"):
        Runner(config(moved, **{"model.system": "Du bist ein Pirat."}), tmp_path / "run")
    with pytest.raises(UserError, match="the sft stage in .* was made with model.system = '', but this run has 'Du bist"):
        Runner(config(moved, **{"model.system": "Du bist ein Pirat.", "stages.sft": str(tmp_path / "run")}), tmp_path / "other")

    template = next(path for path in tmp_path.glob("moved/*") if "chat_template" in path.name or path.name == "tokenizer_config.json")
    text = template.read_text()
    assert "You are Qwen" in text or "system" in text
    template.write_text(text.replace("system", "System"))
    with pytest.raises(UserError, match="model.path tokenizer: the run in .* the content has changed since"):
        Runner(config(moved), tmp_path / "run")
