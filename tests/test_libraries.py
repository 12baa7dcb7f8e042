"""docs/libraries.md is true: its files exist and are about as long as it says, and nothing that it says is used is missing."""

import re

import pytest


def rows(root):
    lines = (root / "docs" / "libraries.md").read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return [row for row in cells if row[0] != "what"]


def test_files_and_lengths(root):
    found = rows(root)
    assert len(found) > 20 and all(len(row) == 5 and all(row) for row in found)
    for what, files, told, *_ in found:
        paths = [path for name in re.findall(r"`([^`]+)`", files) for path in root.glob(name)]
        assert paths, f"{what}: there is no {files}"
        lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)
        assert int(told) == pytest.approx(lines, rel=0.25), (
            f"{what}: {lines} lines, not {told}: write the new number into docs/libraries.md"
        )
