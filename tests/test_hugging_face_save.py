"""Saved folders: transformers and peft load them with equal logits, and a failed save leaves nothing behind."""

import dataclasses
import functools
import json
import os
import shutil
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

hub_models = pytest.importorskip("hub_models")

from stepreward.models import decoder, hugging_face_save
from stepreward.models.adapters import TARGETS, LoraConfig, merge_adapters, split_adapters
from stepreward.models.hugging_face import load_params, read_config
from stepreward.models.hugging_face_adapters import load_adapters, read_adapter_config, save_adapters
from stepreward.models.hugging_face_save import holds, save_pretrained
from stepreward.models.hugging_face_tensors import Checkpoint
from stepreward.models.rotary import RopeScaling
from stepreward.models.tokenizer import train_symbol_tokenizer

TOKENS = np.random.default_rng(0).integers(0, hub_models.VOCABULARY, (2, 24))
IMAGES = hasattr(decoder.DecoderConfig, "mrope_sections")
SMALL = decoder.DecoderConfig(40, num_layers=2, embed_dim=32, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=48)
SHAPES = {
    "llama": SMALL,
    "llama3 rope, head_dim": dataclasses.replace(
        SMALL, head_dim=6, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 16), rope_theta=50.0, tie_embeddings=False, norm_eps=1e-4
    ),
    "qwen2": dataclasses.replace(SMALL, qkv_bias=True, rope_theta=77.0),
    "qwen3, stacked": dataclasses.replace(SMALL, qk_norm=True, head_dim=16, tie_embeddings=False, scan_layers=True),
}


@functools.partial(jax.jit, static_argnums=0)
def our_logits(config, params, tokens):
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden, head = decoder.hidden_states(decoder.graph(config), params, tokens, positions, jnp.ones_like(tokens))
    return hidden @ head


@functools.cache
def random_params(config):
    """Every weight random, norms and biases too."""
    leaves, structure = jax.tree.flatten(decoder.abstract_params(config))
    rng = np.random.default_rng(0)
    return structure.unflatten([jnp.asarray(rng.normal(0, 0.3, x.shape), x.dtype) for x in leaves])


def same_tensors(one, other):
    one, other = Checkpoint(one), Checkpoint(other)
    assert one.shapes == other.shapes
    for name, shape in one.shapes.items():
        np.testing.assert_array_equal(*(part.read(name, tuple(map(slice, shape))) for part in (one, other)))


@pytest.mark.parametrize("name", [name for name in hub_models.MODELS if IMAGES or name != "qwen2.5-vl"])
def test_round_trip_with_a_source(name, tmp_path):
    """The same tensors, a tower that the decoder does not have included, and the same config."""
    _, folder = hub_models.made(name)
    config = read_config(folder).decoder(scan_layers=True)
    out = save_pretrained(tmp_path / "out", config, load_params(folder, config), source_folder=folder)
    same_tensors(folder, out)
    assert json.loads((out / "config.json").read_text()) == json.loads((folder / "config.json").read_text())
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (out / "generation_config.json").read_text() == (folder / "generation_config.json").read_text()


@pytest.mark.parametrize("name", SHAPES)
def test_transformers_loads_a_model_of_ours(name, tmp_path):
    config = SHAPES[name]
    params = random_params(config)
    folder = save_pretrained(tmp_path / "out", config, params, max_shard_bytes=9_000, max_length=64)
    assert len(list(folder.glob("*.safetensors"))) > 2
    model = hub_models.loaded(folder)
    assert model.config.max_position_embeddings == 64
    np.testing.assert_allclose(hub_models.logits(model, TOKENS), our_logits(config, params, TOKENS), atol=1e-4, rtol=1e-4)
    again = read_config(folder).decoder(scan_layers=config.scan_layers)
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, load_params(folder, again), params)


def test_the_type_of_the_file(tmp_path):
    config = SHAPES["qwen2"]
    folder = save_pretrained(tmp_path / "out", config, random_params(config), dtype="bfloat16")
    assert set(Checkpoint(folder).dtypes.values()) == {np.dtype(jnp.bfloat16)}
    model = hub_models.loaded(folder)
    assert model.dtype == hub_models.torch.bfloat16
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(x.dtype), random_params(config))
    np.testing.assert_allclose(hub_models.logits(model.float(), TOKENS), our_logits(config, rounded, TOKENS), atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="cannot be written as int8"):
        save_pretrained(tmp_path / "other", config, random_params(config), dtype="int8")
    assert not (tmp_path / "other").exists()


def test_the_type_in_the_config_is_the_files(tmp_path):
    source = shutil.copytree(hub_models.made("qwen2, tied")[1], tmp_path / "source")
    content = json.loads((source / "config.json").read_text())
    del content["dtype"]
    (source / "config.json").write_text(json.dumps(content | {"torch_dtype": "float32"}))  # as published ones have it
    config = read_config(source).decoder()
    out = save_pretrained(tmp_path / "out", config, load_params(source, config), source_folder=source, dtype="float16")
    written = json.loads((out / "config.json").read_text())
    assert written["torch_dtype"] == "float16" and "dtype" not in written
    assert hub_models.loaded(out).dtype == hub_models.torch.float16


def test_types_may_be_mixed(tmp_path):
    """fp32 norms of odd width among bf16 weights: every tensor begins at a multiple of its item size."""
    config = dataclasses.replace(SMALL, embed_dim=20, num_heads=2, num_kv_heads=1, head_dim=6, mlp_dim=7, vocab_size=11)
    params = jax.tree_util.tree_map_with_path(lambda path, x: x if "norm" in str(path) else x.astype(jnp.bfloat16), random_params(config))
    folder = save_pretrained(tmp_path / "out", config, params)
    raw = (folder / "model.safetensors").read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    header.pop("__metadata__")
    starts = [entry["data_offsets"][0] for entry in header.values() if entry["dtype"] == "F32"]
    assert size % 8 == 0 and len(starts) == 5 and not any(start % 4 for start in starts)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(a.dtype)), load_params(folder, config), params)


def test_tokenizer_and_special_tokens_come_along(tmp_path):
    codec = train_symbol_tokenizer(["abc def"], ["up", "down"], tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "chat_template.jinja").write_text("{{ messages }}")
    (tmp_path / "tokenizer" / "unrelated.bin").write_text("no")
    config = dataclasses.replace(SMALL, vocab_size=codec.vocab_size)
    folder = save_pretrained(tmp_path / "out", config, random_params(config), tokenizer_folder=tmp_path / "tokenizer")
    names = {path.name for path in folder.iterdir()}
    assert {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"} <= names
    assert "unrelated.bin" not in names
    ids = {"eos_token_id": codec.end_id, "pad_token_id": codec.pad_id}
    assert json.loads((folder / "generation_config.json").read_text()) == ids
    model = hub_models.loaded(folder)
    assert model.generation_config.eos_token_id == codec.end_id and model.config.bos_token_id is None
    tokenizer = hub_models.transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer.eos_token_id == codec.end_id


def test_an_existing_folder_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="exists; give a new folder"):
        save_pretrained(tmp_path / "out", SMALL, random_params(SMALL))
    assert list((tmp_path / "out").iterdir()) == []


def test_a_broken_save_leaves_nothing(tmp_path, monkeypatch):
    written = []

    def full(file, tensors, **options):
        for tensor in tensors:
            written.append(tensor.fetch())
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hugging_face_save, "write_safetensors", full)
    with pytest.raises(OSError, match="No space left"):
        save_pretrained(tmp_path / "out", SMALL, random_params(SMALL), max_shard_bytes=9_000)
    assert list(tmp_path.iterdir()) == []
    # All are fetched none the less: in a run of several processes the others would wait for ever.
    assert len(written) == 2 + 9 * SMALL.num_layers


def test_what_cannot_be_saved(tmp_path):
    params = random_params(SMALL)
    with pytest.raises(ValueError, match="its num_layers is 2, but this model's is 3"):
        other = dataclasses.replace(read_config(hub_models.made("qwen2, tied")[1]).decoder(), num_layers=3)
        save_pretrained(tmp_path / "out", other, params, source_folder=hub_models.made("qwen2, tied")[1])
    with pytest.raises(ValueError, match="no supported architecture has both qkv_bias=True and qk_norm=True"):
        save_pretrained(tmp_path / "out", dataclasses.replace(SMALL, qkv_bias=True, qk_norm=True), params)
    with pytest.raises(ValueError, match="to be a multiple of num_heads"):
        save_pretrained(tmp_path / "out", dataclasses.replace(SMALL, embed_dim=34), params)
    with pytest.raises(ValueError, match="params is a pair"):
        save_pretrained(tmp_path / "out", SMALL, (params, params))
    with pytest.raises(FileNotFoundError, match="no tokenizer folder"):
        save_pretrained(tmp_path / "out", SMALL, params, tokenizer_folder=tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


TWO = """
import sys
import jax
out, process, port = sys.argv[1], int(sys.argv[2]), sys.argv[3]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{port}", 2, process)
from stepreward import parallel
from stepreward.models import hugging_face_save
from stepreward.models.hugging_face import load_params, read_config
source = sys.argv[4]
config = read_config(source).decoder(scan_layers=True, mesh=parallel.make_mesh(1, 2, 2))
params = load_params(source, config)
assert not params["embedding"][...].is_fully_addressable
hugging_face_save.save_pretrained(out, config, params, source_folder=source, max_shard_bytes=20_000)

def full(*_):
    raise OSError(28, "No space left on device")

hugging_face_save.write_json = full
for folder, expected in ((out, ValueError), (out + "-full", OSError)):
    try:
        hugging_face_save.save_pretrained(folder, config, params, source_folder=source)
    except expected as error:
        print(error)
"""


def test_two_processes_save_one_folder(root, tmp_path):
    """The first writes, and what it cannot do is raised on both."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    source, out = hub_models.made("qwen3")[1], tmp_path / "out"
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO, str(out), str(process), port, str(source)],
            cwd=root,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for process in range(2)
    ]
    try:
        told = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], told[0][1][-2000:] + told[1][1][-2000:]
    same_tensors(source, out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert all("exists; give a new folder" in text for text, _ in told)
    assert "No space left" in told[0][0] and "process 0 could not write" in told[1][0]


# --- adapters ------------------------------------------------------------------------------------------------------------


def adapted(name, scan, targets=TARGETS):
    """A folder's decoder with adapters whose parts are both random: config, base, adapters, folder."""
    _, folder = hub_models.made(name)
    config = read_config(folder).decoder(scan_layers=scan, lora=LoraConfig(rank=3, alpha=7.5, targets=targets, dropout=0.1))
    return config, load_params(folder, config), split_adapters(random_params(config))[1], folder


@pytest.mark.parametrize(
    "name, scan, targets",
    [
        ("qwen2, tied", False, TARGETS),
        ("qwen3", True, TARGETS),
        ("llama, explicit head_dim", True, ("query", "output")),
        *([("qwen2.5-vl", True, ("query", "gate"))] if IMAGES else []),  # its tower has modules of these names
    ],
)
def test_peft_loads_our_adapters(name, scan, targets, tmp_path):
    peft = pytest.importorskip("peft")
    config, base, adapters, folder = adapted(name, scan, targets)
    ours = our_logits(config, (base, adapters), TOKENS)
    save_adapters(tmp_path / "out", config, adapters, "the/base")
    model = peft.PeftModel.from_pretrained(hub_models.loaded(folder), tmp_path / "out").eval()
    np.testing.assert_allclose(hub_models.logits(model, TOKENS), ours, atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(hub_models.logits(model.merge_and_unload(), TOKENS), ours, atol=1e-4, rtol=1e-4)
    plain = dataclasses.replace(config, lora=None)
    np.testing.assert_allclose(our_logits(plain, merge_adapters(base, adapters, config.lora), TOKENS), ours, atol=1e-4, rtol=1e-4)
    assert np.abs(our_logits(plain, base, TOKENS) - ours).max() > 0.1
    found = read_adapter_config(tmp_path / "out")
    assert dataclasses.replace(found, targets=targets) == config.lora and set(found.targets) == set(targets)
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["base_model_name_or_path"] == "the/base"
    jax.tree.map(np.testing.assert_array_equal, load_adapters(tmp_path / "out", config), adapters)


def test_we_load_adapters_of_peft(tmp_path):
    peft = pytest.importorskip("peft")
    _, folder = hub_models.made("qwen3")
    modules = ["q_proj", "down_proj"]
    settings = peft.LoraConfig(r=2, lora_alpha=6, target_modules=modules, init_lora_weights=False, task_type="CAUSAL_LM")
    hub_models.torch.manual_seed(0)
    model = peft.get_peft_model(hub_models.loaded(folder), settings).eval()
    model.save_pretrained(tmp_path)
    config = read_config(folder).decoder(lora=read_adapter_config(tmp_path))
    assert config.lora == LoraConfig(rank=2, alpha=6.0, targets=("query", "down"))
    params = load_params(folder, config), load_adapters(tmp_path, config)
    np.testing.assert_allclose(our_logits(config, params, TOKENS), hub_models.logits(model, TOKENS), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(use_dora=True), "use_dora=True"),
        (dict(use_rslora=True), "use_rslora=True"),
        (dict(peft_type="IA3"), "peft_type='IA3'"),
        (dict(bias="all"), "bias='all'"),
        (dict(modules_to_save=["lm_head"]), "modules_to_save"),
        (dict(rank_pattern={"q_proj": 8}), "rank_pattern"),
        (dict(init_lora_weights="pissa"), "init_lora_weights='pissa'"),
        (dict(target_modules=["q_proj", "embed_tokens"]), "target module 'embed_tokens'"),
        (dict(target_modules="all-linear"), "target_modules='all-linear'"),
        (dict(r=0), "has r=0 .*r must be a positive"),
        (dict(r=4), "holds adapters with LoraConfig.rank=4.*use the folder's"),
        (dict(target_modules=["q_proj"]), "use the folder's"),
    ],
)
def test_adapters_that_are_not_plain_are_named(changes, message, tmp_path):
    config, _, adapters, _ = adapted("qwen2, tied", False, ("query", "up"))
    file = save_adapters(tmp_path / "out", config, adapters, "base") / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(ValueError, match=message) as error:
        load_adapters(tmp_path / "out", config)
    assert "\n" not in str(error.value)


def test_adapter_folders_that_are_wrong(tmp_path):
    config, _, adapters, _ = adapted("qwen2, tied", False, ("query",))
    folder = save_adapters(tmp_path / "out", config, adapters, "base")
    with pytest.raises(ValueError, match="exists; give a new folder"):
        save_adapters(folder, config, adapters, "base")
    fewer = dataclasses.replace(config, num_layers=1)
    with pytest.raises(ValueError, match="does not have: base_model.model.model.layers.1"):
        load_adapters(folder, fewer)
    shutil.move(folder / "adapter_model.safetensors", folder / "adapter_model.bin")
    with pytest.raises(FileNotFoundError, match="Pickle files .* can run code"):
        load_adapters(folder, config)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="holds no adapter_config.json"):
        load_adapters(folder, config)


def test_an_adapter_folder_in_which_only_alpha_differs_is_another_model(tmp_path):
    config, base, adapters, _ = adapted("qwen2, tied", False, ("query", "value"))
    file = save_adapters(tmp_path / "out", config, adapters, "base") / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"lora_alpha": 15}))
    with pytest.raises(ValueError, match="use the folder's"):
        load_adapters(tmp_path / "out", config)
    found = dataclasses.replace(config, lora=read_adapter_config(tmp_path / "out"))
    assert found.lora.scale == 2 * config.lora.scale == 5
    loaded = load_adapters(tmp_path / "out", found)
    doubled = jax.tree.map(lambda x: 2**0.5 * x, adapters)
    np.testing.assert_allclose(our_logits(found, (base, loaded), TOKENS), our_logits(config, (base, doubled), TOKENS), atol=1e-3)
    assert np.abs(our_logits(found, (base, loaded), TOKENS) - our_logits(config, (base, adapters), TOKENS)).max() > 0.1


def test_a_model_folder_with_adapters_in_it_is_refused(tmp_path):
    """transformers adds them by itself when it loads the folder; without them it would be another model."""
    folder = tmp_path / "model"
    shutil.copytree(hub_models.made("qwen2, tied")[1], folder)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(ValueError, match="holds a model and adapters.*merge them into the model") as error:
        read_config(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("scan", [False, True])
def test_whether_a_folder_holds_a_model_is_told_by_its_numbers(scan, tmp_path):
    _, folder = hub_models.made("qwen3, tied, groups of 4")
    config = read_config(folder).decoder(scan_layers=scan)
    params = load_params(folder, config)
    assert holds(folder, config, params)
    last = jax.tree.map(lambda x: x.at[-1, ..., -1].add(1e-3) if x.ndim > 1 and x.shape[-1] == 48 else x, params)
    assert not holds(folder, config, last)
    rounded = jax.tree.map(lambda x: x.astype(jax.numpy.bfloat16), params)
    assert not holds(folder, config, rounded)  # the folder has float32 numbers
    out = save_pretrained(tmp_path / "out", config, rounded, source_folder=folder)
    assert holds(out, config, rounded) and holds(out, config, jax.tree.map(lambda x: x.astype(np.float32), rounded))
    assert not holds(out, dataclasses.replace(config, rope_theta=2e4), rounded)
    assert not holds(hub_models.made("qwen3")[1], config, params)


def test_generation_settings_that_are_given_keep_the_special_tokens(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(hub_models.made("qwen2, tied")[1], source)
    (source / "generation_config.json").write_text(
        json.dumps({"bos_token_id": 3, "eos_token_id": 5, "repetition_penalty": 1.1, "top_k": 20})
    )
    config = read_config(source).decoder()
    params, given = load_params(source, config), {"eos_token_id": [5, 6], "temperature": 0.7}
    written = lambda name, **more: json.loads(
        (save_pretrained(tmp_path / name, config, params, source_folder=source, **more) / "generation_config.json").read_text()
    )
    assert written("kept") == {"bos_token_id": 3, "eos_token_id": 5, "repetition_penalty": 1.1, "top_k": 20}
    assert written("given", generation=given) == {"bos_token_id": 3, **given}
