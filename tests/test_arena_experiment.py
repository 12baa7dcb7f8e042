"""The command that runs the arena: it resumes from its files, and writes the page."""

import importlib
import itertools

import pytest


@pytest.fixture
def arena(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "experiments"))
    return importlib.import_module("arena")


def fill(learning, names, chosen, arena):
    """Rows of runs that did not happen: the second arm is better on the first task, and worse on the others."""
    for (place, name), task in itertools.product(enumerate(names), chosen):
        mean = 0.5 + (0.1 * place if task == chosen[0] else -0.1 * place)
        found = dict(
            rate=0.1,
            mean=mean,
            half_width=0.02,
            end=0.9,
            steps_to=100.0 * (1 + place),
            reached=1.0,
            collapsed=0.0,
            steps=900.0,
            seconds=1.0,
        )
        learning.add(task=task, arm=name, **found)


def test_a_table_is_read_back(arena, tmp_path):
    table = arena.Table(tmp_path / "a.csv", ("task", "arm", "mean"), 2)
    table.add(task="x", arm="istar (paper, synchronised)", mean=0.25)
    again = arena.Table(tmp_path / "a.csv", ("task", "arm", "mean"), 2)
    assert again.value("x", "istar (paper, synchronised)", of="mean") == 0.25
    assert again.value("x", "other", of="mean") != again.value("x", "other", of="mean")  # NaN


def test_the_page_is_written_from_the_rows(arena, monkeypatch, tmp_path):
    names, chosen = ["rloo", "gigpo"], ["bandit", "lock"]
    learning, quality = arena.Table(tmp_path / "l.csv", arena.LEARNING, 2), arena.Table(tmp_path / "q.csv", arena.CREDIT, 3)
    implicit = arena.Table(tmp_path / "i.csv", arena.IMPLICIT, 1)
    fill(learning, names, chosen, arena)
    for task in chosen:
        implicit.add(task=task, **dict.fromkeys(arena.IMPLICIT[1:], 1.0))
    parts = ("tasks", "success", "details", "credit", "noisy", "implicit")
    page = tmp_path / "arena.md"
    page.write_text("# Title\n" + "".join(f"<!-- {name} -->\nold {name}\n<!-- end of {name} -->\nprose\n" for name in parts))
    monkeypatch.setattr(arena, "PAGE", page)
    monkeypatch.setattr(arena, "DATA", tmp_path / "data")
    monkeypatch.setattr(arena, "PICTURE", tmp_path / "images" / "arena.png")
    for _ in range(2):  # writing twice changes nothing
        arena.write(learning, quality, implicit, names, chosen)
    text = page.read_text()
    assert "old" not in text and text.count("prose") == len(parts) and text.count("<!-- tasks -->") == 1
    assert "| rloo | 0.500 | 0.50 ± 0.02 | 0.50 ± 0.02 |" in text and "| gigpo | 0.500 | 0.60 ± 0.02 | 0.40 ± 0.02 |" in text
    assert "| gigpo | 1 / 1 | 2.00 × | 0% | 0% | 1.00 × | 0.1 | – |" in text
    assert (tmp_path / "data" / "l.csv").exists() and (tmp_path / "images" / "arena.png").stat().st_size > 1000
