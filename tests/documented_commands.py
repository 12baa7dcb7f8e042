"""Finds the commands in the documentation: in Markdown, in docstrings of configs and jobs, and in notebooks.

Commands that need other programs cannot be checked. They are marked in the text, invisibly for a reader of the rendered page:

    <!-- needs: Docker -->      in Markdown, on a line of its own before the block or paragraph
    # needs: the network       at the end of a line of a docstring or notebook
"""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import shlex
from pathlib import Path

PROGRAMS = (
    "python", "python3", "pip", "stepreward", "bash", "sh", "pytest", "cd", "git", "docker", "kubectl", "gcloud", "curl", "wget", "srun",
    "sbatch", "sed", "tmux", "sky", "xpk", "ray", "conda", "uv", "transformers", "export", "source", "make",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
      where: file and line.
      text: as it stands there, on one line.
      words: its words, without comments, variables set before it and what runs it elsewhere.
      needs: what it is marked to need, or "".
    """

    where: str
    text: str
    words: tuple[str, ...]
    needs: str

    @property
    def program(self) -> str:
        return self.words[0]


def in_repository(root: Path) -> list[Command]:
    """Every command that the repository documents."""
    found = []
    for path in sorted(root.rglob("*.md")):
        name = path.relative_to(root).as_posix()
        if not any(part.startswith(".") or part in ("runs", "shared", "node_modules") for part in Path(name).parts):
            found += in_markdown(path.read_text(encoding="utf-8"), name)
    for folder in ("configs", "launch", "benchmarks", "experiments", "stepreward", "envs"):
        for path in sorted((root / folder).rglob("*.py")):
            name, text = path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")
            found += in_block((ast.get_docstring(ast.parse(text), clean=False) or "").split("\n"), name, 0, indented=True)
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        for index, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
            text, name = "".join(cell["source"]), f"notebooks/{path.name}, cell {index}"
            if cell["cell_type"] == "markdown":
                found += in_markdown(text, name)
            else:
                lines = [line.strip()[1:] for line in text.split("\n") if re.match(r"\s*[!%](?!%)", line)]
                found += in_block(lines, name, 0)
    return found


def in_markdown(text: str, name: str) -> list[Command]:
    """The commands of fenced and indented blocks and of inline code; a mark holds for the block or paragraph below it."""
    found, lines, index, needs = [], text.split("\n"), 0, ""
    while index < len(lines):
        start, line = index, lines[index]
        index += 1
        marker = re.fullmatch(r"<!-- needs: (.*?) -->", line.strip())
        if marker:
            needs = marker[1]
            continue
        if not line.strip():
            continue
        if line.lstrip().startswith("```"):
            while index < len(lines) and lines[index].strip() != "```":
                index += 1
            language = line.strip()[3:]
            if language in ("", "sh", "bash", "shell", "console"):
                found += in_block(lines[start + 1 : index], name, start + 1, needs, all_lines=language != "")
            index += 1
        else:
            indented = line.startswith("    ")
            ends = lambda line: not line.strip() or line.lstrip().startswith(("```", "<!--")) or line.startswith("    ") != indented
            while index < len(lines) and not ends(lines[index]):
                index += 1
            paragraph = "\n".join(lines[start:index])
            if indented:
                found += in_block(lines[start:index], name, start, needs)
            for code in re.finditer(r"(?<!`)`([^`]+)`(?!`)", paragraph):  # in an indented part too: it may belong to a list
                number = start + paragraph[: code.start()].count("\n")
                found += in_block([code[1].replace("\n", " ")], name, number, needs, inline=True)
        needs = ""
    return found


def in_block(lines, name: str, start: int, needs: str = "", *, indented: bool = False, inline: bool = False, all_lines: bool = False):
    """The commands of some lines; of docstrings only the indented ones."""
    found, joined, first = [], "", 0
    for number, line in enumerate(lines, start + 1):
        if indented and not joined and not line.startswith("    "):
            continue
        first = first if joined else number
        joined += line.strip()
        if joined.endswith("\\"):
            joined = joined.rstrip("\\").rstrip() + " "
            continue
        text, joined = joined, ""
        own = re.search(r"\s+# needs: (.*)$", text)
        for part in _parts(text):
            words = _words(part)
            if inline and len(words) < 2:
                continue
            if words and re.fullmatch(r"(?:launch|benchmarks|experiments)/\w+\.py", words[0]) and len(words) > 1:
                words = ["python", *words]
            if words and (words[0] in PROGRAMS or (all_lines and not words[0].startswith("-"))):
                found.append(Command(f"{name}:{first}", part.strip(), tuple(words), own[1] if own else needs))
    return found


def _parts(text: str) -> list[str]:
    """A line's commands: what && and | join, where they stand outside quotes; the command that another one runs, too."""
    text = re.sub(r"\[(--[^\[\]]*|-- [^\[\]]*)\]", _optional, text)
    parts, quote, last = [], "", 0
    for index, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter == "#" and (index == 0 or text[index - 1] == " "):
            text = text[:index]
            break
        elif text[index : index + 2] == "&&" or text[index : index + 3] == " | ":
            parts.append(text[last:index])
            last = index + (2 if letter == "&" else 3)
    parts.append(text[last:])
    for part in list(parts):
        inner = re.search(r'--command="(.*)"?', part) or re.match(r"\s*(?:srun|docker run)\b.*?(python3? .*)", part)
        if inner:
            parts += _parts(inner[1].rstrip('"'))
    return [part for part in parts if part.strip()]


def _optional(found: re.Match) -> str:
    """What usage puts in brackets, as it would be given; the first of several values."""
    inside = found[1]
    return "" if "KEY=VALUE" in inside else re.sub(r"=([\w-]+)\|[\w|-]+", r"=\1", inside)


def _words(part: str) -> list[str]:
    try:
        words = shlex.split(part, comments=True)
    except ValueError:
        return []
    words = [word for word in words if word != "…"]
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):  # variables
        words = words[1:]
    if words and re.fullmatch(r"\S+/bin/(?:python3?|pip)", words[0]):
        words[0] = words[0].rsplit("/", 1)[1]
    return [one for word in words for one in _braces(word)]


def _braces(word: str) -> list[str]:
    """`a{b,c}` as the shell expands it."""
    found = re.fullmatch(r"([^{}]*)\{([^{}]*,[^{}]*)\}([^{}]*)", word)
    return [found[1] + middle + found[3] for middle in found[2].split(",")] if found else [word]
