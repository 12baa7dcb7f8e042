"""Draws the library's structure as a Mermaid graph: which part imports which.

    python experiments/house.py            # prints the graph
    python experiments/house.py --write    # writes it into docs/architecture.md

A part is a folder of stepreward/, or a module directly in it. An arrow means "imports". Arrows that follow from others are omitted,
and so are the parts that nearly everything imports (SMALL).
"""

from __future__ import annotations

import argparse
import ast
import graphlib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- the house: python experiments/house.py --write -->\n", "<!-- end of the house -->\n"
SMALL = frozenset({"errors", "text", "processes", "parallel", "metrics", "config", "programs", "secrecy", "tracking", "envs"})


def modules(top: str = "stepreward") -> dict[str, Path]:
    """Returns the file of each module of a package, by dotted name."""
    found = {}
    for file in sorted((ROOT / top).rglob("*.py")):
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = file
    return found


def imports() -> dict[str, set[str]]:
    """Returns the library's modules that each module imports, including imports inside functions."""
    files = modules()
    return {name: _imported(path, files) - {name} for name, path in files.items()}


def _imported(path: Path, files: dict[str, Path]) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {inner if (inner := f"{node.module}.{alias.name}") in files else node.module for alias in node.names}
    return found & set(files)


def part(module: str) -> str:
    """Returns the part to which a module belongs."""
    return module.split(".")[1] if "." in module else module


def parts() -> dict[str, set[str]]:
    """Returns the other parts that each part imports."""
    found: dict[str, set[str]] = {}
    for module, others in imports().items():
        found.setdefault(part(module), set()).update(part(other) for other in others)
    return {name: others - {name, "stepreward"} for name, others in found.items() if name != "stepreward"}


def graph() -> str:
    """Returns the graph as a Mermaid code block."""
    arrows = {name: others - SMALL for name, others in parts().items() if name not in SMALL}
    below: dict[str, set[str]] = {}
    for name in graphlib.TopologicalSorter(arrows).static_order():
        below[name] = arrows[name].union(*(below[other] for other in arrows[name]))
    lines = ["```mermaid", "graph TD"]
    for name in sorted(arrows):
        direct = {other for other in arrows[name] if not any(other in below[between] for between in arrows[name])}
        lines += [f"    {name} --> {other}" for other in sorted(direct)]
    return "\n".join([*lines, "```"]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"write the graph into {PAGE.relative_to(ROOT)}")
    if not parser.parse_args().write:
        print(graph(), end="")
        return
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(before + BEGIN + graph() + END + rest.partition(END)[2], encoding="utf-8")


if __name__ == "__main__":
    main()
