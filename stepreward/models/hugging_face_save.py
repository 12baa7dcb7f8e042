"""Saves the decoder's parameters as a Hugging Face model folder that transformers and serving engines load.

The folder is written under a temporary name in the same parent and renamed when it is complete, so an interrupted run leaves no
partial model. Tensors are gathered and written one at a time. In a run of several processes, all must call, and process 0 writes.
"""

from __future__ import annotations

import contextlib
import functools
import json
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tokenizers
from jax.experimental import multihost_utils

from stepreward.models.chat_template import write_template
from stepreward.models.decoder import DecoderConfig
from stepreward.models.gguf_file import open_checkpoint
from stepreward.models.hugging_face import rules_of
from stepreward.models.hugging_face_config import config_json, read_config, read_json
from stepreward.models.hugging_face_tensors import (
    DTYPES,
    INDEX,
    NOT_PARAMETERS,
    SINGLE,
    Checkpoint,
    Layout,
    Rule,
    Tensor,
    match,
    write_safetensors,
)

# Files of a model folder besides its configuration and tensors: tokenizer, chat template, image processor.
COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
)
_NAMES = {np.dtype(d): name for d, name in zip(DTYPES.values(), ("float32", "float16", "bfloat16"))}
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


def save_pretrained(
    folder,
    config: DecoderConfig,
    params,
    *,
    source_folder=None,
    tokenizer_folder=None,
    max_shard_bytes: float = 5e9,
    dtype=None,
    max_length: int = 32_768,
    chat_template: str | None = None,
    generation: dict[str, Any] | None = None,
) -> Path:
    """Writes a model folder: `config.json`, `generation_config.json`, safetensors, and copies of the tokenizer's files.

    Args:
      folder: the folder to create; it must not exist.
      config: the decoder's config.
      params: the decoder's parameters, on any devices, without adapters (merge them, or save them with `save_adapters`).
      source_folder: the folder that the model was loaded from, readable by every process. It provides the configuration and the
        tensors that `params` lacks (such as a vision tower). None derives the configuration from `config`.
      tokenizer_folder: the folder whose tokenizer, chat template and processor are copied; None uses the source folder.
      max_shard_bytes: largest size of a file of tensors, in bytes; a single larger tensor gets a file of its own.
      dtype: dtype of the tensors, fp32, bf16 or fp16; None keeps each parameter's own.
      max_length: `max_position_embeddings` in tokens; ignored if there is a source folder.
      chat_template: replaces the tokenizer folder's template, see `chat_template.with_defaults`. None keeps it.
      generation: settings of `generation_config.json` besides the ids of special tokens. None keeps the source folder's.

    Returns:
      The folder.

    Raises:
      ValueError: if the folder exists, the source folder describes another model, or no architecture has the decoder's switches.
      FileNotFoundError: if the source or tokenizer folder does not exist.
      OSError: if the folder cannot be written.
    """
    if isinstance(params, tuple):
        raise ValueError("params is a pair (base, adapters): merge the adapters into the base, or save them alone with save_adapters.")
    source = None if source_folder is None else read_config(source_folder)
    beside = tokenizer_folder if tokenizer_folder is not None else source_folder
    if beside is not None and not Path(beside).is_dir():
        raise FileNotFoundError(f"no tokenizer folder {str(beside)!r}")
    checkpoint = None if source is None else open_checkpoint(source_folder)
    tensors = tensors_of(params, rules_of(config), dtype=dtype, shapes=checkpoint.shapes if checkpoint else None)
    written = _NAMES[max(tensors, key=lambda tensor: tensor.nbytes).dtype]
    if source is None:
        description = config_json(config, dtype=written, max_length=max_length, special=_special_tokens(beside))
    else:
        _check_same(config, source.fields, str(source_folder))
        description = _with_dtype(source.source, written)
        tensors += _carried(checkpoint, {tensor.name for tensor in tensors}, config)
    with new_folder(folder) as temporary:
        _write_shards(temporary, tensors, max_shard_bytes)
        if temporary is not None:
            write_json(temporary / "config.json", description)
            _write_generation(temporary, source_folder, description, generation)
            copy_tokenizer(temporary, beside, chat_template, pictures="vision_config" in description)
    return Path(folder)


@contextlib.contextmanager
def new_folder(folder) -> Iterator[Path | None]:
    """Yields a temporary folder that is renamed to `folder` if the block succeeds, and removed if it fails.

    All processes must enter the block; process 0 gets the folder, the others get None. If process 0 cannot write, all raise.

    Raises:
      ValueError: if the folder exists.
      OSError: if process 0 could not write.
    """
    folder = Path(folder)
    first = jax.process_index() == 0
    if not _as_first_says(not folder.exists()):
        raise ValueError(f"{str(folder)!r} already exists; give a new folder, or move the old one away.")
    temporary, failure = folder.parent / f".{folder.name}.{secrets.token_hex(4)}", None
    try:
        if first:
            with _caught() as making:
                temporary.mkdir(parents=True)
            failure = making.error
        _raise_on_all(failure, folder)
        with _caught() as writing:
            yield temporary if first else None
            if first:
                temporary.rename(folder)
        _raise_on_all(writing.error, folder)
    finally:
        if first:
            shutil.rmtree(temporary, ignore_errors=True)


class _caught(contextlib.AbstractContextManager):
    """Catches an OSError of its block and stores it in `error`."""

    error: OSError | None = None

    def __exit__(self, kind, error, trace):
        self.error = error if isinstance(error, OSError) else None
        return self.error is not None


def _raise_on_all(error: OSError | None, folder: Path) -> None:
    if not _as_first_says(error is None):
        raise error or OSError(f"process 0 could not write {str(folder)!r}; see the error of process 0.")


def _as_first_says(flag: bool) -> bool:
    """Process 0's flag, returned on every process."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.broadcast_one_to_all(np.int32(flag)))


def tensors_of(params, rules: tuple[Rule, ...], *, dtype=None, shapes: dict[str, tuple[int, ...]] | None = None) -> list[Tensor]:
    """The parameters of a tree as tensors to write, in the order of the layers.

    Args:
      params: the tree; layers may be listed or stacked.
      rules: the tensor of each parameter.
      dtype: dtype in the file; None keeps each parameter's own.
      shapes: shapes in the file by tensor name, if a source folder gives them; some cannot be derived from the parameters' shapes.

    Raises:
      ValueError: if a leaf has no rule, or its dtype is not fp32, fp16 or bf16.
    """
    tensors = []
    for leaf, parameter in zip(jax.tree.leaves(params), match(params, rules), strict=True):
        target = np.dtype(dtype or leaf.dtype)
        if target not in _NAMES:
            raise ValueError(f"{parameter.path} cannot be written as {target}; choose one of {', '.join(_NAMES.values())}.")
        for layer, name in enumerate(parameter.names):
            layout = Layout(parameter.layout, parameter.shape, (shapes or {}).get(name))
            settings = (parameter.layout, parameter.shape, layout.file, target.name)
            fetch = functools.partial(_fetch, leaf, layer if parameter.stacked else None, settings)
            tensors.append(Tensor(name, layout.file, target, fetch))
    return sorted(tensors, key=lambda tensor: [part.zfill(6) if part.isdigit() else part for part in tensor.name.split(".")])


def _fetch(array, layer: int | None, settings) -> np.ndarray:
    """Fetches one tensor to the host of every process."""
    array = _in_file_order(array, layer, *settings)
    if array.is_fully_addressable:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5))
def _in_file_order(array, layer, layout: str, shape, file, dtype: str):
    if layer is not None:
        array = jax.lax.dynamic_index_in_dim(array, layer, keepdims=False)
    return Layout(layout, shape, file).to_file(array).astype(dtype)


def _write_shards(folder: Path | None, tensors: list[Tensor], max_shard_bytes: float) -> None:
    """Writes the files and their index. All tensors are fetched even if a file cannot be written, because fetching is a collective."""
    shards: list[list[Tensor]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(t.nbytes for t in shards[-1]) + tensor.nbytes > max_shard_bytes:
            shards.append([])
        shards[-1].append(tensor)
    names = [SINGLE] if len(shards) == 1 else [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    failure = None
    for name, shard in zip(names, shards):
        with _caught() as writing:
            write_safetensors((folder or Path()) / name, shard, writer=folder is not None and failure is None)
        failure = failure or writing.error
    if failure is not None:
        raise failure
    if folder is not None and len(shards) > 1:
        write_json(
            folder / INDEX,
            {
                "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors)},
                "weight_map": {tensor.name: name for name, shard in zip(names, shards) for tensor in shard},
            },
        )


def _carried(checkpoint: Checkpoint, have: set[str], config: DecoderConfig) -> list[Tensor]:
    """The tensors of the source folder that are not in `have`, unchanged."""

    def fetch(name):  # process 0 reads these from the file; the others do nothing
        whole = tuple(slice(0, size) for size in checkpoint.shapes[name])
        return checkpoint.read(name, whole) if jax.process_index() == 0 else None

    drop = have | ({"lm_head.weight"} if config.tie_embeddings else set())
    names = [name for name in checkpoint.shapes if name not in drop and not NOT_PARAMETERS.search(name)]
    return [Tensor(n, checkpoint.shapes[n], checkpoint.dtypes[n], functools.partial(fetch, n)) for n in names]


def _with_dtype(description: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Sets the dtype of the tensors in a config.json, under the keys that it already has and in its text part too."""
    known = lambda part: {key: dtype for key in ("dtype", "torch_dtype") if key in part}
    changed = {**description, **(known(description) or {"dtype": dtype})}
    if "text_config" in changed:
        changed["text_config"] = changed["text_config"] | known(changed["text_config"])
    return changed


def _check_same(config: DecoderConfig, fields: dict[str, Any], where: str) -> None:
    other = {name: value for name, value in fields.items() if getattr(config, name, value) != value}
    if other:
        told = "; ".join(f"its {name} is {value}, but this model's is {getattr(config, name)}" for name, value in other.items())
        raise ValueError(f"source_folder {where!r} describes another model: {told}.")


def _write_generation(folder: Path, source, description: dict[str, Any], settings: dict[str, Any] | None) -> None:
    """Writes `generation_config.json`: the source's own, or `settings` with the source's ids of special tokens."""
    file = None if source is None else Path(source) / "generation_config.json"
    stated = read_json(file) if file is not None and file.is_file() else description
    special = {key: stated[key] for key in _SPECIAL if stated.get(key) is not None}
    write_json(
        folder / "generation_config.json", (stated if stated is not description else special) if settings is None else special | settings
    )


def copy_tokenizer(folder: Path, beside, chat_template: str | None = None, *, pictures: bool = True) -> None:
    """Copies the tokenizer, its chat template and, with `pictures`, the image processor from the folder `beside`, if it is given."""
    for name in COPIED if beside is not None else ():
        if not pictures and "processor" in name:
            continue
        if (Path(beside) / name).is_dir():
            shutil.copytree(Path(beside) / name, folder / name)
        elif (Path(beside) / name).is_file():
            shutil.copyfile(Path(beside) / name, folder / name)
    if chat_template is not None:
        write_template(folder, chat_template)


def holds(folder, config: DecoderConfig, params) -> bool:
    """Whether a model folder describes this decoder and holds exactly these values, in whatever dtype it stores them.

    Reads and compares one tensor at a time.
    """
    source, checkpoint = read_config(folder), open_checkpoint(folder)
    if any(getattr(config, name, value) != value for name, value in source.fields.items()):
        return False
    for tensor in tensors_of(params, rules_of(config), shapes=checkpoint.shapes):
        if checkpoint.shapes.get(tensor.name) != tensor.shape:
            return False
        there = checkpoint.read(tensor.name, tuple(slice(0, size) for size in tensor.shape))
        if not np.array_equal(np.asarray(there, np.float32), np.asarray(tensor.fetch(), np.float32)):
            return False
    return True


def _special_tokens(folder) -> dict[str, int | None]:
    """The ids of a tokenizer folder's special tokens; None for a token that it does not name."""
    found = dict.fromkeys(_SPECIAL)
    files = [Path(folder or "") / name for name in ("tokenizer_config.json", "tokenizer.json")]
    if folder is None or not all(file.is_file() for file in files):
        return found
    settings = json.loads(files[0].read_text(encoding="utf-8"))
    tokenizer = tokenizers.Tokenizer.from_file(str(files[1]))
    for key in found:
        token = settings.get(key.removesuffix("_id"))
        token = token.get("content") if isinstance(token, dict) else token
        found[key] = None if token is None else tokenizer.token_to_id(token)
    return found


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Writes a JSON file as transformers does."""
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
