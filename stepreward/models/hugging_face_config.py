"""Converts `config.json` of a Hugging Face model folder to and from `DecoderConfig`.

Both layouts are read: the flat one of published checkpoints (`rope_theta`, `rope_scaling`) and the one that transformers 5 writes
(`rope_parameters`, and `text_config` for vision-language models). A setting that changes what the model computes, but that the
decoder does not support, is an error: a model that loads and computes something else is worse than one that does not load.
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
    """A supported architecture: its fixed switches, and the defaults of keys that config.json omits.

    Attributes:
      model_type: the family's name in transformers.
      qkv_bias, qk_norm: switches of the decoder that config.json has no key for.
      defaults: values of omitted keys; a key that has neither a value nor a default is an error. `head_dim` None means E / N.
    """

    model_type: str
    qkv_bias: bool = False
    qk_norm: bool = False
    defaults: dict[str, Any] = dataclasses.field(default_factory=dict)


_DEFAULTS = {
    "head_dim": None,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "max_position_embeddings": 32_768,
    "max_window_layers": 28,
}
VISION_LANGUAGE = "Qwen2_5_VLForConditionalGeneration"
ARCHITECTURES = {
    "LlamaForCausalLM": Architecture("llama", defaults=_DEFAULTS | {"num_key_value_heads": None, "max_position_embeddings": 2048}),
    "Qwen2ForCausalLM": Architecture("qwen2", qkv_bias=True, defaults=_DEFAULTS),
    "Qwen3ForCausalLM": Architecture("qwen3", qk_norm=True, defaults=_DEFAULTS | {"head_dim": 128}),
    VISION_LANGUAGE: Architecture(
        "qwen2_5_vl",
        qkv_bias=True,
        defaults=_DEFAULTS | {"rms_norm_eps": 1e-5, "rope_theta": 1_000_000.0, "max_window_layers": 80},
    ),
}
SUPPORTED = (
    "supported: " + ", ".join(ARCHITECTURES) + "; dense layers, SiLU, full attention, rope types default and llama3, "
    "no biases except Qwen2's on query, key and value"
)

_SIZES = {  # ours -> theirs
    "vocab_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "embed_dim": "hidden_size",
    "num_heads": "num_attention_heads",
    "mlp_dim": "intermediate_size",
}


@dataclasses.dataclass(frozen=True)
class HubConfig:
    """The contents of a model folder's `config.json`.

    Attributes:
      architecture: a key of `ARCHITECTURES`.
      fields: the arguments of `DecoderConfig` that the checkpoint fixes. `vocab_size` counts the rows of the checkpoint's
        embedding, which may exceed the number of the tokenizer's tokens.
      max_length: `max_position_embeddings`, in tokens.
      source: the whole file, including what the decoder does not use (vision tower, special tokens).
    """

    architecture: str
    fields: dict[str, Any]
    max_length: int
    source: dict[str, Any]

    def decoder(self, **choices) -> DecoderConfig:
        """The decoder's config; `choices` are the fields that a run decides (`compute_dtype`, `scan_layers`, `mesh`, …)."""
        known = {field.name for field in dataclasses.fields(DecoderConfig)}
        return DecoderConfig(**{name: value for name, value in self.fields.items() if name in known}, **choices)


def read_config(folder) -> HubConfig:
    """Reads `config.json` of a model folder (`hugging_face.find_folder` finds the folder of a hub model).

    Raises:
      FileNotFoundError: if there is no such folder, or it holds no `config.json`.
      ValueError: if the file is not JSON, a size is missing or not a positive whole number, a setting is unsupported, or the folder
        also holds adapters, which transformers would add to the model.
    """
    file = Path(folder) / "config.json"
    adapters = (Path(folder) / "adapter_config.json").is_file()
    if not file.is_file():
        only = "; it holds only adapters: merge them into their base model and give that folder" if adapters else ""
        raise FileNotFoundError(f"{str(folder)!r} is not a model folder: it holds no config.json{only}")
    if adapters:
        raise ValueError(
            f"{str(folder)!r} holds a model and adapters (adapter_config.json), and the adapters would be ignored: merge them "
            "into the model, or move adapter_config.json away to load the model without them."
        )
    return parse_config(read_json(file), str(file))


def parse_config(source: dict[str, Any], where: str = "config.json") -> HubConfig:
    """Parses the contents of a `config.json`; `where` names the file in errors, which are those of `read_config`."""
    names = source.get("architectures") or []
    if len(names) != 1 or names[0] not in ARCHITECTURES:
        raise ValueError(f"{where}: architecture {', '.join(map(str, names)) or '(none given)'} is not supported; {SUPPORTED}.")
    architecture = ARCHITECTURES[names[0]]
    # A file with `text_config` may also state a key of the text model outside of it. A value in either place overrides the default.
    inner = _group(source, "text_config", where)
    stated = source | {key: value for key, value in inner.items() if value is not None or key not in source}
    text = {**architecture.defaults, **stated}
    if names[0] == VISION_LANGUAGE:  # the head is tied if either place says so
        text["tie_word_embeddings"] = bool(text["tie_word_embeddings"] or source.get("tie_word_embeddings"))
    _refuse(names[0], source, text, where)
    sizes = {ours: _size(text, theirs, where) for ours, theirs in _SIZES.items()}
    kv_heads = sizes["num_heads"] if _absent(text, "num_key_value_heads", where) else _size(text, "num_key_value_heads", where)
    if text["head_dim"] is None and sizes["embed_dim"] % sizes["num_heads"]:
        raise ValueError(
            f"{where}: hidden_size={sizes['embed_dim']} is not a multiple of num_attention_heads={sizes['num_heads']}, "
            "and no head_dim is given."
        )
    head_dim = sizes["embed_dim"] // sizes["num_heads"] if text["head_dim"] is None else _size(text, "head_dim", where)
    fields = {
        **sizes,
        "num_kv_heads": kv_heads,
        "head_dim": head_dim,
        "qkv_bias": architecture.qkv_bias,
        "qk_norm": architecture.qk_norm,
        "tie_embeddings": bool(text["tie_word_embeddings"]),
        "norm_eps": _number(text, "rms_norm_eps", where),
        **_rope(names[0], stated, architecture.defaults, head_dim, where),
    }
    return HubConfig(names[0], fields, _size(text, "max_position_embeddings", where), source)


# Keys of other families that change what a model computes, each with the values that change nothing. A key that is absent or None
# changes nothing either.
_UNREAD: dict[str, tuple] = {
    # biases and branches that the decoder does not have
    "mlp_bias": (False,), "attention_out_bias": (False,), "use_bias": (False,), "bias": (False,), "clip_qkv": (0,),
    "parallel_attn": (False,), "use_parallel_residual": (False,),
    # factors
    "logit_scale": (1,), "logits_scaling": (1,), "embedding_multiplier": (1,), "residual_multiplier": (1,),
    "scale_emb": (1,), "mup_width_scale": (1,), "lm_head_multiplier": (1,), "final_logit_softcapping": (0,),
    "attn_logit_softcapping": (0,), "hidden_activation": ("silu", "swish"),
    # experts, latent attention, sinks, chunks
    "num_experts": (0,), "num_local_experts": (0,), "n_routed_experts": (0,), "kv_lora_rank": (0,), "q_lora_rank": (0,),
    "attention_chunk_size": (0,), "attention_sinks": (False, 0), "attn_temperature_tuning": (False, 0),
    "num_kv_shared_layers": (0,),
    # positions
    "position_embedding_type": ("rope", "rotary", "absolute"), "use_rope": (True,), "alibi": (False,),
    "rope_interleaved": (False,), "no_rope_layer_interval": (0,), "rotary_pct": (1,), "rope_ratio": (1,),
    "rope_local_base_freq": (), "mrope_interleaved": (False,),
    # attention in both directions
    "is_causal": (True,), "use_bidirectional_attention": (False,),
}  # fmt: skip
_QUANTISED = ("quantization_config", "compression_config")


def _group(values: dict, key: str, where: str) -> dict[str, Any]:
    """A nested group of keys; empty if it is absent or null."""
    group = values.get(key)
    if group is not None and not isinstance(group, dict):
        raise ValueError(f"{where}: {key}={group!r} must be a JSON object.")
    return group or {}


def _refuse(architecture: str, source: dict, text: dict, where: str) -> None:
    """Raises ValueError for settings that change the computation and are not supported."""
    found = []
    if text["hidden_act"] not in ("silu", "swish"):
        found.append(f"hidden_act={text['hidden_act']!r}")
    biased, qk_norm = ARCHITECTURES[architecture].qkv_bias, ARCHITECTURES[architecture].qk_norm
    # Qwen2 and Qwen2.5-VL always have the bias; transformers does not read this key for them.
    found += [f"attention_bias={text['attention_bias']}"] if not biased and text.get("attention_bias") else []
    switches = {"qkv_bias": biased, "use_qkv_bias": biased, "use_qk_norm": qk_norm, "qk_layernorm": qk_norm}
    found += [f"{key}={text[key]}" for key, value in switches.items() if text.get(key) not in (None, value)]
    for key, neutral in _UNREAD.items():
        value = text.get(key)
        if value is not None and value not in neutral:
            found.append(f"{key}={value!r}")
    heads, width = text.get("num_attention_heads"), text.get("hidden_size")
    usual = text.get("head_dim") or (width / heads if isinstance(width, int) and isinstance(heads, int) and heads else None)
    # Two other families have a key for the scale of attention; only the decoder's own scale is supported.
    for key, value in (("attention_multiplier", usual and usual**-0.5), ("query_pre_attn_scalar", usual)):
        if text.get(key) is not None and text[key] != value:
            found.append(f"{key}={text[key]!r}")
    if isinstance(text.get("no_rope_layers"), list) and 0 in text["no_rope_layers"]:
        found.append("no_rope_layers with layers without rotary positions")
    if any(source.get(key) or text.get(key) for key in _QUANTISED):
        found.append("quantization_config (load the unquantised checkpoint)")
    kinds = set(text.get("layer_types") or ()) - {"full_attention"}
    window = text.get("sliding_window")
    # Qwen's window is off unless `use_sliding_window` is set, and then starts at layer `max_window_layers`. Llama's is on if present.
    windowed = window is not None and text.get("use_sliding_window", architecture == "LlamaForCausalLM")
    if kinds:
        found.append(f"layer_types with {', '.join(sorted(map(str, kinds)))}")
    elif windowed and architecture == "LlamaForCausalLM":
        found.append(f"sliding_window={window}")
    elif windowed and not text.get("layer_types") and text["max_window_layers"] < text.get("num_hidden_layers", 0):
        found.append(f"use_sliding_window=True from layer {text['max_window_layers']} on")
    if found:
        raise ValueError(f"{where}: {'; '.join(found)} is not supported; {SUPPORTED}.")


# Keys of `rope_parameters` and `rope_scaling` that are read. Other keys belong to rope types that the decoder does not support.
_ROPE_KEYS = {"rope_type", "rope_theta", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
              "mrope_section", "partial_rotary_factor"}  # fmt: skip


def _rope_group(stated: dict, where: str) -> dict[str, Any]:
    """Merges `rope_parameters` and `rope_scaling` into one group; the older key `type` becomes `rope_type`.

    Raises:
      ValueError: if the two contradict each other, or hold a key that is not supported.
    """
    groups = []
    for name in ("rope_parameters", "rope_scaling"):
        group = {key: value for key, value in _group(stated, name, where).items() if value is not None}
        old = group.pop("type", None)
        if old is not None:
            group.setdefault("rope_type", old)
        unknown = sorted(str(key) for key in group if key not in _ROPE_KEYS)
        if unknown and group.get("rope_type", "default") in ("default", "llama3", "mrope"):  # `_rope` refuses other types
            raise ValueError(f"{where}: {name} with {', '.join(unknown)} is not supported; {SUPPORTED}.")
        groups.append(group)
    new, old = groups
    if new.get("rope_type") == "default" and old.get("rope_type", "default") != "default":
        del new["rope_type"]  # transformers 5 writes "default" if a published file had no `rope_parameters`
    for key in new.keys() & old.keys():
        if new[key] != old[key]:
            raise ValueError(
                f"{where}: rope_parameters has {key}={new[key]!r} but rope_scaling has {key}={old[key]!r}: remove one of them."
            )
    return new | old


def _rope(architecture: str, stated: dict, defaults: dict, head_dim: int, where: str) -> dict[str, Any]:
    """`rope_theta`, `rope_scaling` and, for a vision-language model, `mrope_sections`."""
    rope = _rope_group(stated, where)
    kind = rope.get("rope_type", "default")
    multimodal = architecture == VISION_LANGUAGE
    if kind not in ("default", "llama3") and not (multimodal and kind == "mrope"):
        raise ValueError(f"{where}: rope type {kind!r} is not supported; {SUPPORTED}.")
    if kind != "llama3" and rope.get("factor", 1) != 1:
        raise ValueError(f"{where}: a rope factor of {rope['factor']} with rope type {kind!r} is not supported; {SUPPORTED}.")
    partial = rope.get("partial_rotary_factor", stated.get("partial_rotary_factor"))
    if partial not in (None, 1):
        raise ValueError(f"{where}: partial_rotary_factor={partial} is not supported; {SUPPORTED}.")
    for place in (stated, defaults):  # a base that the file states, or else the architecture's default
        if place.get("rope_theta") is not None:
            rope.setdefault("rope_theta", place["rope_theta"])
    fields = {"rope_theta": _number(rope, "rope_theta", where)}
    if kind == "llama3":
        for key in ("original_max_position_embeddings", "max_position_embeddings"):
            length = stated.get(key) or defaults.get(key)
            if length is not None:
                rope.setdefault("original_max_position_embeddings", length)
        fields["rope_scaling"] = RopeScaling(
            factor=_number(rope, "factor", where),
            low_frequency_factor=_number(rope, "low_freq_factor", where),
            high_frequency_factor=_number(rope, "high_freq_factor", where),
            original_length=_size(rope, "original_max_position_embeddings", where),
        )
        if fields["rope_scaling"].high_frequency_factor <= fields["rope_scaling"].low_frequency_factor:
            raise ValueError(
                f"{where}: high_freq_factor={fields['rope_scaling'].high_frequency_factor} must be greater than "
                f"low_freq_factor={fields['rope_scaling'].low_frequency_factor}."
            )
    if multimodal:
        sections = rope.get("mrope_section")
        whole = isinstance(sections, list) and all(type(part) is int and part >= 0 for part in sections)
        if not whole or len(sections) != 3 or sum(sections) * 2 != head_dim:
            raise ValueError(
                f"{where}: mrope_section={sections} must be three whole numbers that add up to head_dim / 2 = {head_dim // 2}."
            )
        fields["mrope_sections"] = tuple(sections)
    return fields


def config_json(config: DecoderConfig, *, dtype: str, max_length: int, special: dict[str, int | None]) -> dict[str, Any]:
    """Makes a `config.json` for a decoder that was not loaded from a checkpoint, of the architecture that matches its switches.

    Args:
      config: the decoder's config.
      dtype: dtype that the tensors are written in: "float32", "bfloat16" or "float16".
      max_length: the value of `max_position_embeddings`, in tokens.
      special: `bos_token_id`, `eos_token_id` and `pad_token_id`.

    Raises:
      ValueError: if no supported text architecture has these switches.
    """
    if getattr(config, "mrope_sections", None):
        raise ValueError("to save a vision-language model, give source_folder, the folder that it was loaded from.")
    fits = [name for name, a in ARCHITECTURES.items() if (a.qkv_bias, a.qk_norm) == (config.qkv_bias, config.qk_norm)]
    if not fits:
        raise ValueError(f"no supported architecture has both qkv_bias={config.qkv_bias} and qk_norm={config.qk_norm}; {SUPPORTED}.")
    if fits[0] == "LlamaForCausalLM" and config.embed_dim % config.num_heads:
        raise ValueError(f"LlamaForCausalLM needs embed_dim={config.embed_dim} to be a multiple of num_heads={config.num_heads}.")
    rope = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.rope_scaling is not None:
        s = config.rope_scaling
        rope |= {
            "rope_type": "llama3",
            "factor": s.factor,
            "low_freq_factor": s.low_frequency_factor,
            "high_freq_factor": s.high_frequency_factor,
            "original_max_position_embeddings": s.original_length,
        }
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
    """Reads a JSON object from a file; raises ValueError if the file holds anything else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{str(file)!r} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{str(file)!r} must hold a JSON object.")
    return content


def _absent(values: dict, key: str, where: str) -> bool:
    if key not in values:
        raise ValueError(f"{where} has no key {key}.")
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
