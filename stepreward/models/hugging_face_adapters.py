"""Saves and loads low-rank adapters as a folder of the `peft` package: `adapter_config.json` and `adapter_model.safetensors`.

For a target W, stored as out × in, peft stores A `[r, in]` and B `[out, r]` and adds (alpha / r) · B·A to W. Ours are
`<target>_lora_a` `[in…, r]` and `<target>_lora_b` `[r, out…]`; their rules are derived from the target's rule.
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
# Settings of an adapter folder that change the computation, with the only values that we support.
_PLAIN = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    # Other initialisations change the base weights before the adapters are added.
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
      folder: the folder to create; it must not exist.
      config: the decoder's config, with `lora`.
      adapters: the tree of `…_lora_a` and `…_lora_b` parameters; layers may be listed or stacked.
      base_name: folder or hub name of the base model, written to the file as given.
      revision: commit of the base model on the hub, or None.
      dtype: dtype of the tensors, fp32, bf16 or fp16; None keeps each parameter's own.
      beside: called with the new folder before it is renamed, to write further files into it. Every process calls it; those that
        do not write pass None.

    Returns:
      The folder.

    Raises:
      ValueError: if the folder exists, or a leaf is not an adapter.
      OSError: if the folder cannot be written.
    """
    lora = config.lora
    prefix, modules = "base_model.model.model.", [MODULES[target] for target in MODULES if target in lora.targets]
    inner = prefix
    if getattr(config, "mrope_sections", None):
        # In memory, transformers nests the text part of a vision-language model one module deeper than in its files. The tower has
        # modules of the same names, which must not become targets, so targets are named in full.
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
    """Reads `adapter_config.json` of an adapter folder.

    Raises:
      FileNotFoundError: if there is no such folder, or it holds no `adapter_config.json`.
      ValueError: if it describes anything but plain LoRA on the decoder's projections.
    """
    file = Path(folder) / CONFIG
    if not file.is_file():
        raise FileNotFoundError(f"{str(folder)!r} is not an adapter folder: it holds no {CONFIG}")
    source = read_json(file)
    wrong = [f"{key}={source.get(key)!r}" for key, plain in _PLAIN.items() if key in source and source[key] not in plain]
    modules = source.get("target_modules")
    if not isinstance(modules, list):
        wrong.append(f"target_modules={modules!r} (only a list of {', '.join(MODULES.values())} is read)")
    else:
        names = {str(module).split(".")[-1] for module in modules}
        wrong += [f"target module {name!r}" for name in sorted(names - set(MODULES.values()))]
    if wrong:
        raise ValueError(f"{str(file)!r}: {'; '.join(wrong)} is not supported; only plain LoRA on the decoder's projections is.")
    if not isinstance(source.get("r"), int) or source["r"] < 1 or not isinstance(source.get("lora_alpha"), (int, float)):
        raise ValueError(
            f"{str(file)!r} has r={source.get('r')!r} and lora_alpha={source.get('lora_alpha')!r}: r must be a positive whole number and "
            "lora_alpha a number."
        )
    targets = tuple(target for target, module in MODULES.items() if module in names)
    dropout = float(source.get("lora_dropout") or 0.0)
    return LoraConfig(rank=source["r"], alpha=float(source["lora_alpha"]), targets=targets, dropout=dropout)


def load_adapters(folder, config: DecoderConfig, *, mesh: Mesh | None = None, dtype=None):
    """Loads the adapters of a folder.

    Args:
      folder: the adapter folder, on this machine.
      config: the decoder's config, with `lora` as returned by `read_adapter_config(folder)`.
      mesh, dtype: as in `load_params`.

    Returns:
      Adapters with the structure, shapes and dtypes of `split_adapters(decoder.build(config, …)[1])[1]`.

    Raises:
      FileNotFoundError: if the folder holds no adapters.
      ValueError: if the folder's rank, alpha or targets differ from the config's; if a file is damaged; or if an adapter is missing,
        has the wrong shape or belongs to no parameter.
    """
    there, here = read_adapter_config(folder), config.lora
    if here is None or (there.rank, there.alpha, set(there.targets)) != (here.rank, here.alpha, set(here.targets)):
        raise ValueError(f"{str(folder)!r} holds adapters with {there}, but the model has {here}: use the folder's settings.")
    abstract = split_adapters(abstract_params(config))[1]
    checkpoint = Checkpoint(folder, SINGLE)
    found = match(abstract, ADAPTER_TENSORS)
    left = sorted(set(checkpoint.shapes) - check(checkpoint, found))
    if left:
        raise ValueError(f"{str(folder)!r} holds an adapter for a parameter that this model does not have: {left[0]}.")
    return fill(checkpoint, abstract, found, mesh=mesh or config.mesh, dtype=dtype)
