"""A published model through the library: loaded, warm-started, trained with iStar, saved, and read by transformers again."""

import json
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from test_chat_templates import FAMILIES, make_folder

from stepreward.config import config_name, load_config_file
from stepreward.errors import UserError
from stepreward.models import decoder
from stepreward.training import setup
from stepreward.training.evaluate import load_checkpoint
from stepreward.training.export import export_workdir
from stepreward.training.train import Runner

CHANGES = {
    "model.preset": "checkpoint", "environment.prompt": "compact", "rollout.max_prompt_tokens": 100, "rollout.max_answer_tokens": 6,
    "rollout.max_row_tokens": 106, "sft.episodes": 40, "sft.updates": 80, "sft.log_every": 40, "sft.rows": 32, "sft.learning_rate": 1e-2,
    "sft.warmup_updates": 0, "train.env_steps": 100, "rollout.max_steps": 6, "eval.episodes": 4, "eval.every": 10,
    "eval.prm_as_policy_every": 0, "rollout.groups": 4,
}  # fmt: skip


def make_model(path, positions=512):
    """A random Qwen2.5 model of four layers in the published layout: one bfloat16 file, tied head, tokenizer and template beside."""
    path = make_folder(path, *FAMILIES["qwen2"])
    vocabulary = len(transformers.AutoTokenizer.from_pretrained(path))
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=-(-vocabulary // 64) * 64,
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        rope_theta=1e6,
        max_position_embeddings=positions,
    )
    transformers.Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("hub") / "Qwen2.5-tiny-Instruct")


@pytest.fixture(scope="module", params=[0, 4], ids=["whole", "adapters"])
def run(request, folder, micro_config, tmp_path_factory):
    """A finished run on that model, whole or with adapters of a rank."""
    config = micro_config(CHANGES | {"model.path": str(folder), "lora.rank": request.param})
    runner = Runner(config, tmp_path_factory.mktemp("runs") / "run")
    runner.run()
    return runner


def logits_of(path, tokens):
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor(tokens)).logits.numpy()


def test_a_published_model_is_trained_saved_and_read_by_transformers(run, folder, tmp_path):
    records = run.history()
    sft = [r["sft/loss"] for r in records if "sft/loss" in r]
    assert sft[-1] < 0.8 * sft[0]
    rl = [r for r in records if r["stage"] == "train"]
    assert rl and max(r["policy/sampler_gap"] for r in rl) < 1e-4 and any(r["policy/grad_norm"] > 0 for r in rl)
    out = tmp_path / "exported"
    assert export_workdir(run.workdir, out, None, "policy", False, "") == 0
    found = load_checkpoint(run.workdir, None, "policy")
    tokens = np.random.default_rng(0).integers(0, 200, (2, 24)).astype(np.int32)
    rows = (np.broadcast_to(np.arange(24), (2, 24)), np.ones((2, 24), int))
    hidden, head = decoder.hidden_states(found.model.graphdef, found.model.join(found.params), tokens, *rows)
    ours = np.asarray(hidden @ head)
    np.testing.assert_allclose(logits_of(out, tokens), ours, atol=1e-4)
    assert np.abs(logits_of(folder, tokens) - ours).max() > 1e-2  # training changed it
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    message = [{"role": "user", "content": "Hello"}]
    expected = transformers.AutoTokenizer.from_pretrained(folder).apply_chat_template(message, tokenize=False)
    assert tokenizer.apply_chat_template(message, tokenize=False) == expected
    assert json.loads((out / "config.json").read_text())["architectures"] == ["Qwen2ForCausalLM"]


def test_adapters_are_exported_alone_where_there_are_any(run, folder, tmp_path):
    if not run.c.lora.rank:
        with pytest.raises(UserError, match="no adapters"):
            export_workdir(run.workdir, tmp_path / "alone", None, "policy", True, "")
        return
    export_workdir(run.workdir, tmp_path / "alone", None, "policy", True, "")
    described = json.loads((tmp_path / "alone" / "adapter_config.json").read_text())
    assert described["r"] == 4 and sorted(described["target_modules"]) == ["q_proj", "v_proj"]


def test_a_saved_model_starts_the_next_run(run, folder, micro_config, root, tmp_path):
    if run.c.lora.rank:
        pytest.skip("the same as without")
    out = tmp_path / "exported"
    command = [sys.executable, f"{root}/launch/export.py", f"--workdir={run.workdir}", f"--out={out}", "--dtype=bfloat16"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "wrote" in done.stdout, done.stderr
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 2 and len(again.stderr.strip().splitlines()) == 1, again.stderr
    config = micro_config(CHANGES | {"model.path": str(out), "sft.updates": 0, "train.env_steps": 20})
    runner = Runner(config, tmp_path / "next")
    runner.run()
    assert runner.finished


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"model.preset": "checkpoint", "model.path": ""}, "model.path"),
        ({"model.preset": "qwen2.5-0.5b", "model.path": "FOLDER"}, "num_layers=4"),
        ({"model.preset": "qwen2.5-0.5b", "model.path": ""}, "Qwen/Qwen2.5-0.5B-Instruct"),
        ({"model.path": "no/such-model"}, "no/such-model"),
        ({"model.path": "", "model.preset": "tiny-micro", "model.system": "Be brief."}, "model.path"),
        ({"prm.preset": "tiny-micro", "prm.resync": True}, "prm.resync"),
    ],
)
def test_what_a_model_config_gets_wrong_is_told(changes, words, folder, micro_config, tmp_path):
    changes = {k: str(folder) if v == "FOLDER" else v for k, v in changes.items()}
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        Runner(micro_config(CHANGES | {"model.path": str(folder)} | changes), tmp_path / "run")


@pytest.mark.parametrize("file", ["istar_sokoban", "spa_sokoban"])
def test_every_experiment_takes_every_model(root, file):
    from stepreward.models.published import SOURCES

    for name in SOURCES:
        spec = f"{root}/configs/{file}.py:{name}"
        config = load_config_file(spec)
        assert config.model.preset == name and config.model.path == SOURCES[name] and config_name(spec) == f"{file}_{name}"

        if "-vl-" not in name:
            config.model.path = config.model.system = ""  # what is left to check without the model's folder
            setup.check(config)
