"""What the site does to the pages of docs/, which are also read on GitHub.

* Links that leave docs/ become links to the repository; the file must exist.
* The changelog and the guide for contributors are pages of the site too.
* The module graph, a Mermaid diagram on GitHub, becomes a table: the site loads no script from elsewhere, and Mermaid is one.
* Commands that need something are marked in the text by invisible comments; nothing is done to those.
"""

from __future__ import annotations

import logging
import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

_log = logging.getLogger("mkdocs.hooks.stepreward")
ROOT = Path(__file__).resolve().parent.parent
REPOSITORY = "https://github.com/stepreward/stepreward"
FROM_ROOT = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}  # page of the site → file of the repository
LINK = re.compile(r"(!?\[[^\]]*\]\()((?!https?:|mailto:|#|/)[^)\s#]+)(#[^)\s]*)?(\))")
FENCE = re.compile(r"(^```.*?^```[^\n]*$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
MERMAID = re.compile(r"^```mermaid\ngraph TD\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def on_files(files, config):
    """Adds the pages that stand in the root of the repository."""
    for page, source in FROM_ROOT.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Rewrites links that leave docs/, and the module graph."""
    source = FROM_ROOT.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    markdown = MERMAID.sub(lambda found: table_of_imports(found[1]), markdown)
    parts = FENCE.split(markdown)  # code stands at the odd places
    parts[::2] = [LINK.sub(lambda found: _link(found, source, page), part) for part in parts[::2]]
    return "".join(parts)


def _link(found: re.Match, source: str, page) -> str:
    before, target, anchor, after = found[1], found[2], found[3] or "", found[4]
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    for name, original in FROM_ROOT.items():
        if path == original:
            path = f"docs/{name}"
    if path.startswith("docs/"):
        here = posixpath.dirname(f"docs/{page.file.src_uri}")
        return f"{before}{posixpath.relpath(path, here)}{anchor}{after}"
    if not (ROOT / path).exists():
        _log.warning("%s links to %s, which is not in the repository", source, target)
    kind = "tree" if (ROOT / path).is_dir() else "blob"
    return f"{before}{REPOSITORY}/{kind}/main/{path}{anchor}{after}"


def table_of_imports(graph: str) -> str:
    """The edges `a --> b` of a graph as a table, one row for each module that imports others."""
    imports: dict[str, list[str]] = {}
    for lower, upper in re.findall(r"(\w+) --> (\w+)", graph):
        imports.setdefault(lower, []).append(upper)
    rows = [f"| `{name}` | {', '.join(f'`{other}`' for other in others)} |" for name, others in sorted(imports.items())]
    return "\n".join(["| part | imports |", "|---|---|", *rows])
