"""Reads the cost of a compiled program from its HLO text: matrix products, memory traffic and collectives.

XLA's own `cost_analysis()` counts the body of a loop once. Here an instruction counts once for each iteration of the loops around
it. The number of iterations is read from the loop's condition if it is a constant; for loops that depend on data, the caller gives
it.
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
# A shape has a dtype, dimensions and a layout: bf16[8,128]{1,0:T(8,128)(2,1)S(1)}. S(1) means on-chip memory; without it, HBM.
_SHAPE = re.compile(r"([a-z]+\d*\w*)\[([\d,<=]*)\](?:\{([^{}]*)\})?")
_LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
# Operations that move no data: they rename parts of existing buffers, or call computations that are counted separately.
_FREE = {"parameter", "tuple", "get-tuple-element", "bitcast", "constant", "after-all", "partition-id", "replica-id", "iota",
         "opt-barrier", "while", "conditional", "call"}  # fmt: skip


@dataclasses.dataclass
class Cost:
    """The cost of a program on one device.

    Attributes:
      flops: floating-point operations of matrix products.
      bytes: bytes read from and written to HBM.
      collectives: for each kind, the number of collectives and the bytes that the device receives.
      largest: bytes received by kind and shape of the collective.
      guessed: names of the loops whose trip count came from the caller.
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
        """Size in bytes."""
        bits = _BITS.get(self.dtype)
        return math.prod(self.dims) * (int(re.search(r"\d+", self.dtype)[0]) if bits is None else bits) / 8

    @property
    def in_hbm(self) -> bool:
        return not re.search(r"S\(\d\)", self.layout)

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction: its name, result shapes, operation, operand names, the text inside its parentheses, and the text after them."""

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
    """Parses a program: the instructions of each computation by name, and the name of the entry computation."""
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
    """The index after the parenthesis that closes the one at the start of the text."""
    depth = 0
    for index, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return index + 1
    raise AssertionError(f"unbalanced parentheses: {text[:80]}")


def read(text: str, trips: int = 1) -> Cost:
    """Reads the cost of a compiled program on one device.

    Args:
      text: the program's HLO text, `compiled.as_text()`.
      trips: the number of iterations of loops whose trip count is not a constant.
    """
    found, entry = computations(text)
    cost, seen = Cost(), {}
    for name, times in _visits(found, entry, trips, cost.guessed):
        scope = found[name]
        for instruction in scope.values():
            cost.bytes += times * _bytes(found, scope, instruction)
            scatters = instruction.attribute("calls").startswith("all-reduce-scatter")  # each device keeps only its part of the sum
            for inner_scope, inner in _with_fused(found, scope, instruction):
                cost.flops += times * _flops(inner_scope, inner)
                kind = "reduce-scatter" if scatters and inner.op == "all-reduce" else inner.op.removesuffix("-start")
                if kind in COLLECTIVES:  # an asynchronous collective appears in several fusions, with one channel
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
    """Every computation whose instructions run in sequence, and how often it runs."""
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
    """The constant that a loop counts up to from 0; None if its condition is of any other form."""
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
    """An instruction, or the instructions fused into it, each with the computation that contains it."""
    inner = found.get(instruction.attribute("calls"))
    if inner is None or instruction.op == "call":
        yield scope, instruction
        return
    for i in inner.values():
        yield from _with_fused(found, inner, i)


def _flops(scope: Computation, i: Instruction) -> float:
    """Floating-point operations of a matrix product, which XLA's TPU compiler may write as a convolution; 0 for anything else."""
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
        total *= int(((at >= 0) & (at <= last) & (at % dilated == 0)).sum())  # taps that fall on data, not on padding
    return total


def _window(text: str, name: str, axis: int, default: tuple[int, ...]) -> tuple[int, ...]:
    found = re.search(rf"\b{name}=([\d_x\-]+)", text)
    return tuple(int(n) for n in found[1].split("x")[axis].split("_")) if found else default


def _bytes(found, scope: Computation, i: Instruction) -> float:
    """HBM traffic of an instruction: its operands and results, or only the slice of an array that is read or updated by slices."""
    if i.op in _FREE or i.op.endswith("-done"):
        return 0.0
    read = [scope[name].traffic if name in scope and scope[name].op != "tuple" else 0.0 for name in i.operands]
    if i.op in ("dynamic-slice", "gather"):
        return 2 * i.traffic
    if i.op in ("dynamic-update-slice", "scatter"):
        return 2 * scope[i.operands[-1 if i.op == "scatter" else 1]].size if i.traffic else 0.0
    if i.op in ("copy-start", "slice-start"):  # between HBM and on-chip memory; whole and part come in either order
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
    """The bytes of its operand that a fusion reads, and whether the fusion updates only that part, in place."""
    name = next((j.name for j in inner.values() if j.op == "parameter" and j.inside == str(number)), "")
    uses, total, updated = [j for j in inner.values() if name in j.operands], 0.0, False
    for j in uses:
        nested = found.get(j.attribute("calls"))
        if j.op in ("dynamic-slice", "slice", "gather"):
            total += j.size
        elif j.op == "dynamic-update-slice" and j.operands[0] == name:
            total, updated = total + inner[j.operands[1]].size, len(uses) == 1
        elif j.op == "scatter" and j.operands[0] == name:
            total, updated = total + inner[j.operands[-1]].size, len(uses) == 1
        elif nested is not None:
            part, updated = _taken(found, nested, j.operands.index(name), size)
            total += part
        elif j.op != "tuple":  # a tuple passes it on unread, in a fusion that overlaps a collective
            total += size
    return min(total, size), updated


def _handed_on(inner: Computation) -> float:
    """Bytes of results that are passed through: buffers of a collective that the fusion overlaps with."""
    root = list(inner.values())[-1]
    there = lambda j: j.op == "parameter" or (j.op in COLLECTIVES and len(root.operands) > 1)
    return sum(s.size for name, s in zip(root.operands, root.shapes) if s.in_hbm and there(inner[name])) if root.op == "tuple" else 0.0


def _moved(i: Instruction, kind: str) -> float:
    """Bytes that a device receives in a collective: its result minus its own part; for an all-reduce twice that."""
    members = _members(i.rest)
    share = (members - 1) / members
    sizes = [s.size for s in i.shapes if s.dims]
    if i.op.endswith("-start") and kind != "all-reduce" and len(sizes) > 1:  # operands come before results
        sizes = sizes[1:2] if kind == "collective-permute" else sizes[len(sizes) // 2 :]
    result = sum(sizes)
    if kind == "reduce-scatter":  # the result is a part, except for a fused all-reduce, whose result is the whole
        return result * share if i.op == "all-reduce" else result * (members - 1)
    return {"all-reduce": 2 * result * share, "collective-permute": result}.get(kind, result * share)


def _members(rest: str) -> int:
    """The number of devices that take part in a collective."""
    axes = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", rest)
    if axes:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", axes[1]))
        return math.prod(int(sizes[name]) for name in re.findall(r"'(\w+)'", axes[2]))
    iota = re.search(r"replica_groups=\[\d+,(\d+)\]", rest)
    if iota:
        return int(iota[1])
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", rest)
    return len(listed[1].split(",")) if listed and listed[1] else 2
