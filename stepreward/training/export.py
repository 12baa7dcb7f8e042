"""Exports a run's model as a Hugging Face folder."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from functools import partial
from pathlib import Path
from typing import Any

import jax

from stepreward.config import EXPORTED, shareable
from stepreward.errors import UserError
from stepreward.metrics import METRICS_FILE, read_metrics, write_atomically
from stepreward.models.adapters import merge_adapters, rounding_loss
from stepreward.models.chat_template import with_defaults
from stepreward.models.presets import dtype as dtype_of
from stepreward.rollout.template_chat import DATE, TemplateChat
from stepreward.training import backbones, model_card
from stepreward.training.evaluate import Played, load_checkpoint

_log = logging.getLogger(__name__)
_BASE = "base"  # the subfolder for the weights on which exported adapters were trained
_LOST, _NOISE = 0.05, 0.5  # shares of the adapters' change that rounding may remove or add without a warning


def export_workdir(
    workdir: str | Path,
    out: str | Path,
    step: int | None,
    which: str,
    adapters: bool,
    dtype: str,
    push: str = "",
    private: bool = False,
) -> int:
    """Writes a checkpoint's model to the folder `out`, with its tokenizer, chat template, sampling settings and model card.

    The template has the run's system message, thinking mode and date as defaults, and `generation_config.json` the run's temperature,
    truncation and end tokens. A program that loads the folder with default settings therefore prompts and samples as the run did.

    Args:
      step: the tick of the checkpoint; None takes the latest.
      which: "policy", "prm" or "initial".
      adapters: True writes only the adapters, in PEFT's format, and their base weights to `out/base` unless those are published. False
        writes a whole model, with adapters merged.
      dtype: dtype of the trained tensors; "" keeps the parameters' dtype. Merged weights are added in float32 and rounded once; a warning
        is logged if rounding removes a large part of the update.
      push: a repository of the Hugging Face hub, OWNER/NAME, to which the folder is uploaded; "" uploads nothing.
      private: whether that repository is private if it is made.

    Returns:
      The exit code: 0.

    Raises:
      UserError, FileNotFoundError, ValueError: the workdir, checkpoint, dtype or folder `out` cannot be used, or the upload failed.
    """
    from stepreward.models.hugging_face_save import save_pretrained

    if push:
        model_card.check_repo(push)
    elif private:
        raise UserError("--private is for a repository of the hub: give --push=OWNER/NAME too.")
    found = load_checkpoint(workdir, step, which)
    found.parts.collector.pool.close()  # an export plays nothing
    c, kind = found.config, dtype_of(dtype) if dtype else None
    source = backbones.find_model(found.path, c.model.download)
    words = backbones.find_model(c.model.path, c.model.download) or Path(workdir) / "tokenizer"
    save = partial(
        save_pretrained, source_folder=source, tokenizer_folder=words, chat_template=_chat_template(found), generation=_sampling(found)
    )
    if adapters:
        where = _export_adapters(found, out, source, words, kind, save)
    else:
        params = found.params if found.model.base is None else _merged(found, kind)
        where = str(save(out, found.model.config, params, dtype=kind))
        if jax.process_index() == 0:
            write_facts(out, found)
    if jax.process_index() == 0:
        metrics = Path(workdir) / METRICS_FILE
        model_card.write_card(Path(out), found, read_metrics(metrics) if metrics.is_file() else [], which=which, adapters=adapters)
        print(f"wrote {where} ({which} of checkpoint {found.step})")
        if push:
            print(f"pushed to {model_card.push(Path(out), push, private)}")
    return 0


def write_facts(folder: str | Path, found: Played, **more: Any) -> None:
    """Writes `stepreward.json`: what `stepreward play` and `stepreward.load` need beside the model (docs/play.md).

    Args:
      folder: the exported folder.
      found: the exported model.
      **more: further plain values: `stated`, the model's measured success, and `examples`, seeds of tasks that show its credit.
    """
    facts = {"config": shareable(found.config), "tick": found.step, "counters": found.counters, **more}
    write_atomically(Path(folder) / EXPORTED, json.dumps(facts, indent=1) + "\n")


def _export_adapters(found: Played, out, source: Path | None, words: Path, dtype, save) -> str:
    from stepreward.models.hugging_face_adapters import save_adapters
    from stepreward.models.hugging_face_save import copy_tokenizer, holds

    model = found.model
    if model.base is None:
        reason = "lora.rank=0" if not found.config.lora.rank else "its warm start trains whole weights"
        raise UserError(f"checkpoint {found.step} has no adapters ({reason}): leave out --adapters")
    plain = dataclasses.replace(model.config, lora=None)
    published = source is not None and holds(source, plain, model.base)
    name, revision = _published(found.path, source) if published else (os.path.abspath(os.path.join(out, _BASE)), None)

    def beside(folder: Path | None) -> None:
        if not published:
            save((folder or Path(out)) / _BASE, plain, model.base)
        if folder is not None:
            copy_tokenizer(folder, words, _chat_template(found), pictures=plain.vision is not None)

    written = save_adapters(out, model.config, found.params, name, revision=revision, dtype=dtype, beside=beside)
    return f"{written}, adapters on {name if published else str(written / _BASE)}"


def _published(path: str, source: Path) -> tuple[str, str | None]:
    """Returns the base's name for an adapter folder (a hub name or an absolute path), and its revision if it is from the hub."""
    if Path(path).is_dir():
        return os.path.abspath(path), None
    return path, source.name if source.parent.name == "snapshots" else None


def _merged(found: Played, dtype) -> Any:
    """Returns the base with merged adapters, rounded once."""
    model = found.model
    kind = dtype or model.config.compute_dtype

    @jax.jit
    def merge(base, adapters):
        whole = merge_adapters(base, adapters, model.config.lora)
        return jax.tree.map(lambda x, was: x.astype(dtype or was.dtype), whole, base), *rounding_loss(base, whole, kind)

    whole, share, noise = merge(model.base, found.params)
    if (share < 1 - _LOST or noise > _NOISE) and jax.process_index() == 0:
        _log.warning(
            "rounded to %s, the merged weights keep %.0f %% of the adapters' change, with rounding errors of %.0f %% of its size: "
            "export with --dtype=float32, or export only the adapters with --adapters",
            jax.numpy.dtype(kind).name,
            100 * share,
            100 * noise,
        )
    return whole


def _chat_template(found: Played) -> str | None:
    """Returns the chat template with the run's settings as defaults; None if the tokenizer's own template needs no change."""
    chat, settings = found.parts.chat, found.config.model
    if not isinstance(chat, TemplateChat):
        return None
    template = chat.codec.template
    told = with_defaults(template, system=settings.system or None, thinking=settings.thinking, date=DATE)
    return None if told == template else told


def _sampling(found: Played) -> dict[str, Any]:
    """Returns the run's sampling settings, under the keys of `generation_config.json`."""
    rollout, chat = found.config.rollout, found.parts.chat
    draws = {"do_sample": True, "temperature": rollout.temperature, "top_k": rollout.top_k, "top_p": rollout.top_p}
    ends = [int(token) for token in chat.stop_ids]
    return {
        **(draws if rollout.temperature else {"do_sample": False}),
        "eos_token_id": ends if len(ends) > 1 else ends[0],
        "pad_token_id": int(chat.codec.pad_id),
    }
