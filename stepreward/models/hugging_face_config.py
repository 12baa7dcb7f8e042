"""`config.json` of a Hugging Face model folder, to and from `DecoderConfig`.

Both layouts are read: the flat one of published checkpoints (`rope_theta`, `rope_scaling`) and the one that transformers 5 writes
(`rope_parameters`, and `text_config` for vision-language models). A setting that changes what the model computes, and that
the decoder does not do, is an error: a model that loads and computes something else is worse than one that does not load.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from stepreward.models.decoder import DecoderConfig
from stepreward.models.rotary import RopeScaling


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A supported architecture: its fixed switches, and what a key absent from config.json means.

    Attributes:
      model_type: transformers' name of the family.
      qkv_bias, qk_norm: switches of the decoder that have no key.
      defaults: values of absent keys; a key in neither place is an error. `head_dim` None is E / N.
    """

    model_type: str
    qkv_bias: bool = False
    qk_norm: bool = False
    defaults: dict[str, Any] = dataclasses.field(default_factory=dict)


_DEFAULTS = {"head_dim": None, "rms_norm_eps": 1e-6, "rope_theta": 10_000.0, "tie_word_embeddings": False, "hidden_act": "silu",
             "max_position_embeddings": 32_768, "max_window_layers": 28}
VISION_LANGUAGE = "Qwen2_5_VLForConditionalGeneration"
ARCHITECTURES = {
    "LlamaForCausalLM": Architecture(
        "llama", defaults=_DEFAULTS | {"num_key_value_heads": None, "max_position_embeddings": 2048}
    ),
    "Qwen2ForCausalLM": Architecture("qwen2", qkv_bias=True, defaults=_DEFAULTS),
    "Qwen3ForCausalLM": Architecture("qwen3", qk_norm=True, defaults=_DEFAULTS | {"head_dim": 128}),
    VISION_LANGUAGE: Architecture(
        "qwen2_5_vl", qkv_bias=True,
        defaults=_DEFAULTS | {"rms_norm_eps": 1e-5, "rope_theta": 1_000_000.0, "max_window_layers": 80},
    ),
}
SUPPORTED = ("supported: " + ", ".join(ARCHITECTURES) + "; dense layers, SiLU, full attention, rope types default and llama3, "
             "no bias beside Qwen2's on query, key and value")

_SIZES = {  # ours -> theirs
    "vocab_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "embed_dim": "hidden_size",
    "num_heads": "num_attention_heads",
    "mlp_dim": "intermediate_size",
}


@dataclasses.dataclass(frozen=True)
class HubConfig:
    """What a model folder's `config.json` says.

    Attributes:
      architecture: a key of `ARCHITECTURES`.
      fields: the arguments of `DecoderConfig` that the checkpoint fixes. `vocab_size` counts the checkpoint's embedding rows,
        which may be more than the tokenizer's tokens.
      max_length: `max_position_embeddings`, in tokens.
      source: the whole file, for what the decoder does not read (vision tower, special tokens).
    """

    architecture: str
    fields: dict[str, Any]
    max_length: int
    source: dict[str, Any]

    def decoder(self, **choices) -> DecoderConfig:
        """The decoder's config, with the run's own choices (`compute_dtype`, `scan_layers`, `mesh`, …)."""
        known = {field.name for field in dataclasses.fields(DecoderConfig)}
        return DecoderConfig(**{name: value for name, value in self.fields.items() if name in known}, **choices)


def read_config(folder) -> HubConfig:
    """Reads `config.json` of a model folder (see `hugging_face.find_folder` for names of the hub).

    Raises:
      FileNotFoundError: no such folder, or it holds no `config.json`.
      ValueError: not JSON, a size missing or not a positive whole number, or something unsupported; it is named. Adapters beside the
        model, too, which transformers would add to it.
    """
    file = Path(folder) / "config.json"
    adapters = (Path(folder) / "adapter_config.json").is_file()
    if not file.is_file():
        only = "; it holds adapters alone: give a whole model with them merged" if adapters else ""
        raise FileNotFoundError(f"{str(folder)!r} is not a model folder: it holds no config.json{only}")
    if adapters:
        raise ValueError(f"{str(folder)!r} holds adapters beside a model (adapter_config.json), which would be left out: merge them "
                         "into the model, or move that file away to take the model without them.")
    return parse_config(read_json(file), str(file))


def parse_config(source: dict[str, Any], where: str = "config.json") -> HubConfig:
    """The same of an already read file; `where` names it in errors."""
    names = source.get("architectures") or []
    if len(names) != 1 or names[0] not in ARCHITECTURES:
        raise ValueError(f"{where}: architecture {', '.join(map(str, names)) or '(none given)'} is not supported; {SUPPORTED}.")
    architecture = ARCHITECTURES[names[0]]
    text = {**architecture.defaults, **(source.get("text_config") or source)}
    if names[0] == VISION_LANGUAGE:  # the head is tied when either place says so
        text["tie_word_embeddings"] = bool(text["tie_word_embeddings"] or source.get("tie_word_embeddings"))
    _refuse(names[0], source, text, where)
    sizes = {ours: _size(text, theirs, where) for ours, theirs in _SIZES.items()}
    kv_heads = sizes["num_heads"] if _absent(text, "num_key_value_heads", where) else _size(text, "num_key_value_heads", where)
    if text["head_dim"] is None and sizes["embed_dim"] % sizes["num_heads"]:
        raise ValueError(f"{where}: hidden_size={sizes['embed_dim']} does not divide by num_attention_heads={sizes['num_heads']}, "
                         "and no head_dim is given.")
    head_dim = sizes["embed_dim"] // sizes["num_heads"] if text["head_dim"] is None else _size(text, "head_dim", where)
    fields = {
        **sizes,
        "num_kv_heads": kv_heads,
        "head_dim": head_dim,
        "qkv_bias": architecture.qkv_bias,
        "qk_norm": architecture.qk_norm,
        "tie_embeddings": bool(text["tie_word_embeddings"]),
        "norm_eps": _number(text, "rms_norm_eps", where),
        **_rope(names[0], text, head_dim, where),
    }
    return HubConfig(names[0], fields, _size(text, "max_position_embeddings", where), source)


def _refuse(architecture: str, source: dict, text: dict, where: str) -> None:
    """Raises on whatever changes the computation and is not done here."""
    found = []
    if text["hidden_act"] not in ("silu", "swish"):
        found.append(f"hidden_act={text['hidden_act']!r}")
    # Qwen2 and Qwen2.5-VL have no such key: their bias is always there.
    names = [] if architecture in ("Qwen2ForCausalLM", VISION_LANGUAGE) else ["attention_bias", "mlp_bias"]
    found += [f"{name}={text[name]}" for name in names if text.get(name)]
    found += [f"{name}={text[name]}" for name in ("num_experts", "num_local_experts") if text.get(name)]
    if source.get("quantization_config") or text.get("quantization_config"):
        found.append("quantization_config (load the checkpoint that was not quantised)")
    if architecture != "LlamaForCausalLM":
        kinds = set(text.get("layer_types") or ()) - {"full_attention"}
        windowed = text.get("use_sliding_window") and text.get("sliding_window") is not None
        if kinds:
            found.append(f"layer_types with {', '.join(sorted(map(str, kinds)))}")
        elif windowed and not text.get("layer_types") and text["max_window_layers"] < text.get("num_hidden_layers", 0):
            found.append(f"use_sliding_window=True from layer {text['max_window_layers']} on")
    if found:
        raise ValueError(f"{where}: {'; '.join(found)} is not supported; {SUPPORTED}.")


def _rope(architecture: str, text: dict, head_dim: int, where: str) -> dict[str, Any]:
    """`rope_theta`, `rope_scaling` and, for a vision-language model, `mrope_sections`."""
    rope = text.get("rope_scaling") or text.get("rope_parameters") or {}
    rope = {"rope_theta": text["rope_theta"], **{k: v for k, v in rope.items() if v is not None}}
    kind = rope.get("rope_type", rope.get("type", "default"))
    multimodal = architecture == VISION_LANGUAGE
    if kind not in ("default", "llama3") and not (multimodal and kind == "mrope"):
        raise ValueError(f"{where}: rope type {kind!r} is not supported; {SUPPORTED}.")
    partial = rope.get("partial_rotary_factor", text.get("partial_rotary_factor"))
    if partial not in (None, 1):
        raise ValueError(f"{where}: partial_rotary_factor={partial} is not supported; {SUPPORTED}.")
    fields = {"rope_theta": _number(rope, "rope_theta", where)}
    if kind == "llama3":
        rope.setdefault("original_max_position_embeddings", text["max_position_embeddings"])
        fields["rope_scaling"] = RopeScaling(
            factor=_number(rope, "factor", where),
            low_frequency_factor=_number(rope, "low_freq_factor", where),
            high_frequency_factor=_number(rope, "high_freq_factor", where),
            original_length=_size(rope, "original_max_position_embeddings", where),
        )
        if fields["rope_scaling"].high_frequency_factor <= fields["rope_scaling"].low_frequency_factor:
            raise ValueError(f"{where}: high_freq_factor must be greater than low_freq_factor.")
    if multimodal:
        sections = rope.get("mrope_section")
        whole = isinstance(sections, list) and all(type(part) is int and part >= 0 for part in sections)
        if not whole or len(sections) != 3 or sum(sections) * 2 != head_dim:
            raise ValueError(f"{where}: mrope_section={sections} must be three numbers that add to head_dim / 2 = {head_dim // 2}.")
        fields["mrope_sections"] = tuple(sections)
    return fields


def config_json(config: DecoderConfig, *, dtype: str, max_length: int, special: dict[str, int | None]) -> dict[str, Any]:
    """A `config.json` for a decoder that came from no checkpoint: the architecture that has its switches.

    Args:
      config: the decoder.
      dtype: "float32", "bfloat16" or "float16": what the tensors are written in.
      max_length: tokens; becomes `max_position_embeddings`.
      special: `bos_token_id`, `eos_token_id`, `pad_token_id`.

    Raises:
      ValueError: no supported text architecture has these switches.
    """
    if getattr(config, "mrope_sections", None):
        raise ValueError("a vision-language model is saved with source_folder, the folder that it was loaded from.")
    fits = [name for name, a in ARCHITECTURES.items() if (a.qkv_bias, a.qk_norm) == (config.qkv_bias, config.qk_norm)]
    if not fits:
        raise ValueError(f"no supported architecture has qkv_bias={config.qkv_bias} with qk_norm={config.qk_norm}; {SUPPORTED}.")
    if fits[0] == "LlamaForCausalLM" and config.embed_dim % config.num_heads:
        raise ValueError(f"LlamaForCausalLM needs embed_dim={config.embed_dim} to be a multiple of num_heads={config.num_heads}.")
    rope = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.rope_scaling is not None:
        s = config.rope_scaling
        rope |= {"rope_type": "llama3", "factor": s.factor, "low_freq_factor": s.low_frequency_factor,
                 "high_freq_factor": s.high_frequency_factor, "original_max_position_embeddings": s.original_length}
    return {
        "architectures": [fits[0]],
        "model_type": ARCHITECTURES[fits[0]].model_type,
        **{theirs: getattr(config, ours) for ours, theirs in _SIZES.items()},
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": rope,
        "rope_theta": config.rope_theta,  # for readers of the older layout
        **({"rope_scaling": rope} if config.rope_scaling is not None else {}),
        "tie_word_embeddings": config.tie_embeddings,
        "max_position_embeddings": max_length,
        "dtype": dtype,
        **special,
    }


def read_json(file: Path) -> dict[str, Any]:
    """A file's JSON object; raises ValueError where it holds none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{str(file)!r} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{str(file)!r} must hold a JSON object.")
    return content


def _absent(values: dict, key: str, where: str) -> bool:
    if key not in values:
        raise ValueError(f"{where} lacks {key}.")
    return values[key] is None


def _size(values: dict, key: str, where: str) -> int:
    value = None if _absent(values, key, where) else values[key]
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{where}: {key}={value!r} must be a positive whole number.")
    return value


def _number(values: dict, key: str, where: str) -> float:
    value = None if _absent(values, key, where) else values[key]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise ValueError(f"{where}: {key}={value!r} must be a positive number.")
    return float(value)
