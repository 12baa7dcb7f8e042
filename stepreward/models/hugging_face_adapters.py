"""Saves and loads low-rank adapters as a folder of the `peft` package: `adapter_config.json` and `adapter_model.safetensors`.

For a target W with the file's axes out × in, peft keeps A `[r, in]` and B `[out, r]` and adds (alpha / r) · B·A to W. Ours are
`<target>_lora_a` `[in…, r]` and `<target>_lora_b` `[r, out…]` beside the target; their rules follow from the target's own.
"""

from __future__ import annotations

from pathlib import Path

from jax.sharding import Mesh

from stepreward.models.adapters import LoraConfig, split_adapters
from stepreward.models.decoder import DecoderConfig, abstract_params
from stepreward.models.hugging_face import check, fill
from stepreward.models.hugging_face_config import read_json
from stepreward.models.hugging_face_save import new_folder, tensors_of, write_json
from stepreward.models.hugging_face_tensors import DECODER_TENSORS, Checkpoint, Rule, file_axes, match, write_safetensors

CONFIG, SINGLE = "adapter_config.json", "adapter_model.safetensors"
MODULES = {
    "query": "q_proj",
    "key": "k_proj",
    "value": "v_proj",
    "output": "o_proj",
    "gate": "gate_proj",
    "up": "up_proj",
    "down": "down_proj",
}
# Settings of an adapter folder that change the computation, and the only values of them that we do.
_PLAIN = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    # The others change the base weights before the adapters are added.
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva"),
    **dict.fromkeys(("rank_pattern", "alpha_pattern"), ({}, None)),
    **dict.fromkeys(("use_dora", "use_rslora", "use_qalora", "fan_in_fan_out", "lora_bias", "use_bdlora"), (False, None)),
    **dict.fromkeys(("modules_to_save", "layer_replication", "trainable_token_indices", "target_parameters"), ([], {}, None)),
    **dict.fromkeys(("alora_invocation_tokens", "velora_config", "monteclora_config", "arrow_config", "kasa_config"), (None,)),
}


def _rules() -> tuple[Rule, ...]:
    found = []
    for rule in DECODER_TENSORS:
        if rule.path.split("/")[-1] not in MODULES:
            continue
        out_axes, in_axes = (" ".join(axes) for axes in file_axes(rule.layout))
        name = "base_model.model." + rule.name.removesuffix(".weight")
        found.append(Rule(f"{rule.path}_lora_a", f"{name}.lora_A.weight", f"r ({in_axes}) -> {in_axes} r"))
        found.append(Rule(f"{rule.path}_lora_b", f"{name}.lora_B.weight", f"({out_axes}) r -> r {out_axes}"))
    return tuple(found)


ADAPTER_TENSORS = _rules()


def save_adapters(folder, config: DecoderConfig, adapters, base_name: str, *, revision: str | None = None, dtype=None, beside=None) -> Path:
    """Writes an adapter folder that `peft.PeftModel.from_pretrained(base, folder)` loads.

    Args:
      folder: what to make; it must not exist.
      config: the decoder, with `lora`.
      adapters: the tree of `…_lora_a` and `…_lora_b`; layers may be listed or stacked.
      base_name: folder or hub name of the base model, as it shall stand in the file.
      revision: which commit of a hub's model it is; None names none.
      dtype: type of the tensors, fp32, bf16 or fp16; None is that of each parameter.
      beside: called with the new folder, to write what else it holds. In a run of several processes each calls, with None where it
        does not write.

    Returns:
      The folder.

    Raises:
      ValueError: the folder exists, or a leaf is no adapter.
      OSError: the disk refuses.
    """
    lora = config.lora
    prefix, modules = "base_model.model.model.", [MODULES[target] for target in MODULES if target in lora.targets]
    inner = prefix
    if getattr(config, "mrope_sections", None):
        # In memory, a vision-language model keeps its text part one module deeper than its files say, and its tower has modules
        # of the same names, which must not be taken for targets.
        inner = prefix + "language_model."
        modules = [
            t.name.replace(prefix, "language_model.").removesuffix(".lora_A.weight")
            for t in tensors_of(adapters, ADAPTER_TENSORS)
            if t.name.endswith(".lora_A.weight")
        ]
    tensors = [t._replace(name=t.name.replace(prefix, inner, 1)) for t in tensors_of(adapters, ADAPTER_TENSORS, dtype=dtype)]
    description = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base_name),
        "revision": revision,
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": modules,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "use_rslora": False,
        "use_dora": False,
    }
    with new_folder(folder) as temporary:
        write_safetensors((temporary or Path()) / SINGLE, tensors, writer=temporary is not None)
        if temporary is not None:
            write_json(temporary / CONFIG, description)
        if beside is not None:
            beside(temporary)
    return Path(folder)


def read_adapter_config(folder) -> LoraConfig:
    """What `adapter_config.json` of an adapter folder says.

    Raises:
      FileNotFoundError: no such folder, or no `adapter_config.json` in it.
      ValueError: it is no plain LoRA on the decoder's projections, which is all that is read; the reason is named.
    """
    file = Path(folder) / CONFIG
    if not file.is_file():
        raise FileNotFoundError(f"{str(folder)!r} is not an adapter folder: it holds no {CONFIG}")
    source = read_json(file)
    wrong = [f"{key}={source.get(key)!r}" for key, plain in _PLAIN.items() if key in source and source[key] not in plain]
    modules = source.get("target_modules")
    if not isinstance(modules, list):
        wrong.append(f"target_modules={modules!r} (a list of {', '.join(MODULES.values())} is read)")
    else:
        names = {str(module).split(".")[-1] for module in modules}
        wrong += [f"target module {name!r}" for name in sorted(names - set(MODULES.values()))]
    if wrong:
        raise ValueError(f"{str(file)!r}: {'; '.join(wrong)} is not supported; plain LoRA on the projections is.")
    if not isinstance(source.get("r"), int) or source["r"] < 1 or not isinstance(source.get("lora_alpha"), (int, float)):
        raise ValueError(f"{str(file)!r} must give r, a positive whole number, and lora_alpha, a number.")
    targets = tuple(target for target, module in MODULES.items() if module in names)
    dropout = float(source.get("lora_dropout") or 0.0)
    return LoraConfig(rank=source["r"], alpha=float(source["lora_alpha"]), targets=targets, dropout=dropout)


def load_adapters(folder, config: DecoderConfig, *, mesh: Mesh | None = None, dtype=None):
    """Loads the adapters of a folder.

    Args:
      folder: the adapter folder, on this machine.
      config: the decoder, with `lora` as `read_adapter_config(folder)` says.
      mesh, dtype: as in `load_params`.

    Returns:
      What `split_adapters(decoder.build(config, …)[1])[1]` has: the same structure, shapes and types.

    Raises:
      FileNotFoundError: no adapters there.
      ValueError: the folder's rank, alpha or targets are others than the config's; a file is damaged; an adapter is missing, has
        another shape, or is left over.
    """
    there, here = read_adapter_config(folder), config.lora
    if here is None or (there.rank, there.alpha, set(there.targets)) != (here.rank, here.alpha, set(here.targets)):
        raise ValueError(f"{str(folder)!r} holds adapters of {there}, and the model's are {here}: take the folder's.")
    abstract = split_adapters(abstract_params(config))[1]
    checkpoint = Checkpoint(folder, SINGLE)
    found = match(abstract, ADAPTER_TENSORS)
    left = sorted(set(checkpoint.shapes) - check(checkpoint, found))
    if left:
        raise ValueError(f"{str(folder)!r} holds adapters that this model has no place for: {left[0]}.")
    return fill(checkpoint, abstract, found, mesh=mesh or config.mesh, dtype=dtype)
