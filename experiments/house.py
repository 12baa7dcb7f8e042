"""Draws the house from its imports: which part of the library uses which, as a Mermaid graph.

    python experiments/house.py            # prints the graph
    python experiments/house.py --write    # puts it into docs/architecture.md

A part is a folder of stepreward/, or a module beside them. An arrow means "imports"; one that follows from others is left out, and so
are the parts that nearly everything uses (SMALL).
"""

from __future__ import annotations

import argparse
import ast
import graphlib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- the house: python experiments/house.py --write -->\n", "<!-- end of the house -->\n"
SMALL = frozenset({"errors", "text", "processes", "parallel", "metrics", "config", "programs", "envs"})


def modules(top: str = "stepreward") -> dict[str, Path]:
    """The file of each module of a package, by its dotted name."""
    found = {}
    for file in sorted((ROOT / top).rglob("*.py")):
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = file
    return found


def imports() -> dict[str, set[str]]:
    """What each module of the library imports of it, imports inside functions included."""
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
    """The part of the house that a module belongs to."""
    return module.split(".")[1] if "." in module else module


def parts() -> dict[str, set[str]]:
    """Which other parts each part imports."""
    found: dict[str, set[str]] = {}
    for module, others in imports().items():
        found.setdefault(part(module), set()).update(part(other) for other in others)
    return {name: others - {name, "stepreward"} for name, others in found.items() if name != "stepreward"}


def graph() -> str:
    """The graph, as text that Mermaid draws."""
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
    parser.add_argument("--write", action="store_true", help=f"put the graph into {PAGE.relative_to(ROOT)}")
    if not parser.parse_args().write:
        print(graph(), end="")
        return
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(before + BEGIN + graph() + END + rest.partition(END)[2], encoding="utf-8")


if __name__ == "__main__":
    main()
