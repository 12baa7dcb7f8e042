"""Translated games on disk: the games are the same, each is translated once, and a bad file is never an error."""

import os
import sys

import pytest

pytest.importorskip("textworld")
pytest.importorskip("alfworld")

import alfworld.info
import fast_downward

from stepreward.envs import alfworld as env
from stepreward.envs.alfworld import speed, translations
from stepreward.envs.alfworld.generate import generate, write

ALL = env.settings("tiny", task_types=env.TASK_TYPES)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two games in the official layout, with the translations stored beside them."""
    monkeypatch.setattr(alfworld.info, "ALFWORLD_DATA", str(tmp_path / "cache"))
    for seed in (0, 3):
        write(generate(ALL, seed), tmp_path / "json_2.1.1")
    return tmp_path


@pytest.fixture
def translated(monkeypatch):
    """A function that returns the problems translated since its last call, and clears the caches of the process."""
    speed.uninstall()
    original, problems = fast_downward.pddl2sas, []

    def translate(domain, problem, *args, **options):
        problems.append(problem)
        return original(domain, problem, *args, **options)

    monkeypatch.setattr(fast_downward, "pddl2sas", translate)

    def since():
        speed.uninstall()
        speed.install()
        found = list(problems)
        problems.clear()
        return found

    since()
    yield since
    speed.uninstall()
    monkeypatch.undo()
    speed.install()


def play(data, seed):
    """Plays the oracle's actions, with a `look` before each; returns all results."""
    environment = env.make("istar", data=str(data) if data else None, expert="oracle")()
    told = [environment.reset(seed=seed)]
    for action in environment.expert():
        told.append(environment.step("look"))
        told.append(environment.step(action))
    environment.close()
    return told


def kept(folder):
    found = folder / "cache" / "translations"
    return sorted(found.iterdir()) if found.exists() else []


def test_a_game_is_translated_once_and_plays_the_same(folder, translated):
    first = [play(folder, seed) for seed in (0, 1)]
    assert len(translated()) == 2 and len(kept(folder)) == 2
    assert all(told[-1][2] for told in first)  # solved
    arguments = list(sys.argv)
    assert [play(folder, seed) for seed in (0, 1)] == first
    assert translated() == [] and sys.argv == arguments


def test_damaged_and_half_written_files_are_translated_again(folder, translated):
    first = [play(folder, seed) for seed in (0, 1)]
    translated()
    empty, cut = kept(folder)
    empty.write_bytes(b"")
    cut.write_bytes(cut.read_bytes()[:100])
    assert [play(folder, seed) for seed in (0, 1)] == first
    assert len(translated()) == 2
    assert [play(folder, seed) for seed in (0, 1)] == first and translated() == []


def test_a_folder_that_cannot_be_written_costs_only_time(folder, translated):
    (folder / "cache").write_text("a file where the folder should be")
    first = play(folder, 0)
    assert len(translated()) == 1
    assert play(folder, 0) == first and len(translated()) == 1


def test_a_full_disk_leaves_nothing_behind(folder, translated, monkeypatch):
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    play(folder, 0)
    assert kept(folder) == [] and len(translated()) == 1


def test_generated_games_are_not_kept(folder, translated):
    play(None, 5)
    assert len(translated()) == 1 and kept(folder) == []


def test_names_tell_problems_and_domains_apart(folder):
    texts = [("domain", "problem"), ("domain", "problem 2"), ("domainproblem", ""), ("domain 2", "problem")]
    for domain, problem in texts:
        translations.write(domain, problem, f"{domain}|{problem}")
    assert [translations.read(*pair) for pair in texts] == ["|".join(pair) for pair in texts]
    assert translations.read("another", "problem") is None
