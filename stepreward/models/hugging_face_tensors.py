"""Maps tensors of a checkpoint to parameters and their axes, and reads and writes safetensors files.

The rule `(n h) e -> e n h` means that the tensor in the file has the axes n·h and e, and our parameter has e, n and h. Loading,
loading a slice and saving all follow from this one line. Other models (such as a vision tower) have their own table of rules.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import jax
import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}

# Tensors in a file that are not parameters: tables of rotary frequencies, which older versions of transformers saved.
NOT_PARAMETERS = re.compile(r"(^|\.)rotary_emb\.(inv_freq|original_inv_freq)$")


class Rule(NamedTuple):
    """One parameter and its tensor.

    Attributes:
      path: our path, with `{}` for the index of a layer. The path of a stacked parameter has no `{}/`, and its array has one more
        axis.
      name: the checkpoint's name of the tensor, with `{}` for the index.
      layout: the file's axes `->` our axes; axes in brackets are merged into one, the first varying slowest.
    """

    path: str
    name: str
    layout: str


_LAYER = "layers/{}/", "model.layers.{}."
DECODER_TENSORS = (
    Rule("embedding", "model.embed_tokens.weight", "v e -> v e"),
    *(
        Rule(_LAYER[0] + path, _LAYER[1] + name, layout)
        for path, name, layout in (
            ("attention_norm/scale", "input_layernorm.weight", "e -> e"),
            ("attention/query", "self_attn.q_proj.weight", "(n h) e -> e n h"),
            ("attention/query_bias", "self_attn.q_proj.bias", "(n h) -> n h"),
            ("attention/query_norm/scale", "self_attn.q_norm.weight", "h -> h"),
            ("attention/key", "self_attn.k_proj.weight", "(k h) e -> e k h"),
            ("attention/key_bias", "self_attn.k_proj.bias", "(k h) -> k h"),
            ("attention/key_norm/scale", "self_attn.k_norm.weight", "h -> h"),
            ("attention/value", "self_attn.v_proj.weight", "(k h) e -> e k h"),
            ("attention/value_bias", "self_attn.v_proj.bias", "(k h) -> k h"),
            ("attention/output", "self_attn.o_proj.weight", "e (n h) -> n h e"),
            ("mlp_norm/scale", "post_attention_layernorm.weight", "e -> e"),
            ("mlp/gate", "mlp.gate_proj.weight", "f e -> e f"),
            ("mlp/up", "mlp.up_proj.weight", "f e -> e f"),
            ("mlp/down", "mlp.down_proj.weight", "e f -> f e"),
        )
    ),
    Rule("final_norm/scale", "model.norm.weight", "e -> e"),
    Rule("head", "lm_head.weight", "v e -> e v"),
)

# Prefixes that versions of vision-language checkpoints have used -> the prefix in the tables of rules.
_RENAMED = (
    (re.compile(r"^((?:base_model\.model\.)?)model\.language_model\."), r"\1model."),
    (re.compile(r"^((?:base_model\.model\.)?)language_model\.model\."), r"\1model."),
    (re.compile(r"^language_model\.lm_head\."), "lm_head."),
    (re.compile(r"^model\.visual\."), "visual."),
)


class Layout:
    """A rule's layout with concrete sizes: converts arrays and slices between the file's axes and ours.

    The *fine* axes are the file's axes in the file's order, with every bracket split into its parts.

    Raises:
      ValueError: if the shapes do not match the layout.
    """

    def __init__(self, layout: str, ours: tuple[int, ...], file: tuple[int, ...] | None = None):
        self.file_axes, self.our_axes = (_axes(side) for side in layout.split("->"))
        self.ours = tuple(ours)
        sizes = {axes[0]: size for axes, size in zip(self.our_axes, ours) if len(axes) == 1}
        for axes, size in zip(self.file_axes, file or ()):
            if len(axes) == 1:
                sizes.setdefault(axes[0], size)
        self.names = [name for axes in self.file_axes for name in axes]
        self.fine = tuple(sizes[name] for name in self.names)
        self.sizes = sizes
        self.file = tuple(math.prod(sizes[name] for name in axes) for axes in self.file_axes)
        self.order = tuple(self.names.index(name) for axes in self.our_axes for name in axes)
        if math.prod(self.fine) != math.prod(ours) or (file is not None and tuple(file) != self.file):
            raise ValueError(f"the file has {file}, expected {self.file}")

    def to_ours(self, fine_array):
        """Converts an array with fine axes to our shape."""
        return fine_array.transpose(self.order).reshape(self.ours)

    def to_file(self, our_array):
        """Converts an array of our shape to the file's shape."""
        fine = our_array.reshape([self.fine[axis] for axis in self.order]).transpose(np.argsort(self.order))
        return fine.reshape(self.file)

    def fine_spec(self, spec: tuple) -> tuple:
        """The partition of the fine axes under which each device can make its part of our array without data from other devices."""
        split = {axes[0]: part for axes, part in zip(self.our_axes, spec) if len(axes) == 1}
        return tuple(split.get(name) for name in self.names)

    def read(self, read: Callable[[tuple[slice, ...]], np.ndarray], index: tuple[slice, ...]) -> np.ndarray:
        """Reads the slice `index` of the fine axes through the smallest box of the file's axes that contains it."""
        bounds = dict(zip(self.names, (s.indices(size)[:2] for s, size in zip(index, self.fine))))
        box, shape, cut = [], [], []
        for axes in self.file_axes:
            inner = math.prod(self.sizes[name] for name in axes[1:])
            start, stop = bounds[axes[0]]
            box.append(slice(start * inner, stop * inner))
            shape += [stop - start, *(self.sizes[name] for name in axes[1:])]
            cut += [slice(None), *(slice(*bounds[name]) for name in axes[1:])]
        return read(tuple(box)).reshape(shape)[tuple(cut)]


def _axes(side: str) -> list[list[str]]:
    return [(merged or single).split() for merged, single in re.findall(r"\(([^)]*)\)|(\w+)", side)]


class Parameter(NamedTuple):
    """A parameter and its tensors: one tensor, or one a layer if the parameter is stacked.

    Attributes:
      path: our path, such as `layers/0/attention/query`.
      names: the tensors' names as in the tables of rules.
      layout: the rule's layout.
      shape: our shape of one tensor, without the layer axis.
      stacked: whether the array has a leading layer axis.
    """

    path: str
    names: tuple[str, ...]
    layout: str
    shape: tuple[int, ...]
    stacked: bool


def file_axes(layout: str) -> list[list[str]]:
    """For each axis of the file's tensor, the axes that are merged in it."""
    return _axes(layout.split("->")[0])


def path_name(path) -> str:
    """Converts a key path of `jax.tree_util` to a string such as `layers/0/attention/query`."""
    keys = (getattr(p, "key", getattr(p, "idx", None)) for p in path)
    return "/".join(str(key) for key in keys if key is not None)


def match(tree, rules: Iterable[Rule]) -> list[Parameter]:
    """Finds the rule of every leaf of a tree of arrays (or of shapes), in the tree's order.

    Raises:
      ValueError: if a leaf has no rule.
    """
    listed = {rule.path: rule for rule in rules}
    stacked = {rule.path.replace("{}/", ""): rule for rule in rules if "{}" in rule.path}
    found = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        path = path_name(path)
        index = [part for part in path.split("/") if part.isdigit()]
        key = "/".join("{}" if part.isdigit() else part for part in path.split("/"))
        rule = listed.get(key) or stacked.get(key)
        if rule is None:
            raise ValueError(f"the parameter {path!r} has no counterpart in a Hugging Face checkpoint: there is no rule for it.")
        if key in listed:
            found.append(Parameter(path, (rule.name.format(*index),), rule.layout, leaf.shape, False))
        else:
            names = tuple(rule.name.format(layer) for layer in range(leaf.shape[0]))
            found.append(Parameter(path, names, rule.layout, leaf.shape[1:], True))
    return found


class Checkpoint:
    """The tensors of a folder's safetensors files. Only headers and the requested slices are read.

    Attributes:
      folder: the folder.
      shapes, dtypes: shape and dtype of every tensor, by its name in the tables of rules.

    Raises:
      FileNotFoundError: if the folder holds no safetensors, or its index names a missing file.
      ValueError: if a file is truncated or damaged, or the index is invalid.
    """

    def __init__(self, folder, single: str = SINGLE, index: str = INDEX):
        self.folder = Path(folder)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, np.dtype] = {}
        self._places: dict[str, tuple[Path, str]] = {}
        promised = {}
        if not (self.folder / single).is_file() and (self.folder / index).is_file():
            promised = self._index(self.folder / index)
        elif not (self.folder / single).is_file():
            self._no_files(single)
        for file in sorted(set(promised.values()) or {single}):
            self._open(self.folder / file)
        absent = [name for name in promised if canonical(name) not in self._places]
        if absent:
            raise ValueError(
                f"{str(self.folder / index)!r} says that {promised[absent[0]]} holds the tensor {absent[0]!r}, but it does not: copy or "
                "download the folder again."
            )

    def _no_files(self, single: str) -> None:
        pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in self.folder.glob(pattern))
        if pickles:
            raise FileNotFoundError(
                f"{str(self.folder)!r} holds {pickles[0]} but no {single}. Pickle files are not read because they can run code: "
                "convert it to safetensors (if you trust it, load it with transformers and call save_pretrained)."
            )
        raise FileNotFoundError(f"{str(self.folder)!r} holds neither {single} nor an index of several such files.")

    def _index(self, file: Path) -> dict[str, str]:
        try:
            promised = json.loads(file.read_text(encoding="utf-8"))["weight_map"]
            names = set(promised.values())
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{str(file)!r} is not an index: it must hold a JSON object with the key weight_map.") from None
        for name in sorted(map(str, names)):
            if Path(name).name != name:
                raise ValueError(f"{str(file)!r} names {name!r}, but an index may only name files in its own folder.")
            if not (self.folder / name).is_file():
                raise FileNotFoundError(f"{str(file)!r} names {name}, which is missing: copy or download it.")
        return promised

    def _open(self, file: Path) -> None:
        try:
            with safe_open(file, "np") as handle:
                for name in handle.keys():
                    part = handle.get_slice(name)
                    self._add(file, name, tuple(part.get_shape()), part.get_dtype())
        except SafetensorError as error:
            raise ValueError(f"{str(file)!r} is truncated or damaged ({error}): copy or download it again.") from None

    def _add(self, file: Path, name: str, shape: tuple[int, ...], dtype: str) -> None:
        known = canonical(name)
        if known in self._places:
            raise ValueError(f"{str(self.folder)!r} holds the tensor {name!r} twice, possibly under two names: remove one of them.")
        self._places[known], self.shapes[known] = (file, name), shape
        self.dtypes[known] = DTYPES.get(dtype, dtype)

    def original(self, name: str) -> str:
        """The tensor's name in the file."""
        return self._places[name][1]

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """Reads a slice of a tensor. The file is opened for each slice because the pages of a mapped file count as memory in use."""
        file, original = self._places[name]
        with safe_open(file, "np") as handle:
            return handle.get_slice(original)[index]

    def layout(self, parameter: Parameter, name: str) -> Layout:
        """The layout of a parameter's tensor.

        Raises:
          ValueError: if the tensor is missing, has the wrong shape, or is not fp32, fp16 or bf16.
        """
        where = str(self.folder)
        if name not in self.shapes:
            raise ValueError(f"{where!r} has no tensor {name!r} (our {parameter.path}).")
        if self.dtypes[name] not in DTYPES.values():
            raise ValueError(f"{where!r}: the tensor {name!r} has type {self.dtypes[name]}; only fp32, fp16 and bf16 are read.")
        try:
            return Layout(parameter.layout, parameter.shape, self.shapes[name])
        except (ValueError, KeyError):
            pass
        try:
            expected = Layout(parameter.layout, parameter.shape).file
        except (ValueError, KeyError):
            expected = f"a shape with {math.prod(parameter.shape)} elements"
        raise ValueError(f"{where!r}: the tensor {name!r} has shape {self.shapes[name]}, expected {expected}.")


def canonical(name: str) -> str:
    """The name in the tables of rules for a tensor of a checkpoint."""
    for pattern, new in _RENAMED:
        name = pattern.sub(new, name)
    return name


class Tensor(NamedTuple):
    """A tensor to write: its name, shape and dtype in the file, and a function that fetches its values to the host."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    fetch: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_safetensors(file, tensors: list[Tensor], *, writer: bool = True) -> None:
    """Writes one safetensors file, tensor by tensor; the host holds one tensor at a time.

    Args:
      file: the path of the file, which is replaced if it exists.
      tensors: the tensors to write.
      writer: False fetches the tensors without writing. Fetching may be a collective: then every process calls, and one writes.

    Raises:
      OSError: if the file cannot be written. It is raised after all tensors are fetched, so that no other process waits forever.
    """
    tensors = sorted(tensors, key=lambda t: -t.dtype.itemsize)  # so that every tensor starts at a multiple of its item size
    failure, handle = None, None
    try:
        handle = open(file, "wb") if writer else None
        if handle:
            handle.write(_header(tensors))
    except OSError as error:
        failure = error
    for tensor in tensors:
        array = tensor.fetch()
        if handle and failure is None:
            try:
                handle.write(np.ascontiguousarray(array, tensor.dtype).reshape(-1).view(np.uint8).data)
            except OSError as error:
                failure = error
    if handle:
        try:
            handle.flush()
            os.fsync(handle.fileno())
            handle.close()
        except OSError as error:
            failure = failure or error
    if failure is not None:
        raise failure


def _header(tensors: list[Tensor]) -> bytes:
    codes = {dtype: code for code, dtype in DTYPES.items()}
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for tensor in tensors:
        ends = [offset, offset := offset + tensor.nbytes]
        header[tensor.name] = {"dtype": codes[tensor.dtype], "shape": list(tensor.shape), "data_offsets": ends}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
