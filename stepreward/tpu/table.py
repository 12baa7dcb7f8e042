"""Formats the estimates of programs as a table, as plain text or as Markdown."""

from __future__ import annotations

from collections.abc import Iterable

from stepreward.tpu.plan import Estimate
from stepreward.tpu.slices import GIB, Chip

_SHORT = {"all-gather": "gather", "all-reduce": "reduce", "reduce-scatter": "scatter", "all-to-all": "exchange",
          "collective-permute": "permute"}  # fmt: skip
HEADER = ("program", "calls", "held", "arguments", "temporary", "resident", "TFLOP", "HBM traffic", "collectives", "least time", "bound by",
          "compiled")  # fmt: skip


def row(e: Estimate, chip: Chip, devices: int) -> tuple[str, ...]:
    """The table row of one program: memory in GiB a device, and operations and traffic of one call on one device."""
    sizes = [f"{x / GIB:.2f}" for x in (sum(e.held.values()), e.arguments, e.temporary, e.resident)]
    if not e.fits(chip):
        sizes[-1] += " ✗"
    name, calls = e.program.name, "part" if e.program.detail else f"{e.program.times:g}"
    if e.cost is None:
        return (name, calls, *sizes, "", "", "", "", "does not compile: " + e.overflow, f"{e.compile_s:.0f} s")
    seconds = e.seconds(chip, devices)
    bound = max(seconds, key=seconds.get)
    flops = e.cost.flops + e.program.kernel_flops / devices
    moved = ", ".join(f"{_SHORT[k]} {n:.0f}× {_bytes(size)}" for k, (n, size) in e.cost.collectives.items() if size >= 1e3)
    return (name, calls, *sizes, f"{flops / 1e12:.3g}", _bytes(e.cost.bytes), moved or "none", _time(seconds[bound]), bound,
            f"{e.compile_s:.0f} s")  # fmt: skip


def _bytes(size: float) -> str:
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size / 1e3:.3g} kB"


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def text(rows: Iterable[tuple[str, ...]], markdown: bool = False) -> str:
    """Formats rows under their header, in columns or as a Markdown table."""
    rows = [HEADER, *rows]
    if markdown:
        lines = [f"| {' | '.join(r)} |" for r in rows]
        return "\n".join([lines[0], "|" + "---|" * len(HEADER), *lines[1:]])
    widths = [max(len(r[i]) for r in rows) for i in range(len(HEADER))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(r, widths)).rstrip() for r in rows)


def summary(estimates: Iterable[tuple[str, Estimate]], chip: Chip, devices: int) -> str:
    """Summarises the estimates: the program that needs most memory and what it consists of, the least time of an iteration by part, and
    which programs do not fit."""
    found = [(stage, e) for stage, e in estimates]
    stage, peak = max(found, key=lambda x: x[1].resident)
    parts = [f"{name} {size / GIB:.2f}" for name, size in peak.held.items() if size]  # shared arrays have size 0 after the first name
    parts += [f"arguments {peak.arguments / GIB:.2f}", f"temporary {peak.temporary / GIB:.2f}"]
    whole = f"{peak.resident / GIB:.2f} of {chip.hbm / GIB:.2f} GiB a device"
    lines = [f"Most memory: {peak.program.name} (stage {stage}), {whole}: {', '.join(parts)}."]
    times: dict[str, float] = {}
    for stage, e in found:
        if stage == "train" and not e.program.detail and e.cost is not None:
            part = e.program.name.split("/")[0]
            times[part] = times.get(part, 0.0) + e.program.times * max(e.seconds(chip, devices).values())
    if times:
        each = ", ".join(f"{part} {_time(t)}" for part, t in times.items())
        lines.append(f"An iteration takes at least {_time(sum(times.values()))}: {each}.")
    bad = [e for _, e in found if not e.fits(chip)]
    fits = "Everything fits." if not bad else f"Does not fit: {', '.join(e.program.name for e in bad)}."
    return "\n".join([*lines, fits])
