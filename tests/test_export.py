"""An exported folder equals the trained model: its weights, base model, tokenizer and sampling."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from test_chat_templates import FAMILIES, make_folder
from test_pretrained_run import CHANGES, logits_of, make_model

from stepreward.errors import UserError
from stepreward.models import decoder
from stepreward.models.chat_template import with_defaults, write_template
from stepreward.models.hugging_face import load_params, read_config
from stepreward.models.hugging_face_adapters import load_adapters
from stepreward.models.pretrained_tokenizer import load_pretrained_tokenizer
from stepreward.rollout.template_chat import TemplateChat, load_chat
from stepreward.training import export, setup
from stepreward.training.evaluate import evaluate_workdir, load_checkpoint
from stepreward.training.export import export_workdir
from stepreward.training.train import Runner

SYSTEM = 'Say one "word", 😀.'
TOKENS = np.random.default_rng(0).integers(0, 200, (2, 24)).astype(np.int32)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A policy and a PRM with the same tokenizer, of other shapes."""
    policy = make_model(tmp_path_factory.mktemp("hub") / "Qwen2.5-tiny-Instruct")
    prm = tmp_path_factory.mktemp("hub") / "Qwen2.5-prm"
    shutil.copytree(policy, prm)
    config = transformers.Qwen2Config.from_pretrained(policy)
    config.num_hidden_layers, config.rope_theta, config.layer_types = 2, 5e3, 2 * ["full_attention"]
    if getattr(config, "rope_parameters", None):
        config.rope_parameters = {"rope_type": "default", "rope_theta": 5e3}
    torch.manual_seed(1)
    transformers.Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(prm)
    (policy / "generation_config.json").write_text(json.dumps({"repetition_penalty": 1.3, "top_k": 7, "bos_token_id": 3}))
    return policy, prm


@pytest.fixture(scope="module")
def run(folders, micro_config, tmp_path_factory):
    """A finished run in bfloat16 with adapters, a PRM of its own, a system message and a temperature."""
    changes = {"model.path": str(folders[0]), "prm.preset": "checkpoint", "prm.path": str(folders[1]), "prm.resync": False,
               "lora.rank": 4, "model.compute_dtype": "bfloat16", "model.system": SYSTEM, "rollout.temperature": 0.7, "rollout.top_p": 0.95,
               "rollout.max_prompt_tokens": 130, "rollout.max_row_tokens": 136, "sft.updates": 8, "sft.log_every": 8, "sft.episodes": 12, "train.env_steps": 40, "eval.episodes": 2}  # fmt: skip
    runner = Runner(micro_config(CHANGES | changes), tmp_path_factory.mktemp("runs") / "run")
    runner.run()
    return runner


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """`exported(which, adapters, dtype)`: the folder of an export, made once."""
    made = {}

    def make(which="policy", adapters=False, dtype=""):
        key = (which, adapters, dtype)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("out") / "model"
            export_workdir(run.workdir, made[key], None, *key)
        return made[key]

    return make


def logits_in_float32(found):
    """Of a checkpoint's model, whatever it computes in."""
    config = dataclasses.replace(found.model.config, compute_dtype=jnp.float32)
    params = jax.tree.map(lambda x: x.astype(jnp.float32), found.model.join(found.params))
    rows = (np.broadcast_to(np.arange(24), TOKENS.shape), np.ones(TOKENS.shape, int))
    hidden, head = decoder.hidden_states(decoder.graph(config), params, TOKENS, *rows)
    return np.asarray(hidden @ head)


@pytest.mark.parametrize("which", ["policy", "prm"])
def test_merged_in_float32_a_model_says_what_the_run_s_does(run, exported, which):
    ours = logits_in_float32(load_checkpoint(run.workdir, None, which))
    np.testing.assert_allclose(logits_of(exported(which, dtype="float32"), TOKENS), ours, atol=1e-4)


@pytest.mark.parametrize("which", ["policy", "prm"])
def test_exported_adapters_on_the_base_that_they_name_say_what_the_run_s_model_does(run, exported, which):
    peft = pytest.importorskip("peft")
    folder = exported(which, adapters=True)
    ours = logits_in_float32(load_checkpoint(run.workdir, None, which))
    model = peft.AutoPeftModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        np.testing.assert_allclose(model(torch.tensor(TOKENS)).logits.numpy(), ours, atol=1e-4)


def test_a_base_that_the_warm_start_changed_is_written_beside_the_adapters(run, exported, folders):
    folder = exported("policy", adapters=True)
    named = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == str(folder / "base") and read_config(named).decoder(scan_layers=True).num_layers == 4
    found = load_checkpoint(run.workdir, None, "policy")
    config = found.model.config
    base = load_params(named, dataclasses.replace(config, lora=None))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(a.dtype)), base, found.model.base)
    jax.tree.map(np.testing.assert_array_equal, load_adapters(folder, config), found.params)


def test_a_base_that_nothing_changed_is_named(run, exported, folders):
    folder = exported("prm", adapters=True)
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(folders[1])
    assert not (folder / "base").exists()


def test_a_published_base_is_named_with_its_revision(tmp_path):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0a1b2c"
    assert export._published("a/b", snapshot) == ("a/b", "0a1b2c")
    assert export._published(str(tmp_path), tmp_path) == (str(tmp_path), None)


@pytest.mark.parametrize("dtype, warns", [("", True), ("bfloat16", True), ("float32", False)])
def test_merging_says_what_rounding_loses_of_a_small_update(run, tmp_path, monkeypatch, caplog, dtype, warns):
    def early(*arguments):
        """The checkpoint of a run that has changed little yet: no second factor is larger than 1e-4."""
        found = load_checkpoint(*arguments)
        small = lambda path, x: jnp.full_like(x, 1e-4) if "lora_b" in jax.tree_util.keystr(path) else x
        return dataclasses.replace(found, params=jax.tree_util.tree_map_with_path(small, found.params))

    monkeypatch.setattr(export, "load_checkpoint", early)
    export_workdir(run.workdir, tmp_path / "out", None, "policy", False, dtype)
    words = [r.getMessage() for r in caplog.records if "adapters' change" in r.getMessage()]
    assert len(words) == warns
    if warns:
        assert (
            words[0].startswith("rounded to bfloat16, the merged weights keep ") and "--dtype=float32" in words[0] and "\n" not in words[0]
        )
        assert float(words[0].split("keep ")[1].split(" %")[0]) < 90


def test_adapters_are_written_in_the_type_that_is_asked(exported):
    from safetensors.numpy import load_file

    kinds = {x.dtype.name for x in load_file(exported(adapters=True, dtype="bfloat16") / "adapter_model.safetensors").values()}
    assert kinds == {"bfloat16"}


def test_the_gap_of_sampler_and_trainer_is_logged_every_iteration(run):
    gaps = [r["policy/sampler_gap_nats"] for r in run.history() if r["stage"] == "train"]
    assert gaps and 0 < max(gaps) < 0.05  # of bfloat16 alone


@pytest.mark.parametrize("which, adapters", [("policy", False), ("prm", False), ("policy", True)])
def test_an_exported_folder_is_spoken_to_as_the_run_speaks(run, exported, folders, which, adapters):
    folder, chat = exported(which, adapters), run.parts.chat
    found = load_chat(folder)
    says = lambda chat: chat.user_turn("Which way?", first=True).tolist()
    assert says(found) == says(chat) != says(load_chat(folders[0]))
    assert found.user_turn("And now?", first=False).tolist() == chat.user_turn("And now?", first=False).tolist()
    assert found.stop_ids == chat.stop_ids
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    message = [{"role": "user", "content": "Which way?"}]
    text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    assert chat.codec.encode_template(text).tolist() == says(chat)
    own = [{"role": "system", "content": "Be brief."}, *message]
    assert SYSTEM not in tokenizer.apply_chat_template(own, tokenize=False)


def test_an_exported_folder_samples_as_the_run_does(run, exported):
    settings = json.loads((exported() / "generation_config.json").read_text())
    assert settings == {"bos_token_id": 3, "do_sample": True, "temperature": 0.7, "top_k": 0, "top_p": 0.95,
                        "eos_token_id": run.parts.chat.stop_ids[0] if len(run.parts.chat.stop_ids) == 1 else [*run.parts.chat.stop_ids],
                        "pad_token_id": run.parts.chat.codec.pad_id}  # fmt: skip


def test_a_run_from_an_exported_folder_begins_with_its_model_and_words(run, exported, micro_config, tmp_path):
    folder = exported(dtype="float32")
    config = micro_config(CHANGES | {"model.path": str(folder), "rollout.max_prompt_tokens": 130, "rollout.max_row_tokens": 136})
    parts = setup.build(config, tmp_path)
    assert parts.chat.user_turn("Hello", first=True).tolist() == run.parts.chat.user_turn("Hello", first=True).tolist()
    params = load_params(folder, parts.model_config)
    rows = (np.broadcast_to(np.arange(24), TOKENS.shape), np.ones(TOKENS.shape, int))
    hidden, head = decoder.hidden_states(parts.graphdef, params, TOKENS, *rows)
    np.testing.assert_allclose(hidden @ head, logits_in_float32(load_checkpoint(run.workdir, None, "policy")), atol=1e-4)


def test_a_prm_of_another_shape_is_evaluated_with_its_own(run, capsys):
    evaluate_workdir(run.workdir, 4, None, "prm", 0)
    assert "success" in capsys.readouterr().out
    prm = run.learner.auxiliaries["prm"].model
    assert setup.collector_of(run.c, run.parts, prm).engine.config.rope_theta == 5e3
    assert setup.collector_of(run.c, run.parts, prm) is setup.collector_of(run.c, run.parts, prm)
    assert setup.collector_of(run.c, run.parts, run.learner.model) is run.parts.collector


def test_a_model_from_random_weights_has_its_base_beside_its_adapters(micro_config, tmp_path):
    """There is nothing published to name, and nothing of it is lost."""
    config = micro_config({"lora.rank": 2, "train.env_steps": 20, "sft.updates": 5, "sft.episodes": 10, "eval.episodes": 2})
    Runner(config, tmp_path / "run").run()
    export_workdir(tmp_path / "run", tmp_path / "out", None, "policy", True, "")
    assert (tmp_path / "out" / "base" / "model.safetensors").is_file()
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(tmp_path / "out" / "base")
    with pytest.raises(FileNotFoundError, match="only adapters"):
        read_config(tmp_path / "out")


def test_a_warm_start_of_whole_weights_has_no_adapters_yet(micro_config, tmp_path):
    class Enough(Exception):
        pass

    def stop(runner, _):
        runner.save(wait=True)
        raise Enough

    config = micro_config({"lora.rank": 2, "sft.updates": 10, "sft.log_every": 5, "sft.episodes": 10})
    with pytest.raises(Enough):
        Runner(config, tmp_path / "run", on_tick=stop).run()
    with pytest.raises(UserError, match="has no adapters .its warm start trains whole weights"):
        export_workdir(tmp_path / "run", tmp_path / "out", None, "policy", True, "")
    assert not (tmp_path / "out").exists()


# --- Templates ---


def test_a_template_without_settings_stays_as_it_is():
    assert with_defaults("{{ messages }}", date="1 Jan 2020") == "{{ messages }}"


@pytest.mark.parametrize("where", ["chat_template.jinja", "tokenizer_config.json", "several", "chat_template.json"])
def test_a_template_is_put_wherever_a_folder_holds_one(tmp_path, where):
    file = tmp_path / ("tokenizer_config.json" if where == "several" else where)
    several = [{"name": "tools", "template": "T"}, {"name": "default", "template": "D"}]
    file.write_text("old" if where.endswith("jinja") else json.dumps({"chat_template": several if where == "several" else "old", "a": 1}))
    write_template(tmp_path, "new")
    assert (tmp_path / "chat_template.jinja").read_text() == "new"
    if where == "several":
        assert json.loads(file.read_text())["chat_template"] == [several[0], {"name": "default", "template": "new"}]
    elif where.endswith("json"):
        assert json.loads(file.read_text()) == {"chat_template": "new", "a": 1}


@pytest.mark.parametrize(
    "family, settings", [("qwen3", dict(thinking=False)), ("qwen3", dict(thinking=True)), ("llama", dict(system="S{{ x }}")), ("llama", {})]
)
def test_defaults_of_a_template_are_what_a_chat_is_told(tmp_path, family, settings):
    folder = make_folder(tmp_path / "words", *FAMILIES[family])
    codec = load_pretrained_tokenizer(folder)
    system, thinking = settings.get("system"), settings.get("thinking")
    told = TemplateChat(codec, system=system, enable_thinking=thinking)
    write_template(folder, with_defaults(codec.template, system=system, thinking=thinking, date="26 Jul 2024"))
    found = load_chat(folder)
    for first in (True, False):
        assert found.user_turn("Hello", first=first).tolist() == told.user_turn("Hello", first=first).tolist()
    text = transformers.AutoTokenizer.from_pretrained(folder).apply_chat_template(
        [{"role": "user", "content": "Hello"}], tokenize=False, add_generation_prompt=True
    )
    assert codec.encode_template(text).tolist() == told.user_turn("Hello", first=True).tolist()
