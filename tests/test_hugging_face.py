"""Hugging Face folders: loading equals transformers for every option, slices are read separately, and bad folders are one error."""

import functools
import json
import os
import shutil
import subprocess
import sys
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

hub_models = pytest.importorskip("hub_models")

from stepreward.models import decoder, hugging_face
from stepreward.models.hugging_face import find_folder, load_params, load_tree, read_config
from stepreward.models.hugging_face_tensors import DECODER_TENSORS, Checkpoint
from stepreward.rollout.engine import Engine
from stepreward.rollout.sampling import Sampling

TOKENS = np.random.default_rng(0).integers(0, hub_models.VOCABULARY, (2, 40))


@functools.partial(jax.jit, static_argnums=0)
def _logits(config, params, tokens, segment_ids):
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden, head = decoder.hidden_states(decoder.graph(config), params, tokens, positions, segment_ids)
    return hidden @ head


def our_logits(folder, tokens, segment_ids=None, dtype=None, **choices):
    config = read_config(folder).decoder(**choices)
    params = load_params(folder, config, dtype=dtype)
    return np.asarray(_logits(config, params, tokens, np.ones_like(tokens) if segment_ids is None else segment_ids))


@pytest.fixture
def folder(tmp_path):
    """`folder(name)`: a copy of a model's folder that a test may spoil."""

    def copy(name="qwen2, tied"):
        shutil.copytree(hub_models.made(name)[1], tmp_path / "model")
        return tmp_path / "model"

    return copy


def edit(folder, file="config.json", **changes):
    path = folder / file
    content = json.loads(path.read_text())
    content.update(changes)
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def rewrite(folder, change):
    """Changes the tensors of a folder's one file."""
    import safetensors.numpy

    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    change(tensors)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors", {"format": "pt"})


# A vision-language model needs the decoder that reads images.
IMAGES = hasattr(decoder.DecoderConfig, "mrope_sections")


@pytest.mark.parametrize("name", [name for name in hub_models.MODELS if IMAGES or name != "qwen2.5-vl"])
def test_logits_equal_transformers(name):
    model, folder = hub_models.made(name)
    np.testing.assert_allclose(our_logits(folder, TOKENS), hub_models.logits(model, TOKENS), atol=1e-4, rtol=1e-4)


def test_padded_rows_equal_transformers():
    model, folder = hub_models.made("qwen3")
    mask = (np.arange(40) < np.array([[40], [23]])).astype(int)
    expected = hub_models.logits(model, TOKENS, mask)
    found = our_logits(folder, TOKENS, mask)
    np.testing.assert_allclose(found[mask == 1], expected[mask == 1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama, llama3 rope, groups of 1", "qwen2, tied", "qwen3"])
def test_greedy_answers_equal_transformers(name):
    model, folder = hub_models.made(name)
    config = read_config(folder).decoder()
    sampling = Sampling(stop_ids=(), max_answer_tokens=64, temperature=0)
    engine = Engine(decoder.graph(config), config, sampling, max_length=80, buckets=(8,), pad_id=0)
    params = load_params(folder, config)
    _, answer = engine.turn(params, engine.start(2), list(TOKENS[:, :8].astype(np.int32)), jax.random.split(jax.random.key(0), 2))
    prompt = hub_models.torch.tensor(TOKENS[:, :8])
    expected = model.generate(prompt, attention_mask=prompt * 0 + 1, max_new_tokens=64, do_sample=False).numpy()[:, 8:]
    np.testing.assert_array_equal(answer.tokens, expected)


def test_structure_is_the_builders():
    config = read_config(hub_models.made("qwen2, untied")[1]).decoder()
    loaded = load_params(hub_models.made("qwen2, untied")[1], config)
    built = decoder.build(config, 0)[1]
    assert jax.tree.structure(loaded) == jax.tree.structure(built)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), loaded) == jax.tree.map(lambda x: (x.shape, x.dtype), built)


def test_sharded_index(tmp_path):
    model, folder = hub_models.made("qwen3")
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    np.testing.assert_array_equal(our_logits(tmp_path, TOKENS), our_logits(folder, TOKENS))


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_half_precision_files(tmp_path, kind):
    model, folder = hub_models.made("llama, llama3 rope, groups of 1")
    hub_models.loaded(folder, dtype=kind).save_pretrained(tmp_path)
    assert set(map(str, Checkpoint(tmp_path).dtypes.values())) == {kind}
    # The file's numbers, computed with in fp32 by both.
    expected = hub_models.logits(hub_models.loaded(tmp_path, dtype="float32"), TOKENS)
    np.testing.assert_allclose(our_logits(tmp_path, TOKENS), expected, atol=1e-4, rtol=1e-4)
    params = load_params(tmp_path, read_config(tmp_path).decoder(), dtype=jnp.bfloat16)
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("name", ["llama, llama3 rope, groups of 1", "qwen2, tied", "qwen3"])
def test_stacked_layers(name):
    model, folder = hub_models.made(name)
    found = our_logits(folder, TOKENS, scan_layers=True, param_dtype=jnp.float32)
    np.testing.assert_allclose(found, hub_models.logits(model, TOKENS), atol=1e-4, rtol=1e-4)


def test_parameter_dtype_is_the_configs():
    _, folder = hub_models.made("qwen3")
    config = read_config(folder).decoder(scan_layers=True, param_dtype=jnp.bfloat16)
    params = load_params(folder, config)
    kinds = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert kinds(params) == kinds(decoder.abstract_params(config))


def test_stacked_layers_hold_the_listed_ones():
    _, folder = hub_models.made("qwen2, untied")
    config = read_config(folder).decoder()
    listed = dict(_flat(load_params(folder, config)))
    shapes = {"layers": {"attention": {"query": (2, 32, 4, 8), "key_bias": (2, 1, 8), "output": (2, 4, 8, 32)}}, "head": (32, 40)}
    abstract = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, jnp.bfloat16), shapes, is_leaf=lambda x: isinstance(x, tuple))
    stacked = dict(_flat(load_tree(Checkpoint(folder), abstract, DECODER_TENSORS, dtype=jnp.float32)))
    np.testing.assert_array_equal(stacked["head"], listed["head"])
    for name in ("query", "key_bias", "output"):
        expected = np.stack([listed[f"layers/{layer}/attention/{name}"] for layer in range(2)])
        np.testing.assert_array_equal(stacked[f"layers/attention/{name}"], expected)


def _flat(tree):
    from stepreward.models.hugging_face_tensors import path_name

    return [(path_name(path), np.asarray(leaf)) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]]


def test_the_host_holds_one_tensor_at_a_time(tmp_path, monkeypatch):
    """Of a model of 24 layers, no more than its largest tensor was on the host at once."""
    model_class, config = hub_models.MODELS["qwen2, tied"]()
    config.num_hidden_layers, config.layer_types = 24, None
    model_class(type(config)(**{**config.to_dict(), "layer_types": None})).save_pretrained(tmp_path)
    live, most = 0, 0
    read = Checkpoint.read

    def forget(size):
        nonlocal live
        live -= size

    def counted(self, name, index):
        nonlocal live, most
        array = read(self, name, index).copy()
        live, most = live + array.nbytes, max(most, live + array.nbytes)
        weakref.finalize(array, forget, array.nbytes)
        return array

    monkeypatch.setattr(Checkpoint, "read", counted)
    load_params(tmp_path, read_config(tmp_path).decoder(), dtype=jnp.bfloat16)
    largest = max(np.prod(shape) * 4 for shape in Checkpoint(tmp_path).shapes.values())
    assert 0 < most <= 2 * largest  # the runtime may still hold the last one when the next is read


SHARDED = """
import sys, json
sys.path.insert(0, "tests")
import jax, numpy as np
from collections import defaultdict
from stepreward import parallel
from stepreward.models.hugging_face import load_params, read_config
from stepreward.models.hugging_face_save import save_pretrained
from stepreward.models.hugging_face_tensors import Checkpoint

assert len(jax.devices()) == 8
folder, out = sys.argv[1:]
reads = defaultdict(list)
read = Checkpoint.read
def counted(self, name, index):
    reads[name].append(read(self, name, index))
    return reads[name][-1]
for scan in SCANS:
    config = read_config(folder).decoder(**scan)
    whole = load_params(folder, config)
    Checkpoint.read = counted
    reads.clear()
    mesh = parallel.make_mesh(1, 4, 2)
    split = load_params(folder, config, mesh=mesh)
    Checkpoint.read = read
    for a, b, s in zip(*map(jax.tree.leaves, (whole, split, parallel.parameter_sharding(whole, mesh))), strict=True):
        np.testing.assert_array_equal(a, b)
        assert b.sharding.is_equivalent_to(s, b.ndim), (b.sharding, s)
    sizes = {name: [x.nbytes for x in arrays] for name, arrays in reads.items()}
    for name in ("model.embed_tokens.weight", "model.layers.1.self_attn.q_proj.weight", "model.layers.0.self_attn.o_proj.weight",
                 "model.layers.0.mlp.down_proj.weight", "lm_head.weight"):
        total = np.prod(Checkpoint(folder).shapes[name]) * 4
        assert sizes[name] == [total // 8] * 8, (name, sizes[name])
    assert len(sizes["model.norm.weight"]) == 1
    save_pretrained(f"{out}/{len(scan)}", config, split, source_folder=folder, max_shard_bytes=20_000)
    again, first = Checkpoint(f"{out}/{len(scan)}"), Checkpoint(folder)
    assert again.shapes == first.shapes
    for name, shape in first.shapes.items():
        index = tuple(map(slice, shape))
        np.testing.assert_array_equal(again.read(name, index), first.read(name, index))
"""
SCANS = [{}, {"scan_layers": True}]


def test_eight_devices_read_their_slices_alone(root, tmp_path):
    _, folder = hub_models.made("qwen3")
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    script = SHARDED.replace("SCANS", repr(SCANS))
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder), str(tmp_path)], cwd=root, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_nested_config_of_a_vision_language_model():
    hub = read_config(hub_models.made("qwen2.5-vl")[1])
    assert hub.fields["mrope_sections"] == (1, 1, 2) and hub.fields["embed_dim"] == 32 and not hub.fields["tie_embeddings"]
    assert "vision_config" in hub.source


# --- folders that are wrong ----------------------------------------------------------------------------------------------


def fails(kind, message, folder, **choices):
    with pytest.raises(kind, match=message) as error:
        load_params(folder, read_config(folder).decoder(**choices))
    assert "\n" not in str(error.value)


def test_missing_tensor(folder):
    rewrite(path := folder(), lambda t: t.pop("model.layers.1.mlp.up_proj.weight"))
    fails(ValueError, "has no tensor 'model.layers.1.mlp.up_proj.weight'", path)


def test_wrong_shape(folder):
    rewrite(path := folder(), lambda t: t.update({"model.norm.weight": np.ones(31, np.float32)}))
    fails(ValueError, r"'model.norm.weight' has shape \(31,\), expected \(32,\)", path)


def test_config_of_another_size(folder):
    edit(path := folder(), intermediate_size=50)
    fails(ValueError, r"down_proj.weight' has shape \(32, 48\), expected \(32, 50\)", path)


def test_fewer_layers_than_tensors(folder):
    edit(path := folder(), num_hidden_layers=1)
    fails(ValueError, "does not have: model.layers.1.input_layernorm.weight and 11 more", path)


def test_wrong_type(folder):
    rewrite(path := folder(), lambda t: t.update({"model.norm.weight": np.ones(32, np.int8)}))
    fails(ValueError, "'model.norm.weight' has type I8", path)


@pytest.mark.parametrize("keep", [0, 5, 100, -3])
def test_cut_short(folder, keep):
    file = (path := folder()) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    fails(ValueError, "model.safetensors' is truncated or damaged", path)


def test_index_of_absent_files(folder, tmp_path):
    model, _ = hub_models.made("qwen3")
    model.save_pretrained(path := tmp_path / "split", max_shard_size="8KB")
    index = path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    (first := sorted(path.glob("*.safetensors"))[0]).rename(aside := tmp_path / "aside")
    fails(FileNotFoundError, f"names {first.name}, which is missing", path)
    aside.rename(first)
    content["weight_map"]["model.extra"] = first.name
    index.write_text(json.dumps(content))
    fails(ValueError, "holds the tensor 'model.extra', but it does not", path)
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": "../elsewhere.safetensors"}}))
    fails(ValueError, "may only name files in its own folder", path)
    index.write_text("[]")
    fails(ValueError, "is not an index", path)


def test_pickles_are_not_read(folder):
    path = folder()
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    fails(FileNotFoundError, "Pickle files .* can run code: convert it to safetensors", path)
    (path / "pytorch_model.bin").unlink()
    fails(FileNotFoundError, "holds neither model.safetensors", path)


def test_no_config(folder, tmp_path):
    path = folder()
    (path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        read_config(path)
    (path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="holds no config.json"):
        read_config(path)


def test_known_extra_tensors_are_ignored(folder):
    path = folder()
    before = our_logits(path, TOKENS)
    rewrite(
        path,
        lambda t: t.update(
            {
                "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32),
                "lm_head.weight": t["model.embed_tokens.weight"].copy(),
            }
        ),
    )
    np.testing.assert_array_equal(our_logits(path, TOKENS), before)
    rewrite(path, lambda t: t["lm_head.weight"].__imul__(2))
    fails(ValueError, "lm_head.weight differs", path)


@pytest.mark.parametrize("compared_bytes", [2**26, 4 * 32 * 7], ids=["in one block", "in blocks of 7 rows"])
@pytest.mark.parametrize("row", [0, 7, hub_models.VOCABULARY - 1])
def test_a_tied_head_that_differs_in_one_number_is_noticed(folder, monkeypatch, row, compared_bytes):
    monkeypatch.setattr(hugging_face, "_COMPARED_BYTES", compared_bytes)
    path, embedding = folder(), "model.embed_tokens.weight"

    def repeat(tensors, extra=0.0):
        tensors["lm_head.weight"] = tensors[embedding].copy()
        tensors["lm_head.weight"][row, -1] += extra

    rewrite(path, repeat)
    load_params(path, read_config(path).decoder())  # the same numbers
    rewrite(path, functools.partial(repeat, extra=0.25))
    fails(ValueError, "lm_head.weight differs", path)


def test_names_of_the_hub(tmp_path, monkeypatch):
    import huggingface_hub.constants

    with pytest.raises(FileNotFoundError, match="no model folder './nowhere'"):
        find_folder("./nowhere")
    with pytest.raises(FileNotFoundError, match="not in the hub's local cache; download it first, or allow the download"):
        find_folder("nobody/nothing-of-this-name")
    cache = tmp_path / "models--nobody--tiny"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("a" * 40)
    shutil.copytree(hub_models.made("qwen3")[1], cache / "snapshots" / ("a" * 40))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert find_folder("nobody/tiny") == cache / "snapshots" / ("a" * 40)


def test_a_download_happens_only_when_it_is_allowed(monkeypatch):
    import huggingface_hub

    asked = []

    def download(name, **settings):
        asked.append((name, settings["local_files_only"], "*.bin" in settings["allow_patterns"]))
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(FileNotFoundError, match="the hub's local cache"):
        find_folder("some/model")
    with pytest.raises(FileNotFoundError, match="the download failed .ConnectionError: no network"):
        find_folder("some/model", allow_download=True)
    assert asked == [("some/model", True, False), ("some/model", False, False)]
