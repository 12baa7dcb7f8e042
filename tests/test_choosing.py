"""Lookup of environments, presets and settings by name, and the one-line errors for unknown names."""

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from stepreward.envs import sokoban
from stepreward.envs.choosing import choose, environment_module, replaced, settings_of


@dataclasses.dataclass(frozen=True)
class Settings:
    width: int = 3
    share: float = 0.5
    shown: bool = False
    title: str = ""
    data: str | None = None
    kinds: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()
    more: Mapping[str, int] | None = None


@dataclasses.dataclass(frozen=True)
class Told:
    """The same fields with string types, as in a module with `from __future__ import annotations`."""

    width: "int" = 3
    share: "float" = 0.5
    shown: "bool" = False
    title: "str" = ""
    data: "str | None" = None
    kinds: "tuple[str, ...]" = ()
    sizes: "tuple[int, ...]" = ()
    more: "Mapping[str, int] | None" = None


@pytest.mark.parametrize("name", ["sokoban", "envs.sokoban", "stepreward.envs.sokoban"])
def test_a_built_in_environment_under_each_of_its_names(name):
    assert environment_module(name) is sokoban


@pytest.mark.parametrize("name, hint", [("sokobann", r" \(did you mean 'sokoban'\?\)"), ("zzz", "")])
def test_an_unknown_environment_lists_those_there_are_and_the_nearest(name, hint):
    message = rf"environment.name='{name}' is unknown{hint}; give one of adapters, .*sokoban.*webshop, or a module that Python can import$"
    with pytest.raises(ValueError, match=message):
        environment_module(name)


def test_a_module_that_lacks_an_import_of_its_own_says_which(tmp_path, monkeypatch):
    (tmp_path / "my_broken_game.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
        environment_module("my_broken_game")


def test_choices_by_name():
    assert choose("Sokoban preset", "b", {"a": 1, "b": 2}) == 2
    with pytest.raises(ValueError, match="^unknown Sokoban preset 'c'; the presets are a, b$"):
        choose("Sokoban preset", "c", {"a": 1, "b": 2})


@pytest.mark.parametrize("overrides, hint", [({"widht": 4}, "; did you mean 'width'[?]"), ({"qqq": 4}, "")])
def test_an_unknown_setting_lists_those_there_are_and_the_nearest(overrides, hint):
    listed = "width, share, shown, title, data, kinds, sizes, more"
    with pytest.raises(ValueError, match=f"^unknown Game setting {next(iter(overrides))}; the settings are {listed}{hint}$"):
        settings_of("Game", {"small": Settings()}, "small", overrides)


@pytest.mark.parametrize(
    "name, good, bad",
    [
        ("width", (0, -1), (1.0, "3", None, True)),
        ("share", (0.25, 1), ("0.5", None, True)),
        ("shown", (True, False), (1, 0, None, "yes")),
        ("title", ("", "x", Path("x")), (1, None, True)),
        ("data", (None, "x", Path("x")), (1, False)),
        ("kinds", ((), ("a",), ["a", "b"]), ("a", (1,), None)),
        ("sizes", ((), (1, 2)), (1, "ab", None)),
        ("more", (None, {"a": 1}), ((), 1, "a")),
    ],
)
@pytest.mark.parametrize("settings", [Settings(), Told()])
def test_settings_have_values_of_their_type(settings, name, good, bad):
    for value in good:
        assert getattr(replaced(settings, {name: value}), name) == value
    for value in bad:
        with pytest.raises(ValueError, match=rf"^setting {name}={re.escape(repr(value))}: give a value of type [a-zM]+"):
            replaced(settings, {name: value})


def test_a_path_counts_as_text():
    assert isinstance(replaced(Settings(), {"data": Path("x")}).data, os.PathLike)
