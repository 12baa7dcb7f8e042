"""The decoders of a run: their shapes, their initial weights, and the frozen base under adapters."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
from jax.sharding import AbstractMesh

from stepreward import parallel
from stepreward.models import decoder, presets
from stepreward.models.adapters import LoraConfig, join, split_adapters
from stepreward.models.decoder import DecoderConfig
from stepreward.models.vision import vision_config
from stepreward.training import streams


@dataclasses.dataclass(frozen=True)
class Backbone:
    """Everything that a model's passes need, except its trained parameters.

    Attributes:
      graphdef: the decoder's graph.
      config: the decoder's config.
      base: the frozen weights, if the trained parameters are adapters; else None.
    """

    graphdef: Any
    config: DecoderConfig
    base: Any = None

    def join(self, params):
        """Returns the parameters in the form that model functions take: with `base`, if there is one."""
        return join(self.base, params)

    def reads(self, batch):
        """Returns a batch without images if this model has no vision tower; image placeholders are then ordinary tokens."""
        return batch if self.config.vision is not None else batch.replace(vision=None)


def bidirectional(model: Backbone) -> Backbone:
    """Returns the same model with attention to all tokens of a segment, the later ones included; its parameters are the same."""
    config = dataclasses.replace(model.config, causal=False)
    return dataclasses.replace(model, graphdef=decoder.graph(config), config=config)


CHECKPOINT = "checkpoint"  # the preset whose shape is read from the folder in model.path


def check(c) -> None:
    """Raises ValueError if the groups `model` or `lora`, or the keys of the PRM's model, have invalid values."""
    m = c.model
    lora_config(c)
    named = [("model", m.preset, m.path)] + ([("prm", c.prm.preset, c.prm.path)] if c.prm.preset or c.prm.path else [])
    for group, preset, path in named:
        if preset == CHECKPOINT or (group == "prm" and not preset):
            if not path:
                raise ValueError(f"{group}.preset={preset!r} takes its shape from a model folder: set {group}.path.")
        else:
            presets.check_known(f"{group}.preset", preset, (*presets.PRESETS, CHECKPOINT))
    presets.dtype(m.compute_dtype), presets.dtype(m.param_dtype, "param"), presets.dtype(m.moment_dtype, "moment")
    presets.check_known("model.remat", m.remat, decoder.REMAT)
    if len(named) == 2 and c.prm.resync:
        raise ValueError(
            "prm.resync copies the policy's parameters into the PRM, but prm.preset and prm.path name another model: set prm.resync=False."
        )


def model_config(c, mesh, vocab_size: int) -> DecoderConfig:
    """Returns the decoder config of the policy.

    Args:
      mesh: the run's mesh.
      vocab_size: the tokenizer's vocabulary size, for a tiny preset.

    Raises:
      FileNotFoundError: there is no model folder at model.path.
      ValueError: the folder's shape differs from that of the preset.
    """
    return _shape(c.model.preset, find_model(c.model.path, c.model.download), c, mesh, vocab_size)


def find_model(path: str, download: bool):
    """Returns the folder of a Hugging Face model; None for an empty path, which means random weights.

    Raises:
      FileNotFoundError: there is no such folder, and the hub's cache does not have the model.
    """
    if not path:
        return None
    from stepreward.models import hugging_face

    try:
        return hugging_face.find_folder(path, allow_download=download)
    except FileNotFoundError as error:
        hint = "; set --config.model.path=FOLDER, or --config.model.download=True to download the model from the hub."
        hint = hint if "local cache" in str(error) and not download else ""
        raise FileNotFoundError(f"model.path: {str(error).rstrip('.')}{hint}") from None


def _spread(mesh):
    """Returns the mesh; None if it consists of jax's default device alone."""
    return mesh if mesh.size > 1 or isinstance(mesh, AbstractMesh) or mesh.devices.flat[0] != jax.devices()[0] else None


def _shape(preset: str, folder, c, mesh, vocab_size: int) -> DecoderConfig:
    m = c.model
    settings = dict(remat=m.remat, attention=m.attention, packed_rows=c.train.pack_rows, mesh=_spread(mesh))
    if folder is None:
        return presets.decoder_config(preset, vocab_size=vocab_size, compute_dtype=m.compute_dtype, param_dtype=m.param_dtype, **settings)
    from stepreward.models import hugging_face

    dtypes = dict(compute_dtype=presets.dtype(m.compute_dtype), param_dtype=presets.dtype(m.param_dtype, "param"))
    hub = hugging_face.read_config(folder)
    if "mrope_sections" in hub.fields:
        settings["vision"] = vision_config(hub.source, str(folder))
    found = hub.decoder(scan_layers=True, **dtypes, **settings)
    if preset in presets.PUBLISHED:
        stated = presets.PRESETS[preset]
        for name in ("num_layers", "embed_dim", "num_heads", "vocab_size"):
            if getattr(found, name) != getattr(stated, name):
                raise ValueError(
                    f"model.path={m.path!r} has {name}={getattr(found, name)}, but model.preset={preset!r} has {getattr(stated, name)}: "
                    "set the path of that model, or --config.model.preset=checkpoint to use the folder's shape."
                )
    return found


def lora_config(c) -> LoraConfig | None:
    """Returns the settings of the adapters; None if lora.rank is 0."""
    lora = c.lora
    return LoraConfig(lora.rank, lora.alpha, tuple(lora.targets), lora.dropout) if lora.rank else None


def initial_model(c, parts) -> tuple[Backbone, Any]:
    """Returns the model that a run starts from, and the parameters that its warm start trains, placed on the mesh."""
    config = parts.model_config
    params = _weights(find_model(c.model.path, c.model.download), config, streams.device(jax.random.key(c.seed), "policy_weights"), parts)
    model = Backbone(parts.graphdef, config)
    return adapted(c, model, params) if c.lora.rank and c.lora.sft else (model, params)


def _weights(folder, config: DecoderConfig, key: jax.Array, parts):
    """Returns initial weights. Even on one device they are placed on the mesh; otherwise an update would be compiled twice."""
    if parts.abstract:
        params = decoder.abstract_params(config)
    elif folder is None:
        params = decoder.build(config, key)[1]
    else:
        from stepreward.models import hugging_face

        params = hugging_face.load_params(folder, config, mesh=config.mesh)
    return parallel.place_parameters(params, parts.mesh)


def adapted(c, model: Backbone, params) -> tuple[Backbone, Any]:
    """Freezes the model's weights, in the compute dtype; returns the new model and the parameters of new adapters."""
    config = dataclasses.replace(model.config, lora=lora_config(c))
    base = parallel.compute(jax.jit(partial(decoder.in_compute_dtype, config)), params, mesh=config.mesh)
    adapters = lambda key: split_adapters(decoder.initial_params(config, key))[1]
    key = streams.device(jax.random.key(c.seed), "adapters")
    shapes = jax.eval_shape(adapters, key)
    model = Backbone(decoder.graph(config), config, base)
    if parallel.is_abstract(base):
        return model, parallel.place_parameters(shapes, config.mesh)
    shardings = None if config.mesh is None else parallel.parameter_sharding(shapes, config.mesh)
    return model, jax.jit(adapters, out_shardings=shardings)(key)


def prm_model(c, parts, model: Backbone, params) -> tuple[Backbone, Any]:
    """Returns the PRM's model and initial parameters: those of the policy, unless the config names another model."""
    if not (c.prm.preset or c.prm.path):
        return model, params
    folder = find_model(c.prm.path, c.model.download)
    config = _shape(c.prm.preset, folder, c, parts.mesh, parts.model_config.vocab_size)
    own = Backbone(decoder.graph(config), config)
    params = _weights(folder, config, streams.device(jax.random.key(c.seed), "prm_weights"), parts)
    return adapted(c, own, params) if c.lora.rank else (own, params)
