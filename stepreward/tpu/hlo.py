"""What a compiled program does, read from its HLO text: products, memory traffic and collectives, loop bodies as often as they run.

XLA's own `cost_analysis()` counts a loop's body once. Here every instruction counts as often as the loops around it go round. How
often that is stands in a loop's condition, where it is a constant; the caller gives it for loops that depend on data.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from functools import cached_property

import numpy as np

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BITS = {"pred": 8, "bf16": 16, "token": 0}
# A type is named in letters and bits: bf16[8,128]{1,0:T(8,128)(2,1)S(1)}. S(1) is the chip's own memory, no suffix is HBM.
_SHAPE = re.compile(r"([a-z]+\d*\w*)\[([\d,<=]*)\](?:\{([^{}]*)\})?")
_LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
# They move nothing: they name parts of what is there, or run computations that count by themselves.
_FREE = {"parameter", "tuple", "get-tuple-element", "bitcast", "constant", "after-all", "partition-id", "replica-id", "iota",
         "opt-barrier", "while", "conditional", "call"}  # fmt: skip


@dataclasses.dataclass
class Cost:
    """Of one device.

    Attributes:
      flops: of matrix products.
      bytes: read from and written to HBM.
      collectives: by kind, how many, and bytes that they bring to a device.
      largest: the same bytes by kind and shape.
      guessed: loops whose trip count was the caller's guess.
    """

    flops: float = 0.0
    bytes: float = 0.0
    collectives: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    largest: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    guessed: list[str] = dataclasses.field(default_factory=list)

    @property
    def collective_bytes(self) -> float:
        return sum(size for _, size in self.collectives.values())


@dataclasses.dataclass(frozen=True)
class Shape:
    dtype: str
    dims: tuple[int, ...]
    layout: str

    @cached_property
    def size(self) -> float:
        """Bytes."""
        bits = _BITS.get(self.dtype)
        return math.prod(self.dims) * (int(re.search(r"\d+", self.dtype)[0]) if bits is None else bits) / 8

    @property
    def in_hbm(self) -> bool:
        return not re.search(r"S\(\d\)", self.layout)

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line: results, operation, names of operands, the text between its brackets, and what follows."""

    name: str
    shapes: tuple[Shape, ...]
    op: str
    operands: tuple[str, ...]
    inside: str
    rest: str

    @property
    def size(self) -> float:
        return sum(s.size for s in self.shapes)

    @property
    def traffic(self) -> float:
        return sum(s.size for s in self.shapes if s.in_hbm)

    def attribute(self, name: str) -> str:
        found = re.search(rf"\b{name}=%?([\w.\-]+)", self.rest)
        return found[1] if found else ""

    @property
    def channel(self) -> str:
        return self.attribute("channel_id") or self.name


Computation = dict[str, Instruction]


def computations(text: str) -> tuple[dict[str, Computation], str]:
    """The instructions of each computation by name, and the name of the one that a program enters."""
    found, entry, current = {}, "", None
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith((" ", "HloModule")):
            marked, name = re.match(r"(ENTRY )?%?([\w.\-]+)", line).groups()
            current = found.setdefault(name, {})
            entry = name if marked else entry
        elif line == "}":
            current = None
        elif current is not None and (instruction := _parse(line)):
            current[instruction.name] = instruction
    return found, entry


def _parse(line: str) -> Instruction | None:
    found = _LINE.match(line)
    if not found:
        return None
    name, text = found.groups()
    end = _closing(text) if text.startswith("(") else text.index(" ")
    shapes = tuple(
        Shape(dtype, tuple(int(d.lstrip("<=")) for d in dims.split(",") if d), layout or "")
        for dtype, dims, layout in _SHAPE.findall(text[:end])
    )
    text = text[end:].lstrip()
    opened = text.index("(")
    closed = opened + _closing(text[opened:])
    inside = text[opened + 1 : closed - 1]
    return Instruction(name, shapes, text[:opened], tuple(re.findall(r"%([\w.\-]+)", inside)), inside, text[closed:])


def _closing(text: str) -> int:
    """The index behind the bracket that closes the one at the start."""
    depth = 0
    for index, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return index + 1
    raise AssertionError(f"unbalanced: {text[:80]}")


def read(text: str, trips: int = 1) -> Cost:
    """The cost of a compiled program, for one device.

    Args:
      text: `compiled.as_text()`.
      trips: how often loops of unknown length go round.
    """
    found, entry = computations(text)
    cost, seen = Cost(), {}
    for name, times in _visits(found, entry, trips, cost.guessed):
        scope = found[name]
        for instruction in scope.values():
            cost.bytes += times * _bytes(found, scope, instruction)
            scatters = instruction.attribute("calls").startswith("all-reduce-scatter")  # a sum of which each device keeps a part
            for inner_scope, inner in _with_fused(found, scope, instruction):
                cost.flops += times * _flops(inner_scope, inner)
                kind = "reduce-scatter" if scatters and inner.op == "all-reduce" else inner.op.removesuffix("-start")
                if kind in COLLECTIVES:  # one that runs beside other work appears in several fusions, under one channel
                    seen[inner.channel] = (kind, inner, max(times, seen.get(inner.channel, (0, 0, 0))[2]))
    counts: dict[str, list[float]] = collections.defaultdict(lambda: [0.0, 0.0])
    for kind, instruction, times in seen.values():
        moved = times * _moved(instruction, kind)
        counts[kind][0] += times
        counts[kind][1] += moved
        cost.largest[f"{kind} {max(instruction.shapes, key=lambda s: s.size)}"] += moved
    cost.collectives = {kind: (count, size) for kind, (count, size) in sorted(counts.items())}
    return cost


# --- How often ---


def _visits(found: dict[str, Computation], entry: str, trips: int, guessed: list[str]) -> list[tuple[str, float]]:
    """Every computation whose instructions run one after the other, and how often it runs."""
    visits, todo = [], [(entry, 1.0)]
    while todo:
        name, times = todo.pop()
        visits.append((name, times))
        for i in found[name].values():
            if i.op == "while":
                known = _trip_count(found, i)
                if known is None:
                    guessed.append(i.name)
                todo.append((i.attribute("body"), times * (trips if known is None else known)))
            elif i.op == "conditional":
                listed = re.search(r"branch_computations=\{([^}]*)\}", i.rest)
                names = re.findall(r"[\w.\-]+", listed[1]) if listed else [i.attribute(f"{x}_computation") for x in ("true", "false")]
                todo += [(n, times) for n in names]
            elif i.op == "call":
                todo.append((i.attribute("to_apply"), times))
    return visits


def _trip_count(found: dict[str, Computation], loop: Instruction) -> int | None:
    """The constant that a loop counts to from 0; None where its condition is anything else."""
    stated = re.search(r"known_trip_count[^\d]*(\d+)", loop.rest)
    if stated:
        return int(stated[1])
    condition = found[loop.attribute("condition")]
    compares = [i for i in condition.values() if i.op == "compare"]
    if len(compares) != 1 or "direction=LT" not in compares[0].rest or len(condition) > 5:
        return None
    limit = condition.get(compares[0].operands[1])
    return int(limit.inside) if limit is not None and limit.op == "constant" and limit.inside.isdigit() else None


# --- How much ---


def _with_fused(found, scope: Computation, instruction: Instruction):
    """An instruction, or those that are fused into it, each with the computation that it stands in."""
    inner = found.get(instruction.attribute("calls"))
    if inner is None or instruction.op == "call":
        yield scope, instruction
        return
    for i in inner.values():
        yield from _with_fused(found, inner, i)


def _flops(scope: Computation, i: Instruction) -> float:
    """Of a matrix product, which XLA's TPU compiler writes as a convolution."""
    if i.op == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", i.rest)
        left = scope[i.operands[0]].shapes[0].dims
        return 2.0 * math.prod(i.shapes[0].dims) * math.prod(left[int(d)] for d in contracted[1].split(",") if d)
    if i.op != "convolution":
        return 0.0
    left_labels, kernel_labels, out_labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", i.rest).groups()
    left, kernel, out = scope[i.operands[0]].shapes[0].dims, scope[i.operands[1]].shapes[0].dims, i.shapes[0].dims
    window = re.search(r"window=\{([^}]*)\}", i.rest)
    total = 2.0 * kernel[kernel_labels.index("i")] * out[out_labels.index("b")] * out[out_labels.index("f")]
    for axis in range(len(out) - 2):
        of = lambda name, default: _window(window[1] if window else "", name, axis, default)
        size, (low, _) = of("size", (1,))[0], of("pad", (0, 0))
        at = np.arange(out[out_labels.index(str(axis))])[:, None] * of("stride", (1,))[0] - low
        at = at + np.arange(size)[None] * of("rhs_dilate", (1,))[0]
        dilated = of("lhs_dilate", (1,))[0]
        last = (left[left_labels.index(str(axis))] - 1) * dilated
        total *= int(((at >= 0) & (at <= last) & (at % dilated == 0)).sum())  # taps that meet data
    return total


def _window(text: str, name: str, axis: int, default: tuple[int, ...]) -> tuple[int, ...]:
    found = re.search(rf"\b{name}=([\d_x\-]+)", text)
    return tuple(int(n) for n in found[1].split("x")[axis].split("_")) if found else default


def _bytes(found, scope: Computation, i: Instruction) -> float:
    """HBM traffic: operands and results; of an array that only a slice is taken of or written to, the slice."""
    if i.op in _FREE or i.op.endswith("-done"):
        return 0.0
    read = [scope[name].traffic if name in scope and scope[name].op != "tuple" else 0.0 for name in i.operands]
    if i.op in ("dynamic-slice", "gather"):
        return 2 * i.traffic
    if i.op in ("dynamic-update-slice", "scatter"):
        return 2 * scope[i.operands[-1 if i.op == "scatter" else 1]].size if i.traffic else 0.0
    if i.op in ("copy-start", "slice-start"):  # between HBM and the chip's own memory; whole and part stand in either order
        return min(s.size for s in i.shapes[:2])
    inner = found.get(i.attribute("calls"))
    if inner is None or i.op == "call":
        return i.traffic + sum(read)
    total, written = 0.0, i.traffic - _handed_on(inner)
    for number, size in enumerate(read):
        part, updated = _taken(found, inner, number, size) if size else (0.0, False)
        total += part
        written -= size - part if updated else 0.0
    return total + max(written, 0.0)


def _taken(found, inner: Computation, number: int, size: float) -> tuple[float, bool]:
    """How much of its operand a fusion reads, and whether it only writes that much of it, in place."""
    name = next((j.name for j in inner.values() if j.op == "parameter" and j.inside == str(number)), "")
    uses, total, updated = [j for j in inner.values() if name in j.operands], 0.0, False
    for j in uses:
        nested = found.get(j.attribute("calls"))
        if j.op in ("dynamic-slice", "slice", "gather"):
            total += j.size
        elif j.op == "dynamic-update-slice" and j.operands[0] == name:
            total, updated = total + inner[j.operands[1]].size, len(uses) == 1
        elif nested is not None:
            part, updated = _taken(found, nested, j.operands.index(name), size)
            total += part
        elif j.op != "tuple":  # that would hand it on: the fusion does its work beside a collective
            total += size
    return min(total, size), updated


def _handed_on(inner: Computation) -> float:
    """Results that were there before: buffers of a collective beside which a fusion does its work."""
    root = list(inner.values())[-1]
    there = lambda j: j.op == "parameter" or (j.op in COLLECTIVES and len(root.operands) > 1)
    return sum(s.size for name, s in zip(root.operands, root.shapes) if s.in_hbm and there(inner[name])) if root.op == "tuple" else 0.0


def _moved(i: Instruction, kind: str) -> float:
    """Bytes that a collective brings to a device: its result without the part that was there; a sum travels twice."""
    members = _members(i.rest)
    share = (members - 1) / members
    sizes = [s.size for s in i.shapes if s.dims]
    if i.op.endswith("-start") and kind != "all-reduce" and len(sizes) > 1:  # operands stand before results
        sizes = sizes[1:2] if kind == "collective-permute" else sizes[len(sizes) // 2 :]
    result = sum(sizes)
    if kind == "reduce-scatter":  # its result is a part, but for a fused sum, whose result is the whole
        return result * share if i.op == "all-reduce" else result * (members - 1)
    return {"all-reduce": 2 * result * share, "collective-permute": result}.get(kind, result * share)


def _members(rest: str) -> int:
    """How many devices a collective is among."""
    axes = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", rest)
    if axes:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", axes[1]))
        return math.prod(int(sizes[name]) for name in re.findall(r"'(\w+)'", axes[2]))
    iota = re.search(r"replica_groups=\[\d+,(\d+)\]", rest)
    if iota:
        return int(iota[1])
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", rest)
    return len(listed[1].split(",")) if listed and listed[1] else 2
