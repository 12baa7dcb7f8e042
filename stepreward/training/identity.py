"""Short digests of the inputs that are not in a run's config: model folders, the environment's data, and the texts of prompts.

A digest depends only on content, not on paths or modification times. Large files are sampled: a few blocks of every tensor and of every
data file are read. This detects another training run, version or size in milliseconds, but may miss an edit of a few bytes in a large file.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from stepreward.rollout.reference import spoken
from stepreward.training import backbones, frozen
from stepreward.training.mixture import views

_DIGITS = 16
_WHOLE = 1 << 16  # bytes; files up to this size are read whole
_BLOCK = 1 << 12
_READ_FILES = 2000  # number of files in a data folder that are sampled; of the others, only the size counts
_TOKENIZER = ("tokenizer", "special_tokens", "added_tokens", "chat_template", "additional_chat_templates", "vocab", "merges",
              "preprocessor_config")  # fmt: skip
# Fields of JSON files that say where a file was made, not what it means.
_NOT_CONTENT = ("name_or_path", "transformers_version", "_name_or_path", "torch_dtype")

# The first stage whose output each digest decides.
DECIDED_FROM = {
    "model.path tokenizer": "sft", "model.path weights": "sft", "environment.data content": "sft", "environment.options content": "sft",
    "mixture.environments content": "sft", "mixture.transfer content": "train",
    "prompt words": "sft", "prm.path weights": "train", f"{frozen.TRAINED} weights": "train", f"{frozen.START} weights": "train",
}  # fmt: skip


def of(c, parts=None) -> dict[str, Any]:
    """Computes the digests of everything outside the config that affects a run's output.

    Args:
      c: the config.
      parts: the run's `setup.Parts`; None leaves out the texts of prompts, and frozen policies.

    Returns:
      Digests by name, and for each of `decisions.PATHS` a value that does not depend on the path; plain JSON values.
    """
    c = getattr(c, "untracked", c)
    found: dict[str, Any] = {}
    for group in ("model", "prm"):
        folder = backbones.find_model(c[group].path, c.model.download)
        if folder is not None:
            found |= {f"{group}.path": "(by content)", f"{group}.path weights": weights(Path(folder))}
            found |= {"model.path tokenizer": tokenizer(Path(folder))} if group == "model" else {}
    if parts is not None and c.get("frozen_pair") and c.frozen_pair.trained:
        for key, policy in zip((frozen.TRAINED, frozen.START), frozen.pair(c)):
            found |= {key: "(by content)", f"{key} weights": policy.digest() if policy.is_run else weights(policy.folder)}
    found |= of_environment(c)
    if mixture := {name: facts for name, view in views(c).items() if name and (facts := of_environment(view))}:
        found["mixture.environments content"] = mixture
    if (group := c.get("mixture")) is not None and group.transfer:
        found |= {"mixture.transfer": "(by content)", "mixture.transfer content": data(group.transfer)}
    if parts is not None:
        found["prompt words"] = said(parts)
    return found


def of_environment(c) -> dict[str, Any]:
    """Computes the digests of the environment's data, which are part of `of`."""
    c, found = getattr(c, "untracked", c), {}
    if c.environment.data:
        found |= {"environment.data": "(by content)", "environment.data content": data(c.environment.data)}
    options = {k: v for k, v in c.environment.options.to_dict().items() if isinstance(v, str) and os.sep in v and Path(v).exists()}
    if options:
        found["environment.options content"] = {name: data(value) for name, value in sorted(options.items())}
    return found


# --- Digests ---


def tokenizer(folder: Path) -> str:
    """Digest of a model folder's tokenizer and chat template: the files that determine how text becomes tokens."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.relative_to(folder).parts[0].startswith(_TOKENIZER)]
    return _digest(part for path in sorted(files) for part in (path.relative_to(folder).as_posix().encode(), _content(path)))


def weights(folder: Path) -> str:
    """Digest of a model folder's shape and weights: `config.json`, and a sample of each tensor, or of a GGUF file."""
    files = sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".gguf"))
    config = [_content(folder / "config.json")] if (folder / "config.json").is_file() else []
    return _digest([*config, *(part for path in files for part in (_sample if path.suffix == ".gguf" else _tensors)(path))])


def data(path: str | Path) -> str:
    """Digest of a data file, or of the names, sizes and samples of a folder's files."""
    path = Path(path).expanduser()
    if not path.is_dir():
        return _digest(_sample(path) if path.is_file() else [b"absent"])
    files = sorted(p for p in path.rglob("*") if p.is_file())
    parts = []
    for number, file in enumerate(files):
        parts += [file.relative_to(path).as_posix().encode("utf-8", "surrogatepass")]
        parts += _sample(file) if number < _READ_FILES else [str(file.stat().st_size).encode()]
    return _digest(parts)


def said(parts) -> str:
    """Digest of the first demonstrations' tokens, which depend on prompt, system message, chat template and tokenizer."""
    if parts.parts_of:
        return _digest(part.encode() for name, each in parts.parts_of.items() for part in (name, said(each)))
    prompt, chat, tokens = parts.prompt, parts.chat, []
    for record in parts.demonstrations[:4]:
        history: list = []
        for index in range(len(record.actions[:3])):
            view, answer = record.view(index), record.answer(prompt, index)
            for shown in (prompt.first(view), prompt.later(view), prompt.window(view, history)):
                tokens += [chat.codec.encode(shown), chat.answer(answer)]
            history.append((view, answer))
            if getattr(prompt, "reference", None) is not None:
                tokens.append(spoken(prompt, chat, record.actions[index]).tokens)
    tokens += [np.asarray(ids) for ids in _frame(chat)]
    return _digest(np.asarray(ids, np.int32).tobytes() for ids in tokens)


def _frame(chat) -> list:
    """Returns the tokens of a first and a later user turn with the same text, and the tokens that end an answer."""
    turns = [chat.user_turn("a", first=first) for first in (True, False)]
    return [*turns, sorted(chat.stop_ids)]


def _tensors(path: Path) -> list[bytes]:
    """Reads the header of a safetensors file and a few blocks of each tensor."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > size:  # the file is damaged; the loader reports it
            return _sample(path)
        header = file.read(length)
        parts = [header]
        try:
            offsets = [entry["data_offsets"] for name, entry in json.loads(header).items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError):
            return _sample(path)
        for first, last in sorted(map(tuple, offsets)):
            for place in (first, first + (last - first) // 3, first + 2 * (last - first) // 3, max(first, last - 256)):
                file.seek(8 + length + place)
                parts.append(file.read(min(256, last - place)))
    return parts


def _sample(path: Path) -> list[bytes]:
    """Reads a small file whole; of a large one, its size and a few blocks."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        if size <= _WHOLE:
            return [file.read()]
        parts = [str(size).encode()]
        for place in np.linspace(0, size - _BLOCK, 8).astype(int):
            file.seek(int(place))
            parts.append(file.read(_BLOCK))
    return parts


def _content(path: Path) -> bytes:
    """Reads a small file; JSON is normalised, without the fields that say where it was made."""
    content = path.read_bytes()
    if path.suffix != ".json":
        return content
    try:
        found = json.loads(content)
    except ValueError:
        return content
    if isinstance(found, dict):
        found = {name: value for name, value in found.items() if name not in _NOT_CONTENT}
    return json.dumps(found, sort_keys=True).encode()


def _digest(parts: Iterable[bytes]) -> str:
    """Returns the first hex digits of the SHA-256 of byte strings, each preceded by its length."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:_DIGITS]
